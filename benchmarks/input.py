"""Cost of reading training images, by stage and beside Pillow, in images per CPU second."""

import contextlib
import functools
import io
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import harness
import numpy as np
from PIL import Image

from resnet_jax.cli import options as options_lib
from resnet_jax.data import datasets
from resnet_jax.data import stream as stream_lib
from resnet_jax.data.augment_host import RandomResizedCrop
from resnet_jax.training.config import Data


@dataclass(frozen=True, kw_only=True)
class InputOptions(harness.Output):
    """Images per CPU second of this process; interleaved rounds."""

    experiment: str | None = None
    """FILE.py:FUNCTION, for data set, crop and policy. Default: ImageNet, RandomResizedCrop."""
    data: str | None = None
    """Data set in place of the experiment's."""
    data_dir: str | None = None
    images: int = 440
    """Images per round."""
    size: int = 224
    """Height and width after the crop."""
    batch_size: int = 64
    rounds: int = 5


def measure(data: Data, options: InputOptions) -> list[dict[str, Any]]:
    """Returns a row per stage, for the whole input, and for Pillow as torchvision uses it."""
    info = datasets.describe(data.name, options.data_dir)
    channels, size, rng = (
        info.image_shape[2] or 3,
        (options.size, options.size),
        np.random.default_rng(0),
    )
    assert data.crop is not None
    crop, policy = data.crop(), data.policy() if data.policy else None
    source = datasets.encoded(info, "train")
    indices = [index % len(source) for index in range(options.images)]
    encoded = [source[index][0] for index in indices]
    decoded = [datasets.decode(image, channels) for image in encoded]
    cropped = [crop(image, size, rng) for image in decoded]

    def pillow() -> None:
        reference = RandomResizedCrop()
        for index in indices:
            with Image.open(io.BytesIO(source[index][0])) as opened:
                image = opened.convert("RGB")
            box = reference.box(image.height, image.width, rng)
            resized = image.crop(box).resize(size, Image.Resampling.BILINEAR)
            np.asarray(
                resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                if rng.random() < 0.5
                else resized
            )

    batches = math.ceil(options.images / options.batch_size)
    described = {"info": info, "split": "train", "examples": info.examples["train"], "seed": 0}
    stream = stream_lib.Stream(
        **described, batch_size=options.batch_size, size=size, crop=data.crop, policy=data.policy
    )

    def whole() -> float:
        # Two batches before and two after, so the prefetch is equally far ahead at both readings.
        rows = stream_lib.Rows(stream, first_step=0, last_step=2 * (batches + 2))
        with contextlib.closing(stream_lib.batches(rows)) as reading:
            for _ in range(2):
                next(reading)
            return cpu_seconds(lambda: [next(reading) for _ in range(batches)])

    loops: dict[str, Callable[[], Any]] = {
        "read": lambda: [source[index] for index in indices],
        "decode": lambda: [datasets.decode(image, channels) for image in encoded],
        "crop": lambda: [crop(image, size, rng) for image in decoded],
    }
    if policy:
        loops["policy"] = lambda: [policy(image, rng) for image in cropped]
    stages = {name: functools.partial(cpu_seconds, loop) for name, loop in loops.items()}
    stages |= {"whole input": whole, "Pillow": functools.partial(cpu_seconds, pillow)}
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(options.rounds):
        for name, stage in stages.items():
            seconds[name].append(stage())
    counts = {"whole input": batches * options.batch_size}
    return [
        {
            "what": name,
            "data": info.name,
            "size": options.size,
            "images_per_cpu_second": count / statistics.median(seconds[name]),
            "over_pillow": harness.ratio(seconds["Pillow"], seconds[name]) * count / options.images,
            "rounds": options.rounds,
        }
        for name in stages
        for count in [counts.get(name, options.images)]
    ]


def cpu_seconds(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return max(time.process_time() - start, 1e-6)


def main(arguments: Sequence[str] | None = None) -> None:
    options = harness.parse(InputOptions, arguments)
    base = (
        options_lib.experiment(options.experiment).data
        if options.experiment
        else Data(name="imagenet2012", crop=RandomResizedCrop)
    )
    data = Data(
        name=options.data or base.name, crop=base.crop or RandomResizedCrop, policy=base.policy
    )
    harness.write("input", measure(data, options), options, arguments)


if __name__ == "__main__":
    main()
