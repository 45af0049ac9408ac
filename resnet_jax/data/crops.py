"""Crops of training images, on the host. Called with a uint8 image, the output size and a random generator."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnet_jax.data import intervals
from resnet_jax.errors import UserError, nearest

Filter = Literal["bilinear", "bicubic"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the source image
_TRIES = 10


def resample(image: UInt8[np.ndarray, "h w c"], box: Box | None, size: tuple[int, int], filter: Filter) -> UInt8[np.ndarray, "ho wo c"]:
    """Crops ``box`` (None: the whole image) and resizes it to ``size`` (height, width) with Pillow's antialiased filter."""
    channels = image.shape[2]
    if box is not None:
        left, top, right, bottom = box
        image = image[top:bottom, left:right]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling[filter.upper()])).reshape(*size, channels)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area, aspect ratio and position, resized ("Inception crop").

    The ranges are those of Szegedy et al. 2015 (arXiv 1409.4842), Section 6. The algorithm is torchvision's: ratios are
    log-uniform, ten boxes are tried, and if none fits, the largest central box within the ratio range is taken.
    """

    area: tuple[float, float] = (0.08, 1.0)
    """Range of the area, as a fraction of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width over height."""
    filter: Filter = "bilinear"

    @property
    def described(self) -> str:
        """Text for result records."""
        bounds = "" if (self.area, self.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3)) else f" in {self.area} and {self.ratio}"
        return f"scale and aspect ratio{bounds}"

    def __post_init__(self) -> None:
        intervals.check_pair("area", self.area, 1)
        intervals.check_pair("ratio", self.ratio)
        _check_filter(self.filter)

    def __call__(self, image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], rng: np.random.Generator) -> UInt8[np.ndarray, "ho wo c"]:
        height, width, _ = image.shape
        return resample(image, self.box(height, width, rng), size, self.filter)

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """Samples the box for an image of the given size."""
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
    """Resizes the shorter side to a random length and crops at a random position. He et al. 2015, Section 3.4, after VGG.

    Only the window of the crop is resized, rounded to whole pixels of the source image.
    """

    shorter_side: tuple[int, int] = (256, 480)
    """Range of the shorter side, in pixels, both ends included."""
    filter: Filter = "bilinear"

    @property
    def described(self) -> str:
        """Text for result records."""
        return f"scale {self.shorter_side[0]} to {self.shorter_side[1]}, random crop"

    def __post_init__(self) -> None:
        intervals.check_pair("shorter_side", self.shorter_side)
        _check_filter(self.filter)

    def __call__(self, image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], rng: np.random.Generator) -> UInt8[np.ndarray, "ho wo c"]:
        side = int(rng.integers(self.shorter_side[0], self.shorter_side[1] + 1))
        down, across = _offsets(image, side, size)
        return _cut(image, side, int(rng.integers(down + 1)), int(rng.integers(across + 1)), size, self.filter)


@dataclass(frozen=True)
class CentreCrop:
    """Resizes the shorter side and crops the center: training without augmentation. Resizes like ``ShorterSideCrop``."""

    shorter_side: int = 256
    filter: Filter = "bilinear"

    def __post_init__(self) -> None:
        intervals.check(self, "shorter_side", low=1)
        _check_filter(self.filter)

    def __call__(self, image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], _: np.random.Generator) -> UInt8[np.ndarray, "ho wo c"]:
        down, across = _offsets(image, self.shorter_side, size)
        return _cut(image, self.shorter_side, round(down / 2), round(across / 2), size, self.filter)


def _resized(image: np.ndarray, side: int) -> tuple[int, int]:
    """Height and width with a shorter side of ``side``; the longer one is rounded down, as in torchvision."""
    height, width = image.shape[:2]
    short = min(height, width)
    return side * height // short, side * width // short


def _offsets(image: np.ndarray, side: int, size: tuple[int, int]) -> tuple[int, int]:
    """Largest top and left position of a crop of the resized image."""
    height, width = _resized(image, side)
    if height < size[0] or width < size[1]:
        raise UserError(
            f"shorter_side {side} resizes an image of {image.shape[0]}x{image.shape[1]} to {height}x{width}, smaller than the "
            f"{size[0]}x{size[1]} of the model. Give a shorter_side of at least {max(size)}."
        )
    return height - size[0], width - size[1]


def _cut(image: np.ndarray, side: int, top: int, left: int, size: tuple[int, int], filter: Filter) -> np.ndarray:
    """The crop at a position of the resized image."""
    (top, bottom), (left, right) = (
        _span(position, extent, whole, resized)
        for position, extent, whole, resized in zip((top, left), size, image.shape[:2], _resized(image, side), strict=True)
    )
    return resample(image, (left, top, right, bottom), size, filter)


def _span(position: int, extent: int, whole: int, resized: int) -> tuple[int, int]:
    # Rounding the extent instead of both ends keeps it the same at every position.
    kept = max(1, round(extent * whole / resized))
    first = min(round(position * whole / resized), whole - kept)
    return first, first + kept


def _check_filter(filter: str) -> None:
    if filter not in get_args(Filter):
        raise UserError(f"there is no filter {filter!r}{nearest(filter, get_args(Filter))}")
