"""Run a command as N processes on this machine, and restart all of them when one fails.

See launch/README.md.
"""

import argparse
import contextlib
import ctypes
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

BAD_INPUT = 2  # Never retried.
PEER_LOST = 75  # A consequence, reported only if no cause is known.
STOPPED = 128 + signal.SIGTERM, 128 + signal.SIGKILL
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LIBC, LAUNCHER = ctypes.CDLL(None), os.getpid()

Processes = list[subprocess.Popen[bytes]]


def run(options: argparse.Namespace, variables: list[dict[str, str]]) -> int:
    """Runs the command until it succeeds, is stopped, or has no restarts left; returns its code."""
    signals: list[int] = []  # To pass on, in the order of arrival.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: signals.append(number))
    restarts, limit = 0, options.restarts
    while (code := run_once(options, variables, signals)) not in (0, BAD_INPUT) and not signals:
        if restarts == limit:
            say(f"exit code {code}, restarts used up ({limit})")
            break
        restarts += 1
        say(f"exit code {code}: all {len(variables)} start again ({restarts} of {limit})")
        time.sleep(1)
        if signals:
            return 128 + signals[0]
    return code


def run_once(
    options: argparse.Namespace, variables: list[dict[str, str]], signals: list[int]
) -> int:
    """Runs all processes once; none survives."""
    # A connection of the last attempt may still hold its port.
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    common = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(variables))}
    processes: Processes = []
    printers: list[threading.Thread] = []
    try:
        for number, own in enumerate(variables):
            process = subprocess.Popen(
                options.command,
                env=os.environ | common | own | {"JAX_PROCESS_ID": str(number)},
                stdin=subprocess.DEVNULL,
                # Process 0 prints the result (--json).
                stdout=subprocess.PIPE if number else None,
                stderr=subprocess.STDOUT if number else subprocess.PIPE,
                start_new_session=True,
                preexec_fn=stop_with_launcher,
            )
            processes.append(process)
        for number, process in enumerate(processes):
            arguments = number, process.stdout or process.stderr
            printers.append(threading.Thread(target=print_lines, args=arguments, daemon=True))
        # After the last fork: a child may inherit a held lock.
        for printer in printers:
            printer.start()
        return wait(processes, signals, options.grace)
    except OSError as error:
        say(f"{options.command[0]} cannot be started: {error.strerror}")
        return BAD_INPUT
    finally:
        for process in processes:
            # macOS raises PermissionError if the group is empty.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for printer in printers:
            printer.join(timeout=5)


def wait(processes: Processes, signals: list[int], grace: float) -> int:
    """Waits for all processes; after a failure the others have ``grace`` seconds."""
    passed, code, deadline = 0, 0, math.inf
    while running := [process for process in processes if process.poll() is None]:
        for number in signals[passed:]:
            name = signal.Signals(number).name
            say(f"{name}: passed on, waiting until all have saved (Ctrl-C again kills)")
            send(running, number)
        passed = len(signals)
        if signals[1:].count(signal.SIGINT):
            return code or 128 + signal.SIGKILL
        if not code:
            code, first = failure(processes)
            if code:
                deadline = time.monotonic() + grace
            if code and not signals:
                say(f"process {first} ended with exit code {code}; the others have {grace:g} s")
                send(running, signal.SIGTERM)
        if time.monotonic() > deadline:
            say("some did not leave: killed")
            break
        time.sleep(0.1)
    if code == PEER_LOST:
        # The cause may end after a process that noticed its loss.
        code, _ = failure(processes, STOPPED)
    return code or failure(processes)[0]


def failure(processes: Processes, ignored: tuple[int, ...] = ()) -> tuple[int, int]:
    """Returns the most informative exit code and the number of its process; 0: none failed."""
    codes = [128 - code if (code := process.returncode or 0) < 0 else code for process in processes]
    failed = [(code, number) for number, code in enumerate(codes) if code not in (0, *ignored)]
    return min(failed, key=lambda end: (end[0] != BAD_INPUT, end[0] == PEER_LOST), default=(0, 0))


def send(running: Processes, number: int) -> None:
    # Not to their groups: each process ends its own data readers.
    for process in running:
        process.send_signal(number)


def stop_with_launcher() -> None:
    """Makes Linux send SIGTERM to this process when its launcher is gone."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != LAUNCHER:
        os._exit(128 + signal.SIGTERM)


def print_lines(number: int, stream: IO[bytes]) -> None:
    for line in stream:
        # One write per line, so that lines do not mix.
        text = f"[{number}] {line.decode(errors='replace').rstrip()}\n"
        print(text, end="", file=sys.stderr, flush=True)


def visible_gpus() -> list[str]:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # -1 names no device.
        return [name for name in visible.split(",") if name not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(i) for i in range(f"\n{listed}".count("\nGPU "))]


def say(message: str) -> None:
    print(f"local.py: {message}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options] -- resnet-jax train FILE.py:FUNCTION --workdir DIR",
        description=__doc__,
    )
    add = parser.add_argument
    add("--processes", type=int, required=True)
    add("--devices-per-process", type=int, help="virtual CPU devices; default: shares of the GPUs")
    add("--restarts", type=int, default=3, help="after failures; default %(default)s")
    add("--grace", type=float, default=30, help="seconds after a failure; default %(default)s")
    add("command", nargs="+", help="after --")
    options = parser.parse_args()
    count = options.processes
    least = {"processes": 1, "devices_per_process": 1, "restarts": 0, "grace": 0}
    for name, minimum in least.items():
        value = getattr(options, name)
        if value is not None and not value >= minimum:  # Also rejects NaN.
            parser.error(f"--{name.replace('_', '-')} must be at least {minimum}, got {value}")
    if options.devices_per_process:
        flags = os.environ.get("XLA_FLAGS", "")
        flags += f" --xla_force_host_platform_device_count={options.devices_per_process}"
        variables = [{"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}] * count
    else:
        gpus = visible_gpus()
        share, rest = divmod(len(gpus), count)
        if rest:
            parser.error(
                f"{len(gpus)} GPUs cannot be split over {count} processes. "
                "Choose them by CUDA_VISIBLE_DEVICES=0,1,..."
            )
        shares = [",".join(gpus[i * share : (i + 1) * share]) for i in range(count)]
        variables = [{"CUDA_VISIBLE_DEVICES": own} if own else {} for own in shares]
    raise SystemExit(run(options, variables))


if __name__ == "__main__":
    main()
