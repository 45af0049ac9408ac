"""Run a command as N processes on this machine, and restart all of them when one fails; see launch/README.md.

python launch/local.py --processes 2 -- resnet-jax train FILE.py:FUNCTION --workdir runs/two
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
from typing import IO, NoReturn

BAD_INPUT = 2  # Never retried.
PEER_LOST = 75  # A consequence, reported only if no cause is known.
POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>

Processes = Sequence[subprocess.Popen[bytes]]


def run(options: argparse.Namespace) -> int:
    """Runs the command until it succeeds, is stopped, or has no restarts left; returns the exit code."""
    signals: list[int] = []  # To pass on, in the order of arrival.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: signals.append(number))
    environments, code = _environments(options), 0
    for attempt in range(options.restarts + 1):
        code = _attempt(options, environments, signals)
        if code in (0, BAD_INPUT) or signals:
            return code
        if attempt < options.restarts:
            _say(
                f"exit code {code}: all {options.processes} start again ({attempt + 1} of {options.restarts} restarts)"
            )
            time.sleep(1)
            if signals:
                return 128 + signals[0]
    _say(f"exit code {code}, restarts used up ({options.restarts})")
    return code


def _attempt(
    options: argparse.Namespace, environments: Sequence[dict[str, str]], signals: Sequence[int]
) -> int:
    """Runs all processes once; none survives."""
    # A connection of the last attempt may still hold its port.
    address = f"127.0.0.1:{_free_port()}"
    started: list[subprocess.Popen[bytes]] = []
    printers: list[threading.Thread] = []
    try:
        for number, variables in enumerate(environments):
            joining = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(options.processes),
                "JAX_PROCESS_ID": str(number),
            }
            process = subprocess.Popen(
                options.command,
                env=os.environ | variables | joining,
                stdin=subprocess.DEVNULL,
                # Process 0 prints the result (--json).
                stdout=None if number == 0 else subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=_end_with_parent(os.getpid()),
            )
            started.append(process)
        # Threads start after the last fork: a child may inherit a held lock.
        streams = [
            (n, stream)
            for n, process in enumerate(started)
            for stream in (process.stdout, process.stderr)
            if stream
        ]
        printers = [_print_lines(number, stream) for number, stream in streams]
        return _watch(started, signals, options.grace)
    except OSError as error:
        _say(f"{options.command[0]} cannot be started: {error.strerror}")
        return BAD_INPUT
    finally:
        _kill(started)
        for printer in printers:
            printer.join(timeout=5)


def _watch(started: Processes, signals: Sequence[int], grace: float) -> int:
    """Waits for all processes; after a failure the others have ``grace`` seconds."""
    passed, until, code = 0, None, 0
    # A list polls every process.
    while running := [process for process in started if process.poll() is None]:
        for number in signals[passed:]:
            _say(
                f"{signal.Signals(number).name}: passed on, waiting until all have saved (Ctrl-C again kills)"
            )
            _signal(running, number)
        passed = len(signals)
        if signals[1:].count(signal.SIGINT):
            break
        if until is None and (code := _reason(started)):
            until = time.monotonic() + grace
            if not signals:
                first = next(i for i, process in enumerate(started) if _code(process) == code)
                _say(f"process {first} ended with exit code {code}; the others have {grace:g} s")
                _signal(running, signal.SIGTERM)
        if until is not None and time.monotonic() > until:
            _say("some did not leave: killed")
            break
        time.sleep(POLL_SECONDS)
    _kill(started)
    return code or _reason(started)


def _reason(started: Processes) -> int:
    """Returns the most informative exit code of failed processes; 0: none."""
    codes = [code for process in started if (code := _code(process))]
    return min(codes, key=lambda code: (code != BAD_INPUT, code == PEER_LOST), default=0)


def _code(process: subprocess.Popen[bytes]) -> int | None:
    """Returns the exit code, 128 + signal for a killed process."""
    code = process.returncode
    return 128 - code if code is not None and code < 0 else code


def _signal(running: Processes, number: int) -> None:
    # Not to their groups: each process ends its own data readers.
    for process in running:
        process.send_signal(number)


def _kill(started: Processes) -> None:
    for process in started:
        # macOS refuses if the group is empty.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _end_with_parent(parent: int) -> Callable[[], None] | None:
    """Makes Linux send SIGTERM to a process whose launcher is gone."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # Not in the forked child.

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    return prepare


def _print_lines(number: int, stream: IO[bytes]) -> threading.Thread:
    def copy() -> None:
        for line in stream:
            # One write per line, so that lines do not mix.
            sys.stderr.write(f"[{number}] {line.decode(errors='replace').rstrip()}\n")
            sys.stderr.flush()

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def _environments(options: argparse.Namespace) -> list[dict[str, str]]:
    """Returns the variables of each process: virtual devices, or its share of the GPUs."""
    count = options.processes
    if options.devices_per_process is not None:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.devices_per_process}".strip()
        return [{"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}] * count
    gpus = [] if os.environ.get("JAX_PLATFORMS") == "cpu" else _gpus()
    if not gpus:
        return [{}] * count
    if len(gpus) % count:
        _fail(
            f"{len(gpus)} GPUs cannot be split over {count} processes; choose them by CUDA_VISIBLE_DEVICES=0,1,..."
        )
    share = len(gpus) // count
    return [
        {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * share : (i + 1) * share])} for i in range(count)
    ]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return [
        str(i) for i in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))
    ]


def _free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return chosen.getsockname()[1]


def _say(message: str) -> None:
    print(f"local.py: {message}", file=sys.stderr, flush=True)


def _fail(message: str) -> NoReturn:
    _say(message)
    raise SystemExit(BAD_INPUT)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(
        description="Run a command as N processes on this machine.",
        usage="%(prog)s [options] -- COMMAND ...",
    )
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument(
        "--devices-per-process",
        type=int,
        help="virtual CPU devices of each; default: the machine's GPUs, shared equally",
    )
    parser.add_argument(
        "--restarts", type=int, default=3, help="after failures; default %(default)s"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=30,
        help="seconds to leave after one failed; default %(default)s",
    )
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args(arguments)
    for name, least in (
        ("processes", 1),
        ("devices_per_process", 1),
        ("restarts", 0),
        ("grace", 0),
    ):
        if (value := getattr(options, name)) is not None and value < least:
            _fail(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    raise SystemExit(run(options))


if __name__ == "__main__":
    main()
