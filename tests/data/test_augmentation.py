"""Normalization by its formulas; crops and flips against NumPy slices of the same images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resnet_jax.data import augment_device
from resnet_jax.training import sharding

KEY = jax.random.key(7)
RNG = np.random.default_rng(0)
IMAGES = (RNG.integers(0, 256, (200, 4, 5, 3)) * np.array([1, 0.5, 0.25])).astype(np.uint8)


def test_pixel_mean_subtracts_the_mean_image_without_division() -> None:
    """He et al. 2015, Section 3.4, in [0, 1]."""
    mean = IMAGES.astype(np.float64).sum(axis=0) / 200 / 255
    fitted = augment_device.fit(IMAGES, "pixel_mean")
    np.testing.assert_allclose(fitted.mean, mean, rtol=1e-6)
    assert np.asarray(fitted.deviation).tolist() == [1, 1, 1]
    np.testing.assert_allclose(fitted(jnp.asarray(IMAGES)), IMAGES / 255 - mean, rtol=0, atol=1e-6)


def test_channel_normalizes_by_the_population_mean_and_deviation() -> None:
    scaled = IMAGES.astype(np.float64) / 255
    mean = np.array([scaled[..., c].sum() / (200 * 20) for c in range(3)])
    deviation = np.array([np.sqrt(((scaled[..., c] - mean[c]) ** 2).sum() / (200 * 20)) for c in range(3)])
    fitted = augment_device.fit(IMAGES, "channel")
    np.testing.assert_allclose(fitted.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(fitted.deviation, deviation, rtol=1e-6)
    np.testing.assert_allclose(fitted(jnp.asarray(IMAGES)), (scaled - mean) / deviation, rtol=0, atol=1e-5)


def test_statistics_are_exact_for_many_images() -> None:
    """Summed in float64: 100,000 white images have the mean 1 exactly; a float32 beyond 2^24 does not count by 255."""
    white = np.broadcast_to(np.uint8(255), (100_000, 2, 2, 3))
    for normalization in ("pixel_mean", "channel"):
        fitted = augment_device.fit(white, normalization)
        assert fitted.mean.dtype == fitted.deviation.dtype == np.float32
        assert np.all(fitted.mean == 1)
        assert np.all(fitted.deviation == (1 if normalization == "pixel_mean" else 0))


def distinct(count: int, height: int = 4, width: int = 5) -> np.ndarray:
    """Images with no zero and no value twice."""
    return np.arange(1, count * height * width * 2 + 1, dtype=np.float32).reshape(count, height, width, 2)


def crops(image: np.ndarray, pad: int) -> dict[tuple[int, int], np.ndarray]:
    """Every crop of the padded image, by its corner."""
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * pad, width + 2 * pad, image.shape[2]), image.dtype)
    padded[pad : pad + height, pad : pad + width] = image
    return {(y, x): padded[y : y + height, x : x + width] for y in range(2 * pad + 1) for x in range(2 * pad + 1)}


def corner(image: np.ndarray, cropped: np.ndarray, pad: int) -> tuple[int, int]:
    """Corner of a crop; fails unless it is a crop of the image."""
    (place,) = [place for place, crop in crops(image, pad).items() if np.array_equal(crop, cropped)]
    return place


def test_random_crop_takes_every_place_of_the_zero_padded_image_equally_often() -> None:
    """Rows and columns are independent, and so are adjacent images."""
    images, pad = distinct(1000, 6, 7), 2
    cropped = np.asarray(augment_device.crop_and_flip(KEY, jnp.asarray(images), pad=pad, flip=False))
    corners = np.array([corner(image, crop, pad) for image, crop in zip(images, cropped, strict=True)])
    counts = np.zeros((5, 5))
    np.add.at(counts, tuple(corners.T), 1)
    # Chi-squared: mean 24, variance 48.
    assert ((counts - 40) ** 2 / 40).sum() < 24 + 5 * np.sqrt(48)
    assert abs(np.corrcoef(corners[:, 0], corners[:, 1])[0, 1]) < 5 / np.sqrt(1000)
    assert abs(np.corrcoef(corners[1:, 0], corners[:-1, 0])[0, 1]) < 5 / np.sqrt(1000)


def test_crops_and_flips_are_independent() -> None:
    """Every image is a crop or the mirror image of one; half are mirrored, wherever they are cropped."""
    images = distinct(1000)
    augmented = np.asarray(augment_device.crop_and_flip(KEY, jnp.asarray(images), pad=1, flip=True))
    down, mirrored = [], []
    for image, result in zip(images, augmented, strict=True):
        seen = {(place, flip): crop[:, ::-1] if flip else crop for place, crop in crops(image, 1).items() for flip in (False, True)}
        ((place, flip),) = [choice for choice, crop in seen.items() if np.array_equal(crop, result)]
        down.append(place[0])
        mirrored.append(flip)
    assert abs(np.mean(mirrored) - 0.5) < 5 * 0.5 / np.sqrt(1000)
    assert set(down) == {0, 1, 2}
    assert abs(np.corrcoef(down, mirrored)[0, 1]) < 5 / np.sqrt(1000)


@pytest.mark.parametrize(
    ("pad", "flip", "expected"), [(0, False, {"same"}), (0, True, {"same", "mirrored"}), (1, False, {"same", "cropped"})]
)
def test_crop_and_flip_obeys_its_options(pad: int, flip: bool, expected: set[str]) -> None:
    images, kinds = distinct(200), set()
    for image, result in zip(images, np.asarray(augment_device.crop_and_flip(KEY, jnp.asarray(images), pad=pad, flip=flip)), strict=True):
        if np.array_equal(result, image):
            kinds.add("same")
        elif np.array_equal(result, image[:, ::-1]):
            kinds.add("mirrored")
        else:
            corner(image, result, 1)
            kinds.add("cropped")
    assert kinds == expected


def test_augmentation_depends_on_the_key_and_not_on_the_devices() -> None:
    """Bit for bit on one device and eight."""
    images = distinct(64)

    def on(devices: int, key: jax.Array) -> jax.Array:
        over = sharding.batch(sharding.make(devices))
        augment = jax.jit(lambda key, batch: augment_device.crop_and_flip(key, batch, pad=2, flip=True), out_shardings=over)
        return augment(key, jax.device_put(images, over))

    one, eight = on(1, KEY), on(8, KEY)
    assert len(eight.sharding.device_set) == 8
    assert np.asarray(one).tobytes() == np.asarray(eight).tobytes()
    assert not np.array_equal(one, on(1, jax.random.key(8)))
