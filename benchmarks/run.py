"""Wall time of a whole training run: compilation, steps, evaluation and checkpoints."""

import collections
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import harness
import jax

from resnet_jax.cli import options
from resnet_jax.terminal import RunLines
from resnet_jax.training.config import Experiment
from resnet_jax.training.train import train


class Clock(RunLines):
    """Keeps the time of each record, by split and step."""

    def __init__(self, title: str):
        super().__init__(title)
        self.times: dict[str, dict[int, float]] = collections.defaultdict(dict)

    def record(self, record: Mapping[str, Any]) -> None:
        self.times[record["split"]][record["step"]] = time.perf_counter()


def measure(
    experiment: Experiment, steps: int, seed: int, data_dir: str | None
) -> Iterator[harness.Row]:
    """Trains ``steps`` steps; yields wall seconds, and seconds per step and evaluation.

    ``recipe_seconds`` extrapolates to the whole experiment. It needs two evaluations, the first of
    which ends compilation.
    """
    clock = Clock(experiment.name)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = f"{folder}/run"
        shortened = experiment.shortened(steps)
        result = train(shortened, seed, run, callbacks=[clock], data_dir=data_dir, devices=1)
    trained, scored = clock.times["train"], clock.times["test"]
    first, *later = sorted(scored)
    row = {
        "experiment": experiment.name,
        "dtype": experiment.model.dtype,
        "steps": steps,
        "seed": seed,
        "batch_size": experiment.batch_size,
        "test_error_percent": result["value"],
        "seconds": time.perf_counter() - start,
        "seconds_to_first_score": scored[first] - start,
    }
    if later:
        step_seconds = statistics.median(
            (trained[step] - scored[previous]) / (step - previous)
            for previous, step in zip([first, *later], later, strict=False)
        )
        score_seconds = statistics.median(scored[step] - trained[step] for step in later)
        scores = experiment.steps // experiment.evaluation.every
        remaining = (experiment.steps - first) * step_seconds + (scores - 1) * score_seconds
        row |= {
            "step_seconds": step_seconds,
            "score_seconds": score_seconds,
            "images_per_second": experiment.batch_size / step_seconds,
            "recipe_steps": experiment.steps,
            "recipe_seconds": scored[first] - start + remaining,
        }
    yield row


def main(
    experiment: str = "he2015_cifar10:resnet20",
    steps: int = 2000,
    seed: int = 0,
    dtype: Literal["float32", "bfloat16"] = "float32",
    data_dir: str | None = None,
    output: Path | None = None,
) -> None:
    """Trains an experiment for some steps and extrapolates to all of its steps."""
    jax.config.update("jax_enable_compilation_cache", False)
    recipe = options.experiment(experiment)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dtype=dtype))
    harness.write(measure(recipe, steps, seed, data_dir), output)


if __name__ == "__main__":
    harness.cli(main)
