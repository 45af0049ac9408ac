"""The one convolution of all networks, in two forms with equal values: XLA's own gradients, and gradients written out.

XLA's CPU backend canonicalises convolution layouts in the entry computation only: the filter gradient of a convolution inside a
``while`` body (any ``lax.scan``) runs a naive loop: a scanned training step of ResNet-20 on 8x8 images took 7.6 times as long.
``explicit`` states both gradients as ordinary NHWC/HWIO convolutions, which are canonical wherever they stand. It has
no forward-mode derivative; ``plain`` keeps it.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
from jax import lax
from jaxtyping import Array, Float

Gradients = Literal["auto", "plain", "explicit"]
Pairs = tuple[tuple[int, int], tuple[int, int]]

_NHWC = ("NHWC", "HWIO", "NHWC")


def gradients_for_backend(gradients: Gradients) -> Literal["plain", "explicit"]:
    """Resolves ``auto``: explicit on CPU; plain elsewhere, until an accelerator has been measured."""
    if gradients == "auto":
        return "explicit" if jax.default_backend() == "cpu" else "plain"
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

    Grouped and input-dilated convolutions and other layouts, which the written gradients do not cover, take the plain form.
    """
    layouts = [lax.conv_dimension_numbers(inputs.shape, kernel.shape, numbers) for numbers in (dimension_numbers, _NHWC)]
    if feature_group_count != 1 or tuple(lhs_dilation) != (1, 1) or layouts[0] != layouts[1]:
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
    strides, pairs = tuple(strides), tuple(tuple(pair) for pair in padding)
    if kernel.shape[:2] == (1, 1) and pairs == ((0, 0), (0, 0)):
        # A 1x1 convolution is a matrix product over the pixels that the stride keeps.
        return lax.dot_general(inputs[:, :: strides[0], :: strides[1]], kernel[0, 0], (((3,), (0,)), ((), ())), precision=precision)
    return _convolve(inputs, kernel, strides, pairs, tuple(rhs_dilation), precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve(inputs: Array, kernel: Array, strides: tuple[int, int], padding: Pairs, dilation: tuple[int, int], precision: Any) -> Array:
    return lax.conv_general_dilated(inputs, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=_NHWC, precision=precision)


def _forward(
    inputs: Array, kernel: Array, strides: tuple[int, int], padding: Pairs, dilation: tuple[int, int], precision: Any
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(inputs, kernel, strides, padding, dilation, precision), (inputs, kernel)


def _backward(
    strides: tuple[int, int], padding: Pairs, dilation: tuple[int, int], precision: Any, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    inputs, kernel = saved
    sizes, taps = inputs.shape[1:3], kernel.shape[:2]
    reach = tuple((k - 1) * d for k, d in zip(taps, dilation, strict=True))
    spread = tuple((o - 1) * s + 1 for o, s in zip(cotangent.shape[1:3], strides, strict=True))
    # Input: the cotangent, spread by the stride, meets the kernel flipped and with its channels exchanged.
    low = tuple(r - p[0] for r, p in zip(reach, padding, strict=True))
    high = tuple(size - wide - lo + r for size, wide, lo, r in zip(sizes, spread, low, reach, strict=True))
    input_gradient = lax.conv_general_dilated(
        cotangent,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        tuple(zip(low, high, strict=True)),
        lhs_dilation=strides,
        rhs_dilation=dilation,
        dimension_numbers=_NHWC,
        precision=precision,
    )
    # Filter: batch and channels exchanged in both, the stride becomes the dilation of the cotangent.
    high = tuple(r + wide - size - p[0] for r, wide, size, p in zip(reach, spread, sizes, padding, strict=True))
    filter_gradient = lax.conv_general_dilated(
        inputs.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        dilation,
        tuple((p[0], hi) for p, hi in zip(padding, high, strict=True)),
        rhs_dilation=strides,
        dimension_numbers=_NHWC,
        precision=precision,
    ).transpose(1, 2, 0, 3)
    return input_gradient, filter_gradient


_convolve.defvjp(_forward, _backward)
