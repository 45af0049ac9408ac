"""Filters against sums over pixels in NumPy, and boxes against crops of the array."""

import sys

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import resampling
from resnet_jax.data.resampling import FILTERS, resample
from resnet_jax.errors import UserError

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (48, 60, 3)).astype(np.uint8)


def weights(inputs: int, outputs: int, filter: str) -> np.ndarray:
    """(outputs, inputs): which share each pixel has; the kernel is as wide as what an output pixel covers where that shrinks."""
    scale = inputs / outputs
    middle = (np.arange(outputs) + 0.5) * scale
    x = np.abs((np.arange(inputs) + 0.5)[None, :] - middle[:, None]) / max(scale, 1.0)
    if filter == "bilinear":
        kernel = np.clip(1 - x, 0, None)
    elif filter == "bicubic":  # Keys 1981, with a = -0.5
        kernel = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
    else:
        left, right = np.arange(inputs)[None, :], np.arange(1, inputs + 1)[None, :]
        ends = np.arange(outputs + 1) * scale
        kernel = np.clip(np.minimum(right, ends[1:, None]) - np.maximum(left, ends[:-1, None]), 0, None)
    return kernel / kernel.sum(axis=1, keepdims=True)


def resized(image: np.ndarray, size: tuple[int, int], filter: str) -> np.ndarray:
    down, across = weights(image.shape[0], size[0], filter), weights(image.shape[1], size[1], filter)
    return np.clip(np.einsum("ih,jw,hwc->ijc", down, across, image.astype(np.float64)), 0, 255)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("size", [(16, 20), (13, 17), (47, 31)])
def test_shrinking_averages_what_a_pixel_covers(filter: str, size: tuple[int, int]) -> None:
    """Within the rounding of eight bits, of which Pillow's two passes have two."""
    found = resample(IMAGE, None, size, filter)
    assert found.shape == (*size, 3)
    assert found.dtype == np.uint8
    np.testing.assert_allclose(found, resized(IMAGE, size, filter), rtol=0, atol=0.51 if filter == "area" else 1.3)


@pytest.mark.parametrize("size", [(96, 120), (60, 30)])
def test_area_interpolates_linearly_where_it_does_not_shrink_in_both_directions(size: tuple[int, int]) -> None:
    rows, columns = (((np.arange(out) + 0.5) * full / out - 0.5).clip(0, full - 1) for out, full in zip(size, IMAGE.shape, strict=False))
    y, x = np.minimum(np.floor(rows).astype(int), 46), np.minimum(np.floor(columns).astype(int), 58)
    fy, fx = (rows - y)[:, None, None], (columns - x)[None, :, None]
    image = IMAGE.astype(np.float64)
    above = image[y][:, x] * (1 - fx) + image[y][:, x + 1] * fx
    below = image[y + 1][:, x] * (1 - fx) + image[y + 1][:, x + 1] * fx
    np.testing.assert_allclose(resample(IMAGE, None, size, "area"), above * (1 - fy) + below * fy, rtol=0, atol=1)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_outside_the_box_do_not_matter(filter: str, channels: int) -> None:
    image = IMAGE[..., :channels]
    box = (7, 3, 51, 40)
    black = np.zeros_like(image)
    black[3:40, 7:51] = image[3:40, 7:51]
    found = resample(image, box, (20, 24), filter)
    np.testing.assert_array_equal(found, resample(black, box, (20, 24), filter))
    np.testing.assert_array_equal(found, resample(image[3:40, 7:51].copy(), None, (20, 24), filter))
    np.testing.assert_array_equal(found, resample(image, (7.4, 2.6, 50.9, 40.2), (20, 24), filter))
    assert found.shape == (20, 24, channels)


@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_pillows_filters_are_pillows(filter: str) -> None:
    expected = Image.fromarray(IMAGE).crop((5, 6, 55, 46)).resize((24, 20), getattr(Image.Resampling, filter.upper()))
    np.testing.assert_array_equal(resample(IMAGE, (5, 6, 55, 46), (20, 24), filter), np.asarray(expected))


@pytest.mark.parametrize("filter", FILTERS)
def test_the_same_size_is_the_same_image(filter: str) -> None:
    np.testing.assert_array_equal(resample(IMAGE, (10, 12, 40, 36), (24, 30), filter), IMAGE[12:36, 10:40])


def test_opencv_starts_no_threads() -> None:
    cv2 = pytest.importorskip("cv2")
    resample(IMAGE, None, (20, 24), "area")
    assert cv2.getNumThreads() in (0, 1)


def test_area_without_opencv_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    resampling._opencv.cache_clear()
    with pytest.raises(UserError, match="pip install opencv-python-headless, or filter 'bilinear'"):
        resample(IMAGE, None, (20, 24), "area")
    assert resample(IMAGE, None, (20, 24), "bilinear").shape == (20, 24, 3)
