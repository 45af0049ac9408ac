"""Color changes against the formulas in NumPy; draws by their statistics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resnet_jax.data import augment_device
from resnet_jax.data.augment_device import ColorJitter, PcaLighting
from resnet_jax.errors import UserError
from resnet_jax.training import sharding

KEY = jax.random.key(3)
IMAGES = np.random.default_rng(0).uniform(0, 1, (16, 6, 5, 3)).astype(np.float32)
GRAY = np.array([0.299, 0.587, 0.114])


def test_lighting_adds_one_color_per_image_and_does_not_clip() -> None:
    added = np.asarray(PcaLighting()(KEY, jnp.asarray(IMAGES))) - IMAGES
    assert np.abs(added - added[:, :1, :1]).max() < 1e-6
    assert len(np.unique(added[:, 0, 0, 0].round(5))) == 16
    strong = np.asarray(PcaLighting(5.0)(KEY, jnp.asarray(IMAGES)))
    assert strong.min() < 0
    assert strong.max() > 1


def test_lighting_has_the_covariance_of_imagenets_colors() -> None:
    """Krizhevsky et al. 2012: components p_i, normal with deviation 0.1 lambda_i; 20,000 draws."""
    gray = np.full((20000, 1, 1, 3), 0.5, np.float32)
    colors = np.asarray(PcaLighting()(KEY, jnp.asarray(gray)))[:, 0, 0] - 0.5
    assert np.abs(colors.mean(axis=0)).max() < 5 * 0.1 * 0.2175 / math.sqrt(20000)
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    along = colors @ vectors  # the columns are orthonormal
    np.testing.assert_allclose(along.std(axis=0), 0.1 * np.array([0.2175, 0.0188, 0.0045]), rtol=0.03)
    assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 5 / math.sqrt(20000)
    assert np.abs(((along / along.std(axis=0)) ** 4).mean(axis=0) - 3).max() < 0.3  # kurtosis of a normal


def adjusted(image: np.ndarray, which: int, factor: float) -> np.ndarray:
    """Brightness, contrast, saturation in float64."""
    gray = image.astype(np.float64) @ GRAY
    other = (0.0, gray.mean(), gray[..., None])[which]
    return np.clip(factor * image.astype(np.float64) + (1 - factor) * other, 0, 1)


def test_every_image_gets_its_own_adjustment() -> None:
    which, factors = np.arange(16) % 3, np.linspace(0, 1.6, 16).astype(np.float32)
    results = augment_device.adjusted(jnp.asarray(IMAGES), jnp.asarray(which, jnp.int32), jnp.asarray(factors))
    for image, step, factor, result in zip(IMAGES, which, factors, results, strict=True):
        np.testing.assert_allclose(result, adjusted(image, step, factor), rtol=0, atol=2e-6)


@pytest.mark.parametrize(("name", "amount"), [("brightness", 0.4), ("contrast", 0.3), ("saturation", 0.2), ("brightness", 1.5)])
def test_jitter_factors_are_uniform_within_their_bounds(name: str, amount: float) -> None:
    """Two pixels tell the factor of one adjustment while the others are off."""
    jitter = ColorJitter(**({"brightness": 0.0, "contrast": 0.0, "saturation": 0.0} | {name: amount}))
    count = 4000
    pixels = np.broadcast_to(np.float32([[0.3, 0.2, 0.2], [0.2, 0.2, 0.3]]), (count, 1, 2, 3)).copy()
    changed = np.asarray(jax.jit(jitter)(KEY, jnp.asarray(pixels)), np.float64)
    left, right = changed[:, 0, 0], changed[:, 0, 1]
    # Contrast stretches the difference of the pixels' grays, saturation that of a pixel's channels.
    factors = {
        "brightness": left[:, 0] / 0.3,
        "contrast": (left - right) @ GRAY / (0.1 * (GRAY[0] - GRAY[2])),
        "saturation": (left[:, 0] - left[:, 1]) / 0.1,
    }[name]
    low, high = max(0.0, 1 - amount), 1 + amount
    assert factors.min() > low - 1e-4
    assert factors.max() < high + 1e-4
    assert abs(factors.mean() - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * count)
    assert abs(factors.std() / (high - low) - 1 / math.sqrt(12)) < 0.01


def test_jitter_orders_its_adjustments_at_random_per_image() -> None:
    """Each result is that of one of the six orders, and all orders occur."""
    jitter = ColorJitter(0.9, 0.9, 0.9)
    count = 120
    image = IMAGES[0]
    results = np.asarray(jax.jit(jitter)(KEY, jnp.asarray(np.broadcast_to(image, (count, *image.shape)).copy())))
    order_key, factor_key, _ = jax.random.split(KEY, 3)
    orders = np.asarray(jax.random.permutation(order_key, jnp.broadcast_to(jnp.arange(3), (count, 3)), axis=1, independent=True))
    factors = np.asarray(jax.random.uniform(factor_key, (count, 3), minval=0.1, maxval=1.9))
    for order, factor, result in zip(orders, factors, results, strict=True):
        expected = image.astype(np.float64)
        for which in order:
            expected = adjusted(expected, which, float(factor[which]))
        np.testing.assert_allclose(result, expected, rtol=0, atol=2e-5)
    assert len({tuple(order) for order in orders.tolist()}) == 6


def test_lighting_follows_the_jitter_on_any_devices() -> None:
    """White stays white without brightness, so what is added is the lighting alone, unclipped."""
    white, over = np.ones((64, 2, 2, 3), np.float32), sharding.batch(sharding.make(8))
    jitter = jax.jit(ColorJitter(brightness=0.0, lighting=0.1), out_shardings=over)
    eight = jitter(KEY, jax.device_put(white, over))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_allclose(eight, PcaLighting(0.1)(jax.random.split(KEY, 3)[2], jnp.asarray(white)), rtol=0, atol=1e-6)
    assert np.max(eight) > 1


def test_invalid_color_changes_are_rejected() -> None:
    for build, message in (
        (lambda: PcaLighting(-0.1), "deviation must be at least 0, got -0.1"),
        (lambda: ColorJitter(brightness=-1.0), "brightness must be at least 0"),
        (lambda: PcaLighting()(KEY, jnp.zeros((2, 4, 4, 1))), "need RGB images, got 1 channels"),
    ):
        with pytest.raises(UserError, match=message):
            build()
