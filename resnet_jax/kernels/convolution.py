"""NHWC convolution whose gradients are ordinary convolutions.

XLA:CPU canonicalizes convolution layouts in the entry computation only: autodiff's weight gradient
inside a ``while`` body (any ``lax.scan``) runs a naive loop, 17 to 29 times slower.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resnet_jax.kernels import active, resolve

Pair = tuple[int, int]
Padding = Sequence[tuple[int, int]]

_NHWC = ("NHWC", "HWIO", "NHWC")


def conv_general_dilated(inputs: Array, weights: Array, *window: Any, **options: Any) -> Array:
    """``lax.conv_general_dilated`` or ``convolve``, to be passed to ``nnx.Conv``."""
    form = convolve if resolve(active.value) == "cpu" else lax.conv_general_dilated
    return form(inputs, weights, *window, **options)


def convolve(
    inputs: Float[Array, "n h w i"],
    weights: Float[Array, "kh kw i_per_group o"],
    strides: Pair,
    padding: Padding,
    *,
    rhs_dilation: Pair = (1, 1),
    feature_group_count: int = 1,
    **_: Any,
) -> Float[Array, "n ho wo o"]:
    """Convolves as ``lax.conv_general_dilated`` does with other arguments at their defaults."""
    padding = padding[0], padding[1]  # nnx.Conv passes a list, which cannot be static
    if weights.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)) and feature_group_count == 1:
        return _multiply(inputs[:, :: strides[0], :: strides[1]], weights[0, 0])
    return _convolve(inputs, weights, (strides, padding, rhs_dilation, feature_group_count))


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


# Strides, padding, dilation of the weights, groups.
Window = tuple[Pair, Padding, Pair, int]


def _forward_pass(inputs: Array, weights: Array, window: Window) -> Array:
    strides, padding, dilation, groups = window
    return _run(inputs, weights, padding, dilation, groups, strides=strides)


def _forward(inputs: Array, weights: Array, window: Window) -> Any:
    return _forward_pass(inputs, weights, window), (inputs, weights)


def _backward(window: Window, saved: Any, cotangent: Array) -> tuple[Array, Array]:
    inputs, weights = saved
    strides, padding, dilation, groups = window
    # Per axis: size, low padding, distance of the last tap from the first, size of the cotangent
    # dilated by the stride.
    sizes = inputs.shape[1:3]
    lows = (low for low, _ in padding)
    reaches = ((n - 1) * step for n, step in zip(weights.shape, dilation, strict=False))
    spreads = ((n - 1) * step + 1 for n, step in zip(cotangent.shape[1:], strides, strict=False))
    axes = list(zip(sizes, lows, reaches, spreads, strict=True))
    # The dilated cotangent with the weights flipped and their channels exchanged in each group.
    vertical, horizontal = ((r - low, size - w + low) for size, low, r, w in axes)
    flipped = _exchange(weights[::-1, ::-1], groups)
    edges = vertical, horizontal
    input_gradient = _run(cotangent, flipped, edges, dilation, groups, spread=strides)
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
    padding: Padding,
    dilation: Pair,
    groups: int,
    *,
    strides: Pair = (1, 1),
    spread: Pair = (1, 1),
) -> Array:
    if any(size < taps for size, taps in zip(images.shape[1:3], weights.shape[:2], strict=True)):
        # XLA would exchange images and larger weights, in a slow layout. The barrier keeps it from
        # folding the padding back into the convolution.
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
        rhs_dilation=dilation,
        dimension_numbers=_NHWC,
        feature_group_count=groups,
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
