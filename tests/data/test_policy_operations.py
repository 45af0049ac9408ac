"""Each operation against pixels moved or computed by NumPy."""

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data.policy_operations import MOVING, OPERATIONS, Sampling

NEAREST = Sampling(Image.Resampling.NEAREST, (7, 8, 9))
IMAGE = np.random.default_rng(0).integers(0, 256, (12, 12, 3)).astype(np.uint8)
FLOAT = IMAGE.astype(np.float64)


def found(name: str, argument: float, image: np.ndarray = IMAGE, sampling: Sampling = NEAREST) -> np.ndarray:
    return np.asarray(OPERATIONS[name](Image.fromarray(image), argument, sampling))


def placed(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The pixels from there; outside the image the fill."""
    inside = (rows >= 0) & (rows < 12) & (columns >= 0) & (columns < 12)
    return np.where(inside[..., None], IMAGE[rows.clip(0, 11), columns.clip(0, 11)], np.uint8([7, 8, 9]))


Y, X = np.mgrid[0:12, 0:12]


@pytest.mark.parametrize("pixels", [3, -5, 0])
def test_translations_are_to_the_right_and_down(pixels: int) -> None:
    np.testing.assert_array_equal(found("TranslateX", pixels), placed(Y, X - pixels))
    np.testing.assert_array_equal(found("TranslateY", pixels), placed(Y - pixels, X))


@pytest.mark.parametrize("factor", [0.3, -0.21])
def test_shears_move_rows_and_columns_by_their_distance_from_the_upper_left_corner(factor: float) -> None:
    """A pixel's place is its middle."""
    np.testing.assert_array_equal(found("ShearX", factor), placed(Y, np.floor(X + 0.5 + factor * (Y + 0.5)).astype(int)))
    np.testing.assert_array_equal(found("ShearY", factor), placed(np.floor(Y + 0.5 + factor * (X + 0.5)).astype(int), X))


def test_rotations_are_anticlockwise_about_the_middle() -> None:
    np.testing.assert_array_equal(found("Rotate", 90), np.rot90(IMAGE))
    angle = np.deg2rad(30)
    x, y = X - 5.5, Y - 5.5
    columns, rows = np.cos(angle) * x - np.sin(angle) * y + 5.5, np.sin(angle) * x + np.cos(angle) * y + 5.5
    np.testing.assert_array_equal(found("Rotate", 30), placed(np.floor(rows + 0.5).astype(int), np.floor(columns + 0.5).astype(int)))


def mixed(degenerate: np.ndarray, factor: float) -> np.ndarray:
    """Pillow's enhancement: cut off to whole numbers, in single precision."""
    mixture = np.float32(degenerate) + np.float32(factor) * (np.float32(FLOAT) - np.float32(degenerate))
    return np.clip(mixture, 0, 255).astype(np.uint8)


# ITU-R 601-2 in integers of 1/65536, rounded.
GREY = ((IMAGE.astype(np.int64) * [19595, 38470, 7471]).sum(axis=-1) + 0x8000) >> 16


@pytest.mark.parametrize("factor", [0.1, 0.75, 1.0, 1.5])
def test_enhancements_mix_with_black_grey_and_the_mean(factor: float) -> None:
    np.testing.assert_array_equal(found("Brightness", factor), mixed(np.zeros_like(FLOAT), factor))
    np.testing.assert_array_equal(found("Color", factor), mixed(np.repeat(GREY[..., None], 3, axis=-1), factor))
    np.testing.assert_array_equal(found("Contrast", factor), mixed(np.full_like(FLOAT, int(GREY.mean() + 0.5)), factor))


@pytest.mark.parametrize("factor", [0.1, 1.0, 1.9])
def test_sharpness_mixes_with_the_smoothed_image(factor: float) -> None:
    """Weights 5 in the middle and 1 around it, of 13; the border stays as it is."""
    total = sum(np.roll(FLOAT, (down, right), (0, 1)) for down in (-1, 0, 1) for right in (-1, 0, 1)) + 4 * FLOAT
    smooth = FLOAT.copy()
    smooth[1:-1, 1:-1] = np.floor(total / 13 + 0.5)[1:-1, 1:-1]
    np.testing.assert_array_equal(found("Sharpness", factor), mixed(smooth, factor))


@pytest.mark.parametrize("bits", [0, 1, 4, 8])
def test_posterize_keeps_the_highest_bits(bits: int) -> None:
    np.testing.assert_array_equal(found("Posterize", bits), IMAGE // 2 ** (8 - bits) * 2 ** (8 - bits) if bits else np.zeros_like(IMAGE))


@pytest.mark.parametrize("threshold", [0.0, 76.5, 128, 255, 256])
def test_solarize_inverts_from_the_threshold_on(threshold: float) -> None:
    np.testing.assert_array_equal(found("Solarize", threshold), np.where(threshold > IMAGE, IMAGE, 255 - IMAGE))


def test_solarize_add_brightens_the_lower_half_and_invert_all() -> None:
    np.testing.assert_array_equal(found("SolarizeAdd", 77), np.where(IMAGE < 128, IMAGE + 77, IMAGE))
    np.testing.assert_array_equal(found("SolarizeAdd", 128), np.where(IMAGE < 128, IMAGE + 128, IMAGE))
    np.testing.assert_array_equal(found("Invert", 0), 255 - IMAGE)
    np.testing.assert_array_equal(found("Identity", 0), IMAGE)


def test_autocontrast_stretches_each_channel() -> None:
    image = IMAGE // np.uint8(3) + np.uint8([20, 50, 90])
    low, high = image.min(axis=(0, 1)).astype(float), image.max(axis=(0, 1)).astype(float)
    scale = 255 / (high - low)
    expected = (image * scale - low * scale).astype(np.uint8)
    difference = np.abs(found("AutoContrast", 0, image).astype(int) - expected)
    # The product is truncated: its last bit decides at whole numbers.
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.95
    assert not np.array_equal(expected, image)


def test_equalize_gives_each_value_the_share_of_smaller_ones() -> None:
    image = np.random.default_rng(1).integers(40, 90, (64, 64, 3)).astype(np.uint8)
    expected = np.empty_like(image)
    for channel in range(3):
        values = image[..., channel]
        histogram = np.bincount(values.ravel(), minlength=256)
        step = (values.size - histogram[values.max()]) // 255
        below = np.concatenate([[0], np.cumsum(histogram)[:-1]])
        expected[..., channel] = np.clip((below + step // 2) // step, 0, 255)[values]
    np.testing.assert_array_equal(found("Equalize", 0, image), expected)


def test_what_moves_is_sampled_and_filled_as_it_is_told() -> None:
    for name, argument in dict(ShearX=0.3, ShearY=0.3, TranslateX=1.5, TranslateY=1.5, Rotate=20).items():
        samplings = [
            Sampling(resample, fill)
            for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
            for fill in ((0, 0, 0), (99, 1, 5))
        ]
        assert len({found(name, argument, sampling=sampling).tobytes() for sampling in samplings}) == 4, name
        assert name in MOVING
    bilinear = found("TranslateX", 1.5, sampling=Sampling(Image.Resampling.BILINEAR, (0, 0, 0)))
    np.testing.assert_allclose(bilinear[:, 2:].astype(float), (FLOAT[:, :-2] + FLOAT[:, 1:-1]) / 2, atol=0.51)
