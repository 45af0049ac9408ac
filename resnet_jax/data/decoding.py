"""Decoding of encoded images: simplejpeg for ordinary JPEGs, Pillow for everything else."""

import io
import warnings

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image


def decode(encoded: bytes, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image as RGB (``channels=3``) or gray (1). An EXIF orientation is ignored.

    Pillow decodes the 22 training images of ImageNet that are CMYK and the one that is a PNG.

    Raises:
      ValueError: if the bytes are no image, or a corrupt one.
    """
    try:
        if channels == 3 and encoded[:2] == b"\xff\xd8" and simplejpeg.decode_jpeg_header(encoded)[2] in ("YCbCr", "Gray", "RGB"):
            return simplejpeg.decode_jpeg(encoded, "RGB")
        with warnings.catch_warnings():
            # A few images of ImageNet have corrupt EXIF data, which is not used.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:
                pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], channels)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
