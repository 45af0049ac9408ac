"""Interleaved rounds, the training step that benchmarks run, and their output."""

import datetime
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import tyro

from resnet_jax.errors import CommandError, UserError, check_range
from resnet_jax.kernels import quick_to_run
from resnet_jax.models import Architecture, Execution
from resnet_jax.training import optimizer as optimizer_lib
from resnet_jax.training import run_dir, step
from resnet_jax.training.config import Optimizer, Schedule
from resnet_jax.training.step import Batch, Learning, TrainState

Row = dict[str, Any]
Seconds = list[float]


def cli(main: Callable[..., None]) -> None:
    """Calls a function with the options of the command line; bad input ends in one sentence."""
    try:
        tyro.cli(main)
    except CommandError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def check_positive(**options: int) -> None:
    check_range({f"--{name.replace('_', '-')}": value for name, value in options.items()}, 1)


def interleave(candidates: Sequence[Callable[[], object]], rounds: int) -> list[Seconds]:
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


def random_batch(model: Architecture, batch_size: int) -> Batch:
    key = jax.random.key(1)
    images = jax.random.normal(key, (batch_size, *model.input_shape))
    return Batch(images, jax.random.randint(key, (batch_size,), 0, model.num_classes))


def training_step(
    model: Architecture, batch_size: int, execution: Execution
) -> tuple[Any, Callable[[], tuple[TrainState, Batch]]]:
    """Returns a jitted step, which donates its state, and a function that creates its arguments."""
    optimizer = optimizer_lib.make(Optimizer(), Schedule())
    create = jax.jit(lambda: step.create(model, optimizer, jax.random.key(0), execution))
    learning = Learning(jax.eval_shape(create)[0], optimizer)
    train_step = jax.jit(
        lambda state, batch: step.train_step(state, batch, learning),
        donate_argnums=0,
        compiler_options=quick_to_run(),
    )
    return train_step, lambda: (create()[1], random_batch(model, batch_size))


def write(rows: Iterable[Row], output: Path | None) -> None:
    """Prints rows as they are measured; then writes them with their origin to a file."""
    if output:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.open("a").close()
        except OSError as error:
            raise UserError(f"--output {output} cannot be written: {error.strerror}.") from None
    measured = []
    for row in rows:
        texts = {n: f"{v:.4g}" if isinstance(v, float) else v for n, v in row.items()}
        print(", ".join(f"{name} {text}" for name, text in texts.items()), flush=True)
        measured.append(row)
    if output:
        result = {
            "benchmark": Path(sys.argv[0]).stem,
            "date": datetime.date.today().isoformat(),
            "command": shlex.join(["python", *sys.argv]),
            **run_dir.describe(),
            "rows": measured,
        }
        output.write_text(json.dumps(result, indent=2) + "\n")
