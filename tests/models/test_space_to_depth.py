"""Blocks of 2x2 pixels against the convolution that they replace, and networks whose stems take them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import random
from test_layers import conv

from resnet_jax.models import Architecture, Execution, convolution
from resnet_jax.models.space_to_depth import SpaceToDepth
from resnet_jax.models.stems import DeepStem, ImageNetStem


def seen(taken: list[tuple[int, ...]]) -> Any:
    """A convolution that writes down its kernels' shapes."""

    def inner(inputs: Any, kernel: Any, *rest: Any, **named: Any) -> Any:
        taken.append(kernel.shape)
        return convolution.plain(inputs, kernel, *rest, **named)

    return inner


@pytest.mark.parametrize(("taps", "blocks"), [(7, 4), (5, 3), (3, 2)])
def test_values_are_those_of_the_strided_convolution(taps: int, blocks: int) -> None:
    """Ying et al. 2018: the stem's 7x7 on 3 channels is a 4x4 on 12. Against sums in NumPy."""
    x, kernel, side, taken = random(2, 10, 12, 3), random(taps, taps, 3, 5, seed=1), taps // 2, []
    found = SpaceToDepth(seen(taken))(
        jnp.asarray(x), jnp.asarray(kernel), (2, 2), ((side, side),) * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(found, conv(x, kernel, 2), rtol=1e-4, atol=1e-4)
    assert taken == [(blocks, blocks, 12, 5)]


@pytest.mark.parametrize(
    ("sides", "taps", "options"),
    [((9, 8), 7, {}), ((8, 8), 1, {"padding": ((1, 1), (1, 1))}), ((8, 8), 3, {"strides": (1, 1)}), ((8, 8), 3, {"rhs_dilation": (2, 2)})],
)
def test_anything_else_is_convolved_as_it_stands(sides: tuple[int, int], taps: int, options: dict[str, Any]) -> None:
    x, kernel = jnp.asarray(random(2, *sides, 3)), jnp.asarray(random(taps, taps, 3, 5, seed=1))
    words = {"strides": (2, 2), "padding": ((taps // 2,) * 2,) * 2, "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | options
    taken: list[tuple[int, ...]] = []
    found = SpaceToDepth(seen(taken))(x, kernel, words.pop("strides"), words.pop("padding"), **words)
    assert taken == [kernel.shape]
    strides, padding = options.get("strides", (2, 2)), options.get("padding", ((taps // 2,) * 2,) * 2)
    np.testing.assert_array_equal(found, convolution.plain(x, kernel, strides, padding, **words))


@pytest.mark.quick(1)
@pytest.mark.parametrize("form", ["plain", "explicit"])
@pytest.mark.parametrize("stem", [ImageNetStem, DeepStem])
def test_a_network_has_the_same_parameters_logits_and_gradients(stem: type, form: Any) -> None:
    network = Architecture(stages=(1,), features=(4,), stem=stem, input_shape=(16, 16, 3), num_classes=3)
    applied = [network.init(jax.random.key(0), execution=Execution(convolution=form, stem=of)) for of in ("plain", "space_to_depth")]
    images = jnp.asarray(random(4, 16, 16, 3))

    def loss(apply: Any, params: Any, stats: Any) -> Any:
        return jnp.sum(apply(params, stats, images, train=True)[0] ** 2)

    (value, gradient), (other, other_gradient) = (
        jax.jit(jax.value_and_grad(functools.partial(loss, apply)))(params, stats) for apply, params, stats in applied
    )
    np.testing.assert_allclose(other, value, rtol=1e-4)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3), other_gradient, gradient)
    jax.tree.map(np.testing.assert_array_equal, applied[0][1], applied[1][1])


def test_only_the_stem_of_a_network_is_given_blocks() -> None:
    network = Architecture(stages=(1, 1), features=(4, 8), stem=ImageNetStem, input_shape=(16, 16, 3), num_classes=3)
    model = network.build(rngs=nnx.Rngs(0), execution=Execution(stem="space_to_depth"))
    found = {path[0] for path, each in nnx.iter_modules(model) if isinstance(getattr(each, "conv_general_dilated", None), SpaceToDepth)}
    assert found == {"stem"}
