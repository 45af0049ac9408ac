"""Normalisation by its formulas; crops and flips against NumPy slices of the same images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data import augmentation
from resnet_jax.training import mesh

KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def photographs() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.integers(0, 256, (200, 4, 5, 3)) * np.array([1, 0.5, 0.25])).astype(np.uint8)


def test_pixel_mean_subtracts_the_mean_image_and_divides_by_nothing(photographs: np.ndarray) -> None:
    """He et al. 2015, Section 3.4, on a scale of 0 to 1."""
    found = augmentation.fit(photographs, "pixel_mean")
    mean = photographs.astype(np.float64).sum(axis=0) / 200 / 255
    assert found.mean.shape == (4, 5, 3)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    assert np.asarray(found.deviation).tolist() == [1, 1, 1]
    np.testing.assert_allclose(found(jnp.asarray(photographs)), photographs / 255 - mean, rtol=0, atol=1e-6)


def test_channel_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel(photographs: np.ndarray) -> None:
    """The population's deviation over all pixels of all images."""
    found = augmentation.fit(photographs, "channel")
    scaled = photographs.astype(np.float64) / 255
    mean = np.array([scaled[..., c].sum() / (200 * 20) for c in range(3)])
    deviation = np.array([np.sqrt(((scaled[..., c] - mean[c]) ** 2).sum() / (200 * 20)) for c in range(3)])
    np.testing.assert_allclose(found.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(found.deviation, deviation, rtol=1e-6)
    np.testing.assert_allclose(found(jnp.asarray(photographs)), (scaled - mean) / deviation, rtol=0, atol=1e-5)


def test_constants_are_single_precision_whatever_the_number_of_images() -> None:
    """Added up in double precision: 100,000 white images have the mean 1 exactly; a float32 beyond 2^24 does not count by 255."""
    white = np.broadcast_to(np.uint8(255), (100_000, 2, 2, 3))
    for normalization in ("pixel_mean", "channel"):
        found = augmentation.fit(white, normalization)
        assert found.mean.dtype == found.deviation.dtype == np.float32
        assert np.all(found.mean == 1)
        assert np.all(found.deviation == (1 if normalization == "pixel_mean" else 0))


def shapes(count: int, height: int = 4, width: int = 5) -> np.ndarray:
    """Images with no zero and no pixel value twice, nor twice in the set."""
    values = np.arange(1, count * height * width * 2 + 1, dtype=np.float32)
    return values.reshape(count, height, width, 2)


def crops(image: np.ndarray, pad: int) -> dict[tuple[int, int], np.ndarray]:
    """Every crop of the padded image, by its corner."""
    height, width, _ = image.shape
    padded = np.zeros((height + 2 * pad, width + 2 * pad, image.shape[2]), image.dtype)
    padded[pad : pad + height, pad : pad + width] = image
    return {(y, x): padded[y : y + height, x : x + width] for y in range(2 * pad + 1) for x in range(2 * pad + 1)}


def corner(image: np.ndarray, cropped: np.ndarray, pad: int) -> tuple[int, int]:
    """Where an image was cropped; fails where no crop of it is what was returned."""
    (found,) = [place for place, crop in crops(image, pad).items() if np.array_equal(crop, cropped)]
    return found


@pytest.mark.parametrize("pad", [1, 2, 4])
def test_random_crop_is_a_crop_of_the_image_padded_with_zeros(pad: int) -> None:
    """Of each image its own, at every one of the (2 pad + 1)^2 places, all equally often."""
    places = (2 * pad + 1) ** 2
    images = shapes(20 * places, 6, 7)
    cropped = np.asarray(jax.jit(augmentation.random_crop, static_argnums=2)(KEY, images, pad))
    corners = [corner(image, crop, pad) for image, crop in zip(images, cropped, strict=True)]
    times = np.zeros((2 * pad + 1, 2 * pad + 1))
    for place in corners:
        times[place] += 1
    assert times.min() > 0
    chi_squared = ((times - 20) ** 2 / 20).sum()
    # Mean places - 1, variance 2 (places - 1).
    assert chi_squared < places - 1 + 5 * np.sqrt(2 * (places - 1))


def test_rows_and_columns_move_independently() -> None:
    """Shifts down and to the right have no correlation, and neighbours of a batch none either."""
    images = shapes(1000)
    cropped = np.asarray(augmentation.random_crop(KEY, jnp.asarray(images), 2))
    corners = np.array([corner(image, crop, 2) for image, crop in zip(images, cropped, strict=True)], np.float64)
    assert abs(np.corrcoef(corners[:, 0], corners[:, 1])[0, 1]) < 5 / np.sqrt(1000)
    assert abs(np.corrcoef(corners[1:, 0], corners[:-1, 0])[0, 1]) < 5 / np.sqrt(1000)


def test_random_flip_mirrors_half_of_the_images_left_to_right() -> None:
    images = shapes(1000)
    flipped = np.asarray(augmentation.random_flip(KEY, jnp.asarray(images)))
    mirrored = np.array([np.array_equal(after, before[:, ::-1]) for before, after in zip(images, flipped, strict=True)])
    same = np.array([np.array_equal(after, before) for before, after in zip(images, flipped, strict=True)])
    assert np.all(mirrored ^ same), "each image is itself or its mirror image, whole"
    assert abs(mirrored.sum() - 500) < 5 * np.sqrt(250)


def test_crops_and_flips_are_independent() -> None:
    """Every image is a crop or the mirror image of one; the mirrored ones are not those of one side."""
    images = shapes(1000)
    found = np.asarray(augmentation.crop_and_flip(KEY, jnp.asarray(images), pad=1, flip=True))
    down, mirrored = [], []
    for image, result in zip(images, found, strict=True):
        seen = {(place, flip): crop[:, ::-1] if flip else crop for place, crop in crops(image, 1).items() for flip in (False, True)}
        ((place, flip),) = [choice for choice, crop in seen.items() if np.array_equal(crop, result)]
        down.append(place[0])
        mirrored.append(flip)
    assert abs(np.mean(mirrored) - 0.5) < 5 * 0.5 / np.sqrt(1000)
    assert set(down) == {0, 1, 2}
    assert abs(np.corrcoef(down, mirrored)[0, 1]) < 5 / np.sqrt(1000)


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"pad": 0, "flip": False}, {"same"}), ({"pad": 0, "flip": True}, {"same", "mirrored"}), ({"pad": 1, "flip": False}, {"cropped"})],
    ids=["neither", "flip", "crop"],
)
def test_crop_and_flip_does_what_its_options_say_and_no_more(options: dict[str, Any], expected: set[str]) -> None:
    images = shapes(200)
    found = np.asarray(augmentation.crop_and_flip(KEY, jnp.asarray(images), **options))
    kinds = set()
    for image, result in zip(images, found, strict=True):
        if np.array_equal(result, image):
            kinds.add("same")
        elif np.array_equal(result, image[:, ::-1]):
            kinds.add("mirrored")
        else:
            corner(image, result, 1)
            kinds.add("cropped")
    assert kinds - {"same"} == expected - {"same"}
    assert "same" in kinds


def test_another_key_gives_another_augmentation_and_the_same_key_the_same() -> None:
    images = jnp.asarray(shapes(64))
    one, same, other = (augmentation.crop_and_flip(key, images, pad=2, flip=True) for key in (KEY, jax.random.key(7), jax.random.key(8)))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_augmentation_does_not_depend_on_how_the_batch_is_laid_out_over_devices() -> None:
    """Bit for bit, one device and eight."""
    images = shapes(64)

    def on(devices: int) -> jax.Array:
        over = mesh.batch(mesh.make(devices))
        augment = jax.jit(lambda key, batch: augmentation.crop_and_flip(key, batch, pad=2, flip=True), out_shardings=over)
        return augment(KEY, jax.device_put(images, over))

    one, eight = on(1), on(8)
    assert len(eight.sharding.device_set) == 8
    assert np.asarray(one).tobytes() == np.asarray(eight).tobytes()
