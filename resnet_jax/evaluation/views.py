"""Evaluation images: the shorter side resized, then one square crop or ten; every image exactly once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from resnet_jax.data import augment_host, datasets
from resnet_jax.data.datasets import DatasetInfo, Examples
from resnet_jax.errors import UserError
from resnet_jax.weights.card import Interpolation, View

# Batches that wait for the devices, beside the one that they compute.
_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Squares:
    """Resizing and cropping of an image of any size to one square, or ten."""

    resize: int | None = None
    """Length of the shorter side before the crop. None: no resizing."""
    crop: int | None = None
    """Side of the square. None: the whole image."""
    interpolation: Interpolation = "bilinear"
    crops: int = 1
    """1: the central crop. 10: the four corners, the center, and their mirror images."""


def shown(image: UInt8[np.ndarray, "h w c"], view: View | Squares) -> UInt8[np.ndarray, "ho wo c"]:
    """Resizes (antialiased) and crops one image like torchvision's ``Resize`` and ``CenterCrop``."""
    if view.resize:
        # The longer side is rounded down.
        size = [view.resize * extent // min(image.shape[:2]) for extent in image.shape[:2]]
        image = augment_host.resample(image, None, (size[0], size[1]), view.interpolation)
    if view.crop:
        top, left = (_first(extent, view.crop) for extent in image.shape[:2])
        # A smaller image is padded with zeros.
        padding = [
            (max(0, -at), max(0, at + view.crop - extent))
            for at, extent in zip((top, left), image.shape[:2], strict=True)
        ]
        image = np.pad(image, [*padding, (0, 0)])[max(0, top) :, max(0, left) :][
            : view.crop, : view.crop
        ]
    return image


def ten_crops(image: UInt8[np.ndarray, "h w c"], view: Squares) -> UInt8[np.ndarray, "10 ho wo c"]:
    """Corners and center of the whole resized image, and their mirror images (Krizhevsky et al. 2012, Section 4.1)."""
    size = view.crop
    assert size
    whole = shown(image, Squares(resize=view.resize, interpolation=view.interpolation))
    bottom, right = whole.shape[0] - size, whole.shape[1] - size
    if min(bottom, right) < 0:
        raise UserError(
            f"an image of {whole.shape[0]}x{whole.shape[1]} has no crops of {size}x{size}. Resize to at least {size}."
        )
    corners = [
        (0, 0),
        (0, right),
        (bottom, 0),
        (bottom, right),
        (_first(whole.shape[0], size), _first(whole.shape[1], size)),
    ]
    five = np.stack([whole[top : top + size, left : left + size] for top, left in corners])
    return np.concatenate([five, five[:, :, ::-1]])


def _first(size: int, crop: int) -> int:
    # As in torchvision: round half to even; of the padding of a smaller image the odd pixel comes last.
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def batches(
    info: DatasetInfo,
    split: str,
    view: Squares,
    batch_size: int,
    *,
    first: int = 0,
    count: int | None = None,
    process: int = 0,
    processes: int = 1,
) -> Iterator[Examples]:
    """Yields the images of a split in order, decoded by threads; the last batch is padded with black images of label -1.

    Args:
      batch_size: views per batch over all processes; ten crops count as ten.
      first: index of the first image.
      count: number of images; None: all from ``first`` on.
      process: index of this process. Each decodes an equal, contiguous part of every batch.
      processes: their number; the images of a batch are rounded up to a multiple of it.
    """
    if None in info.image_shape and not (view.resize and view.crop):
        raise UserError(
            f"the images of {info.name} differ in size. Resize and crop them, for example with --protocol 256/224."
        )
    source = datasets.encoded(info, split)
    end = info.examples[split] if count is None else min(first + count, info.examples[split])
    share = rows(batch_size, view.crops, processes) // processes

    def load(index: int) -> tuple[np.ndarray, int]:
        record = datasets.example(source, info, split, index)
        return ten_crops(record["image"], view) if view.crops > 1 else shown(
            record["image"], view
        ), record["label"]

    parts = (
        range(start, start + share)
        for start in range(first + process * share, end + process * share, share * processes)
    )
    blank: np.ndarray | None = None
    for part, loaded in ahead(load, ([index for index in part if index < end] for part in parts)):
        if blank is None:
            # The part of a process in the last batch can be padding only.
            blank = np.zeros_like(loaded[0][0] if loaded else load(first)[0])
        padded = [*loaded, *[(blank, -1)] * (share - len(part))]
        yield Examples(
            np.stack([image for image, _ in padded]),
            np.asarray([label for _, label in padded], np.int32),
        )


def rows(batch_size: int, views: int, shards: int) -> int:
    """Images per batch, at least one, rounded up to a multiple of ``shards``."""
    return -(-max(1, batch_size // views) // shards) * shards


def ahead(
    function: Callable[[Any], Any], groups: Iterable[list[Any]]
) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yields each group with its results, computed by threads at most two groups ahead."""
    waiting: deque[tuple[list[Any], list[Future[Any]]]] = deque()
    pool = ThreadPoolExecutor()
    try:
        for group in groups:
            waiting.append((group, [pool.submit(function, member) for member in group]))
            if len(waiting) > _AHEAD:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(group: list[Any], futures: list[Future[Any]]) -> tuple[list[Any], list[Any]]:
    return group, [future.result() for future in futures]


def load(info: DatasetInfo, split: str, view: Squares, batch_size: int) -> Iterator[Examples]:
    """Like ``batches``; from memory if the images have one size and are neither resized nor cropped."""
    if None in info.image_shape or view.resize or view.crop:
        yield from batches(info, split, view, batch_size)
        return
    whole = datasets.read(info, split)
    for start in range(0, len(whole), batch_size):
        yield Examples(
            whole.images[start : start + batch_size], whole.labels[start : start + batch_size]
        )
