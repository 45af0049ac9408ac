"""Images of one size made out of images of any."""

import functools
from types import ModuleType
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from resnet_jax.errors import UserError

Filter = Literal["bilinear", "bicubic", "area"]
FILTERS = ("bilinear", "bicubic", "area")
_PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def resample(
    image: UInt8[np.ndarray, "h w c"], box: tuple[float, float, float, float] | None, size: tuple[int, int], filter: Filter
) -> UInt8[np.ndarray, "ho wo c"]:
    """Cuts a box out of an image and resizes it; no pixel outside the box has a part in it, as where torchvision crops and then resizes.

    Args:
      image: with one or three channels.
      box: left, top, right, bottom in pixels, rounded to whole ones; None: all of the image.
      size: height and width of the result.
      filter: ``bilinear`` and ``bicubic`` are Pillow's, which take the mean over what a pixel covers where the image shrinks
        ("antialiased"); torchvision's on Pillow images are the same. ``area`` is OpenCV's: the mean over exactly what a pixel covers
        where the image shrinks in both directions, else a linear interpolation. It takes the least time.

    Raises:
      UserError: for ``area`` where OpenCV is not installed.
    """
    if box is not None:
        left, top, right, bottom = map(round, box)
        image = image[top:bottom, left:right]
    return _by_opencv(image, size) if filter == "area" else _by_pillow(image, size, _PILLOW[filter])


def _by_pillow(image: np.ndarray, size: tuple[int, int], filter: Image.Resampling) -> np.ndarray:
    channels = image.shape[2]
    picture = Image.fromarray(image[..., 0] if channels == 1 else image)
    return np.asarray(picture.resize((size[1], size[0]), filter)).reshape(*size, channels)


def _by_opencv(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    cv2: Any = _opencv()
    shrinks = image.shape[0] >= size[0] and image.shape[1] >= size[1]
    found = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return found.reshape(*size, image.shape[2])  # OpenCV leaves a single channel out


@functools.cache
def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise UserError(
            "filter 'area' is OpenCV's, which is not installed: pip install opencv-python-headless, or filter 'bilinear'"
        ) from error
    # Many images are resized at once: threads of its own would only compete with those.
    cv2.setNumThreads(0)
    return cv2
