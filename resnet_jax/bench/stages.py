"""Cost of each stage of the streaming input, one after another on one thread: images per CPU-second."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from resnet_jax.configured import Factory
from resnet_jax.data import decoding, sources
from resnet_jax.data.sources import DatasetInfo


def measure(
    info: DatasetInfo, crop: Factory, policy: Factory | None, size: tuple[int, int], batch_size: int, *, images: int, rounds: int
) -> list[dict[str, Any]]:
    """Times the stages, a round of each in turn.

    Args:
      info: of the data set; its training split is read.
      crop, policy: what is done on the host.
      size: height and width of a cropped image.
      batch_size: images that are put together and transferred at once.
      images: how many pass a stage in a round.
      rounds: how many.

    Returns:
      Rows of ``what``, ``images_per_cpu_second`` (median over rounds), ``least`` and ``most``.
    """
    source = sources.encoded(info, "train")
    indices = [index % len(source) for index in range(images)]
    random = np.random.default_rng(0)
    cropping, operating = crop(), None if policy is None else policy()
    encoded = [source[index][0] for index in indices]
    decoded = [decoding.decode(each, info.image_shape[2] or 3) for each in encoded]
    cropped = [cropping(image, size, random) for image in decoded]
    batches = [np.stack(cropped[start : start + batch_size]) for start in range(0, images, batch_size)]
    stages: dict[str, Callable[[], Any]] = {
        "read the record": lambda: [source[index] for index in indices],
        f"decode ({decoding.decoder()})": lambda: [decoding.decode(each, info.image_shape[2] or 3) for each in encoded],
        "crop and resize": lambda: [cropping(image, size, random) for image in decoded],
        **({} if operating is None else {"policy": lambda: [operating(image, random) for image in cropped]}),
        "put together": lambda: [np.stack(cropped[start : start + batch_size]) for start in range(0, images, batch_size)],
        "transfer": lambda: jax.block_until_ready(jax.device_put(batches)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(rounds):
        for name, stage in stages.items():
            began = time.process_time()
            stage()
            # The clock of a process has steps.
            seconds[name].append(max(time.process_time() - began, 1e-6))
    return [row(name, images, taken) for name, taken in seconds.items()]


def row(what: str, images: int, seconds: Sequence[float]) -> dict[str, Any]:
    """A row of the table, from the CPU-seconds of each round."""
    return {
        "what": what,
        "images_per_cpu_second": images / statistics.median(seconds),
        "least": images / max(seconds),
        "most": images / min(seconds),
    }
