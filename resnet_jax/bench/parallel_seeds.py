"""What several seeds in one program cost: vectorised on one device, or beside each other on several, against one after another."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from resnet_jax.bench import rounds as turns
from resnet_jax.bench import workload
from resnet_jax.data.augmentation import fit
from resnet_jax.models import Architecture
from resnet_jax.training import program
from resnet_jax.training.experiment import Data, Experiment

IMAGES = 2048


def measure(architecture: Architecture, seeds: Sequence[int], *, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Trains a step with 1, 2, ... seeds in turn, ``rounds`` times after one that does not count, on images that are made up.

    Returns, for each number of seeds and each way, seconds of a step of all seeds (median, least and most), images a second of all of them,
    and ``throughput``: the median over the rounds of the seconds that one seed takes, times the number, over the seconds that they take
    together.
    """
    experiment = Experiment(name="seeds", model=architecture, data=Data(name=""), batch_size=batch_size)
    examples = workload.examples(architecture, IMAGES)
    constants = fit(examples.images, "channel")

    def stepping(count: int, how: str) -> Callable[[], None]:
        devices = count if how == "devices" else 1
        made = program.compiled(experiment, devices, devices)
        states = made.stack([made.init(jax.random.key(seed)) for seed in range(count)])
        data = made.place(examples, constants)

        def run() -> None:
            nonlocal states
            states, metrics = made.train(states, data, 1)
            jax.block_until_ready(metrics)

        return run

    measured = turns.interleaved([stepping(*way) for way in _ways(seeds)], rounds)
    return [
        {
            "seeds": count,
            "how": how,
            "batch_size": batch_size,
            **(found := turns.spread(seconds)),
            "images_per_second": count * batch_size / found["seconds"],
            "throughput": count * turns.ratio(measured[0], seconds),
        }
        for (count, how), seconds in zip(_ways(seeds), measured, strict=True)
    ]


def _ways(seeds: Sequence[int]) -> list[tuple[int, str]]:
    """A seed alone first: what the others are held against."""
    several = [count for count in seeds if count > 1]
    ways = [(1, "alone"), *((count, "vmap") for count in several)]
    return ways + [(count, "devices") for count in several if count <= jax.device_count()]
