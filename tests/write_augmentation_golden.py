"""Writes tests/golden/augmentations.npz: results of torchvision's and timm's augmentation operations on one small image.

Needs the extra ``torch``. Run by hand: ``python tests/write_augmentation_golden.py``.
"""

import random
from pathlib import Path
from unittest import mock

import numpy as np
from PIL import Image
from timm.data import auto_augment
from torchvision.transforms import InterpolationMode, autoaugment

GOLDEN = Path(__file__).parent / "golden" / "augmentations.npz"
HEIGHT, WIDTH, BINS = 24, 32, 31
FILL = (124, 116, 104)


def photograph() -> np.ndarray:
    """An image that every operation changes: uneven, with edges, different channels, none from 0 to 255."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red = 40 + 5 * x + 20 * (y > 11)
    green = 200 - 6 * y - 40 * ((x - 20) ** 2 + (y - 8) ** 2 < 30)
    blue = 90 + 60 * np.sin(x / 4) * np.cos(y / 5)
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def space(name: str) -> dict:
    """torchvision's magnitudes by operation: all bins, or a scalar."""
    if name == "RandAugment":
        return autoaugment.RandAugment()._augmentation_space(BINS, (HEIGHT, WIDTH))
    return autoaugment.TrivialAugmentWide()._augmentation_space(BINS)


def by_torchvision(policy: str, operation: str, place: int, sign: int) -> np.ndarray:
    """One operation at one of its magnitudes, as the policy's ``forward`` applies it."""
    magnitudes, signed = space(policy)[operation]
    magnitude = float(magnitudes[place].item()) if magnitudes.ndim > 0 else 0.0
    picture = Image.fromarray(photograph())
    result = autoaugment._apply_op(picture, operation, sign * magnitude if signed else magnitude, InterpolationMode.NEAREST, None)
    return np.asarray(result)


def by_timm(operation: str, magnitude: float, sign: int, resample: Image.Resampling) -> np.ndarray:
    """One operation at a magnitude of 0 to 10, as ``AugmentOp.__call__`` applies it."""
    hparams = {"img_mean": FILL, "interpolation": resample, "translate_const": 100}
    augment = auto_augment.AugmentOp(operation, prob=1.0, magnitude=magnitude, hparams=hparams)
    # timm negates the magnitude if its random number is above 0.5.
    with mock.patch.object(random, "random", return_value=0.0 if sign > 0 else 0.9):
        return np.asarray(augment(Image.fromarray(photograph())))


def main() -> None:
    """Writes the file."""
    images, names = {}, list(space("RandAugment"))
    for policy, place, sign in (("RandAugment", 9, 1), ("TrivialAugment", 25, -1)):
        for name in names:
            images[f"{policy} {name} {place} {sign}"] = by_torchvision(policy, name, place, sign)
    for magnitude, sign, resample in ((7.0, 1, Image.Resampling.BILINEAR), (9.3, -1, Image.Resampling.BICUBIC)):
        for operation in auto_augment._RAND_INCREASING_TRANSFORMS:
            name = operation.removesuffix("Increasing").removesuffix("Rel")
            images[f"TimmRandAugment {name} {magnitude} {sign}"] = by_timm(operation, magnitude, sign, resample)
    tables = {
        f"{policy} magnitudes": np.stack([space(policy)[name][0].numpy() * np.ones(BINS) for name in names])
        for policy in ("RandAugment", "TrivialAugment")
    }
    np.savez_compressed(
        GOLDEN,
        photograph=photograph(),
        names=np.array(list(images)),
        images=np.stack(list(images.values())),
        operations=np.array(names),
        **tables,
    )


if __name__ == "__main__":
    main()
