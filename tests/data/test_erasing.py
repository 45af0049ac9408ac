"""Erased boxes read off from the images: areas, ratios, positions, and how many images have one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resnet_jax.data.augment_device import RandomErasing
from resnet_jax.errors import UserError
from resnet_jax.training import sharding

KEY = jax.random.key(5)


def boxes(erased: np.ndarray) -> np.ndarray:
    """(n, 4): top, left, rows, columns of the zeros in images (n, h, w, 1) of ones; fails unless they are one box."""
    found = []
    for image in erased[..., 0] == 0:
        down, across = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
        rows, columns = np.ptp(down) + 1, np.ptp(across) + 1
        assert image.sum() == rows * columns
        found.append((down[0], across[0], rows, columns))
    return np.array(found)


def erase(erasing: RandomErasing, count: int, height: int, width: int) -> np.ndarray:
    return np.asarray(jax.jit(erasing)(KEY, jnp.ones((count, height, width, 1))))


def test_areas_log_ratios_and_positions_are_uniform() -> None:
    """Every box fits; bounds are five deviations of the mean."""
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
    top, left, rows, columns = boxes(erase(RandomErasing(1.0, area=(0.1, 0.1), ratio=(1.0, 1.0)), 2000, 10, 10)).T
    assert set(rows) == set(columns) == {3}  # the root of 10, rounded
    assert set(top) == set(left) == set(range(8))


def test_boxes_that_do_not_fit_are_redrawn_ten_times() -> None:
    """Of 4x4 pixels, ratio 1, areas uniform in (0, 1]: sides of 0, 1, 2, 3 have areas up to 1/64, 9/64, 25/64, 49/64."""
    erased = erase(RandomErasing(1.0, area=(1e-6, 1.0), ratio=(1.0, 1.0)), 2000, 4, 4)
    zeros = (erased == 0).sum(axis=(1, 2, 3))
    assert set(zeros) == {0, 1, 4, 9}
    for value, share in {0: 1 / 49, 1: 8 / 49, 4: 16 / 49, 9: 24 / 49}.items():
        assert abs((zeros == value).mean() - share) < 5 * math.sqrt(share * (1 - share) / 2000)
    assert np.all(erase(RandomErasing(1.0, area=(1.0, 1.0), ratio=(1.0, 1.0)), 100, 4, 4) == 1)


def test_only_the_boxes_of_chosen_images_change_in_all_channels() -> None:
    images = np.random.default_rng(0).normal(size=(2000, 12, 14, 3)).astype(np.float32)
    erased = np.asarray(jax.jit(RandomErasing(0.6, value=7.5))(KEY, jnp.asarray(images)))
    changed = erased != images
    assert np.all(changed == changed[..., :1])
    assert np.all(erased[changed] == 7.5)
    assert abs(changed.any(axis=(1, 2, 3)).mean() - 0.6) < 5 * math.sqrt(0.24 / 2000)


def test_erasing_does_not_depend_on_devices() -> None:
    images = np.random.default_rng(0).normal(size=(64, 12, 14, 3)).astype(np.float32)
    over = sharding.batch(sharding.make(8))
    eight = jax.jit(RandomErasing(0.5), out_shardings=over)(KEY, jax.device_put(images, over))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_array_equal(eight, jax.jit(RandomErasing(0.5))(KEY, jnp.asarray(images)))


def test_invalid_erasing_is_rejected() -> None:
    for arguments, message in (
        ({"probability": 1.2}, r"probability must be in \[0, 1\], got 1.2"),
        ({"area": (0.5, 1.2)}, r"area must be a pair a <= b, in \[0, 1\]"),
        ({"ratio": (math.nan, 1.0)}, "ratio must be a pair"),
    ):
        with pytest.raises(UserError, match=message):
            RandomErasing(**arguments)
