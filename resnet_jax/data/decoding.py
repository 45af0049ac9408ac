"""Encoded images to pixels: simplejpeg, else OpenCV, else Pillow, whichever is installed; what is no plain JPEG goes to Pillow."""

import functools
import importlib.util
import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# Modules, in the order of preference.
DECODERS = ("simplejpeg", "cv2", "PIL")


@functools.cache
def decoder() -> str:
    """Name of the module that decodes JPEG here: simplejpeg, cv2 or PIL. Their pixels differ by rounding."""
    return next(module for module in DECODERS if importlib.util.find_spec(module) is not None)


def decode(encoded: bytes, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image whole, as RGB (``channels=3``) or grey (1).

    Twenty-two training images of ImageNet are CMYK and one is a PNG under the name of a JPEG: those are decoded by Pillow.

    Raises:
      ValueError: for what is no image, or a damaged one.
    """
    try:
        pixels = _DECODE[decoder()](encoded) if channels == 3 and encoded[:2] == b"\xff\xd8" else None
        return _by_pillow(encoded, channels) if pixels is None else pixels
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


def _by_simplejpeg(encoded: bytes) -> np.ndarray | None:
    import simplejpeg

    # Its own decoder refuses to turn CMYK into RGB.
    if simplejpeg.decode_jpeg_header(encoded)[2] not in ("YCbCr", "Gray", "RGB"):
        return None
    return simplejpeg.decode_jpeg(encoded, "RGB")


def _by_opencv(encoded: bytes) -> np.ndarray | None:
    import cv2

    with Image.open(io.BytesIO(encoded)) as header:
        if header.mode not in ("RGB", "L"):
            return None
    # Without the flag OpenCV turns images by their EXIF orientation, which the others do not.
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError("OpenCV cannot decode it")
    return pixels


def _by_pillow(encoded: bytes, channels: int = 3) -> np.ndarray:
    with warnings.catch_warnings():
        # Damaged EXIF data, which a few of ImageNet's images have, is no matter of ours.
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


_DECODE = {"simplejpeg": _by_simplejpeg, "cv2": _by_opencv, "PIL": _by_pillow}
