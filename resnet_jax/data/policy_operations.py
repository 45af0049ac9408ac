"""Operations of augmentation policies, by their names in the literature: (image, argument, sampling) -> image, with Pillow."""

import math
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps


class Sampling(NamedTuple):
    """Interpolation and fill color of geometric operations."""

    resample: Image.Resampling
    fill: tuple[int, int, int]


def _affine(image: Image.Image, sampling: Sampling, matrix: tuple[float, ...]) -> Image.Image:
    """Maps the output pixel (x, y) to the input position (ax + by + c, dx + ey + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, sampling.resample, fillcolor=sampling.fill)


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
    "TranslateX": lambda image, pixels, sampling: _affine(image, sampling, (1, 0, -pixels, 0, 1, 0)),
    "TranslateY": lambda image, pixels, sampling: _affine(image, sampling, (1, 0, 0, 0, 1, -pixels)),
    "Rotate": lambda image, degrees, sampling: image.rotate(degrees, sampling.resample, fillcolor=sampling.fill),
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
