"""Benchmarks of an accelerator, the most valuable first, within a number of seconds.

``FOLDER/NAME.json`` has the results of a stage, ``NAME.log`` its output. The same command continues
with the stages that have no result; those that failed come last. See launch/README.md.
"""

import argparse
import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

_AUTOTUNING = "--xla_gpu_per_fusion_autotune_cache_dir"
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


class Stage(NamedTuple):
    """A script of ``benchmarks/`` with its options, a time limit, and copies that run at once."""

    name: str
    seconds: int
    command: str
    copies: int = 1


_CIFAR = "step --dtype bfloat16 --calls 5 --rounds 5 --networks cifar_resnet"
_RESNET20 = f"{_CIFAR}20 --peers"
_RESNET50 = "step --dtype bfloat16 --networks resnet50_v15 --batch-sizes 256 --steps 20 --rounds 5"
# XLA's default, and convolutions.
_GRAPHS = (
    "--xla xla_gpu_enable_command_buffer FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,"
    "DYNAMIC_SLICE_FUSION,CONVOLUTION"
)
_CONCURRENT = "xla_gpu_command_buffer_scheduling_mode CONCURRENT"
STAGES = (
    # 570 s, for one call.
    Stage("resnet20", 90, f"{_RESNET20} --trace"),
    Stage("resnet20-graph-per-step", 60, f"{_RESNET20} {_GRAPHS}"),
    Stage("resnet20-graph-per-call", 60, f"{_RESNET20} {_GRAPHS},WHILE"),
    Stage("resnet20-concurrent", 60, f"{_RESNET20} {_GRAPHS},WHILE {_CONCURRENT}"),
    Stage("resnet50", 190, f"{_RESNET50} --peers torchvision --forms compile --trace"),
    Stage("resnet50-graph-per-step", 80, f"{_RESNET50} --peers {_GRAPHS}"),
    # 200 s, for the next.
    Stage("resnet50-batch-512", 70, f"{_RESNET50} --batch-sizes 512 --peers"),
    Stage("resnet20-four-processes", 60, _RESNET20, copies=4),
    Stage("resnet56-resnet110", 70, f"{_CIFAR}56 cifar_resnet110 --peers"),
    # With CIFAR-10, and more time.
    Stage("recipe-resnet20", 300, "run --dtype bfloat16 --steps 64000"),
    Stage("cifar-peers", 300, f"{_CIFAR}20 cifar_resnet56 cifar_resnet110"),
    Stage("resnet50-peers", 600, f"{_RESNET50} --batch-sizes 128 256 512"),
    Stage("input", 300, "input"),
)
# The last of repeated options counts.
TINY = {
    "step": "--networks cifar_resnet8 --size 8 --batch-sizes 2 --steps 2 --calls 1 --rounds 1",
    "run": "--experiment degradation:resnet20 --steps 8",
    "input": "--data digits --size 8 --images 4 --batch-size 2 --rounds 1",
}


def run(stage: Stage, folder: Path) -> str:
    """Runs a stage and returns how it ended."""
    script, *words = stage.command.split()
    variables = {
        # Equal algorithms in all stages.
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_AUTOTUNING}={folder}/autotuning",
        # Room for torch and for other copies.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    start, processes = time.monotonic(), []
    with (folder / f"{stage.name}.log").open("w") as log:
        for result in results(stage, folder):
            command = [sys.executable, f"{BENCHMARKS}/{script}.py", *words, "--output", str(result)]
            options = {"env": os.environ | variables, "stdout": log, "stderr": log}
            processes.append(subprocess.Popen(command, start_new_session=True, **options))
        try:
            for process in processes:
                process.wait(timeout=start + stage.seconds - time.monotonic())
        except subprocess.TimeoutExpired:
            return f"exceeded {stage.seconds} s"
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    for process in processes:
        if process.returncode:
            return f"exit code {process.returncode}"
    return f"done in {time.monotonic() - start:.0f} s"


def results(stage: Stage, folder: Path) -> list[Path]:
    numbers = [f"-{copy}" for copy in range(stage.copies)] if stage.copies > 1 else [""]
    return [folder / f"{stage.name}{number}.json" for number in numbers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all stages together")
    parser.add_argument("--tiny", action="store_true", help="try the script on a small network")
    options = parser.parse_args()
    folder, end = options.folder.absolute(), time.monotonic() + options.seconds
    (folder / "autotuning").mkdir(parents=True, exist_ok=True)
    stages = STAGES
    if options.tiny:
        stages = [
            stage._replace(command=f"{stage.command} {TINY[stage.command.split()[0]]}", copies=1)
            for stage in STAGES
        ]
    missing = [stage for stage in stages if not all(map(Path.exists, results(stage, folder)))]
    done = True
    for stage in sorted(missing, key=lambda stage: (folder / f"{stage.name}.log").exists()):
        outcome = f"takes up to {stage.seconds} s, which are not left"
        if time.monotonic() + stage.seconds <= end:
            outcome = run(stage, folder)
        print(f"{stage.name}: {outcome}", flush=True)
        done &= outcome.startswith("done")
    raise SystemExit(not done)


if __name__ == "__main__":
    main()
