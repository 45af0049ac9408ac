"""Encoded images to pixels."""

import io

import numpy as np
import pytest
from PIL import Image
from resnet_jax.data import datasets
from resnet_jax.data.datasets import DatasetInfo


def picture(mode: str = "RGB", size: tuple[int, int] = (23, 17)) -> Image.Image:
    """A smooth picture, which JPEG keeps well."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    channels = [across, down, 255 - across, np.zeros_like(across)][: len(Image.new(mode, (1, 1)).getbands())]
    return Image.fromarray(np.stack(channels, axis=-1).squeeze().astype(np.uint8), mode="CMYK" if mode == "CMYK" else None)


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **({"quality": 98, "subsampling": 0} if format == "JPEG" else {}), **options)
    return file.getvalue()


def test_decode_converts_color_gray_and_cmyk_to_rgb() -> None:
    for mode in ("RGB", "L", "CMYK"):
        original = picture(mode)
        pixels = datasets.decode(encoded(original))
        assert (pixels.shape, pixels.dtype) == ((17, 23, 3), np.uint8)
        difference = np.abs(pixels - np.asarray(original.convert("RGB")).astype(int))
        assert difference.max() <= 8, mode
        assert difference.mean() < 2, mode


def test_decode_goes_by_content_not_by_name() -> None:
    for format in ("PNG", "BMP", "GIF", "WEBP"):
        pixels = datasets.decode(encoded(picture(), format))
        assert pixels.shape == (17, 23, 3)
        if format in ("PNG", "BMP"):
            np.testing.assert_array_equal(pixels, np.asarray(picture()))
    gray = datasets.decode(encoded(picture("L"), "PNG"), channels=1)
    np.testing.assert_array_equal(gray[..., 0], np.asarray(picture("L")))


def test_decode_ignores_exif_orientation() -> None:
    """ImageNet's labels and published crops are of the pixels as they are stored."""
    rotated = Image.Exif()
    rotated[0x0112] = 6
    assert datasets.decode(encoded(picture(), exif=rotated)).shape == (17, 23, 3)


def test_decode_rejects_truncated_images() -> None:
    """No half-gray picture."""
    whole = encoded(picture(size=(200, 150)))
    for kept in (0, 1, 30, len(whole) // 2, len(whole) * 9 // 10):
        with pytest.raises(ValueError, match="."):
            datasets.decode(whole[:kept])


def test_decode_agrees_with_pillow(photographs: DatasetInfo) -> None:
    """Libraries round differently: at most 3 of 255 on one value in ten thousand, 0.05 on average."""
    source = datasets.encoded(photographs, "train")
    for index in range(0, 440, 44):
        with Image.open(io.BytesIO(source[index][0])) as image:
            difference = np.abs(datasets.decode(source[index][0]).astype(int) - np.asarray(image.convert("RGB")))
        assert difference.mean() < 0.05, index
        assert (difference > 3).mean() < 1e-4, index
