"""Max-pooling against windows looked at one by one, and both forms of its gradient against each other."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_convolution import random

from resnet_jax.models import Architecture, Execution, pooling
from resnet_jax.models.convolution import Pairs
from resnet_jax.models.stems import DeepStem, ImageNetStem

SAME: Pairs = ((1, 1), (1, 1))
HANGING: Pairs = ((0, 1), (0, 1))


def by_hand(x: np.ndarray, dy: np.ndarray | None, padding: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """The largest of each window, and where ``dy`` goes: to the first of the largest."""
    padded = np.pad(x, ((0, 0), *padding, (0, 0)), constant_values=-np.inf)
    n, height, width, c = padded.shape
    out = np.zeros((n, (height - 3) // 2 + 1, (width - 3) // 2 + 1, c))
    dx = np.zeros(padded.shape)
    for image, row, column, channel in itertools.product(*map(range, out.shape)):
        window = padded[image, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3, channel]
        down, across = np.unravel_index(window.argmax(), (3, 3))
        out[image, row, column, channel] = window[down, across]
        if dy is not None:
            dx[image, 2 * row + down, 2 * column + across, channel] += dy[image, row, column, channel]
    (up, _), (left, _) = padding
    return out, dx[:, up : up + x.shape[1], left : left + x.shape[2]]


@pytest.mark.quick(4)
@pytest.mark.parametrize("padding", [SAME, HANGING], ids=["same", "hanging over"])
@pytest.mark.parametrize("size", [(8, 8), (7, 10), (3, 5)])
@pytest.mark.parametrize("gradients", ["plain", "explicit"])
def test_values_and_gradients_are_those_of_each_window(gradients: Any, size: tuple[int, int], padding: Pairs) -> None:
    x = random(2, *size, 3)
    x[0] = np.round(2 * x[0])  # many are equal: the first has the gradient
    y, back = jax.vjp(lambda x: pooling.max_pool(x, padding, gradients), jnp.asarray(x))
    dy = random(*y.shape)
    expected, dx = by_hand(x, dy, padding)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_allclose(back(jnp.asarray(dy))[0], dx, rtol=1e-6, atol=1e-6)


@pytest.mark.quick(1)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_forms_are_equal_behind_a_relu(dtype: str) -> None:
    """Half the pixels are zero there, and whole windows are."""
    x = jnp.asarray(random(2, 16, 16, 4)).astype(dtype)
    weights = jnp.asarray(random(2, 8, 8, 4)).astype(dtype)

    def slope(gradients: Any) -> Any:
        return jax.grad(lambda x: (pooling.max_pool(jax.nn.relu(x), SAME, gradients) * weights).sum().astype(jnp.float32))(x)

    plain, explicit = slope("plain"), slope("explicit")
    assert explicit.dtype == plain.dtype
    np.testing.assert_allclose(np.float32(explicit), np.float32(plain), rtol=1e-6 if dtype == "float32" else 2e-2, atol=1e-6)


def test_what_is_not_a_number_stays_one() -> None:
    x = jnp.zeros((1, 4, 4, 1)).at[0, 2, 2, 0].set(jnp.nan)
    assert jnp.isnan(pooling.max_pool(x, SAME, "explicit")).any()


@pytest.mark.parametrize("stem", [ImageNetStem, DeepStem])
def test_the_form_that_is_asked_for_reaches_the_stem(stem: type) -> None:
    network = Architecture(stages=(1,), features=(2,), stem=stem, input_shape=(8, 8, 3), num_classes=2)

    def pooled(form: Any) -> bool:
        execution = Execution(convolution="plain", normalization="plain", pooling=form)
        apply, params, stats = jax.eval_shape(lambda key: network.init(key, execution=execution), jax.random.key(0))
        text = str(jax.make_jaxpr(lambda p, s, x: apply(p, s, x, train=False))(params, stats, jnp.zeros((1, 8, 8, 3))))
        return "reduce_window_max" in text and "custom_vjp_call" not in text

    assert {form: pooled(form) for form in ("auto", "plain", "explicit")} == {"auto": False, "plain": True, "explicit": False}


def test_the_written_form_is_that_of_cpu_and_gpu() -> None:
    assert pooling.WRITTEN_FOR == ("cpu", "gpu")
    x = jnp.zeros((1, 4, 4, 1))
    forms: list[tuple[Any, str]] = [("auto", "custom_vjp_call"), ("plain", "reduce_window_max"), ("explicit", "custom_vjp_call")]
    for gradients, primitive in forms:
        assert primitive in str(jax.make_jaxpr(lambda x, form=gradients: pooling.max_pool(x, SAME, form))(x))
