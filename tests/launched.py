"""Runs of `resnet-jax train` in one or several processes, for tests that kill them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conftest import ROOT

# Generous: eight of these may share two cores.
PATIENCE = 300


@dataclass
class Run:
    """The processes of one attempt."""

    processes: list[subprocess.Popen[str]]

    def wait(self) -> list[tuple[int, str]]:
        """Returns exit code and stderr of each process."""
        ends = [process.communicate(timeout=PATIENCE) for process in self.processes]
        return [(process.returncode, err) for process, (_, err) in zip(self.processes, ends, strict=True)]

    def kill(self) -> None:
        """Kills all processes at once."""
        for process in self.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
        for process in self.processes:
            process.communicate(timeout=PATIENCE)

    def wait_until(self, reached: Callable[[], bool]) -> None:
        """Returns once ``reached()`` is true; fails if the run ends first, or after ``PATIENCE`` seconds."""
        end = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < end, "the run did not get there"
            ended = [process for process in self.processes if process.poll() is not None]
            assert not ended, ended[0].communicate()[1]
            time.sleep(0.01)


def newest(workdir: Path) -> int:
    """Step of the newest committed checkpoint, 0 without any."""
    return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()), default=0)


def free_address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def begin(words: Sequence[str], *, processes: int = 1, devices: int = 1, stdout: int = subprocess.DEVNULL) -> list[subprocess.Popen[str]]:
    """Starts a `resnet-jax` command in ``processes`` processes with ``devices`` devices each."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_cpu_collective_call_terminate_timeout_seconds=1200"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    address, begun = free_address(), []
    for process in range(processes):
        joining = ["--coordinator", address, "--processes", str(processes), "--process", str(process)] if processes > 1 else []
        command = [sys.executable, "-m", "resnet_jax.cli", *words, *joining]
        begun.append(subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT))
    return begun


def start(workdir: Path, data_dir: str, *more: str, processes: int = 1, devices: int = 1) -> Run:
    """Starts or continues a run."""
    words = ["train", "tests/tiny_experiment.py:tiny", "--workdir", str(workdir), "--data-dir", data_dir, *more]
    return Run(begin(words, processes=processes, devices=devices))


def finish(workdir: Path, data_dir: str, *more: str, **how: Any) -> dict[str, Any]:
    """Runs to the end and returns the result."""
    for code, stderr in start(workdir, data_dir, *more, **how).wait():
        assert code == 0, stderr
    return json.loads((workdir / "result.json").read_text())
