"""Evaluation protocols and their images: one crop, ten crops, or several sizes (``dense``)."""

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from resnet_jax.data import augment_host, datasets
from resnet_jax.data.augment_host import Crop, Pixels
from resnet_jax.data.datasets import DatasetInfo, Examples
from resnet_jax.errors import UserError
from resnet_jax.weights.card import Interpolation, View

Member = TypeVar("Member")
Result = TypeVar("Result")

# He et al. 2015, Section 3.4.
SCALES = (224, 256, 384, 480, 640)
_ABBREVIATIONS = {
    "ten-crop": "ten-crop-256/224",
    "multi-scale": f"multi-scale-{','.join(map(str, SCALES))}",
}
_MAX_PIXELS = 2**16


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Views of an image, whose softmax scores are averaged."""

    resize: int | None = None
    """Shorter side before the crop. None: no resizing."""
    crop: int | None = None
    """Side of the square. None: the whole image."""
    interpolation: Interpolation = "bilinear"
    crops: int = 1
    """1: the center. 10: the four corners, the center, and their mirror images."""
    scales: tuple[int, ...] = ()
    """Shorter sides of whole images and mirror images (``dense``); other sizes are unused."""

    def view(self, height: int | None = None, width: int | None = None) -> str:
        """Text for result records, as "single 224x224 of 256"."""
        if self.scales:
            scales = ", ".join(map(str, self.scales))
            text = "multi-scale" + f" {scales}" * (self.scales != SCALES)
        else:
            number = f"{self.crops} crops" if self.crops > 1 else "single"
            text = f"{number} {self.crop or height}x{self.crop or width}"
            text += f" of {self.resize}" if self.resize else ""
        bicubic = self.interpolation == "bicubic" and (self.resize or self.scales)
        return text + (", bicubic" if bicubic else "")


def parse(text: str) -> Protocol:
    """Parses a protocol.

    - ``256/224``: shorter side resized to 256 pixels, then the central square of 224.
    - ``ten-crop`` or ``ten-crop-256/224``: ten squares (He et al. 2015, Section 3.4).
    - ``multi-scale`` or ``multi-scale-224,256,384``: whole images at several sizes (ibid.).

    Resizing is antialiased, bilinear or, with the suffix ``-bicubic``, bicubic.
    """
    name = text.removesuffix("-bicubic")
    interpolation = "bilinear" if name == text else "bicubic"
    name = _ABBREVIATIONS.get(name, name)
    if match := re.fullmatch(r"(ten-crop-)?([0-9]{1,6})/([0-9]{1,6})", name):
        resize, crop, crops = int(match[2]), int(match[3]), 10 if match[1] else 1
        if 0 < crop <= resize < _MAX_PIXELS:
            return Protocol(resize=resize, crop=crop, interpolation=interpolation, crops=crops)
    if match := re.fullmatch(r"multi-scale-([0-9]{1,6}(?:,[0-9]{1,6})*)", name):
        scales = tuple(map(int, match[1].split(",")))
        if all(0 < scale < _MAX_PIXELS for scale in scales) and len(set(scales)) == len(scales):
            return Protocol(scales=scales, interpolation=interpolation)
    allowed = "256/224 (shorter side, crop), ten-crop-256/224-bicubic or multi-scale-224,256,384"
    raise UserError(f"{text!r} is no protocol. Give one such as {allowed}.")


def of(view: View) -> Protocol:
    """The protocol of a weights card."""
    resize, crop = view.resize or None, view.crop or None
    return Protocol(resize=resize, crop=crop, interpolation=view.interpolation)


def resize_and_crop(image: Pixels, protocol: Protocol) -> Crop:
    """Returns the view of a protocol with one crop."""
    resize, crop = protocol.resize or 0, protocol.crop or 0
    return augment_host.resize_and_crop(image, resize, crop, protocol.interpolation)


def ten_crops(image: Pixels, protocol: Protocol) -> UInt8[np.ndarray, "10 ho wo c"]:
    """Corners, center and their mirror images (Krizhevsky et al. 2012, Section 4.1)."""
    size = protocol.crop
    assert size
    whole = resize_and_crop(image, dataclasses.replace(protocol, crop=None))
    height, width, _ = whole.shape
    bottom, right = height - size, width - size
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    corners.append((augment_host.center(height, size), augment_host.center(width, size)))
    five = np.stack([whole[top : top + size, left : left + size] for top, left in corners])
    return np.concatenate([five, five[:, :, ::-1]])


def batches(
    info: DatasetInfo,
    split: str,
    protocol: Protocol,
    batch_size: int,
    *,
    first: int = 0,
    count: int | None = None,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Examples]:
    """Yields ``count`` images of a split in order; black images of label -1 pad the last batch.

    ``batch_size`` counts views, over all processes. Each process decodes an equal, contiguous part
    of every batch.
    """
    if None in info.image_shape and not (protocol.resize and protocol.crop):
        raise UserError(f"the images of {info.name} differ in size. Give --protocol 256/224.")
    source, end = datasets.encoded(info, split), info.examples[split]
    if count is not None:
        end = min(first + count, end)
    share = rows(batch_size, protocol.crops, processes) // processes
    crop = ten_crops if protocol.crops > 1 else resize_and_crop

    def load(index: int) -> tuple[np.ndarray, int]:
        record = datasets.example(source, info, split, index)
        return crop(record["image"], protocol), record["label"]

    # The part of a process in the last batch can be padding only.
    blank = np.zeros_like(load(first)[0])
    starts = range(first + process * share, end + process * share, share * processes)
    parts = (list(range(start, min(start + share, end))) for start in starts)
    for part, loaded in ahead(load, parts):
        images, labels = zip(*loaded, *[(blank, -1)] * (share - len(part)), strict=True)
        yield Examples(np.stack(images), np.asarray(labels, np.int32))


def load(
    info: DatasetInfo, split: str, protocol: Protocol, batch_size: int
) -> Examples | Iterator[Examples]:
    """The whole split if its images stay as they are, else ``batches``."""
    if None in info.image_shape or protocol.resize or protocol.crop:
        return batches(info, split, protocol, batch_size)
    return datasets.read(info, split)


def rows(batch_size: int, views: int, shards: int) -> int:
    """Images per batch, at least one, rounded up to a multiple of ``shards``."""
    return -(-max(1, batch_size // views) // shards) * shards


def ahead(
    function: Callable[[Member], Result], groups: Iterable[list[Member]]
) -> Iterator[tuple[list[Member], list[Result]]]:
    """Yields each group with its results, computed by threads at most two groups ahead."""
    waiting: deque[tuple[list[Member], Iterator[Result]]] = deque()
    pool = ThreadPoolExecutor()
    try:
        for group in groups:
            waiting.append((group, pool.map(function, group)))
            if len(waiting) > 2:
                members, results = waiting.popleft()
                yield members, list(results)
        for members, results in waiting:
            yield members, list(results)
    finally:
        pool.shutdown(cancel_futures=True)
