"""Cost of compiling a training step, and of dispatching it, by depth and form of the stages."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class CompileOptions(harness.Output):
    """Seconds to trace, lower and compile a training step, without persistent cache; host seconds per call."""

    network: str = "cifar_resnet"
    """Family, or a network such as resnet50_v15 with an empty --depths."""
    depths: tuple[int, ...] = (20, 56, 110)
    blocks: tuple[Literal["loop", "scan"], ...] = ("loop", "scan")
    batch_size: int = 128
    steps: tuple[int, ...] = (1, 10, 100)
    """Steps per call of the dispatch rows (first depth)."""
    size: int = 0
    """Height and width of the images; 0: the network's."""
    rounds: int = 9


def measure_compilation(
    architecture: Architecture, execution: Execution, batch_size: int
) -> dict[str, Any]:
    """Returns seconds of each stage, and temporary bytes."""
    training = harness.TrainingStep(architecture, batch_size, execution)
    batch = jax.eval_shape(training.batch)
    stage: Any = training.step
    row: dict[str, Any] = {}
    for name, arguments in {
        "trace": (training.abstract_state, batch),
        "lower": (),
        "compile": (),
    }.items():
        start = time.perf_counter()
        stage = getattr(stage, name)(*arguments)
        row[f"{name}_seconds"] = time.perf_counter() - start
    return row | {"temporary_bytes": stage.memory_analysis().temp_size_in_bytes}


def measure_dispatch(
    architecture: Architecture, steps: Sequence[int], batch_size: int, rounds: int
) -> list[dict[str, Any]]:
    """Returns host seconds before a call returns, and seconds until its results are there. Transfers in a call raise."""
    random = np.random.default_rng(0)
    images: Any = random.integers(0, 256, (IMAGES, *architecture.input_shape), np.uint8)
    labels: Any = random.integers(0, architecture.num_classes, IMAGES).astype(np.int32)
    experiment = Experiment(
        name="dispatch", model=architecture, data=Data(name=""), batch_size=batch_size
    )
    program = program_lib.compiled(experiment, 1)
    data, constants = program.put((Batch(images, labels), fit(images, "channel")))
    state = program.init(jax.random.key(0))
    host: dict[int, list[float]] = {count: [] for count in steps}

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
    return [
        {
            "steps": count,
            "batch_size": batch_size,
            "arrays": len(jax.tree.leaves(state)),
            **{
                f"host_{name}": value
                for name, value in harness.summary(host[count][-rounds:]).items()
            },
            "seconds_per_step": harness.summary(seconds)["seconds"] / count,
        }
        for count, seconds in zip(steps, whole, strict=True)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    options = harness.parse(CompileOptions, arguments)
    jax.config.update("jax_enable_compilation_cache", False)
    networks, batch_size = {}, options.batch_size
    for depth in options.depths or (None,):
        network = models.architecture(options.network, depth)
        size = options.size or network.input_shape[0]
        networks[depth] = dataclasses.replace(
            network, input_shape=(size, size, network.input_shape[2])
        )
    rows = [
        {"depth": depth, "blocks": blocks, "batch_size": batch_size}
        | measure_compilation(network, Execution(blocks=blocks), batch_size)
        for depth, network in networks.items()
        for blocks in options.blocks
    ]
    rows += measure_dispatch(
        next(iter(networks.values())), options.steps, batch_size, options.rounds
    )
    rows = [{"network": options.network} | row for row in rows]
    harness.write("compile", rows, options, arguments)


if __name__ == "__main__":
    main()
