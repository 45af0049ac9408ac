"""Colours against the formulas in NumPy and the standard library's HSV, draws by their statistics."""

import colorsys
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data import colour
from resnet_jax.data.colour import ColorJitter, PcaLighting
from resnet_jax.errors import UserError
from resnet_jax.training import mesh

KEY = jax.random.key(3)
IMAGES = np.random.default_rng(0).uniform(0, 1, (16, 6, 5, 3)).astype(np.float32)
GREY = np.array([0.299, 0.587, 0.114])


def many(count: int, value: tuple[float, float, float] = (0.5, 0.5, 0.5)) -> np.ndarray:
    return np.broadcast_to(np.float32(value), (count, 1, 1, 3))


def test_lighting_adds_one_colour_to_each_image_and_clips_nothing() -> None:
    added = np.asarray(PcaLighting()(KEY, jnp.asarray(IMAGES))) - IMAGES
    assert np.abs(added - added[:, :1, :1]).max() < 1e-6
    assert len(np.unique(added[:, 0, 0, 0].round(5))) == 16
    strong = np.asarray(PcaLighting(5.0)(KEY, jnp.asarray(IMAGES)))
    assert strong.min() < 0
    assert strong.max() > 1


def test_lighting_has_the_covariance_of_imagenets_colours() -> None:
    """Krizhevsky et al. 2012: components p_i, drawn with deviation 0.1 lambda_i. Their directions and spreads, from 20,000 draws."""
    colours = np.asarray(PcaLighting()(KEY, jnp.asarray(many(20000))))[:, 0, 0] - 0.5
    assert np.abs(colours.mean(axis=0)).max() < 5 * 0.1 * 0.2175 / math.sqrt(20000)
    vectors = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
    along = colours @ vectors  # the columns are orthonormal
    np.testing.assert_allclose(along.std(axis=0), 0.1 * np.array([0.2175, 0.0188, 0.0045]), rtol=0.03)
    assert np.abs(np.corrcoef(along.T) - np.eye(3)).max() < 5 / math.sqrt(20000)
    kurtosis = ((along / along.std(axis=0)) ** 4).mean(axis=0)
    assert np.abs(kurtosis - 3).max() < 0.3  # normal


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(factor * image, 0, 1)


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(factor * image + (1 - factor) * (image @ GREY).mean(), 0, 1)


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(factor * image + (1 - factor) * (image @ GREY)[..., None], 0, 1)


def hue(image: np.ndarray, factor: float) -> np.ndarray:
    def turned(pixel: np.ndarray) -> tuple[float, float, float]:
        h, s, v = colorsys.rgb_to_hsv(*map(float, pixel))
        return colorsys.hsv_to_rgb((h + factor) % 1.0, s, v)

    return np.apply_along_axis(turned, -1, image)


STEPS = (brightness, contrast, saturation, hue)
CORNERS = itertools.product([0, 0.5, 1], repeat=3)
SPECIAL = np.float32([*CORNERS, (0.2, 0.2, 0.7), (1, 0.3, 0.3), (1e-6, 0, 0)]).reshape(1, 5, 6, 3)


@pytest.mark.quick(3)
@pytest.mark.parametrize("which", range(4), ids=[step.__name__ for step in STEPS])
@pytest.mark.parametrize("images", [IMAGES, SPECIAL], ids=["drawn", "special"])
def test_each_step_is_its_formula(which: int, images: np.ndarray) -> None:
    """Special: black, white, greys, primary colours, two channels alike."""
    for factor in (-0.5, -0.13, 0.0, 0.31, 0.5) if which == 3 else (0.0, 0.6, 1.0, 1.4):
        count = len(images)
        found = colour.adjusted(jnp.asarray(images), jnp.full(count, which), jnp.full(count, factor, jnp.float32), hue=which == 3)
        expected = np.stack([STEPS[which](image.astype(np.float64), factor) for image in images])
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_each_image_has_its_own_step_and_factor() -> None:
    which, factors = np.arange(16) % 4, np.linspace(-0.4, 0.5, 16)
    factors = np.where(which == 3, factors, 1 + factors).astype(np.float32)
    found = colour.adjusted(jnp.asarray(IMAGES), jnp.asarray(which, jnp.int32), jnp.asarray(factors), hue=True)
    for image, step, factor, result in zip(IMAGES, which, factors, found, strict=True):
        np.testing.assert_allclose(result, STEPS[step](image.astype(np.float64), factor), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "amount"), [("brightness", 0.4), ("contrast", 0.3), ("saturation", 0.2), ("brightness", 1.5), ("hue", 0.1)]
)
def test_a_factor_is_uniform_between_its_bounds(name: str, amount: float) -> None:
    """Read off from images that the others leave as they are, where all others are off."""
    jitter = ColorJitter(**(dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0) | {name: amount}))
    count = 4000
    pixels = np.broadcast_to(np.float32([[0.3, 0.2, 0.2], [0.2, 0.2, 0.3]]), (count, 1, 2, 3)).copy()
    found = np.asarray(jax.jit(jitter)(KEY, jnp.asarray(pixels)), np.float64)
    if name == "brightness":
        factors = found[:, 0, 0, 0] / 0.3
    elif name == "hue":
        # Red towards green or blue: what is added to either is a sixth of the circle for 0.1.
        factors = (found[:, 0, 0, 1] - found[:, 0, 0, 2]) / 0.1 / 6
    elif name == "contrast":
        factors = (found[:, 0, 0] - found[:, 0, 1])[:, 0] / 0.1
    else:
        factors = (found[:, 0, 0, 0] - found[:, 0, 0, 1]) / 0.1
    low, high = (-amount, amount) if name == "hue" else (max(0.0, 1 - amount), 1 + amount)
    assert factors.min() >= low - 1e-4
    assert factors.max() <= high + 1e-4
    assert abs(factors.mean() - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * count)
    assert abs(factors.std() - (high - low) / math.sqrt(12)) < 0.02 * (high - low)


def test_jitter_is_its_steps_in_an_order_of_each_images_own() -> None:
    """The order of which makes a difference; every one of the six occurs about as often, and for ``fixed`` it is the first alone."""
    count = 1200
    image = np.float32([[[0.95, 0.1, 0.3], [0.9, 0.8, 0.05]]])
    images = jnp.asarray(np.broadcast_to(image, (count, 1, 2, 3)))
    key_order, key_factor, _ = jax.random.split(KEY, 3)
    del key_order
    factors = np.asarray(
        jax.random.uniform(key_factor, (count, 4), minval=jnp.float32([0.6, 0.6, 0.6, 0]), maxval=jnp.float32([1.4, 1.4, 1.4, 0]))
    )
    orders = list(itertools.permutations(range(3)))
    for order in ("random", "fixed"):
        found = np.asarray(ColorJitter(order=order)(KEY, images))
        times, clear = np.zeros(6), 0
        for result, given in zip(found, factors, strict=True):
            outcomes = []
            for steps in orders:
                expected = image.astype(np.float64)
                for step in steps:
                    expected = STEPS[step](expected, given[step])
                outcomes.append(np.abs(result - expected).max())
            assert min(outcomes) < 1e-5
            if sorted(outcomes)[1] > 1e-4:
                clear += 1
                times[int(np.argmin(outcomes))] += 1
        if order == "fixed":
            assert times[0] == clear > 100
        else:
            assert clear > 100
            assert times.min() > 0
    orders_drawn = np.asarray(
        jax.random.permutation(jax.random.split(KEY, 3)[0], jnp.broadcast_to(jnp.arange(3), (count, 3)), axis=1, independent=True)
    )
    counts = np.array([np.all(orders_drawn == steps, axis=1).sum() for steps in orders])
    assert ((counts - 200) ** 2 / 200).sum() < 5 + 5 * math.sqrt(10)


def test_lighting_follows_the_jitter() -> None:
    """With its own key: what is added does not depend on the factors, and is not clipped."""
    white = jnp.ones((64, 2, 2, 3))
    jittered = ColorJitter(brightness=0.0)(KEY, white)
    assert np.all(np.abs(np.asarray(jittered) - 1) < 1e-6)
    lit = np.asarray(ColorJitter(brightness=0.0, lighting=0.1)(KEY, white))
    expected = np.asarray(PcaLighting(0.1)(jax.random.split(KEY, 3)[2], jittered))
    np.testing.assert_allclose(lit, expected, atol=1e-6)
    assert lit.max() > 1


def test_nothing_to_jitter_leaves_images_as_they_are() -> None:
    found = ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0)(KEY, jnp.asarray(IMAGES))
    np.testing.assert_array_equal(found, IMAGES)


@pytest.mark.slow
@pytest.mark.parametrize("part", [PcaLighting(), ColorJitter(hue=0.1, lighting=0.1)])
def test_colours_do_not_depend_on_compilation_or_devices(part) -> None:
    over = mesh.batch(mesh.make(8))
    eager = np.asarray(part(KEY, jnp.asarray(IMAGES)))
    eight = jax.jit(part, out_shardings=over)(KEY, jax.device_put(IMAGES, over))
    assert len(eight.sharding.device_set) == 8
    np.testing.assert_allclose(eight, eager, rtol=0, atol=3e-6)
    assert not np.allclose(part(jax.random.key(4), jnp.asarray(IMAGES)), eager, atol=1e-3)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: PcaLighting(-0.1), "deviation is -0.1"),
        (lambda: ColorJitter(hue=0.6), "hue is 0.6"),
        (lambda: ColorJitter(contrast=-1.0), "contrast is -1.0"),
        (lambda: PcaLighting()(KEY, jnp.zeros((2, 4, 4, 1))), "1 channels"),
        (lambda: ColorJitter()(KEY, jnp.zeros((2, 4, 4, 1))), "1 channels"),
    ],
)
def test_what_cannot_be_done_is_refused(made, said: str) -> None:
    with pytest.raises(UserError, match=said):
        made()
