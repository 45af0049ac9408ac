"""Interleaved rounds, the training step that benchmarks run, and their output."""

import datetime
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from resnet_jax.kernels import quick_to_run
from resnet_jax.models import Architecture, Execution
from resnet_jax.training import optimizer as optimizer_lib
from resnet_jax.training import run_dir, step
from resnet_jax.training.config import Optimizer, Schedule
from resnet_jax.training.step import Batch, Learning, TrainState

Row = dict[str, Any]
Seconds = list[float]


def interleave(candidates: Sequence[Callable[[], Any]], rounds: int) -> list[Seconds]:
    """Returns the seconds of each candidate in each round, after an unmeasured one.

    Of several candidates, each is called twice and measured once: memory allocation is slower after
    another's step.
    """
    seconds: list[Seconds] = [[] for _ in candidates]
    for _ in range(1 + rounds):
        for candidate, measured in zip(candidates, seconds, strict=True):
            if len(candidates) > 1:
                candidate()
            start = time.perf_counter()
            candidate()
            measured.append(time.perf_counter() - start)
    return [measured[1:] for measured in seconds]


def summary(seconds: Seconds) -> Row:
    return {
        "seconds": statistics.median(seconds),
        "seconds_least": min(seconds),
        "seconds_most": max(seconds),
        "rounds": len(seconds),
    }


def ratio(numerator: Seconds, denominator: Seconds) -> float:
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=True))


def training_step(
    model: Architecture, batch_size: int, execution: Execution
) -> tuple[Any, Callable[[], tuple[TrainState, Batch]]]:
    """Returns a jitted step, which donates its state, and a function that creates its arguments."""
    optimizer = optimizer_lib.make(Optimizer(), Schedule())
    create = jax.jit(lambda: step.create(model, optimizer, jax.random.key(0), execution))

    def arguments() -> tuple[TrainState, Batch]:
        key = jax.random.key(1)
        images = jax.random.normal(key, (batch_size, *model.input_shape))
        labels = jax.random.randint(key, (batch_size,), 0, model.num_classes)
        return create()[1], Batch(images, labels)

    learning = Learning(jax.eval_shape(create)[0], optimizer)
    train_step = jax.jit(
        lambda state, batch: step.train_step(state, batch, learning),
        donate_argnums=0,
        compiler_options=quick_to_run(),
    )
    return train_step, arguments


def write(rows: list[Row], output: Path | None) -> None:
    """Prints rows, and writes them with command, date, commit, versions and devices to a file."""
    for row in rows:
        values = (f"{value:.4g}" if isinstance(value, float) else value for value in row.values())
        print(", ".join(f"{name} {value}" for name, value in zip(row, values, strict=True)))
    if output is None:
        return
    result = {
        "benchmark": Path(sys.argv[0]).stem,
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *sys.argv]),
        **run_dir.describe(),
        "rows": rows,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
