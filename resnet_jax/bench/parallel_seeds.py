"""What several seeds in one program cost: vectorised on one device, or beside each other on several, against one after another."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.data.augmentation import fit
from resnet_jax.data.sources import Examples
from resnet_jax.models import Architecture
from resnet_jax.training import program
from resnet_jax.training.experiment import Data, Experiment

IMAGES = 2048


def measure(architecture: Architecture, seeds: Sequence[int], *, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Trains a step with 1, 2, ... seeds in turn, ``rounds`` times after two that do not count, on images that are made up.

    Returns, for each number of seeds and each way, seconds of a step of all seeds (median, least and most), images a second of all of them,
    and ``throughput``: the median over the rounds of the seconds that one seed takes, times the number, over the seconds that they take
    together.
    """
    experiment = Experiment(name="seeds", model=architecture, data=Data(name=""), batch_size=batch_size)
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, *architecture.input_shape), np.uint8)
    examples = Examples(images, random.integers(0, architecture.num_classes, IMAGES).astype(np.int32))
    running = []
    for count, how in _ways(seeds):
        devices = count if how == "devices" else 1
        made = program.compiled(experiment, devices, devices)
        states = made.stack([made.init(jax.random.key(seed)) for seed in range(count)])
        running.append([made, states, made.place(examples, fit(images, "channel")), []])
    for number in range(rounds + 2):
        for entry in running:
            made, states, data, seconds = entry
            began = time.perf_counter()
            entry[1], metrics = made.train(states, data, 1)
            jax.block_until_ready(metrics)
            if number >= 2:
                seconds.append(time.perf_counter() - began)
    alone = running[0][3]
    return [
        {
            "seeds": count,
            "how": how,
            "batch_size": batch_size,
            "rounds": rounds,
            "seconds": statistics.median(seconds),
            "seconds_least": min(seconds),
            "seconds_most": max(seconds),
            "images_per_second": count * batch_size / statistics.median(seconds),
            "throughput": statistics.median(count * one / all_ for one, all_ in zip(alone, seconds, strict=True)),
        }
        for (count, how), (_, _, _, seconds) in zip(_ways(seeds), running, strict=True)
    ]


def _ways(seeds: Sequence[int]) -> list[tuple[int, str]]:
    """A seed alone first: what the others are held against."""
    several = [count for count in seeds if count > 1]
    ways = [(1, "alone"), *((count, "vmap") for count in several)]
    return ways + [(count, "devices") for count in several if count <= jax.device_count()]
