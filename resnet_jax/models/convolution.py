"""The one convolution of all networks, in two forms with equal values: XLA's own gradients, and gradients written out.

XLA's CPU backend canonicalises convolution layouts in the entry computation only: the filter gradient of a convolution inside a
``while`` body (any ``lax.scan``) runs a naive loop: a scanned training step of ResNet-20 took 34 times as long (7.6 on 8x8 images).
``explicit`` states both gradients as ordinary NHWC/HWIO convolutions, which are canonical wherever they stand. Where images are many or
large, the kernel's is matrix products between 8 and 64 channels (``resnet_jax.models.filter_gradient``), and the images' under a stride one
convolution for each phase. It has no forward-mode derivative; ``plain`` keeps it.
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
    by_phases = filter_gradient.large(inputs, cotangent, taps) and strides != (1, 1) and dilation == (1, 1)
    input_gradient = (_gradient_by_phases if by_phases else _gradient_at_once)(cotangent, kernel, window, sizes)
    if groups == 1 and filter_gradient.worthwhile(inputs, cotangent, taps):
        words: Any = {"taps": taps, "strides": strides, "padding": padding, "dilation": dilation, "precision": precision}
        return input_gradient, filter_gradient.of(inputs, cotangent, **words)
    # Filter: images and channels exchanged in both, the stride becomes the dilation of the cotangent; groups stay groups.
    reach, spread = _extents(taps, cotangent, window)
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


def _gradient_at_once(cotangent: Array, kernel: Array, window: _Window, sizes: tuple[int, ...]) -> Array:
    """The inputs': the cotangent, spread by the stride, meets the kernel flipped and with its channels exchanged within each group."""
    reach, spread = _extents(kernel.shape[:2], cotangent, window)
    low = tuple(r - p[0] for r, p in zip(reach, window.padding, strict=True))
    high = tuple(size - wide - lo + r for size, wide, lo, r in zip(sizes, spread, low, reach, strict=True))
    return _correlated(cotangent, kernel, tuple(zip(low, high, strict=True)), window, window.strides)


def _gradient_by_phases(cotangent: Array, kernel: Array, window: _Window, sizes: tuple[int, ...]) -> Array:
    """The same of a strided convolution, without the zeros between cotangents. Every s-th row and column of the inputs meets every s-th tap
    alone, so each such part is a convolution of its own, of the size of the cotangent.
    """
    (down, across), (vertical, horizontal) = window.strides, window.padding
    counts = tuple(-(-size // stride) for size, stride in zip(sizes, window.strides, strict=True))

    def part(row: int, column: int) -> Array:
        # Input s q + row meets tap (row + padding) mod s + s u of cotangent q + (row + padding) // s - u.
        skipped = [divmod(row + vertical[0], down), divmod(column + horizontal[0], across)]
        taps = kernel[skipped[0][1] :: down, skipped[1][1] :: across]
        if 0 in taps.shape:
            return jnp.zeros((len(cotangent), *counts, kernel.shape[2] * window.groups), cotangent.dtype)
        around = []
        for size, number, count, (shift, _) in zip(cotangent.shape[1:3], taps.shape[:2], counts, skipped, strict=True):
            low = number - 1 - shift
            around.append((low, count - size - low + number - 1))
        return _correlated(cotangent, taps, tuple(around), window, (1, 1))

    rows = [jnp.stack([part(row, column) for column in range(across)], 3) for row in range(down)]
    whole = jnp.stack(rows, 2)
    return whole.reshape(len(whole), counts[0] * down, counts[1] * across, -1)[:, : sizes[0], : sizes[1]]


def _correlated(cotangent: Array, kernel: Array, padding: Any, window: _Window, spread: tuple[int, int]) -> Array:
    roomy, around, spreads = _roomy(cotangent, kernel, padding, spread)
    return lax.conv_general_dilated(
        roomy,
        _exchanged(kernel[::-1, ::-1], window.groups),
        (1, 1),
        around,
        lhs_dilation=spreads,
        rhs_dilation=window.dilation,
        dimension_numbers=_NHWC,
        feature_group_count=window.groups,
        precision=window.precision,
    )


def _extents(taps: Sequence[int], cotangent: Array, window: _Window) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How far the taps reach, and the cotangent spread by the stride, in rows and columns."""
    reach = tuple((count - 1) * step for count, step in zip(taps, window.dilation, strict=True))
    return reach, tuple((size - 1) * stride + 1 for size, stride in zip(cotangent.shape[1:3], window.strides, strict=True))


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
