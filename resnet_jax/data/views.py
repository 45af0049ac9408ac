"""Images as a network's card says that it is shown them: the shorter side resized, the central square cropped."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnet_jax.data import sources
from resnet_jax.data.sources import DatasetInfo, Examples
from resnet_jax.errors import UserError
from resnet_jax.models.pretrained.card import View

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def shown(image: UInt8[np.ndarray, "h w c"], view: View) -> UInt8[np.ndarray, "ho wo c"]:
    """Resizes and crops one image as torchvision's ``Resize`` and ``CenterCrop`` do: antialiased, in uint8."""
    height, width, channels = image.shape
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    if view.resize:
        # The longer side is rounded down.
        short, long = min(height, width), max(height, width)
        side = int(view.resize * long / short)
        picture = picture.resize((side, view.resize) if width > height else (view.resize, side), _FILTERS[view.interpolation])
    if view.crop:
        left, top = _beginning(picture.width, view.crop), _beginning(picture.height, view.crop)
        picture = picture.crop((left, top, left + view.crop, top + view.crop))
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


def _beginning(size: int, crop: int) -> int:
    # As torchvision: halves round to even, as Python's round does; a smaller image is padded, the odd pixel behind it. Outside is black.
    return round((size - crop) / 2) if size >= crop else -((crop - size) // 2)


def batches(info: DatasetInfo, split: str, view: View, batch_size: int, count: int | None = None) -> Iterator[Examples]:
    """Yields the images of a split, in its order, as a card's view says; the last batch may be shorter.

    Args:
      info: of the set.
      split: which.
      view: how images are shown.
      batch_size: images a batch.
      count: only the first so many; None: all.

    Raises:
      UserError: for images of different sizes where the view does not make them one, or an example that cannot be read.
    """
    if None in info.image_shape and not (view.resize and view.crop):
        raise UserError(f"the images of {info.name} differ in size, and the card does not say how they are resized and cropped: give both")
    wanted = info.examples[split] if count is None else min(count, info.examples[split])
    source = sources.opened(info, split)

    def one(index: int) -> tuple[Any, int]:
        example = sources.example(source, info, split, index)
        return shown(example["image"], view), example["label"]

    with ThreadPoolExecutor() as pool:
        for start in range(0, wanted, batch_size):
            images, labels = zip(*pool.map(one, range(start, min(start + batch_size, wanted))), strict=True)
            yield Examples(np.stack(images), np.asarray(labels, np.int32))


def load(info: DatasetInfo, split: str, view: View, batch_size: int, count: int | None = None) -> Iterator[Examples]:
    """``batches``, out of memory where the set lives there whole and is shown as it is."""
    if None in info.image_shape or view.resize or view.crop:
        return batches(info, split, view, batch_size, count)
    everything = sources.read(info, split)
    ends = range(batch_size, len(everything) + batch_size, batch_size)
    wanted = len(everything) if count is None else count
    return (
        Examples(everything.images[end - batch_size : min(end, wanted)], everything.labels[end - batch_size : min(end, wanted)])
        for end in ends
        if end - batch_size < wanted
    )
