"""Convolution and small layers against their formulas in NumPy float64."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_jax import kernels
from resnet_jax.errors import UserError
from resnet_jax.models.layers import Bias, Conv, Multiplier, ReLU, SqueezeExcitation

from oracle import call, close, convolved, excited, filled, follows, he_distributed, random, variables


def test_weights_are_initially_normal_with_variance_two_over_fan_in() -> None:
    """Fan-in counts the inputs of an output: those of its group."""
    for groups, fan_in in ((1, 9 * 16), (2, 9 * 8)):
        weights = jax.jit(lambda key, g=groups: Conv(16, 48, 3, groups=g, rngs=nnx.Rngs(key)).kernel[...])(jax.random.key(7))
        he_distributed(weights, fan_in)


@pytest.mark.parametrize("choice", ["plain", "cpu"])
def test_convolution_is_padded_alike_on_all_sides(choice: Any) -> None:
    """Unlike SAME, which pads an even image at stride 2 one pixel more behind than before it. Padding grows with the dilation."""
    x = random(1, 8, 7, 4)
    for size, stride, dilation, groups in ((1, 2, 1, 1), (3, 2, 1, 1), (7, 2, 1, 1), (3, 2, 2, 2), (5, 1, 3, 1), (3, 1, 1, 4)):
        module = filled(lambda rngs, a=(size, stride), o=(dilation, groups): Conv(4, 8, *a, dilation=o[0], groups=o[1], rngs=rngs))
        assert variables(module).keys() == {"kernel"}
        with kernels.active(choice):
            follows(module, lambda v, x, o=(stride, groups, dilation): convolved(x, v["kernel"], *o), x)


def test_convolution_computes_in_the_dtype_of_its_input_and_its_gradient_is_float32() -> None:
    module = filled(lambda rngs: Conv(3, 4, 3, rngs=rngs))
    x = jnp.asarray(random(2, 6, 6, 3), jnp.bfloat16)
    y, _ = call(module, x)
    assert y.dtype == jnp.bfloat16
    close(y, convolved(np.float64(x), np.float64(jnp.asarray(module.kernel[...], jnp.bfloat16))), tolerance=2**-7)
    graphdef, state = nnx.split(module)
    slopes = jax.eval_shape(jax.grad(lambda s: nnx.merge(graphdef, s)(x).astype(jnp.float32).sum()), nnx.to_pure_dict(state))
    assert module.kernel[...].dtype == slopes["kernel"].dtype == jnp.float32


def test_invalid_convolutions_are_rejected() -> None:
    for size, kernel in ((0, "0x0"), (2, "2x2"), ((3, 2), "3x2"), ((3,), "a 3")):
        with pytest.raises(UserError, match=f"{kernel} kernel.*odd"):
            Conv(4, 4, size, rngs=nnx.Rngs(0))
    assert Conv(4, 4, (1, 3), (1, 2), rngs=nnx.Rngs(0))(jnp.ones((1, 5, 5, 4))).shape == (1, 5, 3, 4)
    for inputs, outputs, groups in ((4, 6, 4), (6, 4, 4), (4, 4, 0)):
        with pytest.raises(UserError, match=f"groups={groups} does not divide {inputs} to {outputs} features"):
            Conv(inputs, outputs, 3, groups=groups, rngs=nnx.Rngs(0))


def test_small_layers_are_their_formulas() -> None:
    """Fixup (Zhang et al. 2019), Section 3.2, rule 3: scalar biases and multipliers, initially the identity."""
    formulas: dict[Any, Callable[..., np.ndarray]] = {
        ReLU: lambda v, x: np.maximum(x, 0),
        Bias: lambda v, x: x + v["bias"],
        Multiplier: lambda v, x: x * v["scale"],
        functools.partial(SqueezeExcitation, reduction=2): lambda v, x: excited(x, v),
    }
    for layer, formula in formulas.items():
        module = filled(lambda rngs, layer=layer: layer(5, rngs=rngs))
        follows(module, formula, random(2, 4, 3, 5))
        assert module(jnp.ones((1, 2, 2, 5), jnp.bfloat16)).dtype == jnp.bfloat16
    assert (variables(Bias(3, rngs=nnx.Rngs(0))), variables(Multiplier(3, rngs=nnx.Rngs(0)))) == ({"bias": 0}, {"scale": 1})


def test_squeeze_and_excitation_reduces_by_16_and_starts_without_bias() -> None:
    """Hu et al. 2018, Section 6.1: r = 16."""
    values = variables(SqueezeExcitation(32, rngs=nnx.Rngs(0)))
    assert [values[name]["kernel"].shape for name in ("squeeze", "excite")] == [(32, 2), (2, 32)]
    assert not any(values[name]["bias"].any() for name in values)
    with pytest.raises(UserError, match="reduction=16: give 1 to 8"):
        SqueezeExcitation(8, rngs=nnx.Rngs(0))
