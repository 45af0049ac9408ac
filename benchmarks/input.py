"""Cost of reading training images, by stage and beside Pillow, in images per CPU second."""

import contextlib
import io
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import numpy as np
from PIL import Image

from resnet_jax.cli import options
from resnet_jax.data import datasets
from resnet_jax.data import stream as stream_lib
from resnet_jax.data.augment_host import RandomResizedCrop
from resnet_jax.training.config import Data
from resnet_jax.training.recipes import IMAGENET


def cpu_seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return max(time.process_time() - start, 1e-6)


def measure(
    data: Data, info: datasets.DatasetInfo, count: int, side: int, batch_size: int, rounds: int
) -> Iterator[harness.Row]:
    """Yields a row per stage, for the whole input, and for Pillow as torchvision uses it."""
    channels, size, rng = info.image_shape[2] or 3, (side, side), np.random.default_rng(0)
    crop_class = data.crop or RandomResizedCrop
    crop, policy = crop_class(), data.policy() if data.policy else None
    source = datasets.encoded(info, "train")
    indices = [index % len(source) for index in range(count)]
    encoded = [source[index][0] for index in indices]
    decoded = [datasets.decode(image, channels) for image in encoded]
    cropped = [crop(image, size, rng) for image in decoded]
    batches = math.ceil(count / batch_size)
    stream = stream_lib.Stream(
        info=info,
        split="train",
        examples=info.examples["train"],
        seed=0,
        batch_size=batch_size,
        size=size,
        crop=crop_class,
        policy=data.policy,
    )

    def whole() -> float:
        # Two batches before and two after, so the prefetch is equally far ahead at both readings.
        rows = stream_lib.Rows(stream, first_step=0, last_step=2 * (batches + 2))
        with contextlib.closing(stream_lib.batches(rows)) as reading:
            for _ in range(2):
                next(reading)
            return cpu_seconds(lambda: [next(reading) for _ in range(batches)])

    def pillow(index: int) -> np.ndarray:
        with Image.open(io.BytesIO(source[index][0])) as file:
            image = file.convert("RGB")
        box = RandomResizedCrop().box(image.height, image.width, rng)
        image = image.crop(box).resize(size, Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)

    stages: dict[str, Callable[[], object]] = {
        "read": lambda: [source[index] for index in indices],
        "decode": lambda: [datasets.decode(image, channels) for image in encoded],
        "crop": lambda: [crop(image, size, rng) for image in decoded],
    }
    if policy:
        stages["policy"] = lambda: [policy(image, rng) for image in cropped]
    stages["Pillow"] = lambda: [pillow(index) for index in indices]
    timed: dict[str, harness.Seconds] = {name: [] for name in ("whole input", *stages)}
    for _ in range(rounds):
        # Per image.
        timed["whole input"].append(whole() / (batches * batch_size))
        for name, stage in stages.items():
            timed[name].append(cpu_seconds(stage) / count)
    for name, seconds in timed.items():
        yield {
            "what": name,
            "data": info.name,
            "size": side,
            "images_per_cpu_second": 1 / statistics.median(seconds),
            "over_pillow": harness.ratio(timed["Pillow"], seconds),
            "rounds": rounds,
        }


def main(
    experiment: str | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    images: int = 440,
    size: int = 224,
    batch_size: int = 64,
    rounds: int = 5,
    output: Path | None = None,
) -> None:
    """Images per CPU second of this process; interleaved rounds.

    Args:
      experiment: a recipe, for data set, crop and policy. Default: ImageNet, random crops.
      data: data set in place of the experiment's.
      data_dir: folder of prepared data sets.
      size: height and width after the crop.
    """
    harness.check_positive(images=images, size=size, batch_size=batch_size, rounds=rounds)
    recipe = options.experiment(experiment).data if experiment else IMAGENET
    info = datasets.describe(data or recipe.name, data_dir)
    harness.write(measure(recipe, info, images, size, batch_size, rounds), output)


if __name__ == "__main__":
    harness.cli(main)
