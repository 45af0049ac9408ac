"""Decoding of images to RGB or gray, and their sizes."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

# A few images of ImageNet have corrupt EXIF data, which is not used.
warnings.filterwarnings("ignore", module="PIL")


def decode(content: Any, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Decodes encoded bytes, a file by its path, an array or a Pillow image to RGB or gray (1).

    Gray of 16 or 32 bits and floats in [0, 1] or [0, 255] are scaled to 0-255. Transparency is
    dropped, and frames after the first. Files are turned by their EXIF orientation; encoded bytes,
    those of TFDS, are not, as in published results on ImageNet. Raises ValueError if invalid.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        is_file, encoded = isinstance(content, str), content
        if is_file:
            encoded = Path(content).read_bytes()
        # Pillow decodes ImageNet's 22 CMYK images and its one PNG.
        is_jpeg = channels == 3 and isinstance(encoded, bytes) and encoded[:2] == b"\xff\xd8"
        if is_jpeg and not (is_file and b"Exif" in encoded[: 2**16]):
            colors = simplejpeg.decode_jpeg_header(encoded)[2]
            if colors in ("YCbCr", "Gray", "RGB"):
                return simplejpeg.decode_jpeg(encoded, "RGB")
        with _open(encoded) as image:
            if not isinstance(content, bytes) and _orientation(image) > 1:
                image = ImageOps.exif_transpose(image)
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                image = Image.fromarray(_scaled(image))
            pixels = np.array(image if image.mode == mode else image.convert(mode))
        return pixels.reshape(*pixels.shape[:2], channels)
    except (OSError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


class Header(NamedTuple):
    """Properties of an image before it is decoded."""

    height: int
    width: int
    channels: int
    """1 for gray arrays and Pillow images, else 3."""
    format: str


def header(content: Any) -> Header:
    """Reads the header of what ``decode`` takes."""
    is_encoded = isinstance(content, bytes | str)
    with _open(content) as image:
        height, width = image.height, image.width
        if not isinstance(content, bytes) and _orientation(image) > 4:
            height, width = width, height
        is_gray = not is_encoded and image.mode != "P" and len(image.getbands()) == 1
        return Header(height, width, 1 if is_gray else 3, image.format or "pixels")


def _open(content: Any) -> Any:
    if isinstance(content, Image.Image):
        return contextlib.nullcontext(content)
    if isinstance(content, bytes | str):
        return Image.open(io.BytesIO(content) if isinstance(content, bytes) else content)
    array = np.asarray(content)
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _orientation(image: Image.Image) -> int:
    try:
        # Pillow turns TIFF itself.
        is_turned = image.format == "TIFF"
        return 1 if is_turned else image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Corrupt EXIF data.
        return 1


def _scaled(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Scales integers by the range of their type, which is that of 16 bits in PGM files."""
    values, top = np.asarray(image), 2**31 - 1
    if image.mode == "F":
        top = 1 if values.max() <= 1 else 255
    elif image.mode != "I" or image.format == "PPM":
        top = 2**16 - 1
    elif getattr(image, "tag_v2", {}).get(ExifTags.Base.SampleFormat) == (1,):
        values, top = values.view(np.uint32), 2**32 - 1
    scaled = np.rint(values * (255 / top))
    is_black = values.any() and not scaled.any()
    if is_black or not 0 <= scaled.min() <= scaled.max() <= 255:
        extent = f"[{values.min():g}, {values.max():g}]"
        raise ValueError(f"its values are in {extent}, not in 0 (black) to {top:g} (white)")
    return scaled.astype(np.uint8)
