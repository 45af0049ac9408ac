"""Crops of training images, on the host. Called with a uint8 image, the output size and a random generator."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

from resnet_jax.data import augment_device
from resnet_jax.errors import UserError, nearest

Filter = Literal["bilinear", "bicubic"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the source image
_TRIES = 10


def resample(
    image: UInt8[np.ndarray, "h w c"], box: Box | None, size: tuple[int, int], filter: Filter
) -> UInt8[np.ndarray, "ho wo c"]:
    """Crops ``box`` (None: the whole image) and resizes it to ``size`` (height, width) with Pillow's antialiased filter."""
    channels = image.shape[2]
    if box is not None:
        left, top, right, bottom = box
        image = image[top:bottom, left:right]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling[filter.upper()])).reshape(
        *size, channels
    )


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
        bounds = (
            ""
            if (self.area, self.ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
            else f" in {self.area} and {self.ratio}"
        )
        return f"scale and aspect ratio{bounds}"

    def __post_init__(self) -> None:
        augment_device.check_pair("area", self.area, 1)
        augment_device.check_pair("ratio", self.ratio)
        _check_filter(self.filter)

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "ho wo c"]:
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
        augment_device.check_pair("shorter_side", self.shorter_side)
        _check_filter(self.filter)

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "ho wo c"]:
        side = int(rng.integers(self.shorter_side[0], self.shorter_side[1] + 1))
        down, across = _offsets(image, side, size)
        return _cut(
            image,
            side,
            int(rng.integers(down + 1)),
            int(rng.integers(across + 1)),
            size,
            self.filter,
        )


@dataclass(frozen=True)
class CenterCrop:
    """Resizes the shorter side and crops the center: training without augmentation. Resizes like ``ShorterSideCrop``."""

    shorter_side: int = 256
    filter: Filter = "bilinear"

    def __post_init__(self) -> None:
        augment_device.check(self, "shorter_side", low=1)
        _check_filter(self.filter)

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], size: tuple[int, int], _: np.random.Generator
    ) -> UInt8[np.ndarray, "ho wo c"]:
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


def _cut(
    image: np.ndarray, side: int, top: int, left: int, size: tuple[int, int], filter: Filter
) -> np.ndarray:
    """The crop at a position of the resized image."""
    (top, bottom), (left, right) = (
        _span(position, extent, whole, resized)
        for position, extent, whole, resized in zip(
            (top, left), size, image.shape[:2], _resized(image, side), strict=True
        )
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


# Operations with a random sign, and neutral arguments, as in torchvision.


class Sampling(NamedTuple):
    """Interpolation and fill color of geometric operations."""

    resample: Image.Resampling
    fill: tuple[int, int, int]


def _affine(image: Image.Image, sampling: Sampling, matrix: tuple[float, ...]) -> Image.Image:
    """Maps the output pixel (x, y) to the input position (ax + by + c, dx + ey + f)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, sampling.resample, fillcolor=sampling.fill
    )


def _posterize(image: Image.Image, bits: float) -> Image.Image:
    # ImageOps.posterize rejects 0 bits, which timm's policy can draw.
    step = 2 ** (8 - int(bits))
    return image.point([value // step * step for value in range(256)] * 3)


def _solarize_add(image: Image.Image, amount: float) -> Image.Image:
    table = [min(255, value + int(amount)) if value < 128 else value for value in range(256)]
    return image.point(table * 3)


# Arguments: shear factor about the upper left corner; pixels to the right or down; degrees counterclockwise; enhancement factor
# (1: none); bits kept (Posterize); threshold from which values are inverted (Solarize); amount added below 128 (SolarizeAdd).
OPERATIONS: dict[str, Callable[[Image.Image, float, Sampling], Image.Image]] = {
    "Identity": lambda image, _, __: image,
    "ShearX": lambda image, factor, sampling: _affine(image, sampling, (1, factor, 0, 0, 1, 0)),
    "ShearY": lambda image, factor, sampling: _affine(image, sampling, (1, 0, 0, factor, 1, 0)),
    "TranslateX": lambda image, pixels, sampling: _affine(
        image, sampling, (1, 0, -pixels, 0, 1, 0)
    ),
    "TranslateY": lambda image, pixels, sampling: _affine(
        image, sampling, (1, 0, 0, 0, 1, -pixels)
    ),
    "Rotate": lambda image, degrees, sampling: image.rotate(
        degrees, sampling.resample, fillcolor=sampling.fill
    ),
    "Brightness": lambda image, factor, _: ImageEnhance.Brightness(image).enhance(factor),
    "Color": lambda image, factor, _: ImageEnhance.Color(image).enhance(factor),
    "Contrast": lambda image, factor, _: ImageEnhance.Contrast(image).enhance(factor),
    "Sharpness": lambda image, factor, _: ImageEnhance.Sharpness(image).enhance(factor),
    "Posterize": lambda image, bits, _: _posterize(image, bits),
    "Solarize": lambda image, threshold, _: ImageOps.solarize(image, math.ceil(threshold)),
    "SolarizeAdd": lambda image, amount, _: _solarize_add(image, amount),
    "AutoContrast": lambda image, _, __: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, __: ImageOps.equalize(image),
    "Invert": lambda image, _, __: ImageOps.invert(image),
}

MOVING = frozenset({"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"})
"""Geometric operations."""


_SIGNED = MOVING | {"Brightness", "Color", "Contrast", "Sharpness"}
_NEUTRAL = {
    "Brightness": 1.0,
    "Color": 1.0,
    "Contrast": 1.0,
    "Sharpness": 1.0,
    "Posterize": 8.0,
    "Solarize": 255.0,
}
# Number of magnitudes in torchvision.
_BINS = 31
_NEAREST = Sampling(Image.Resampling.NEAREST, (0, 0, 0))


@dataclass(frozen=True)
class RandAugment:
    """Several operations of one magnitude. Cubuk et al. 2019, arXiv 1909.13719, with torchvision's operations and ranges."""

    operations: int = 2
    magnitude: int = 9
    """In [0, 30]."""

    def __post_init__(self) -> None:
        augment_device.check(self, "operations")
        augment_device.check(self, "magnitude", high=_BINS - 1)

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w c"]:
        height, width, _ = image.shape
        # AutoAugment translates images of 331 pixels by up to 150 (Cubuk et al. 2018).
        reach = _reach(
            shear=0.3,
            translate=(150 / 331 * width, 150 / 331 * height),
            rotate=30,
            enhance=0.9,
            bits=4,
        )
        picture = _picture(image)
        for _ in range(self.operations):
            picture = _drawn(picture, reach, self.magnitude / (_BINS - 1), rng)
        return np.asarray(picture)


@dataclass(frozen=True)
class TrivialAugment:
    """One operation of a random magnitude. Müller and Hutter 2021, arXiv 2103.10158; torchvision's TrivialAugmentWide."""

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w c"]:
        reach = _reach(shear=0.99, translate=(32, 32), rotate=135, enhance=0.99, bits=6)
        return np.asarray(
            _drawn(_picture(image), reach, int(rng.integers(_BINS)) / (_BINS - 1), rng)
        )


@dataclass(frozen=True)
class TimmRandAugment:
    """timm's ``rand-m7-mstd0.5-inc1``, the RandAugment of "ResNet strikes back" (Wightman et al. 2021, arXiv 2110.00476).

    Each drawn operation is applied with a probability; its magnitude is normal, clipped to [0, 10]. Geometric operations
    interpolate bilinearly or bicubically at random and fill with ImageNet's mean.
    """

    magnitude: float = 7
    """Mean, in [0, 10]."""
    deviation: float = 0.5
    """Standard deviation of the magnitude."""
    operations: int = 2
    probability: float = 0.5

    def __post_init__(self) -> None:
        augment_device.check(self, "magnitude", high=10)
        augment_device.check(self, "deviation", "operations")
        augment_device.check(self, "probability", high=1)

    def __call__(
        self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator
    ) -> UInt8[np.ndarray, "h w c"]:
        picture = _picture(image)
        for number in rng.integers(len(TIMM_OPERATIONS), size=self.operations):
            if rng.random() < self.probability:
                strength = min(max(rng.normal(self.magnitude, self.deviation) / 10, 0.0), 1.0)
                sign = -1 if rng.integers(2) else 1
                sampling = Sampling(
                    (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[rng.integers(2)],
                    (124, 116, 104),
                )
                name = TIMM_OPERATIONS[number]
                picture = OPERATIONS[name](
                    picture, timm_argument(name, strength, sign, picture.size), sampling
                )
        return np.asarray(picture)


TIMM_OPERATIONS = tuple(name for name in OPERATIONS if name != "Identity")


def timm_argument(name: str, strength: float, sign: int, size: tuple[int, int]) -> float:
    """Argument of an operation at a strength in [0, 1], for images of ``size`` (width, height)."""
    match name:
        case "ShearX" | "ShearY":
            return sign * 0.3 * strength
        case "TranslateX":
            return sign * 0.45 * strength * size[0]
        case "TranslateY":
            return sign * 0.45 * strength * size[1]
        case "Rotate":
            return sign * 30 * strength
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return 1 + sign * 0.9 * strength
        case "Posterize":
            return 4 - int(4 * strength)
        case "Solarize":
            return 256 - int(256 * strength)
        case "SolarizeAdd":
            return int(110 * strength)
        case _:
            return 0


def _reach(
    *, shear: float, translate: tuple[float, float], rotate: float, enhance: float, bits: int
) -> dict[str, float]:
    """Largest distance of each operation's argument from the neutral one, in torchvision's order."""
    enhanced = dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), enhance)
    moved = {
        "ShearX": shear,
        "ShearY": shear,
        "TranslateX": translate[0],
        "TranslateY": translate[1],
        "Rotate": rotate,
    }
    return (
        {"Identity": 0.0}
        | moved
        | enhanced
        | {"Posterize": -bits, "Solarize": -255.0, "AutoContrast": 0.0, "Equalize": 0.0}
    )


def torchvision_argument(
    name: str, reach: Mapping[str, float], strength: float, sign: int
) -> float:
    """Argument of an operation at a strength in [0, 1]."""
    argument = _NEUTRAL.get(name, 0.0) + sign * reach[name] * strength
    if name in ("TranslateX", "TranslateY"):
        return int(argument)
    return round(argument) if name == "Posterize" else argument


def _drawn(
    picture: Image.Image, reach: Mapping[str, float], strength: float, rng: np.random.Generator
) -> Image.Image:
    """Applies one operation, chosen uniformly."""
    name = tuple(reach)[rng.integers(len(reach))]
    sign = -1 if name in _SIGNED and rng.integers(2) else 1
    return OPERATIONS[name](picture, torchvision_argument(name, reach, strength, sign), _NEAREST)


def _picture(image: np.ndarray) -> Image.Image:
    if image.shape[2] != 3:
        raise UserError(
            f"augmentation policies need RGB images, got {image.shape[2]} channels. Give no policy."
        )
    return Image.fromarray(image)
