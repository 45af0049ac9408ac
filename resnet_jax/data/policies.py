"""Augmentation policies of a training crop, on the host. Called with a uint8 RGB image and a generator."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnet_jax.data import intervals
from resnet_jax.data.policy_operations import MOVING, OPERATIONS, Sampling
from resnet_jax.errors import UserError

# Operations with a random sign, and neutral arguments, as in torchvision.
_SIGNED = MOVING | {"Brightness", "Color", "Contrast", "Sharpness"}
_NEUTRAL = {"Brightness": 1.0, "Color": 1.0, "Contrast": 1.0, "Sharpness": 1.0, "Posterize": 8.0, "Solarize": 255.0}
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
        intervals.check(self, "operations")
        intervals.check(self, "magnitude", high=_BINS - 1)

    def __call__(self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w c"]:
        height, width, _ = image.shape
        # AutoAugment translates images of 331 pixels by up to 150 (Cubuk et al. 2018).
        reach = _reach(shear=0.3, translate=(150 / 331 * width, 150 / 331 * height), rotate=30, enhance=0.9, bits=4)
        picture = _picture(image)
        for _ in range(self.operations):
            picture = _drawn(picture, reach, self.magnitude / (_BINS - 1), rng)
        return np.asarray(picture)


@dataclass(frozen=True)
class TrivialAugment:
    """One operation of a random magnitude. Müller and Hutter 2021, arXiv 2103.10158; torchvision's TrivialAugmentWide."""

    def __call__(self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w c"]:
        reach = _reach(shear=0.99, translate=(32, 32), rotate=135, enhance=0.99, bits=6)
        return np.asarray(_drawn(_picture(image), reach, int(rng.integers(_BINS)) / (_BINS - 1), rng))


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
        intervals.check(self, "magnitude", high=10)
        intervals.check(self, "deviation", "operations")
        intervals.check(self, "probability", high=1)

    def __call__(self, image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> UInt8[np.ndarray, "h w c"]:
        picture = _picture(image)
        for number in rng.integers(len(TIMM_OPERATIONS), size=self.operations):
            if rng.random() < self.probability:
                strength = min(max(rng.normal(self.magnitude, self.deviation) / 10, 0.0), 1.0)
                sign = -1 if rng.integers(2) else 1
                sampling = Sampling((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[rng.integers(2)], (124, 116, 104))
                name = TIMM_OPERATIONS[number]
                picture = OPERATIONS[name](picture, timm_argument(name, strength, sign, picture.size), sampling)
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


def _reach(*, shear: float, translate: tuple[float, float], rotate: float, enhance: float, bits: int) -> dict[str, float]:
    """Largest distance of each operation's argument from the neutral one, in torchvision's order."""
    enhanced = dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), enhance)
    moved = {"ShearX": shear, "ShearY": shear, "TranslateX": translate[0], "TranslateY": translate[1], "Rotate": rotate}
    return {"Identity": 0.0} | moved | enhanced | {"Posterize": -bits, "Solarize": -255.0, "AutoContrast": 0.0, "Equalize": 0.0}


def torchvision_argument(name: str, reach: Mapping[str, float], strength: float, sign: int) -> float:
    """Argument of an operation at a strength in [0, 1]."""
    argument = _NEUTRAL.get(name, 0.0) + sign * reach[name] * strength
    if name in ("TranslateX", "TranslateY"):
        return int(argument)
    return round(argument) if name == "Posterize" else argument


def _drawn(picture: Image.Image, reach: Mapping[str, float], strength: float, rng: np.random.Generator) -> Image.Image:
    """Applies one operation, chosen uniformly."""
    name = tuple(reach)[rng.integers(len(reach))]
    sign = -1 if name in _SIGNED and rng.integers(2) else 1
    return OPERATIONS[name](picture, torchvision_argument(name, reach, strength, sign), _NEAREST)


def _picture(image: np.ndarray) -> Image.Image:
    if image.shape[2] != 3:
        raise UserError(f"augmentation policies need RGB images, got {image.shape[2]} channels. Give no policy.")
    return Image.fromarray(image)
