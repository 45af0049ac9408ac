"""The streaming input as a whole, beside others that do the same: images per CPU-second of all their processes."""

import functools
import importlib.util
import io
import math
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resnet_jax.bench import stages
from resnet_jax.configured import Factory, configured
from resnet_jax.data import sources, streaming
from resnet_jax.data.crops import RandomResizedCrop
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.data.streaming import Rows, Stream
from resnet_jax.errors import UserError

# Called once a round: reads so many images, and returns the CPU-seconds that it took.
Pipeline = Callable[[int], float]


def measure(
    info: DatasetInfo, crop: Factory, policy: Factory | None, size: tuple[int, int], batch_size: int, *, images: int, rounds: int
) -> list[dict[str, Any]]:
    """Times whole pipelines, a round of each in turn; all workers are there before the clock is looked at.

    Beside the crop that is asked for stand RandomResizedCrop with both filters and two other pipelines that do that: Pillow in a pool of
    processes, as torchvision's data sets are read, and tf.data where TensorFlow is installed.

    Args, returns: as of ``stages.measure``; ``over_pool`` is the median over rounds of the ratio to the pool of processes.

    Raises:
      UserError: where the CPU time of other processes cannot be read.
    """
    if not Path("/proc/self/stat").exists():
        raise UserError("the CPU time of worker processes is read from /proc, which this machine does not have: run it on Linux")
    stream = Stream(
        info=info, split="train", examples=info.examples["train"], seed=0, batch_size=batch_size, size=size, crop=crop, policy=policy
    )
    ours: dict[str, tuple[Stream, int]] = {"as the experiment has it": (stream, 0)} if (crop, policy) != (RandomResizedCrop, None) else {}
    area, bilinear = (replace(stream, policy=None, crop=configured(RandomResizedCrop, filter=name)) for name in ("area", "bilinear"))
    ours |= {"this input, area": (area, 0), "this input, bilinear": (bilinear, 0), "this input, area, 2 workers": (area, 2)}
    with _pool(info, size, batch_size) as pool:
        pipelines: dict[str, Pipeline] = {"Pillow in a process pool": pool}
        for name, (of, workers) in ours.items():
            pipelines[name] = functools.partial(_ours, of, workers)
        if importlib.util.find_spec("tensorflow") is not None:
            pipelines["tf.data"] = functools.partial(_tf_data, info, size, batch_size)
        taken: dict[str, list[float]] = {name: [] for name in pipelines}
        for _ in range(rounds):
            for name, pipeline in pipelines.items():
                taken[name].append(pipeline(images))
    reference = taken["Pillow in a process pool"]
    return [
        stages.row(name, _whole(images, batch_size), seconds)
        | {"over_pool": statistics.median(theirs / each for theirs, each in zip(reference, seconds, strict=True))}
        for name, seconds in taken.items()
    ]


def _whole(images: int, batch_size: int) -> int:
    return math.ceil(images / batch_size) * batch_size


def _cpu_seconds(processes: set[int]) -> float:
    """Of this process with its threads, and of others that still run."""
    others = 0.0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        others += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return time.process_time() + others


def _workers() -> set[int]:
    return {process.pid for process in multiprocessing.active_children() if process.pid is not None}


def _ours(stream: Stream, workers: int, images: int) -> float:
    steps, lead = math.ceil(images / stream.batch_size), 2 * workers + 2
    before = _workers()
    # As much is read ahead when the clock stops as was when it started.
    rows = Rows(stream, first_step=0, last_step=2 * (steps + lead))
    with closing(streaming.batches(rows, workers=workers)) as reading:
        for _ in range(lead):
            next(reading)
        own = _workers() - before
        began = _cpu_seconds(own)
        for _ in range(steps):
            next(reading)
        return _cpu_seconds(own) - began


@contextmanager
def _pool(info: DatasetInfo, size: tuple[int, int], batch_size: int) -> Iterator[Pipeline]:
    before = _workers()
    # Not forked: jax has threads.
    with multiprocessing.get_context("spawn").Pool(streaming.cores(), _begin, (info, size)) as pool:
        pool.map(_prepare, [[0]] * 4 * streaming.cores(), chunksize=1)
        own = _workers() - before

        def run(images: int) -> float:
            chunks = [[(start + at) % info.examples["train"] for at in range(batch_size)] for start in range(0, images, batch_size)]
            began = _cpu_seconds(own)
            for _ in pool.imap(_prepare, chunks):
                pass
            return _cpu_seconds(own) - began

        yield run


_given: dict[str, Any] = {}


def _begin(info: DatasetInfo, size: tuple[int, int]) -> None:
    _given.update(source=sources.encoded(info, "train"), size=size, random=np.random.default_rng())


def _prepare(indices: list[int]) -> np.ndarray:
    """A batch by Pillow alone, as torchvision's RandomResizedCrop and RandomHorizontalFlip do on its images."""
    crop, random, (height, width) = RandomResizedCrop(), _given["random"], _given["size"]
    found = []
    for index in indices:
        with Image.open(io.BytesIO(_given["source"][index][0])) as opened:
            image = opened.convert("RGB")
        box = crop.box(image.height, image.width, random)
        cropped = image.crop(box).resize((width, height), Image.Resampling.BILINEAR)
        if random.random() < 0.5:
            cropped = cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        found.append(np.asarray(cropped))
    return np.stack(found)


def _tf_data(info: DatasetInfo, size: tuple[int, int], batch_size: int, images: int) -> float:
    import tensorflow as tf  # pyright: ignore[reportMissingModuleSource, reportMissingImports]

    source = sources.encoded(info, "train")
    encoded = [source[index % len(source)][0] for index in range(images)]

    def one(image: Any) -> Any:
        whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])
        begin, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(image), whole, area_range=(0.08, 1.0), aspect_ratio_range=(3 / 4, 4 / 3), max_attempts=10
        )
        (top, left, _), (height, width, _) = tf.unstack(begin), tf.unstack(extent)
        cropped = tf.io.decode_and_crop_jpeg(image, tf.stack([top, left, height, width]), channels=3)
        resized = tf.image.random_flip_left_right(tf.image.resize(cropped, size, antialias=True))
        return tf.cast(tf.clip_by_value(resized, 0, 255), tf.uint8)

    read = tf.data.Dataset.from_tensor_slices(encoded).repeat().map(one, num_parallel_calls=streaming.cores()).batch(batch_size).prefetch(1)
    reading = iter(read)
    next(reading)
    began = _cpu_seconds(set())
    for _ in range(math.ceil(images / batch_size)):
        next(reading)
    return _cpu_seconds(set()) - began
