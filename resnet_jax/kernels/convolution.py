"""NHWC convolution whose gradients are ordinary convolutions.

XLA:CPU canonicalizes convolution layouts in the entry computation only: autodiff's weight gradient
inside a ``while`` body (any ``lax.scan``) runs a naive loop, 17 to 29 times slower.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resnet_jax.kernels import active, resolve

Padding = tuple[tuple[int, int], tuple[int, int]]

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(inputs: Array, weights: Array, *window: Any, **options: Any) -> Array:
    """``lax.conv_general_dilated`` or ``convolve``, to be passed to ``nnx.Conv``."""
    form = convolve if resolve(active.value) == "cpu" else lax.conv_general_dilated
    return form(inputs, weights, *window, **options)


def convolve(
    inputs: Float[Array, "n h w i"],
    weights: Float[Array, "kh kw i_per_group o"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int] = (1, 1),
    feature_group_count: int = 1,
    **_: Any,
) -> Float[Array, "n ho wo o"]:
    """Convolves as ``lax.conv_general_dilated`` does with other arguments at their defaults."""
    (down, across), (vertical, horizontal) = strides, padding
    pairs = ((vertical[0], vertical[1]), (horizontal[0], horizontal[1]))
    if weights.shape[:2] == (1, 1) and pairs == ((0, 0), (0, 0)) and feature_group_count == 1:
        return _multiply(inputs[:, ::down, ::across], weights[0, 0])
    dilation = (rhs_dilation[0], rhs_dilation[1])
    return _convolve(inputs, weights, _Window((down, across), pairs, dilation, feature_group_count))


def _product(pixels: Array, matrix: Array) -> Array:
    return lax.dot_general(pixels, matrix, (((3,), (0,)), ((), ())))


# Forward passes do not call the custom_vjp function: a checkpoint policy does not see inside of it.
def _multiply_forward(pixels: Array, matrix: Array) -> Any:
    return _product(pixels, matrix), (pixels, matrix)


def _multiply_backward(saved: Any, cotangent: Array) -> tuple[Array, Array]:
    pixels, matrix = saved
    # Pixels times cotangents, not autodiff's cotangents times pixels: XLA:CPU transposes the first
    # operand in memory, which recomputes cotangents that come from a fusion.
    weight_gradient = lax.dot_general(pixels, cotangent, (((0, 1, 2), (0, 1, 2)), ((), ())))
    return lax.dot_general(cotangent, matrix, (((3,), (1,)), ((), ()))), weight_gradient


_multiply = jax.custom_vjp(_product)
_multiply.defvjp(_multiply_forward, _multiply_backward)


class _Window(NamedTuple):
    """Static arguments of a convolution."""

    strides: tuple[int, int]
    padding: Padding
    dilation: tuple[int, int]
    groups: int


def _forward_pass(inputs: Array, weights: Array, window: _Window) -> Array:
    return _run(inputs, weights, window, window.padding, strides=window.strides)


def _forward(inputs: Array, weights: Array, window: _Window) -> Any:
    return _forward_pass(inputs, weights, window), (inputs, weights)


def _backward(window: _Window, saved: Any, cotangent: Array) -> tuple[Array, Array]:
    inputs, weights = saved
    strides, padding, dilation, groups = window
    # Per axis: size, low padding, distance of the last tap from the first, and size of the
    # cotangent dilated by the stride.
    axes = [
        (
            inputs.shape[axis + 1],
            padding[axis][0],
            (weights.shape[axis] - 1) * dilation[axis],
            (cotangent.shape[axis + 1] - 1) * strides[axis] + 1,
        )
        for axis in (0, 1)
    ]
    # The dilated cotangent with the weights flipped and their channels exchanged in each group.
    vertical, horizontal = ((r - low, size - w + low) for size, low, r, w in axes)
    flipped = _exchange(weights[::-1, ::-1], groups)
    input_gradient = _run(cotangent, flipped, window, (vertical, horizontal), spread=strides)
    # Images and channels exchanged in both operands; the stride becomes the cotangent's dilation.
    weight_gradient = lax.conv_general_dilated(
        _images_as_channels(inputs, groups),
        cotangent.transpose(1, 2, 0, 3),
        dilation,
        tuple((low, r + w - size - low) for size, low, r, w in axes),
        rhs_dilation=strides,
        dimension_numbers=_NHWC,
        feature_group_count=groups,
    )
    return input_gradient, weight_gradient.transpose(1, 2, 0, 3)


def _run(
    images: Array,
    weights: Array,
    window: _Window,
    padding: Padding,
    *,
    strides: tuple[int, int] = (1, 1),
    spread: tuple[int, int] = (1, 1),
) -> Array:
    if any(size < taps for size, taps in zip(images.shape[1:3], weights.shape[:2], strict=True)):
        # XLA would exchange images and weights where the weights are larger, in a slow layout. The
        # barrier keeps it from folding the padding back into the convolution.
        (up, down), (left, right) = padding
        edges = ((0, 0, 0), (up, down, spread[0] - 1), (left, right, spread[1] - 1), (0, 0, 0))
        images = lax.optimization_barrier(lax.pad(images, jnp.zeros((), images.dtype), edges))
        padding, spread = ((0, 0), (0, 0)), (1, 1)
    return lax.conv_general_dilated(
        images,
        weights,
        strides,
        padding,
        lhs_dilation=spread,
        rhs_dilation=window.dilation,
        dimension_numbers=_NHWC,
        feature_group_count=window.groups,
    )


def _exchange(weights: Array, groups: int) -> Array:
    """``(kh, kw, i, groups * o)`` to ``(kh, kw, o, groups * i)``."""
    height, width, inputs, outputs = weights.shape
    split = weights.reshape(height, width, inputs, groups, outputs // groups)
    return split.swapaxes(2, 4).reshape(height, width, outputs // groups, groups * inputs)


def _images_as_channels(inputs: Array, groups: int) -> Array:
    """``(n, h, w, groups * i)`` to ``(i, h, w, groups * n)``."""
    images, height, width, channels = inputs.shape
    split = inputs.reshape(images, height, width, groups, channels // groups)
    return split.swapaxes(0, 4).reshape(channels // groups, height, width, groups * images)


_convolve = jax.custom_vjp(_forward_pass, nondiff_argnums=(2,))
_convolve.defvjp(_forward, _backward)
