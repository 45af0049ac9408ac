"""Cost of compiling a training step, and of dispatching it, by depth and form of the stages."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import harness
import jax
import numpy as np

from resnet_jax import models
from resnet_jax.data.augment_device import fit
from resnet_jax.models import Architecture, Execution
from resnet_jax.training import program as program_lib
from resnet_jax.training.config import Data, Experiment
from resnet_jax.training.step import Batch

IMAGES = 256


def measure_compilation(model: Architecture, execution: Execution, batch_size: int) -> harness.Row:
    """Returns the seconds of each stage, and temporary bytes."""
    stage, create_arguments = harness.training_step(model, batch_size, execution)
    arguments, row = jax.eval_shape(create_arguments), {}
    for name in ("trace", "lower", "compile"):
        start = time.perf_counter()
        stage, arguments = getattr(stage, name)(*arguments), ()
        row[f"{name}_seconds"] = time.perf_counter() - start
    return row | {"temporary_bytes": stage.memory_analysis().temp_size_in_bytes}


def measure_dispatch(
    model: Architecture, steps: Sequence[int], batch_size: int, rounds: int
) -> Iterator[harness.Row]:
    """Yields the host seconds of a call, and the seconds until its results are ready, by steps.

    Transfers in a call raise.
    """
    random = np.random.default_rng(0)
    images: Any = random.integers(0, 256, (IMAGES, *model.input_shape), np.uint8)
    labels: Any = random.integers(0, model.num_classes, IMAGES).astype(np.int32)
    experiment = Experiment(name="", model=model, data=Data(name=""), batch_size=batch_size)
    program = program_lib.compiled(experiment, 1)
    data, constants = program.put((Batch(images, labels), fit(images, "channel")))
    state = program.init(jax.random.key(0))
    host: dict[int, harness.Seconds] = {count: [] for count in steps}

    def call(count: int) -> None:
        nonlocal state
        jax.block_until_ready(state)
        start = time.perf_counter()
        state, metrics = program.train(state, data, constants, count)
        host[count].append(time.perf_counter() - start)
        jax.block_until_ready(metrics)

    for count in steps:
        call(count)
    with jax.transfer_guard("disallow"):
        whole = harness.interleave([lambda count=count: call(count) for count in steps], rounds)
    for count, seconds in zip(steps, whole, strict=True):
        row = {"steps": count, "batch_size": batch_size, "arrays": len(jax.tree.leaves(state))}
        for name, value in harness.summary(host[count][-rounds:]).items():
            row[f"host_{name}"] = value
        yield row | {"seconds_per_step": harness.summary(seconds)["seconds"] / count}


def main(
    network: str = "cifar_resnet",
    depths: tuple[int, ...] = (20, 56, 110),
    blocks: tuple[Literal["loop", "scan"], ...] = ("loop", "scan"),
    batch_size: int = 128,
    steps: tuple[int, ...] = (1, 10, 100),
    size: int = 0,
    rounds: int = 9,
    output: Path | None = None,
) -> None:
    """Seconds to trace, lower and compile a training step without cache; host seconds per call.

    Args:
      network: family, or a network such as resnet50_v15 with an empty --depths.
      steps: steps per call of the dispatch rows (first depth).
      size: height and width of the images; 0: the network's.
      rounds: of the dispatch rows.
    """
    harness.check_positive(batch_size=batch_size, rounds=rounds, steps=min(steps, default=1))
    jax.config.update("jax_enable_compilation_cache", False)
    networks = {}
    for depth in depths or (None,):
        model = models.architecture(network, depth)
        height, width, channels = model.input_shape
        shape = size or height, size or width, channels
        networks[depth] = dataclasses.replace(model, input_shape=shape)

    def rows() -> Iterator[harness.Row]:
        for depth, model in networks.items():
            for form in blocks:
                row = {"depth": depth, "blocks": form, "batch_size": batch_size}
                yield row | measure_compilation(model, Execution(blocks=form), batch_size)
        yield from measure_dispatch(next(iter(networks.values())), steps, batch_size, rounds)

    harness.write(({"network": network} | row for row in rows()), output)


if __name__ == "__main__":
    harness.cli(main)
