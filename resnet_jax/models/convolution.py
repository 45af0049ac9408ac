"""The one convolution of all networks, in two forms with equal values: XLA's own gradients, and gradients written out.

XLA's CPU backend canonicalises convolution layouts in the entry computation only: the filter gradient of a convolution inside a
``while`` body (any ``lax.scan``) runs a naive loop: a scanned training step of ResNet-20 took 34 times as long (7.6 on 8x8 images).
``explicit`` states both gradients as ordinary NHWC/HWIO convolutions, which are canonical wherever they stand, and the kernel's as matrix
products where images are many or large (``resnet_jax.models.filter_gradient``). It has no forward-mode derivative; ``plain`` keeps it.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resnet_jax.models import filter_gradient

Gradients = Literal["auto", "plain", "explicit"]
Pairs = tuple[tuple[int, int], tuple[int, int]]

_NHWC = ("NHWC", "HWIO", "NHWC")
# The backends that ``explicit`` is written for.
WRITTEN_FOR = ("cpu",)


def form_of(gradients: Gradients, written_for: Sequence[str], backend: str | None = None) -> Literal["plain", "explicit"]:
    """Resolves ``auto``: explicit on the backends (cpu, gpu, tpu) that a derivative is written for, plain on others until one is measured.

    Args:
      gradients: what is asked for.
      written_for: the backends on which the written form is the better one.
      backend: where the program runs; None: this machine's.
    """
    if gradients == "auto":
        return "explicit" if (backend or jax.default_backend()) in written_for else "plain"
    return gradients


def plain(*args: Any, **kwargs: Any) -> Array:
    """``lax.conv_general_dilated`` with the gradients that JAX derives."""
    return lax.conv_general_dilated(*args, **kwargs)


def explicit(
    inputs: Float[Array, "n h w i"],
    kernel: Float[Array, "kh kw i_per_group o"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = _NHWC,
    feature_group_count: int = 1,
    precision: Any = None,
    out_sharding: Any = None,
) -> Float[Array, "n ho wo o"]:
    """A drop-in for ``lax.conv_general_dilated`` (NHWC, explicit padding) with its gradients written as convolutions.

    Input-dilated convolutions and other layouts, which the written gradients do not cover, take the plain form.
    """
    layouts = [lax.conv_dimension_numbers(inputs.shape, kernel.shape, numbers) for numbers in (dimension_numbers, _NHWC)]
    if tuple(lhs_dilation) != (1, 1) or layouts[0] != layouts[1]:
        return plain(
            inputs,
            kernel,
            strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            precision=precision,
            out_sharding=out_sharding,
        )
    (down, across), (vertical, horizontal) = strides, padding
    pairs: Pairs = ((vertical[0], vertical[1]), (horizontal[0], horizontal[1]))
    if kernel.shape[:2] == (1, 1) and pairs == ((0, 0), (0, 0)) and feature_group_count == 1:
        # A 1x1 convolution is a matrix product over the pixels that the stride keeps.
        return _multiply(inputs[:, ::down, ::across], kernel[0, 0], precision)
    return _convolve(inputs, kernel, _Window((down, across), pairs, (rhs_dilation[0], rhs_dilation[1]), feature_group_count, precision))


def _multiplied(pixels: Array, matrix: Array, precision: Any) -> Array:
    return lax.dot_general(pixels, matrix, (((3,), (0,)), ((), ())), precision=precision)


# Not by way of _multiply, into which no policy of ``jax.checkpoint`` sees.
def _multiply_forward(pixels: Array, matrix: Array, precision: Any) -> tuple[Array, tuple[Array, Array]]:
    return _multiplied(pixels, matrix, precision), (pixels, matrix)


def _multiply_backward(precision: Any, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    pixels, matrix = saved
    of_pixels = lax.dot_general(cotangent, matrix, (((3,), (1,)), ((), ())), precision=precision)
    # Pixels times cotangents, where JAX derives cotangents times pixels: XLA's CPU backend transposes the first of the two in memory, and
    # computes cotangents, which come from a fusion, once more for that.
    return of_pixels, lax.dot_general(pixels, cotangent, (((0, 1, 2), (0, 1, 2)), ((), ())), precision=precision)


_multiply = jax.custom_vjp(_multiplied, nondiff_argnums=(2,))
_multiply.defvjp(_multiply_forward, _multiply_backward)


class _Window(NamedTuple):
    """What a convolution is besides its operands."""

    strides: tuple[int, int]
    padding: Pairs
    dilation: tuple[int, int]
    groups: int
    precision: Any


def _convolved(inputs: Array, kernel: Array, window: _Window) -> Array:
    inputs, padding, _ = _roomy(inputs, kernel, window.padding, (1, 1))
    return lax.conv_general_dilated(
        inputs,
        kernel,
        window.strides,
        padding,
        rhs_dilation=window.dilation,
        dimension_numbers=_NHWC,
        feature_group_count=window.groups,
        precision=window.precision,
    )


def _forward(inputs: Array, kernel: Array, window: _Window) -> tuple[Array, tuple[Array, Array]]:
    return _convolved(inputs, kernel, window), (inputs, kernel)


def _backward(window: _Window, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    inputs, kernel = saved
    strides, padding, dilation, groups, precision = window
    sizes, taps = inputs.shape[1:3], (kernel.shape[0], kernel.shape[1])
    reach = tuple((k - 1) * d for k, d in zip(taps, dilation, strict=True))
    spread = tuple((o - 1) * s + 1 for o, s in zip(cotangent.shape[1:3], strides, strict=True))
    # Input: the cotangent, spread by the stride, meets the kernel flipped and with its channels exchanged within each group.
    low = tuple(r - p[0] for r, p in zip(reach, padding, strict=True))
    high = tuple(size - wide - lo + r for size, wide, lo, r in zip(sizes, spread, low, reach, strict=True))
    roomy, around, spreads = _roomy(cotangent, kernel, tuple(zip(low, high, strict=True)), strides)
    input_gradient = lax.conv_general_dilated(
        roomy,
        _exchanged(kernel[::-1, ::-1], groups),
        (1, 1),
        around,
        lhs_dilation=spreads,
        rhs_dilation=dilation,
        dimension_numbers=_NHWC,
        feature_group_count=groups,
        precision=precision,
    )
    if groups == 1 and filter_gradient.worthwhile(inputs, cotangent, taps):
        words: Any = {"taps": taps, "strides": strides, "padding": padding, "dilation": dilation, "precision": precision}
        return input_gradient, filter_gradient.of(inputs, cotangent, **words)
    # Filter: images and channels exchanged in both, the stride becomes the dilation of the cotangent; groups stay groups.
    high = tuple(r + wide - size - p[0] for r, wide, size, p in zip(reach, spread, sizes, padding, strict=True))
    of_kernel = lax.conv_general_dilated(
        _images_as_channels(inputs, groups),
        cotangent.transpose(1, 2, 0, 3),
        dilation,
        tuple((p[0], hi) for p, hi in zip(padding, high, strict=True)),
        rhs_dilation=strides,
        dimension_numbers=_NHWC,
        feature_group_count=groups,
        precision=precision,
    ).transpose(1, 2, 0, 3)
    return input_gradient, of_kernel


def _roomy(images: Array, kernel: Array, padding: Any, spreads: tuple[int, int]) -> tuple[Array, Any, tuple[int, int]]:
    """Images, their padding and their dilation. Images smaller than the kernel are padded and spread beforehand: XLA would exchange the
    two, and convolve in another layout.
    """
    if all(size >= taps for size, taps in zip(images.shape[1:3], kernel.shape[:2], strict=True)):
        return images, padding, spreads
    (up, down), (left, right) = padding
    padded = lax.pad(images, jnp.zeros((), images.dtype), ((0, 0, 0), (up, down, spreads[0] - 1), (left, right, spreads[1] - 1), (0, 0, 0)))
    # Without the barrier XLA takes the padding back into the convolution, and exchanges the two after all.
    return lax.optimization_barrier(padded), ((0, 0), (0, 0)), (1, 1)


def _exchanged(kernel: Array, groups: int) -> Array:
    """``(kh, kw, i, groups * o)`` to ``(kh, kw, o, groups * i)``."""
    height, width, come, go = kernel.shape
    split = kernel.reshape(height, width, come, groups, go // groups)
    return split.transpose(0, 1, 4, 3, 2).reshape(height, width, go // groups, groups * come)


def _images_as_channels(inputs: Array, groups: int) -> Array:
    """``(n, h, w, groups * i)`` to ``(i, h, w, groups * n)``."""
    images, height, width, channels = inputs.shape
    split = inputs.reshape(images, height, width, groups, channels // groups)
    return split.transpose(4, 1, 2, 3, 0).reshape(channels // groups, height, width, groups * images)


_convolve = jax.custom_vjp(_convolved, nondiff_argnums=(2,))
_convolve.defvjp(_forward, _backward)
