"""Interleaved rounds, the training step that benchmarks run, and their output."""

import datetime
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

from resnet_jax.models import Architecture, Execution
from resnet_jax.models.execution import quick_to_run
from resnet_jax.training import optimizer as optimizer_lib
from resnet_jax.training import run_dir, step
from resnet_jax.training.config import Optimizer, Schedule
from resnet_jax.training.step import Batch, Learning, train_step

Options = TypeVar("Options", bound="Output")


@dataclass(frozen=True, kw_only=True)
class Output:
    """Options of every benchmark."""

    output: Path | None = None
    """JSON file: rows, command, date, commit, versions and devices."""


def parse(options: type[Options], arguments: Sequence[str] | None) -> Options:
    return tyro.cli(options, args=arguments, prog=f"python {sys.argv[0]}")


def interleave(
    candidates: Sequence[Callable[[], Any]], rounds: int, warmup: int = 1
) -> list[list[float]]:
    """Returns the seconds of each candidate in each round, after ``warmup`` unmeasured rounds.

    Of several candidates, each is called twice and measured once: memory allocation is slower after another's step.
    """
    seconds: list[list[float]] = [[] for _ in candidates]
    for number in range(warmup + rounds):
        for candidate, measured in zip(candidates, seconds, strict=True):
            if len(candidates) > 1:
                candidate()
            start = time.perf_counter()
            candidate()
            if number >= warmup:
                measured.append(time.perf_counter() - start)
    return seconds


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(seconds),
        "seconds_least": min(seconds),
        "seconds_most": max(seconds),
        "rounds": len(seconds),
    }


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


class TrainingStep:
    """One training step on synthetic images. ``step``: jitted ``(state, batch) -> (state, metrics)``; donates the state."""

    def __init__(self, architecture: Architecture, batch_size: int, execution: Execution):
        optimizer = optimizer_lib.make(Optimizer(), Schedule())
        self._architecture, self._batch_size = architecture, batch_size
        self._create = lambda key: step.create(architecture, optimizer, key, execution)
        apply, self.abstract_state = jax.eval_shape(
            self._create, jax.eval_shape(lambda: jax.random.key(0))
        )
        learning = Learning(apply, optimizer)
        self.step = jax.jit(
            lambda state, batch: train_step(state, batch, learning),
            donate_argnums=0,
            compiler_options=quick_to_run(),
        )
        self.parameters = sum(leaf.size for leaf in jax.tree.leaves(self.abstract_state.params))

    def state(self) -> Any:
        return jax.jit(lambda key: self._create(key)[1])(jax.random.key(0))

    def batch(self) -> Batch:
        key = jax.random.key(1)
        images = jax.random.normal(key, (self._batch_size, *self._architecture.input_shape))
        return Batch(
            images, jax.random.randint(key, (self._batch_size,), 0, self._architecture.num_classes)
        )


def write(
    benchmark: str, rows: list[dict[str, Any]], options: Output, arguments: Sequence[str] | None
) -> None:
    """Prints rows, and writes them to ``options.output``."""
    for row in rows:
        print(
            ", ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in row.items()
            )
        )
    command = shlex.join(
        [
            "python",
            f"benchmarks/{benchmark}.py",
            *(sys.argv[1:] if arguments is None else arguments),
        ]
    )
    today = datetime.date.today().isoformat()
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "benchmark": benchmark,
            "date": today,
            "command": command,
            **run_dir.describe(),
            "rows": rows,
        }
        options.output.write_text(json.dumps(result, indent=2) + "\n")
