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

Padding = tuple[tuple[int, int], tuple[int, int]]

_NHWC = ("NHWC", "HWIO", "NHWC")


def convolve(
    inputs: Float[Array, "n h w i"],
    weights: Float[Array, "kh kw i_per_group o"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    rhs_dilation: Sequence[int] = (1, 1),
    feature_group_count: int = 1,
    precision: Any = None,
    **_: Any,
) -> Float[Array, "n ho wo o"]:
    """NHWC convolution with HWIO weights and explicit padding, to be passed to ``nnx.Conv``.

    Arguments as of ``lax.conv_general_dilated``; others, such as ``lhs_dilation``, have to be at their
    defaults.
    """
    (down, across), (vertical, horizontal) = strides, padding
    pairs = ((vertical[0], vertical[1]), (horizontal[0], horizontal[1]))
    if weights.shape[:2] == (1, 1) and pairs == ((0, 0), (0, 0)) and feature_group_count == 1:
        return _multiply(inputs[:, ::down, ::across], weights[0, 0], precision)
    return _convolve(
        inputs,
        weights,
        _Window(
            (down, across),
            pairs,
            (rhs_dilation[0], rhs_dilation[1]),
            feature_group_count,
            precision,
        ),
    )


def _product(pixels: Array, matrix: Array, precision: Any) -> Array:
    return lax.dot_general(pixels, matrix, (((3,), (0,)), ((), ())), precision=precision)


# Forward passes do not call the custom_vjp function: a checkpoint policy does not see inside of it.
def _multiply_forward(
    pixels: Array, matrix: Array, precision: Any
) -> tuple[Array, tuple[Array, Array]]:
    return _product(pixels, matrix, precision), (pixels, matrix)


def _multiply_backward(
    precision: Any, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    pixels, matrix = saved
    # Pixels times cotangents, not autodiff's cotangents times pixels: XLA:CPU transposes the first
    # operand in memory, which recomputes cotangents that come from a fusion.
    weight_gradient = lax.dot_general(
        pixels, cotangent, (((0, 1, 2), (0, 1, 2)), ((), ())), precision=precision
    )
    return lax.dot_general(
        cotangent, matrix, (((3,), (1,)), ((), ())), precision=precision
    ), weight_gradient


_multiply = jax.custom_vjp(_product, nondiff_argnums=(2,))
_multiply.defvjp(_multiply_forward, _multiply_backward)


class _Window(NamedTuple):
    """Static arguments of a convolution."""

    strides: tuple[int, int]
    padding: Padding
    dilation: tuple[int, int]
    groups: int
    precision: Any


def _forward_pass(inputs: Array, weights: Array, window: _Window) -> Array:
    return _run(inputs, weights, window, window.padding, strides=window.strides)


def _forward(inputs: Array, weights: Array, window: _Window) -> tuple[Array, tuple[Array, Array]]:
    return _forward_pass(inputs, weights, window), (inputs, weights)


def _backward(window: _Window, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, weights = saved
    strides, padding, dilation, groups, precision = window
    # Per axis: distance of the first from the last tap, and size of the cotangent dilated by the stride.
    reach = [(taps - 1) * step for taps, step in zip(weights.shape[:2], dilation, strict=True)]
    wide = [
        (size - 1) * stride + 1 for size, stride in zip(cotangent.shape[1:3], strides, strict=True)
    ]
    axes = list(zip(inputs.shape[1:3], padding, reach, wide, strict=True))
    # The dilated cotangent with the weights flipped and their channels exchanged within each group.
    vertical, horizontal = ((r - low, size - w + low) for size, (low, _), r, w in axes)
    input_gradient = _run(
        cotangent,
        _exchange(weights[::-1, ::-1], groups),
        window,
        (vertical, horizontal),
        spread=strides,
    )
    # Images and channels exchanged in both operands; the stride becomes the cotangent's dilation.
    weight_gradient = lax.conv_general_dilated(
        _images_as_channels(inputs, groups),
        cotangent.transpose(1, 2, 0, 3),
        dilation,
        tuple((low, r + w - size - low) for size, (low, _), r, w in axes),
        rhs_dilation=strides,
        dimension_numbers=_NHWC,
        feature_group_count=groups,
        precision=precision,
    )
    return input_gradient, weight_gradient.transpose(1, 2, 0, 3)


def _run(
    images: Array,
    weights: Array,
    window: _Window,
    padding: Padding,
    *,
    strides: Any = (1, 1),
    spread: Any = (1, 1),
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
        precision=window.precision,
    )


def _exchange(weights: Array, groups: int) -> Array:
    """``(kh, kw, i, groups * o)`` to ``(kh, kw, o, groups * i)``."""
    height, width, inputs, outputs = weights.shape
    split = weights.reshape(height, width, inputs, groups, outputs // groups)
    return split.transpose(0, 1, 4, 3, 2).reshape(height, width, outputs // groups, groups * inputs)


def _images_as_channels(inputs: Array, groups: int) -> Array:
    """``(n, h, w, groups * i)`` to ``(i, h, w, groups * n)``."""
    images, height, width, channels = inputs.shape
    split = inputs.reshape(images, height, width, groups, channels // groups)
    return split.transpose(4, 1, 2, 3, 0).reshape(
        channels // groups, height, width, groups * images
    )


_convolve = jax.custom_vjp(_forward_pass, nondiff_argnums=(2,))
_convolve.defvjp(_forward, _backward)
