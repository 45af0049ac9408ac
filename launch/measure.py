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
    """A script of ``benchmarks/`` or a study, with a time limit, and copies that run at once."""

    name: str
    seconds: int
    command: str
    copies: int = 1


_CIFAR = "step --dtype bfloat16 --calls 5 --rounds 5 --networks cifar_resnet"
_RESNET50 = "step --dtype bfloat16 --networks resnet50_v15 --batch-sizes 256 --steps 20 --rounds 5"
_RECIPE = "run --dtype bfloat16 --steps 64000 --experiment he2015_cifar10:resnet"
# XLA's default, a graph per step, and graphs whose independent kernels run at once.
_DEFAULT = (
    "xla_gpu_enable_command_buffer="
    "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,DYNAMIC_SLICE_FUSION"
)
_PER_STEP = f"{_DEFAULT},CONVOLUTION"
_CONCURRENT = "xla_gpu_command_buffer_scheduling_mode=CONCURRENT"
_VARIANTS = f"--variants kernels=plain {_DEFAULT} {_PER_STEP}"
STAGES = (
    # 570 s, for one call.
    Stage("resnet20", 90, f"{_CIFAR}20 --peers --trace"),
    Stage("resnet20-variants", 180, f"{_CIFAR}20 --peers {_VARIANTS} {_CONCURRENT}"),
    Stage("resnet50", 190, f"{_RESNET50} --peers torchvision --forms compile --trace"),
    Stage("resnet50-variants", 110, f"{_RESNET50} --peers --variants kernels=plain {_DEFAULT}"),
    # 200 s, for the next.
    Stage("resnet50-batch-512", 70, f"{_RESNET50} --batch-sizes 512 --peers"),
    Stage("resnet20-four-processes", 60, f"{_CIFAR}20 --peers", copies=4),
    Stage("resnet56-resnet110", 70, f"{_CIFAR}56 cifar_resnet110 --peers"),
    # With CIFAR-10, and more time.
    Stage("recipe-resnet20", 300, f"{_RECIPE}20"),
    Stage(
        "table1-resnet20", 600, "study he2016_shortcuts:table1 --depth 20 --steps 4000 --seeds 1"
    ),
    Stage("recipe-resnet20-seeds", 600, f"{_RECIPE}20 --seed {{copy}}", copies=4),
    # The rest of He et al. 2015, Table 6.
    *(
        Stage(f"recipe-resnet{depth}", 15 * depth, f"{_RECIPE}{depth}")
        for depth in (56, 110, 32, 44)
    ),
    Stage("cifar-peers", 300, f"{_CIFAR}20 cifar_resnet56 cifar_resnet110"),
    Stage("resnet50-peers", 600, f"{_RESNET50} --batch-sizes 128 256 512"),
    Stage("input", 300, "input"),
)
# The last of repeated options counts.
TINY = {
    "step": "--networks cifar_resnet8 --size 8 --batch-sizes 2 --steps 2 --calls 1 --rounds 1",
    "run": "--experiment degradation:resnet20 --steps 8",
    "study": "--data digits --steps 2 --depth 8 --only original",
    "input": "--data digits --size 8 --images 4 --batch-size 2 --rounds 1",
}
_STUDY = """
"$0" -m resnet_jax.cli study "${@:3}" --workdir "$1" &&
"$0" -m resnet_jax.cli report "$1" --save "$2"
"""


def run(stage: Stage, folder: Path) -> str:
    """Runs a stage and returns how it ended."""
    variables = {
        # Equal algorithms in all stages.
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {_AUTOTUNING}={folder}/autotuning",
        # Room for torch and for other copies.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    start, processes = time.monotonic(), []
    with (folder / f"{stage.name}.log").open("w") as log:
        for copy, result in enumerate(results(stage, folder)):
            script, *words = stage.command.format(copy=copy).split()
            command = [sys.executable, f"{BENCHMARKS}/{script}.py", *words, "--output", str(result)]
            if script == "study":
                runs = str(result.with_suffix(""))
                command = ["bash", "-c", _STUDY, sys.executable, runs, str(result), *words]
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
    parser.add_argument("--only", nargs="+", metavar="NAME", help="stages, by default all")
    parser.add_argument("--tiny", action="store_true", help="try the script on a small network")
    options = parser.parse_args()
    folder, end = options.folder.absolute(), time.monotonic() + options.seconds
    (folder / "autotuning").mkdir(parents=True, exist_ok=True)
    stages = [stage for stage in STAGES if not options.only or stage.name in options.only]
    if unknown := set(options.only or ()) - {stage.name for stage in stages}:
        parser.error(f"no stage is called {', '.join(sorted(unknown))}")
    if options.tiny:
        stages = [
            stage._replace(command=f"{stage.command} {TINY[stage.command.split()[0]]}", copies=1)
            for stage in stages
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
