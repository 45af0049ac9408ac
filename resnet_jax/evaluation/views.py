"""Evaluation images: the shorter side resized, then one square crop or ten."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from resnet_jax.data import augment_host, datasets
from resnet_jax.data.augment_host import Pixels
from resnet_jax.data.datasets import DatasetInfo, Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.weights.card import View

Member = TypeVar("Member")
Result = TypeVar("Result")

# Groups that wait for their use, beside the one in use.
_AHEAD = 2


def resize_and_crop(image: Pixels, view: View | Protocol) -> UInt8[np.ndarray, "ho wo c"]:
    """Resizes (antialiased) and crops an image like torchvision's ``Resize`` and ``CenterCrop``."""
    if view.resize:
        # The longer side is rounded down.
        height, width = (view.resize * extent // min(image.shape[:2]) for extent in image.shape[:2])
        image = augment_host.resample(image, None, (height, width), view.interpolation)
    if view.crop:
        # A smaller image is padded with zeros.
        missing = [max(0, view.crop - extent) for extent in image.shape[:2]]
        image = np.pad(image, [*((n // 2, n - n // 2) for n in missing), (0, 0)])
        top, left = (_center(extent, view.crop) for extent in image.shape[:2])
        image = image[top : top + view.crop, left : left + view.crop]
    return image


def ten_crops(image: Pixels, protocol: Protocol) -> UInt8[np.ndarray, "10 ho wo c"]:
    """Corners and center of the resized image, and their mirror images.

    Krizhevsky et al. 2012, Section 4.1.
    """
    size = protocol.crop
    assert size
    whole = resize_and_crop(image, dataclasses.replace(protocol, crop=None))
    height, width, _ = whole.shape
    bottom, right = height - size, width - size
    if min(bottom, right) < 0:
        raise UserError(
            f"an image of {height}x{width} has no crops of {size}x{size}. "
            f"Resize to at least {size}."
        )
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    corners.append((_center(height, size), _center(width, size)))
    five = np.stack([whole[top : top + size, left : left + size] for top, left in corners])
    return np.concatenate([five, five[:, :, ::-1]])


def _center(extent: int, crop: int) -> int:
    # As in torchvision: halves are rounded to even.
    return round((extent - crop) / 2)


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
    """Yields the images of a split in order, decoded by threads.

    The last batch is padded with black images of label -1.

    Args:
      batch_size: views per batch over all processes; ten crops count as ten.
      first: index of the first image.
      count: number of images; None: all from ``first`` on.
      process: index of this process. Each decodes an equal, contiguous part of every batch.
      processes: their number; the images of a batch are rounded up to a multiple of it.
    """
    if None in info.image_shape and not (protocol.resize and protocol.crop):
        raise UserError(
            f"the images of {info.name} differ in size. "
            "Resize and crop them, for example with --protocol 256/224."
        )
    source = datasets.encoded(info, split)
    end = info.examples[split] if count is None else min(first + count, info.examples[split])
    share = rows(batch_size, protocol.crops, processes) // processes

    def load(index: int) -> tuple[np.ndarray, int]:
        record = datasets.example(source, info, split, index)
        crop = ten_crops if protocol.crops > 1 else resize_and_crop
        return crop(record["image"], protocol), record["label"]

    starts = range(first + process * share, end + process * share, share * processes)
    parts = (list(range(start, min(start + share, end))) for start in starts)
    blank: np.ndarray | None = None
    for _, loaded in ahead(load, parts):
        if blank is None:
            # The part of a process in the last batch can be padding only.
            blank = np.zeros_like(loaded[0][0] if loaded else load(first)[0])
        images, labels = zip(*loaded, *[(blank, -1)] * (share - len(loaded)), strict=True)
        yield Examples(np.stack(images), np.asarray(labels, np.int32))


def load(
    info: DatasetInfo, split: str, protocol: Protocol, batch_size: int
) -> Examples | Iterator[Examples]:
    """Images of a split: whole if they have one size and stay as they are, else ``batches``."""
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
            if len(waiting) > _AHEAD:
                members, results = waiting.popleft()
                yield members, list(results)
        for members, results in waiting:
            yield members, list(results)
    finally:
        pool.shutdown(cancel_futures=True)
