"""Erased boxes read off from the images: their areas, ratios, places, and how many images have one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data.erasing import RandomErasing
from resnet_jax.errors import UserError
from resnet_jax.training import mesh

KEY = jax.random.key(5)


def boxes(erased: np.ndarray) -> np.ndarray:
    """(n, 4): top, left, rows, columns of the zeros in images (n, h, w, 1) of ones; fails where they are no one box."""
    found = []
    for image in erased[..., 0] == 0:
        down, across = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        rows, columns = np.ptp(down) + 1, np.ptp(across) + 1
        assert image.sum() == rows * columns
        found.append((down[0], across[0], rows, columns))
    return np.array(found)


def erase(part: RandomErasing, count: int, height: int, width: int) -> np.ndarray:
    return np.asarray(jax.jit(part)(KEY, jnp.ones((count, height, width, 1))))


def test_areas_and_logarithms_of_ratios_are_uniform_and_places_too() -> None:
    """Where every box fits; bounds are five deviations of the mean."""
    count = 3000
    top, left, rows, columns = boxes(erase(RandomErasing(1.0, area=(0.05, 0.25), ratio=(0.5, 2.0)), count, 160, 200)).T
    area, ratio = rows * columns / 32000, np.log(rows / columns) / math.log(2)
    for values, low, high in ((area, 0.05, 0.25), (ratio, -1, 1), (top / (160 - rows), 0, 1), (left / (200 - columns), 0, 1)):
        assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * count)
        assert abs(values.std() / (high - low) - 1 / math.sqrt(12)) < 0.015
        assert low - 0.03 < values.min() < low + 0.03
        assert high - 0.03 < values.max() < high + 0.03
    assert abs(np.corrcoef(area, ratio)[0, 1]) < 5 / math.sqrt(count)
    assert abs(np.corrcoef(top / (160 - rows), left / (200 - columns))[0, 1]) < 5 / math.sqrt(count)


def test_boxes_reach_every_row_and_column() -> None:
    erased = erase(RandomErasing(1.0, area=(0.1, 0.1), ratio=(1.0, 1.0)), 2000, 10, 10)
    top, left, rows, columns = boxes(erased).T
    assert set(rows) == set(columns) == {3}  # the root of 10, rounded
    assert set(top) == set(left) == set(range(8))


@pytest.mark.parametrize("probability", [0.1, 0.6])
def test_so_many_images_are_erased(probability: float) -> None:
    erased = erase(RandomErasing(probability), 2000, 24, 24)
    share = (erased == 0).any(axis=(1, 2, 3)).mean()
    assert abs(share - probability) <= 5 * math.sqrt(probability * (1 - probability) / 2000)


def test_a_box_as_large_as_the_image_is_drawn_again_and_after_ten_times_not_at_all() -> None:
    """Areas uniform in (0, 1] of a square, ratio 1, of 4x4 pixels: a side of 4 is what 49/64 of the areas round to, or more."""
    part = RandomErasing(1.0, area=(1e-6, 1.0), ratio=(1.0, 1.0))
    erased = erase(part, 2000, 4, 4)
    zeros = (erased == 0).sum(axis=(1, 2, 3))
    assert set(zeros) == {0, 1, 4, 9}
    # Of those that fit, sides of 0, 1, 2, 3 have the areas up to 1/64, 9/64, 25/64, 49/64; ten times none does with (15/64)^10.
    for value, share in {0: 1 / 49, 1: 8 / 49, 4: 16 / 49, 9: 24 / 49}.items():
        assert abs((zeros == value).mean() - share) < 5 * math.sqrt(share * (1 - share) / 2000)
    assert np.all(erase(RandomErasing(1.0, area=(1.0, 1.0), ratio=(1.0, 1.0)), 100, 4, 4) == 1)


def test_only_the_box_changes_and_in_all_channels() -> None:
    images = np.random.default_rng(0).normal(size=(32, 12, 14, 3)).astype(np.float32)
    erased = np.asarray(jax.jit(RandomErasing(1.0, value=7.5))(KEY, jnp.asarray(images)))
    changed = erased != images
    assert np.all(changed == changed[..., :1])
    assert np.all(erased[changed] == 7.5)
    assert changed.any(axis=(1, 2, 3)).all()


@pytest.mark.slow
def test_erasing_does_not_depend_on_compilation_or_devices() -> None:
    """Bit for bit."""
    images = np.random.default_rng(0).normal(size=(64, 12, 14, 3)).astype(np.float32)
    part, over = RandomErasing(0.5), mesh.batch(mesh.make(8))
    eight = jax.jit(part, out_shardings=over)(KEY, jax.device_put(images, over))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(eight, part(KEY, jnp.asarray(images)))
    assert not np.array_equal(eight, part(jax.random.key(6), jnp.asarray(images)))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: RandomErasing(1.2), "probability is 1.2"),
        (lambda: RandomErasing(area=(0.5, 1.2)), "area is"),
        (lambda: RandomErasing(ratio=(0.0, 1.0)), "ratio is"),
    ],
)
def test_what_cannot_be_done_is_refused(made, said: str) -> None:
    with pytest.raises(UserError, match=said):
        made()
