"""Custom VJPs against the defining sums in NumPy float64."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resnet_jax import kernels

from oracle import close, convolve, random

Pair = tuple[int, int]
EPSILON = 1e-3
# Image, taps, strides, padding, dilation, groups, input and output channels.
WINDOWS: list[tuple[Pair, Pair, Pair, tuple[Pair, Pair], Pair, int, int, int]] = [
    *(((8, 7), (k, k), (s, s), ((k // 2,) * 2,) * 2, (1, 1), 1, 3, 4) for k, s in itertools.product((1, 3, 7), (1, 2))),
    ((2, 1), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1, 3, 4),
    ((2, 2), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1, 3, 4),
    ((9, 6), (3, 7), (2, 1), ((2, 0), (1, 4)), (1, 1), 1, 3, 4),
    ((8, 8), (3, 3), (2, 2), ((0, 0), (0, 0)), (1, 1), 1, 3, 4),
    ((7, 8), (1, 1), (2, 3), ((1, 0), (0, 2)), (1, 1), 1, 3, 4),
    ((9, 8), (3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), 1, 3, 4),
    ((8, 7), (3, 3), (2, 2), ((2, 2), (2, 2)), (2, 2), 2, 6, 4),
    ((7, 6), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 3, 3, 6),
    ((9, 6), (3, 5), (2, 1), ((2, 0), (1, 4)), (1, 2), 2, 4, 2),
    ((7, 8), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 2, 4, 6),
]


def gradients(x: np.ndarray, weights: np.ndarray, cotangent: np.ndarray, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair) -> Any:
    """Each product of the convolution differentiated where it stands."""
    (top, bottom), (left, right) = padding
    x, weights, cotangent = np.pad(np.float64(x), ((0, 0), *padding, (0, 0))), np.float64(weights), np.float64(cotangent)
    dx, dweights = np.zeros_like(x), np.zeros_like(weights)
    for i, j, a, b in itertools.product(*map(range, (*cotangent.shape[1:3], *weights.shape[:2]))):
        row, column = i * strides[0] + a * dilation[0], j * strides[1] + b * dilation[1]
        dx[:, row, column] += cotangent[:, i, j] @ weights[a, b].T
        dweights[a, b] += x[:, row, column].T @ cotangent[:, i, j]
    return dx[:, top : x.shape[1] - bottom, left : x.shape[2] - right], dweights


def by_group(groups: int, function: Callable[..., Any], *arrays: np.ndarray) -> Any:
    """Applies ``function`` to each group of channels."""
    parts = [function(*split) for split in zip(*(np.split(array, groups, -1) for array in arrays), strict=True)]
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(both, -1) for both in zip(*parts, strict=True))
    return np.concatenate(parts, -1)


def pullback(x: Any, weights: Any, cotangent: Any, *args: Any, **options: Any) -> Any:
    """Returns the value and both gradients."""
    y, pull = jax.vjp(lambda x, weights: kernels.convolve(x, weights, *args, **options), x, weights)
    return y, *pull(cotangent)


def test_convolution_and_its_gradients_are_the_defining_sums() -> None:
    for size, taps, strides, padding, dilation, groups, channels, outputs in WINDOWS:
        geometry = strides, padding, dilation
        x, weights = random(2, *size, channels), random(*taps, channels // groups, outputs, seed=1)
        y = by_group(groups, lambda x, w, geometry=geometry: convolve(x, w, *geometry), x, weights)
        cotangent = random(*y.shape, seed=2)
        slopes = by_group(groups, lambda *arrays, geometry=geometry: gradients(*arrays, *geometry), x, weights, cotangent)
        options = dict(rhs_dilation=dilation, feature_group_count=groups)
        run = jax.jit(functools.partial(pullback, strides=strides, padding=padding, **options))
        for actual, expected in zip(run(x, weights, cotangent), (y, *slopes), strict=True):
            close(actual, expected)


def test_convolution_under_vmap_has_weights_of_its_own_for_each() -> None:
    strides, padding = (2, 2), ((1, 1), (1, 1))
    x, layers, cotangents = random(2, 2, 5, 5, 4), random(2, 3, 3, 4, 6, seed=1), random(2, 2, 3, 3, 6, seed=2)
    actual = jax.jit(jax.vmap(lambda *a: pullback(*a, strides, padding)))(x, layers, cotangents)
    for i in (0, 1):
        slopes = gradients(x[i], layers[i], cotangents[i], strides, padding, (1, 1))
        for one, expected in zip(actual, (convolve(x[i], layers[i], strides, padding), *slopes), strict=True):
            close(one[i], expected)


@pytest.mark.parametrize("taps", [1, 3])
def test_convolution_in_bfloat16_has_gradients_in_bfloat16(taps: int) -> None:
    padding = ((taps // 2,) * 2,) * 2
    shapes = (2, 7, 7, 3), (taps, taps, 3, 4), (2, 4, 4, 4)
    arrays = [jnp.asarray(random(*shape, seed=seed), jnp.bfloat16) for seed, shape in enumerate(shapes)]
    exact = [np.asarray(a, np.float64) for a in arrays]
    wanted = convolve(*exact[:2], (2, 2), padding), *gradients(*exact, (2, 2), padding, (1, 1))
    for actual, expected in zip(pullback(*arrays, (2, 2), padding), wanted, strict=True):
        assert actual.dtype == jnp.bfloat16
        close(actual, expected, tolerance=2**-7)  # eight bits of mantissa


def test_weight_gradient_of_a_1x1_convolution_multiplies_pixels_by_cotangents() -> None:
    """The other order costs a transposed copy on CPU."""
    x, weights, cotangent = jnp.zeros((2, 4, 4, 3)), jnp.zeros((1, 1, 3, 5)), jnp.zeros((2, 2, 2, 5))
    program = jax.make_jaxpr(lambda *a: pullback(*a, (2, 2), ((0, 0), (0, 0)))[2])(x, weights, cotangent)
    products = [
        [operand.aval.shape for operand in equation.invars] for equation in program.eqns if equation.primitive.name == "dot_general"
    ]
    assert [(2, 2, 2, 3), (2, 2, 2, 5)] in products


# Batch norm, elsewhere its formula: test_norms.py; with the ReLU behind it: test_blocks.py ---------


def normalized(form: Any, x: Any, scale: Any, bias: Any, rectify: bool) -> Any:
    with kernels.active(form):
        return kernels.normalize(x, scale, bias, EPSILON, rectify)


@pytest.mark.parametrize("form", ["plain", "gpu"])
def test_batch_norm_gradients_hold_where_means_are_30_times_the_spread(form: Any) -> None:
    """Ioffe and Szegedy 2015, Section 3: float32 keeps a variance to 900 * 2**-24 of itself there."""
    arrays = [random(32, 8, 8, 5) + np.float32(30), random(5, seed=2), random(5, seed=3)]
    x, scale, bias = map(np.float64, arrays)
    # Of the result, means and variances; a pixel's share of the latter two is 1 / 2048.
    cotangents = random(*x.shape, seed=4), 1000 * random(5, seed=5), 1000 * random(5, seed=6)
    inverse, pixels = 1 / np.sqrt(x.var((0, 1, 2)) + EPSILON), x[..., 0].size
    normal = (x - x.mean((0, 1, 2))) * inverse
    dy = np.where(normal * scale + bias > 0, cotangents[0], 0)
    dbias, dscale = dy.sum((0, 1, 2)), (dy * normal).sum((0, 1, 2))
    dx = scale * inverse * (dy - (dbias + normal * dscale) / pixels)
    dx += (cotangents[1] + 2 * cotangents[2] * (x - x.mean((0, 1, 2)))) / pixels
    pull = jax.vjp(lambda *inputs: normalized(form, *inputs, True), *map(jnp.asarray, arrays))[1]
    for actual, expected in zip(pull(tuple(map(jnp.asarray, cotangents))), (dx, dscale, dbias), strict=True):
        assert np.linalg.norm(actual - expected) < 5e-4 * np.linalg.norm(expected)


def test_batch_norm_in_bfloat16_saves_its_input_alone() -> None:
    """Neither a float32 copy nor a mask; parameters and their gradients are float32."""
    x = jnp.asarray(random(4, 3, 2, 5) + random(5, seed=1), jnp.bfloat16)
    scale, bias, cotangent = jnp.asarray(random(5, seed=2)), jnp.asarray(random(5, seed=3) / 4), jnp.asarray(random(4, 3, 2, 5, seed=4))
    exact = jax.vjp(lambda x: normalized("plain", x, scale, bias, True)[0], x.astype(jnp.float32))[1](cotangent)[0]
    y, pull = jax.vjp(lambda *inputs: normalized("gpu", *inputs, True)[0], x, scale, bias)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(pull) if leaf.ndim > 1] == [(x.shape, jnp.bfloat16)]
    slopes = pull(cotangent.astype(jnp.bfloat16))
    assert [y.dtype, *(slope.dtype for slope in slopes)] == [jnp.bfloat16, jnp.bfloat16, jnp.float32, jnp.float32]
    np.testing.assert_allclose(np.float32(slopes[0]), exact, atol=2**-7 * float(jnp.abs(exact).max()))


# Max pooling -------------------------------------------------------------------------------------


def test_max_pooling_and_its_gradient_are_the_windows_first_maxima() -> None:
    """Values repeat, so that ties are resolved; padding is never a maximum, below zero too."""
    for padding, size in itertools.product([((1, 1), (1, 1)), ((0, 1), (0, 1)), ((0, 0), (1, 0))], [(6, 7), (3, 3)]):
        x = np.random.default_rng(0).integers(-4, 0, (2, *size, 3)).astype(np.float32)
        padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-np.inf)
        rows, columns = ((side - 3) // 2 + 1 for side in padded.shape[1:3])
        cotangent = random(2, rows, columns, 3, seed=1)
        expected, slope = np.zeros_like(cotangent), np.zeros_like(padded)
        for n, i, j, c in np.ndindex(expected.shape):
            window = padded[n, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3, c]
            expected[n, i, j, c] = window.max()
            a, b = np.unravel_index(window.argmax(), (3, 3))
            slope[n, 2 * i + a, 2 * j + b, c] += cotangent[n, i, j, c]
        (top, bottom), (left, right) = padding

        @jax.jit
        def run(x: jax.Array, cotangent: jax.Array, padding: Any = padding) -> tuple[jax.Array, jax.Array]:
            y, pull = jax.vjp(lambda x: kernels.max_pool(x, padding), x)
            return y, pull(cotangent)[0]

        for form in ("plain", "gpu"):
            with kernels.active(form):
                y, dx = run(x, cotangent)
            np.testing.assert_array_equal(y, expected)
            np.testing.assert_allclose(dx, slope[:, top : padded.shape[1] - bottom, left : padded.shape[2] - right], rtol=1e-6)


def test_max_pooling_saves_one_byte_per_window() -> None:
    with kernels.active("gpu"):
        _, pull = jax.vjp(lambda x: kernels.max_pool(x, ((1, 1), (1, 1))), jnp.ones((1, 8, 8, 4)))
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(pull) if leaf.ndim > 1] == [((1, 4, 4, 4), jnp.uint8)]


# ReLU --------------------------------------------------------------------------------------------


def test_relu_masks_its_gradient_by_its_result() -> None:
    x, cotangent = jnp.asarray([[-1.0, -0.0, 0.0, 2.0]], jnp.bfloat16), jnp.asarray([[1.0, 2, 3, 4]], jnp.bfloat16)
    for form in ("plain", "gpu"):
        with kernels.active(form):
            y, pull = jax.vjp(kernels.relu, x)
        np.testing.assert_array_equal(y, [[0, 0, 0, 2]])
        np.testing.assert_array_equal(pull(cotangent)[0], [[0, 0, 0, 4]])
    assert [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(pull)] == [[[0, 0, 0, 2]]]


# Choice ------------------------------------------------------------------------------------------


def test_active_kernels_are_a_key_of_compiled_functions() -> None:
    """A function that was traced with others is traced again, also inside of jit, scan and checkpoint."""
    x, weights = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))

    @jax.checkpoint
    def layer(x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        pads = ((1, 1), (1, 1))
        return kernels.conv_general_dilated(x, weights, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")), None

    run = jax.jit(lambda x: jax.lax.scan(layer, x, None, length=2)[0])
    for form, expected in (("plain", False), ("cpu", True), ("plain", False), ("auto", True), ("gpu", False)):
        with kernels.active(form):
            assert ("custom_vjp" in str(jax.make_jaxpr(run)(x))) is expected


def test_auto_is_the_choice_of_the_backend() -> None:
    assert kernels.resolve("auto") == "cpu"  # the tests run on CPU
    expected = {"cpu": "cpu", "gpu": "gpu", "tpu": "plain"}
    assert {backend: kernels.resolve("auto", backend) for backend in expected} == expected
    assert [kernels.resolve(choice, "tpu") for choice in ("plain", "cpu", "gpu")] == ["plain", "cpu", "gpu"]
