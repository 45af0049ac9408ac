"""How a training image of any size becomes one of the model's, on the host.

Parts, called with an image (height, width, channels; uint8), a ``size`` (height, width) and what is random; they return an image of that
size.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from resnet_jax.data import intervals, resampling
from resnet_jax.data.resampling import Filter, resample
from resnet_jax.errors import UserError, nearest

# Left, top, right, bottom in pixels of the image as it is.
Box = tuple[int, int, int, int]
_TRIES = 10


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area, aspect ratio and place, resized. "Inception's": Szegedy et al. 2015 (arXiv 1409.4842), Section 6.

    Bounds of area and ratio are the paper's; the algorithm is torchvision's, to its rounding: ratios are uniform in their logarithm, ten
    boxes are tried until one fits, and where none does it is the largest central one whose ratio is within the bounds.

    Raises:
      UserError: for bounds that are none, or an unknown filter.
    """

    area: tuple[float, float] = (0.08, 1.0)
    """Least and most of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and most width over height."""
    filter: Filter = "area"

    @property
    def described(self) -> str:
        """As records of results say it."""
        bounds = "" if (self.area, self.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3)) else f" in {self.area} and {self.ratio}"
        return f"scale and aspect ratio{bounds}"

    def __post_init__(self) -> None:
        intervals.check("area", self.area, most=1)
        intervals.check("ratio", self.ratio)
        _check_filter(self.filter)

    def __call__(self, image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], rng: np.random.Generator) -> UInt8[np.ndarray, "ho wo c"]:
        height, width, _ = image.shape
        return resample(image, self.box(height, width, rng), size, self.filter)

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """Draws what is cut out of an image of that size."""
        narrow, wide = self.ratio
        for _ in range(_TRIES):
            area = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(narrow), math.log(wide)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                return left, top, left + w, top + h
        w = min(width, max(1, round(height * wide)))
        h = min(height, max(1, round(width / narrow)))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


@dataclass(frozen=True)
class ShorterSideCrop:
    """The image resized so that its shorter side is random, and a crop out of it at a random place. He et al. 2015, Section 3.4, after VGG.

    Only what the crop shows is resized: its window is carried back to the image as it is, and rounded there to whole pixels, so that the
    result is off by one of them at the most, and the filter sees none beyond the window's edge.

    Raises:
      UserError: for sizes that are none, an unknown filter, or, when called, an image that is smaller than the crop once it is resized.
    """

    shorter_side: tuple[int, int] = (256, 480)
    """Least and most pixels of it."""
    filter: Filter = "area"

    @property
    def described(self) -> str:
        """As records of results say it."""
        return f"scale {self.shorter_side[0]} to {self.shorter_side[1]}, random crop"

    def __post_init__(self) -> None:
        intervals.check("shorter_side", self.shorter_side, whole=True)
        _check_filter(self.filter)

    def __call__(self, image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], rng: np.random.Generator) -> UInt8[np.ndarray, "ho wo c"]:
        side = int(rng.integers(self.shorter_side[0], self.shorter_side[1] + 1))
        down, across = _room(image, side, size)
        return _cut(image, side, int(rng.integers(down + 1)), int(rng.integers(across + 1)), size, self.filter)


@dataclass(frozen=True)
class CentreCrop:
    """The image resized to a shorter side, and the centre of that: for training without augmentation. Nothing is random.

    Only what the crop shows is resized, as by ``ShorterSideCrop``. What is scored is cropped by the scoring's own protocol.

    Raises:
      UserError: for a size that is none, an unknown filter, or, when called, an image that is smaller than the crop once it is resized.
    """

    shorter_side: int = 256
    filter: Filter = "area"

    def __post_init__(self) -> None:
        intervals.check_at_least("shorter_side", self.shorter_side, 1, whole=True)
        _check_filter(self.filter)

    def __call__(
        self,
        image: UInt8[np.ndarray, "h w c"],
        size: tuple[int, int],
        rng: np.random.Generator,  # noqa: ARG002  (crops are called alike)
    ) -> UInt8[np.ndarray, "ho wo c"]:
        down, across = _room(image, self.shorter_side, size)
        return _cut(image, self.shorter_side, round(down / 2), round(across / 2), size, self.filter)


def _resized(image: np.ndarray, side: int) -> tuple[int, int]:
    """Height and width of an image whose shorter side is made ``side``; the longer is rounded down, as by torchvision."""
    height, width = image.shape[:2]
    short = min(height, width)
    return side * height // short, side * width // short


def _room(image: np.ndarray, side: int, size: tuple[int, int]) -> tuple[int, int]:
    """How far a crop can move down and to the right."""
    height, width = _resized(image, side)
    if height < size[0] or width < size[1]:
        raise UserError(
            f"an image of {image.shape[0]}x{image.shape[1]} is {height}x{width} with shorter_side {side}, smaller than the "
            f"{size[0]}x{size[1]} of the model: give a shorter_side of {max(size)} or more"
        )
    return height - size[0], width - size[1]


def _cut(image: np.ndarray, side: int, top: int, left: int, size: tuple[int, int], filter: Filter) -> np.ndarray:
    """The crop at a place of the resized image."""
    (first_row, last_row), (first_column, last_column) = (
        _span(place, extent, whole, resized)
        for place, extent, whole, resized in zip((top, left), size, image.shape[:2], _resized(image, side), strict=True)
    )
    return resample(image, (first_column, first_row, last_column, last_row), size, filter)


def _span(place: int, extent: int, whole: int, resized: int) -> tuple[int, int]:
    # The extent is rounded, rather than both ends: it is the same wherever the crop is.
    kept = max(1, round(extent * whole / resized))
    first = min(round(place * whole / resized), whole - kept)
    return first, first + kept


def _check_filter(filter: str) -> None:
    if filter not in resampling.FILTERS:
        raise UserError(f"there is no filter {filter!r}{nearest(filter, resampling.FILTERS)}")
