"""Batch normalisation as a function: the written derivative is the formula's, of every output by every input, and keeps little."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_convolution import random

from resnet_jax.models import moments

EPSILON = 1e-3
FORMS = [moments.plain, moments.explicit]


def formula(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, rectify: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ioffe and Szegedy 2015, algorithm 1, of every group by itself, in float64."""
    x = np.float64(x)
    mean, var = x.mean((-4, -3, -2), keepdims=True), x.var((-4, -3, -2), keepdims=True)
    y = (x - mean) / np.sqrt(var + EPSILON) * scale + bias
    return np.maximum(y, 0) if rectify else y, mean.squeeze((-4, -3, -2)), var.squeeze((-4, -3, -2))


def inputs(groups: tuple[int, ...]) -> list[np.ndarray]:
    return [random(*groups, 4, 3, 2, 5) + random(5, seed=1), random(5, seed=2), random(5, seed=3) / 4]


@pytest.mark.quick(3)
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("groups", [(), (3,)], ids=["one", "three"])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_values_and_gradients_are_the_formulas(form: Callable[..., Any], groups: tuple[int, ...], rectify: bool) -> None:
    """Gradients of all three outputs at once, met by central differences of the formula along random directions."""
    given = inputs(groups)
    expected = formula(*given, rectify)
    found, pull = jax.vjp(lambda *inputs: form(*inputs, EPSILON, rectify), *map(jnp.asarray, given))
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    cotangents = [random(*array.shape, seed=4 + number) for number, array in enumerate(expected)]
    slopes = pull(tuple(map(jnp.asarray, cotangents)))
    for number in range(3):
        direction = np.float64(random(*given[number].shape, seed=9))
        ends = []
        for step in (1e-6, -1e-6):
            moved = [np.float64(array) + (step * direction if index == number else 0) for index, array in enumerate(given)]
            ends.append(sum(np.vdot(c, array) for c, array in zip(cotangents, formula(*moved, rectify), strict=True)))
        np.testing.assert_allclose(np.vdot(slopes[number], direction), (ends[0] - ends[1]) / 2e-6, rtol=1e-4)


@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_gradients_are_the_formulas_where_means_are_30_times_the_spread(form: Callable[..., Any], rectify: bool) -> None:
    """Ioffe and Szegedy 2015, Section 3, in float64. Sums not taken about the mean cancel, as the variance does on the way here: float32
    keeps a variance to 900 * 2**-24 of itself where the mean's square is 900 times as large, and gradients to a few times that."""
    given = [random(32, 8, 8, 5) + np.float32(30), random(5, seed=2), random(5, seed=3)]
    x, scale, bias = map(np.float64, given)
    cotangent = random(*x.shape, seed=4)
    inverse = 1 / np.sqrt(x.var((0, 1, 2)) + EPSILON)
    normal = (x - x.mean((0, 1, 2))) * inverse
    dy = np.where(normal * scale + bias > 0, cotangent, 0) if rectify else np.float64(cotangent)
    dbias, dscale = dy.sum((0, 1, 2)), (dy * normal).sum((0, 1, 2))
    dx = scale * inverse * (dy - (dbias + normal * dscale) / normal[..., 0].size)
    pull = jax.vjp(lambda *inputs: form(*inputs, EPSILON, rectify)[0], *map(jnp.asarray, given))[1]
    for found, expected in zip(pull(jnp.asarray(cotangent)), (dx, dscale, dbias), strict=True):
        assert np.linalg.norm(found - expected) < 5e-4 * np.linalg.norm(expected)


@pytest.mark.parametrize("rectify", [False, True])
def test_in_bfloat16_the_written_derivative_is_nearer_the_formula_or_as_near(rectify: bool) -> None:
    """Of x, by a unit in the last place of bfloat16's eight bits; statistics and parameters stay float32."""
    x, scale, bias = (jnp.asarray(array) for array in inputs(()))
    x, cotangent = x.astype(jnp.bfloat16), jnp.asarray(random(4, 3, 2, 5, seed=4))
    exact = jax.vjp(lambda x: moments.plain(x, scale, bias, EPSILON, rectify)[0], x.astype(jnp.float32))[1](cotangent)[0]
    y, pull = jax.vjp(lambda *inputs: moments.explicit(*inputs, EPSILON, rectify)[0], x, scale, bias)
    assert y.dtype == jnp.bfloat16
    dx, dscale, dbias = pull(cotangent.astype(jnp.bfloat16))
    assert (dx.dtype, dscale.dtype, dbias.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    np.testing.assert_allclose(np.float32(dx), exact, atol=2**-7 * float(jnp.abs(exact).max()))


@pytest.mark.parametrize("rectify", [False, True])
def test_the_input_is_all_that_is_kept_of_an_activations_size(rectify: bool) -> None:
    """Neither a float32 copy nor a mask of the ReLU: what the way back needs is read from the input once more."""
    x, scale, bias = (jnp.asarray(array) for array in inputs(()))
    _, pull = jax.vjp(lambda *inputs: moments.explicit(*inputs, EPSILON, rectify), x.astype(jnp.bfloat16), scale, bias)
    kept = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(pull) if leaf.ndim > 1]
    assert kept == [(x.shape, jnp.bfloat16)]


def test_the_plain_form_has_a_forward_derivative_and_the_other_says_that_it_has_none() -> None:
    x, scale, bias = (jnp.asarray(array) for array in inputs(()))
    _, tangent = jax.jvp(lambda x: moments.plain(x, scale, bias, EPSILON)[0], (x,), (jnp.ones_like(x),))
    # The mean moves along with all values.
    np.testing.assert_allclose(tangent, 0, atol=1e-5)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda x: moments.explicit(x, scale, bias, EPSILON)[0], (x,), (jnp.ones_like(x),))
