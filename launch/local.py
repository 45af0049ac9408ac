"""Runs a command as N processes on this machine, and again when one of them is lost.

    python launch/local.py --processes 2 --devices-per-process 4 -- resnet-jax train FILE.py:FUNCTION --workdir runs/two

Every process is told where the others are (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID). launch/README.md says the rest.
"""

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO, NoReturn

BAD_INPUT = 2  # Of resnet-jax and of this file: said again, it stays bad.
PEER_LOST = 75  # Of resnet-jax: a consequence, and so never the reason that is reported where another is known.
LOOK_SECONDS = 0.1
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What was asked for."""

    command: tuple[str, ...]
    processes: int
    devices_per_process: int | None = None
    restarts: int = 3
    grace: float = 30


class Stop:
    """Requests to stop: SIGINT, SIGTERM and SIGUSR1 are remembered, to be handed on."""

    def __init__(self) -> None:
        self.signals: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signals.append(number)


def run(launch: Launch) -> int:
    """Runs the command until all its processes end with 0, bad input is reported, restarts are used up, or somebody asks to stop.

    Returns:
      0; the code of the process that failed first, 128 + signal for one that was killed; or of processes that were asked to stop.
    """
    stop, devices = Stop(), _environments(launch)
    for attempt in range(launch.restarts + 1):
        code = _attempt(launch, devices, stop)
        if code in (0, BAD_INPUT) or stop.signals:
            return code
        if attempt == launch.restarts:
            _say(f"exit code {code}, restarts used up ({launch.restarts})")
            return code
        _say(f"exit code {code}: all {launch.processes} start again ({attempt + 1} of {launch.restarts} restarts)")
        time.sleep(1)
        if stop.signals:
            return 128 + stop.signals[0]
    raise AssertionError("unreachable")


def _attempt(launch: Launch, devices: Sequence[dict[str, str]], stop: Stop) -> int:
    """All processes once, from start to end; nothing of them is left."""
    # Asked for anew each time: the one before may still be held by a connection that has not been forgotten.
    address = f"127.0.0.1:{_free_port()}"
    started: list[subprocess.Popen[bytes]] = []
    printers: list[threading.Thread] = []
    first = None
    try:
        for number, variables in enumerate(devices):
            joining = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(launch.processes), "JAX_PROCESS_ID": str(number)}
            started.append(
                subprocess.Popen(
                    launch.command,
                    env=os.environ | variables | joining,
                    stdin=subprocess.DEVNULL,
                    # The first speaks for all: what it prints (--json) can be read on as if it were alone.
                    stdout=None if number == 0 else subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    preexec_fn=_end_with_parent(os.getpid()),
                )
            )
        # After the last fork: a child forked beside running threads may wait for a lock that nobody opens.
        printers = [
            _print_lines(number, stream) for number, process in enumerate(started) for stream in (process.stdout, process.stderr) if stream
        ]
        first = _watch(started, stop, launch.grace)
    except OSError as error:
        _say(f"{launch.command[0]} cannot be started: {error.strerror}")
        first = BAD_INPUT
    finally:
        for process in started:
            _kill_group(process)
            process.wait()
        for printer in printers:
            printer.join(timeout=5)
    return first


def _watch(started: Sequence[subprocess.Popen[bytes]], stop: Stop, grace: float) -> int:
    """Waits for all; hands signals on; when one has failed or was stopped, the others have ``grace`` seconds to leave."""
    handed_on, until, code = 0, None, 0
    while _running(started):
        for number in stop.signals[handed_on:]:
            _say(f"{signal.Signals(number).name}: handed on, waiting until all have saved (Ctrl-C again ends them unsaved)")
            _signal(started, number)
        handed_on = len(stop.signals)
        if stop.signals[1:].count(signal.SIGINT):
            break
        if until is None and (code := _reason(started)):
            until = time.monotonic() + grace
            if not stop.signals:
                number = next(i for i, process in enumerate(started) if _code(process) == code)
                _say(f"process {number} ended with exit code {code}; the others have {grace:g} s")
                _signal(started, signal.SIGTERM)
        if until is not None and time.monotonic() > until:
            _say("some did not leave: killed")
            break
        time.sleep(LOOK_SECONDS)
    for process in started:
        _kill_group(process)
        process.wait()
    return code or _reason(started)


def _running(started: Sequence[subprocess.Popen[bytes]]) -> list[subprocess.Popen[bytes]]:
    """Those that have not ended; all are asked, so that every exit code is known."""
    return [process for process in started if process.poll() is None]


def _reason(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """The code that says why processes failed, of those that have ended: a consequence counts where nothing else is known."""
    codes = [code for process in started if (code := _code(process))]
    return min(codes, key=lambda code: (code != BAD_INPUT, code == PEER_LOST), default=0)


def _code(process: subprocess.Popen[bytes]) -> int | None:
    """Exit code as a shell says it: 128 + signal for a process that was killed."""
    return 128 - process.returncode if process.returncode is not None and process.returncode < 0 else process.returncode


def _signal(started: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    """To the processes alone, not to their groups: their readers of data end with them, in order."""
    for process in _running(started):
        process.send_signal(number)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # Nobody is left in it; macOS says so by refusing.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _end_with_parent(parent: int) -> Callable[[], None] | None:
    """Makes Linux send SIGTERM to a process whose launcher is gone, killed perhaps: it saves and leaves."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # Loaded here: a forked child should do as little as it can.

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    return prepare


def _print_lines(number: int, stream: IO[bytes]) -> threading.Thread:
    def copy() -> None:
        for line in stream:
            # One write a line: lines of several processes must not mix.
            sys.stderr.write(f"[{number}] {line.decode(errors='replace').rstrip()}\n")
            sys.stderr.flush()

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def _environments(launch: Launch) -> list[dict[str, str]]:
    """Variables that give each process its devices: virtual ones of the CPU, or its share of the GPUs."""
    if launch.devices_per_process is not None:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={launch.devices_per_process}".strip()
        return [{"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}] * launch.processes
    gpus = [] if os.environ.get("JAX_PLATFORMS") == "cpu" else _gpus()
    if not gpus:
        return [{}] * launch.processes
    if len(gpus) % launch.processes:
        _refuse(f"{len(gpus)} GPUs cannot be split over {launch.processes} processes; choose them by CUDA_VISIBLE_DEVICES=0,1,...")
    share = len(gpus) // launch.processes
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * share : (i + 1) * share])} for i in range(launch.processes)]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [str(i) for i in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))]


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


def _say(message: str) -> None:
    print(f"local.py: {message}", file=sys.stderr, flush=True)


def _refuse(message: str) -> NoReturn:
    _say(message)
    raise SystemExit(BAD_INPUT)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Run a command as N processes on this machine.", usage="%(prog)s [options] -- COMMAND ...")
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument("--devices-per-process", type=int, help="virtual CPU devices of each; not given: the machine's GPUs are shared out")
    parser.add_argument("--restarts", type=int, default=3, help="how often all start again after a failure; %(default)s where not given")
    parser.add_argument("--grace", type=float, default=30, help="seconds to leave after one failed; %(default)s where not given")
    parser.add_argument("command", nargs="+", help="after --")
    given = parser.parse_args(arguments)
    for name, least in (("processes", 1), ("devices_per_process", 1), ("restarts", 0), ("grace", 0)):
        if (value := getattr(given, name)) is not None and value < least:
            _refuse(f"--{name.replace('_', '-')} is {value}; give {least} or more")
    raise SystemExit(run(Launch(**{**vars(given), "command": tuple(given.command)})))


if __name__ == "__main__":
    main()
