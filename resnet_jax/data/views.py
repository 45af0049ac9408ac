"""Images as they are shown to a network that is scored: the shorter side resized, one square cropped, or ten; every image once."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from resnet_jax.data import sources
from resnet_jax.data.sources import DatasetInfo, Examples
from resnet_jax.errors import UserError
from resnet_jax.models.pretrained.card import Interpolation, View

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

# Batches that may wait for the devices, beside the one that they compute.
_AHEAD = 2


@dataclass(frozen=True, kw_only=True)
class Squares:
    """How an image of any size becomes one square, or ten."""

    resize: int | None = None
    """Pixels of the shorter side, before the crop; None: images are taken as they are."""
    crop: int | None = None
    """Side of a square; None: the whole image."""
    interpolation: Interpolation = "bilinear"
    crops: int = 1
    """1: the central one. 10: those of the four corners and the centre, and the mirror images of the five."""


@dataclass(frozen=True)
class Shown(Examples):
    """A batch; each image may stand there in several views."""

    images: UInt8[np.ndarray, "n *views h w c"]
    labels: Int32[np.ndarray, "n"]
    """-1: no image, but what fills a batch up."""


def shown(image: UInt8[np.ndarray, "h w c"], view: View | Squares) -> UInt8[np.ndarray, "ho wo c"]:
    """Resizes and crops one image as torchvision's ``Resize`` and ``CenterCrop`` do: antialiased, in uint8."""
    height, width, channels = image.shape
    picture = _picture(image)
    if view.resize:
        # The longer side is rounded down.
        short, long = min(height, width), max(height, width)
        side = int(view.resize * long / short)
        picture = picture.resize((side, view.resize) if width > height else (view.resize, side), FILTERS[view.interpolation])
    if view.crop:
        left, top = _beginning(picture.width, view.crop), _beginning(picture.height, view.crop)
        picture = picture.crop((left, top, left + view.crop, top + view.crop))
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def ten_crops(image: UInt8[np.ndarray, "h w c"], view: Squares) -> UInt8[np.ndarray, "10 ho wo c"]:
    """Corners and centre of the resized image, and their mirror images (Krizhevsky et al. 2012, Section 4.1).

    The image is cropped whole, as fb.resnet.torch and torchvision's ``TenCrop`` do, and not its central square.
    """
    size = view.crop
    assert size
    whole = shown(image, Squares(resize=view.resize, interpolation=view.interpolation))
    bottom, right = whole.shape[0] - size, whole.shape[1] - size
    if min(bottom, right) < 0:
        raise UserError(f"an image of {whole.shape[0]}x{whole.shape[1]} has no crops of {size}x{size}: resize to {size} or more")
    centre = (_beginning(whole.shape[0], size), _beginning(whole.shape[1], size))
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), centre]
    five = np.stack([whole[top : top + size, left : left + size] for top, left in corners])
    return np.concatenate([five, five[:, :, ::-1]])


def stretched(image: UInt8[np.ndarray, "h w c"], height: int, width: int, interpolation: Interpolation) -> UInt8[np.ndarray, "ho wo c"]:
    """One image at a given size, antialiased, in uint8."""
    resized = _picture(image).resize((width, height), FILTERS[interpolation])
    return np.asarray(resized).reshape(height, width, image.shape[2])


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def _beginning(size: int, crop: int) -> int:
    # As torchvision: halves round to even, as Python's round does; a smaller image is padded, the odd pixel behind it. Outside is black.
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
) -> Iterator[Shown]:
    """Yields images of a split, in its order; the last batch is filled up by black images of the label -1.

    Images are decoded by threads while the devices compute: two batches wait at most, and each thread has one decoded image besides.

    Args:
      info: of the set.
      split: which.
      view: how images are shown.
      batch_size: views a batch, over all processes: at ten crops an image it has a tenth as many images, but one at least.
      first: index of the first image.
      count: how many from there on; None: all.
      process: which of several processes this is. Each decodes its part of every batch, contiguous and as long as any other's.
      processes: how many share every batch; where they do not divide its images, it has a few more.

    Raises:
      UserError: for images of different sizes where the view does not make them one, or an example that cannot be read.
    """
    if None in info.image_shape and not (view.resize and view.crop):
        raise UserError(
            f"the images of {info.name} differ in size, and nothing says how they are resized and cropped: give both, as --protocol 256/224"
        )
    source = sources.encoded(info, split)
    end = info.examples[split] if count is None else min(first + count, info.examples[split])
    share = rows(batch_size, view.crops, processes) // processes

    def one(index: int) -> tuple[np.ndarray, int]:
        example = sources.example(source, info, split, index)
        return ten_crops(example["image"], view) if view.crops > 1 else shown(example["image"], view), example["label"]

    parts = (range(start, start + share) for start in range(first + process * share, end + process * share, share * processes))
    blank: np.ndarray | None = None
    for part, found in ahead(one, ([index for index in part if index < end] for part in parts)):
        if blank is None:
            # A process may have nothing but what fills up the last batch.
            blank = np.zeros_like(found[0][0] if found else one(first)[0])
        filled = [*found, *[(blank, -1)] * (share - len(part))]
        yield Shown(np.stack([image for image, _ in filled]), np.asarray([label for _, label in filled], np.int32))


def rows(batch_size: int, views: int, shards: int) -> int:
    """Images of a batch of so many views; those that ``shards`` share equally are the next multiple."""
    return -(-max(1, batch_size // views) // shards) * shards


def ahead(function: Callable[[Any], Any], groups: Iterable[list[Any]]) -> Iterator[tuple[list[Any], list[Any]]]:
    """Yields groups with what a function makes of each of their members, by threads that are two groups ahead at most."""
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


def load(info: DatasetInfo, split: str, view: Squares, batch_size: int, count: int | None = None) -> Iterator[Examples]:
    """``batches``, out of memory where the set lives there whole and is shown as it is."""
    if None in info.image_shape or view.resize or view.crop:
        return batches(info, split, view, batch_size, count=count)
    everything = sources.read(info, split)
    ends = range(batch_size, len(everything) + batch_size, batch_size)
    wanted = len(everything) if count is None else count
    return (
        Examples(everything.images[end - batch_size : min(end, wanted)], everything.labels[end - batch_size : min(end, wanted)])
        for end in ends
        if end - batch_size < wanted
    )
