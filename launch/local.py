"""Run a command as N processes on this machine, and restart all of them when one fails.

python launch/local.py --processes 2 -- resnet-jax train FILE.py:FUNCTION --workdir runs/two

See launch/README.md.
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
from typing import IO

BAD_INPUT = 2  # Never retried.
PEER_LOST = 75  # A consequence, reported only if no cause is known.
POLL_SECONDS = 0.1
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LIBC, LAUNCHER = ctypes.CDLL(None), os.getpid()

Processes = list[subprocess.Popen[bytes]]


def run(options: argparse.Namespace, variables: list[dict[str, str]]) -> int:
    """Runs the command until it succeeds, is stopped, or has no restarts left; returns its code."""
    signals: list[int] = []  # To pass on, in the order of arrival.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: signals.append(number))
    restarts = 0
    while True:
        code = run_once(options, variables, signals)
        if code in (0, BAD_INPUT) or signals:
            return code
        if restarts == options.restarts:
            say(f"exit code {code}, restarts used up ({restarts})")
            return code
        restarts += 1
        say(
            f"exit code {code}: all {len(variables)} start again ({restarts} of {options.restarts})"
        )
        time.sleep(1)
        if signals:
            return 128 + signals[0]


def run_once(
    options: argparse.Namespace, variables: list[dict[str, str]], signals: list[int]
) -> int:
    """Runs all processes once; none survives."""
    # A connection of the last attempt may still hold its port.
    common = {"JAX_COORDINATOR_ADDRESS": free_address(), "JAX_NUM_PROCESSES": str(len(variables))}
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
        # Threads start after the last fork: a child may inherit a held lock.
        for number, process in enumerate(processes):
            arguments = number, process.stdout or process.stderr
            printers.append(threading.Thread(target=print_lines, args=arguments, daemon=True))
            printers[-1].start()
        return wait(processes, signals, options.grace)
    except OSError as error:
        say(f"{options.command[0]} cannot be started: {error.strerror}")
        return BAD_INPUT
    finally:
        kill(processes)
        for printer in printers:
            printer.join(timeout=5)


def wait(processes: Processes, signals: list[int], grace: float) -> int:
    """Waits for all processes; after a failure the others have ``grace`` seconds."""
    passed, code, deadline = 0, 0, float("inf")
    while running := [process for process in processes if process.poll() is None]:
        for number in signals[passed:]:
            name = signal.Signals(number).name
            say(f"{name}: passed on, waiting until all have saved (Ctrl-C again kills)")
            send(running, number)
        passed = len(signals)
        if signals[1:].count(signal.SIGINT):
            break
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
        time.sleep(POLL_SECONDS)
    kill(processes)
    return code or failure(processes)[0]


def failure(processes: Processes) -> tuple[int, int]:
    """Returns the most informative exit code and the number of its process; 0: none failed."""
    codes = [
        (128 - code if code < 0 else code, number)
        for number, process in enumerate(processes)
        if (code := process.returncode)
    ]
    return min(codes, key=lambda end: (end[0] != BAD_INPUT, end[0] == PEER_LOST), default=(0, 0))


def send(running: Processes, number: int) -> None:
    # Not to their groups: each process ends its own data readers.
    for process in running:
        process.send_signal(number)


def kill(processes: Processes) -> None:
    for process in processes:
        # macOS refuses if the group is empty.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def stop_with_launcher() -> None:
    """Makes Linux send SIGTERM to this process when its launcher is gone."""
    if sys.platform == "linux":
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != LAUNCHER:
        os._exit(128 + signal.SIGTERM)


def print_lines(number: int, stream: IO[bytes]) -> None:
    for line in stream:
        # One write per line, so that lines do not mix.
        sys.stderr.write(f"[{number}] {line.decode(errors='replace').rstrip()}\n")
        sys.stderr.flush()


def visible_gpus() -> list[str]:
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name]
    if not shutil.which("nvidia-smi"):
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return [str(i) for i in range(f"\n{listed}".count("\nGPU "))]


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def say(message: str) -> None:
    print(f"local.py: {message}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Run a command as N processes on this machine.",
        usage="%(prog)s [options] -- COMMAND ...",
    )
    add = parser.add_argument
    add("--processes", type=int, required=True)
    add(
        "--devices-per-process", type=int, help="virtual CPU devices; default: equal shares of GPUs"
    )
    add("--restarts", type=int, default=3, help="after failures; default %(default)s")
    add("--grace", type=float, default=30, help="seconds after a failure; default %(default)s")
    add("command", nargs="+", help="after --")
    options = parser.parse_args()
    for name, least in {
        "processes": 1,
        "devices_per_process": 1,
        "restarts": 0,
        "grace": 0,
    }.items():
        if (value := getattr(options, name)) is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    count = options.processes
    if options.devices_per_process:
        flags = os.environ.get("XLA_FLAGS", "")
        flags += f" --xla_force_host_platform_device_count={options.devices_per_process}"
        raise SystemExit(run(options, [{"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}] * count))
    gpus = visible_gpus()
    if len(gpus) % count:
        parser.error(
            f"{len(gpus)} GPUs cannot be split over {count} processes. "
            "Choose them by CUDA_VISIBLE_DEVICES=0,1,..."
        )
    share = len(gpus) // count
    shares = [gpus[i * share : (i + 1) * share] for i in range(count)]
    variables = [{"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {} for own in shares]
    raise SystemExit(run(options, variables))


if __name__ == "__main__":
    main()
