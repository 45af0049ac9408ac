"""Augmentation on the host: crops ``(image, size, rng)`` and policies ``(image, rng)``."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps
from PIL.Image import Resampling

from resnet_jax.data.augment_device import check, check_rgb
from resnet_jax.errors import require

Filter = Literal["bilinear", "bicubic"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels of the source image
Pixels = UInt8[np.ndarray, "h w c"]
Crop = UInt8[np.ndarray, "ho wo c"]


def resample(image: Pixels, size: tuple[int, int], filter: Filter) -> UInt8[np.ndarray, "ho wo c"]:
    """Resizes an image to (height, width) with Pillow's antialiased filter."""
    channels = image.shape[2]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    resized = picture.resize((size[1], size[0]), Resampling[filter.upper()])
    return np.asarray(resized).reshape(*size, channels)


def resize_and_crop(image: Pixels, resize: int, crop: int, filter: Filter) -> Crop:
    """Resizes (antialiased) and crops like torchvision's ``Resize`` and ``CenterCrop``; 0: not."""
    if resize:
        # The longer side is rounded down.
        height, width = (resize * extent // min(image.shape[:2]) for extent in image.shape[:2])
        image = resample(image, (height, width), filter)
    if crop:
        # A smaller image is padded with zeros.
        missing = [max(0, crop - extent) for extent in image.shape[:2]]
        image = np.pad(image, [*((n // 2, n - n // 2) for n in missing), (0, 0)])
        top, left = (center(extent, crop) for extent in image.shape[:2])
        image = image[top : top + crop, left : left + crop]
    return image


def center(extent: int, crop: int) -> int:
    """First pixel of a central crop; as in torchvision, halves are rounded to even."""
    return round((extent - crop) / 2)


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random box, resized ("Inception crop", Szegedy et al. 2015, arXiv 1409.4842, Section 6).

    As in torchvision, ratios are log-uniform, and if none of ten boxes fits, the largest central
    one within the ratios is taken.
    """

    area: tuple[float, float] = (0.08, 1.0)
    """Fraction of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width over height."""
    filter: Filter = "bilinear"

    def __post_init__(self) -> None:
        check(self, "area", high=1)
        check(self, "ratio", positive=True)

    @property
    def described(self) -> str:
        """Text for result records."""
        usual = self == RandomResizedCrop(filter=self.filter)
        return "scale and aspect ratio" + ("" if usual else f" in {self.area} and {self.ratio}")

    def __call__(self, image: Pixels, size: tuple[int, int], rng: np.random.Generator) -> Crop:
        left, top, right, bottom = self.box(image.shape[0], image.shape[1], rng)
        return resample(image[top:bottom, left:right], size, self.filter)

    def box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        narrow, wide = self.ratio
        for _ in range(10):
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
    """A random crop after resizing to a random shorter side (He et al. 2015, Section 3.4)."""

    shorter_side: tuple[int, int] = (256, 480)
    """Range in pixels, both ends included."""
    filter: Filter = "bilinear"

    def __post_init__(self) -> None:
        check(self, "shorter_side")

    @property
    def described(self) -> str:
        """Text for result records."""
        return "scale {} to {}, random crop".format(*self.shorter_side)

    def __call__(self, image: Pixels, size: tuple[int, int], rng: np.random.Generator) -> Crop:
        _require_room(self.shorter_side[0], size)
        side = int(rng.integers(self.shorter_side[0], self.shorter_side[1] + 1))
        return _resized_crop(image, side, size, self.filter, lambda n: int(rng.integers(n + 1)))


@dataclass(frozen=True)
class CenterCrop:
    """The center after resizing to a shorter side: no augmentation."""

    shorter_side: int = 256
    filter: Filter = "bilinear"

    def __call__(self, image: Pixels, size: tuple[int, int], _: np.random.Generator) -> Crop:
        _require_room(self.shorter_side, size)
        return _resized_crop(image, self.shorter_side, size, self.filter, lambda n: round(n / 2))


def _require_room(side: int, size: tuple[int, int]) -> None:
    model = "{}x{} of the model".format(*size)
    require(side >= max(size), f"shorter_side {side} is smaller than the {model}.")


def _resized_crop(
    image: Pixels, side: int, size: tuple[int, int], filter: Filter, offset: Callable[[int], int]
) -> Crop:
    """Resizes only the window of the crop, rounded to whole pixels of the source."""
    sources = image.shape[:2]
    # The longer side is rounded down, as in torchvision.
    height, width = (side * source // min(sources) for source in sources)
    windows = []
    for source, resized, extent in zip(sources, (height, width), size, strict=True):
        start = offset(resized - extent)
        # Rounding the extent instead of both ends keeps it the same at every offset.
        length = max(1, round(extent * source / resized))
        first = min(round(start * source / resized), source - length)
        windows.append(slice(first, first + length))
    return resample(image[tuple(windows)], size, filter)


class Sampling(NamedTuple):
    """Interpolation and fill color of geometric operations."""

    resample: Resampling
    fill: tuple[int, int, int]


Operation = Callable[[Image.Image, float, Sampling], Image.Image]


def _affine(matrix: Callable[[float], tuple[float, ...]]) -> Operation:
    """Maps the output pixel (x, y) to the input position (ax + by + c, dx + ey + f)."""
    kind = Image.Transform.AFFINE
    return lambda image, argument, sampling: image.transform(
        image.size, kind, matrix(argument), sampling.resample, fillcolor=sampling.fill
    )


def _enhance(kind: Callable[[Image.Image], Any]) -> Operation:
    return lambda image, factor, _: kind(image).enhance(factor)


def _per_value(function: Callable[[int, float], int]) -> Operation:
    return lambda image, argument, _: image.point([function(v, argument) for v in range(256)] * 3)


# Arguments: shear factor about the upper left corner; pixels to the right or down; degrees
# counterclockwise; enhancement factor (1: none); bits kept; threshold; amount added below 128.
OPERATIONS: dict[str, Operation] = {
    "Identity": lambda image, _, __: image,
    "ShearX": _affine(lambda factor: (1, factor, 0, 0, 1, 0)),
    "ShearY": _affine(lambda factor: (1, 0, 0, factor, 1, 0)),
    "TranslateX": _affine(lambda pixels: (1, 0, -pixels, 0, 1, 0)),
    "TranslateY": _affine(lambda pixels: (1, 0, 0, 0, 1, -pixels)),
    "Rotate": lambda image, degrees, s: image.rotate(degrees, s.resample, fillcolor=s.fill),
    "Brightness": _enhance(ImageEnhance.Brightness),
    "Color": _enhance(ImageEnhance.Color),
    "Contrast": _enhance(ImageEnhance.Contrast),
    "Sharpness": _enhance(ImageEnhance.Sharpness),
    "Posterize": _per_value(lambda value, bits: value & (256 - 2 ** (8 - int(bits)))),
    "Solarize": _per_value(lambda value, threshold: value if value < threshold else 255 - value),
    "SolarizeAdd": _per_value(lambda value, n: min(255, value + int(n)) if value < 128 else value),
    "AutoContrast": lambda image, _, __: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, __: ImageOps.equalize(image),
    "Invert": _per_value(lambda value, _: 255 - value),
}
TIMM_OPERATIONS = tuple(name for name in OPERATIONS if name != "Identity")
_TORCHVISION = tuple(name for name in OPERATIONS if name not in ("SolarizeAdd", "Invert"))
_ENHANCING = ("Brightness", "Color", "Contrast", "Sharpness")
_GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_NEAREST = Sampling(Resampling.NEAREST, (0, 0, 0))
_BINS = 31  # magnitudes in torchvision


def _signed_arguments(
    signed: float, shear: float, translate: tuple[float, float], rotate: float, enhance: float
) -> dict[str, float]:
    limits = (shear, shear, *translate, rotate)
    geometric = zip(_GEOMETRIC, (signed * limit for limit in limits), strict=True)
    return {**dict(geometric), **dict.fromkeys(_ENHANCING, 1 + signed * enhance)}


def _apply_random(
    picture: Image.Image, strength: float, rng: np.random.Generator, *, bits: int, **limits: Any
) -> Image.Image:
    """Applies one operation of torchvision; strength 1 is the largest change."""
    name = _TORCHVISION[rng.integers(len(_TORCHVISION))]
    is_signed = name in _GEOMETRIC or name in _ENHANCING
    signed = -strength if is_signed and rng.integers(2) else strength
    arguments = _signed_arguments(signed, **limits) | {
        "Posterize": round(8 - bits * strength),
        "Solarize": 255 - 255 * strength,
    }
    argument = arguments.get(name, 0)
    if name in ("TranslateX", "TranslateY"):
        argument = int(argument)
    return OPERATIONS[name](picture, argument, _NEAREST)


@dataclass(frozen=True)
class RandAugment:
    """Several operations of one magnitude. Cubuk et al. 2019 (1909.13719); torchvision's."""

    operations: int = 2
    magnitude: int = 9
    """In [0, 30]."""

    def __post_init__(self) -> None:
        check(self, "operations")
        check(self, "magnitude", high=_BINS - 1)

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        check_rgb(image)
        picture = Image.fromarray(image)
        # AutoAugment translates images of 331 pixels by up to 150 (Cubuk et al. 2018).
        translate = (150 / 331 * picture.width, 150 / 331 * picture.height)
        limits = {"shear": 0.3, "translate": translate, "rotate": 30, "enhance": 0.9, "bits": 4}
        for _ in range(self.operations):
            picture = _apply_random(picture, self.magnitude / (_BINS - 1), rng, **limits)
        return np.asarray(picture)


@dataclass(frozen=True)
class TrivialAugment:
    """One operation of random magnitude. Müller and Hutter 2021 (2103.10158); torchvision's."""

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        check_rgb(image)
        picture, strength = Image.fromarray(image), int(rng.integers(_BINS)) / (_BINS - 1)
        limits = {"shear": 0.99, "translate": (32, 32), "rotate": 135, "enhance": 0.99, "bits": 6}
        return np.asarray(_apply_random(picture, strength, rng, **limits))


@dataclass(frozen=True)
class TimmRandAugment:
    """timm's ``rand-m7-mstd0.5-inc1`` (Wightman et al. 2021, arXiv 2110.00476).

    Magnitudes are normal, clipped to [0, 10]; interpolation is bilinear or bicubic at random.
    """

    magnitude: float = 7
    """Mean, in [0, 10]."""
    deviation: float = 0.5
    """Standard deviation of the magnitude."""
    operations: int = 2
    probability: float = 0.5
    """Per operation, of being applied."""

    def __post_init__(self) -> None:
        check(self, "magnitude", high=10)
        check(self, "deviation", "operations")
        check(self, "probability", high=1)

    def __call__(self, image: Pixels, rng: np.random.Generator) -> Pixels:
        check_rgb(image)
        picture = Image.fromarray(image)
        for number in rng.integers(len(TIMM_OPERATIONS), size=self.operations):
            if rng.random() < self.probability:
                strength = min(max(rng.normal(self.magnitude, self.deviation) / 10, 0.0), 1.0)
                sign = -1 if rng.integers(2) else 1
                filter = Resampling.BICUBIC if rng.integers(2) else Resampling.BILINEAR
                name = TIMM_OPERATIONS[number]
                argument = timm_argument(name, strength, sign, picture.size)
                picture = OPERATIONS[name](picture, argument, Sampling(filter, (124, 116, 104)))
        return np.asarray(picture)


def timm_argument(name: str, strength: float, sign: int, size: tuple[int, int]) -> float:
    """Argument of an operation at a strength in [0, 1], for images of ``size`` (width, height)."""
    translate = (0.45 * size[0], 0.45 * size[1])
    arguments = _signed_arguments(sign * strength, 0.3, translate, 30, 0.9) | {
        "Posterize": 4 - int(4 * strength),
        "Solarize": 256 - int(256 * strength),
        "SolarizeAdd": int(110 * strength),
    }
    return arguments.get(name, 0)
