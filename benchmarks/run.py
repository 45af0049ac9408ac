"""Wall time of a whole training run: compilation, steps, evaluation and checkpoints."""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import harness
import jax

from resnet_jax.cli import options as options_lib
from resnet_jax.training.config import Experiment
from resnet_jax.training.train import train


@dataclass(frozen=True, kw_only=True)
class RunOptions(harness.Output):
    """Trains an experiment for --steps steps and extrapolates to all of its steps."""

    experiment: str = "experiments/he2015_cifar10.py:resnet20"
    steps: int = 2000
    data: str | None = None
    """Data set in place of the experiment's."""
    data_dir: str | None = None


class Clock:
    """A ``Progress`` that keeps the time of each record, by split and step."""

    def __init__(self) -> None:
        self.times: dict[str, dict[int, float]] = {}

    def start(self, step: int, steps: int) -> None: ...

    def advance(self, step: int) -> None: ...

    def say(self, message: str) -> None: ...

    def update(self, record: dict[str, Any]) -> None:
        self.times.setdefault(record["split"], {})[record["step"]] = time.perf_counter()


def measure(experiment: Experiment, steps: int, data_dir: str | None) -> dict[str, Any]:
    """Trains ``steps`` steps; returns wall seconds, and seconds per step and score.

    ``recipe_seconds`` extrapolates to the whole experiment. It needs two scores, the first of which ends compilation.
    """
    clock = Clock()
    with tempfile.TemporaryDirectory() as workdir:
        start = time.perf_counter()
        train(
            experiment.shortened(steps),
            0,
            f"{workdir}/run",
            progress=clock,
            data_dir=data_dir,
            devices=1,
        )
        seconds = time.perf_counter() - start
    trained, scored = clock.times["train"], clock.times["test"]
    first, *later = sorted(scored)
    row = {
        "experiment": experiment.name,
        "steps": steps,
        "batch_size": experiment.batch_size,
        "seconds": seconds,
        "seconds_to_first_score": scored[first] - start,
    }
    if not later:
        return row
    previous = dict(zip(later, [first, *later], strict=False))
    step_seconds = statistics.median(
        (trained[step] - scored[previous[step]]) / (step - previous[step]) for step in later
    )
    score_seconds = statistics.median(scored[step] - trained[step] for step in later)
    remaining = (experiment.steps - first) * step_seconds + (
        experiment.steps // experiment.evaluation.every - 1
    ) * score_seconds
    return row | {
        "step_seconds": step_seconds,
        "score_seconds": score_seconds,
        "images_per_second": experiment.batch_size / step_seconds,
        "recipe_steps": experiment.steps,
        "recipe_seconds": scored[first] - start + remaining,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = harness.parse(RunOptions, arguments)
    experiment = options_lib.experiment(options.experiment)
    if options.data:
        experiment = dataclasses.replace(
            experiment, data=dataclasses.replace(experiment.data, name=options.data)
        )
    jax.config.update("jax_enable_compilation_cache", False)
    harness.write("run", [measure(experiment, options.steps, options.data_dir)], options, arguments)


if __name__ == "__main__":
    main()
