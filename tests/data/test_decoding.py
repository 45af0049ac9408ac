"""Encoded images to pixels, by whichever decoder is there."""

import io

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import decoding, sources
from resnet_jax.data.sources import DatasetInfo


@pytest.fixture(params=decoding.DECODERS)
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    pytest.importorskip(request.param)
    monkeypatch.setattr(decoding, "decoder", lambda: request.param)
    return request.param


def picture(mode: str, size: tuple[int, int] = (23, 17)) -> Image.Image:
    """A smooth picture, which JPEG keeps well."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    channels = [across, down, 255 - across, np.zeros_like(across)][: len(Image.new(mode, (1, 1)).getbands())]
    return Image.fromarray(np.stack(channels, axis=-1).squeeze().astype(np.uint8), mode=None if mode != "CMYK" else "CMYK")


def encoded(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **({"quality": 98, "subsampling": 0} if format == "JPEG" else {}), **options)
    return file.getvalue()


def test_the_decoders_are_preferred_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for gone in range(3):
        installed = set(decoding.DECODERS[gone:])
        monkeypatch.setattr(decoding.importlib.util, "find_spec", lambda name, installed=installed: name in installed or None)
        decoding.decoder.cache_clear()
        found.append(decoding.decoder())
    monkeypatch.undo()
    decoding.decoder.cache_clear()
    assert found == ["simplejpeg", "cv2", "PIL"]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_colour_grey_and_cmyk_images_become_rgb(decoder: str, mode: str) -> None:
    original = picture(mode)
    found = decoding.decode(encoded(original))
    assert (found.shape, found.dtype) == ((17, 23, 3), np.uint8)
    expected = np.asarray(original.convert("RGB")).astype(int)
    assert np.abs(found - expected).max() <= 8
    assert np.abs(found - expected).mean() < 2


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "WEBP"])
def test_an_image_under_the_name_of_a_jpeg_is_decoded_by_what_it_is(decoder: str, format: str) -> None:
    found = decoding.decode(encoded(picture("RGB"), format))
    assert found.shape == (17, 23, 3)
    if format in ("PNG", "BMP"):
        np.testing.assert_array_equal(found, np.asarray(picture("RGB")))


def test_one_channel_is_asked_for_by_its_number(decoder: str) -> None:
    found = decoding.decode(encoded(picture("L"), "PNG"), channels=1)
    np.testing.assert_array_equal(found[..., 0], np.asarray(picture("L")))


def test_an_orientation_that_a_camera_wrote_turns_nothing(decoder: str) -> None:
    """ImageNet's labels and crops are of the pixels as they are stored."""
    turned = Image.Exif()
    turned[0x0112] = 6
    assert decoding.decode(encoded(picture("RGB"), exif=turned)).shape == (17, 23, 3)


@pytest.mark.parametrize("kept", [0, 1, 30, 0.5, 0.9], ids=str)
def test_a_truncated_image_is_an_error_and_no_half_grey_picture(decoder: str, kept: float) -> None:
    whole = encoded(picture("RGB", (200, 150)))
    with pytest.raises(ValueError, match="."):
        decoding.decode(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])


def test_the_decoders_agree_on_photographs(photographs: DatasetInfo) -> None:
    """Libraries round in places of their own: at most 3 of 255 on one pixel in ten thousand, a hundredth on the mean."""
    source = sources.encoded(photographs, "train")
    for index in range(0, 440, 44):
        found = [decoding._DECODE[name](source[index][0]) for name in decoding.DECODERS]
        for other in found[1:]:
            difference = np.abs(found[0].astype(int) - other)
            assert difference.mean() < 0.05, index
            assert (difference > 3).mean() < 1e-4, index
