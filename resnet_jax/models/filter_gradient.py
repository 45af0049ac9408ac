"""The gradient of a convolution's kernel as matrix products over pixels, for a few images at a time.

XLA's CPU backend computes it as a convolution with images as channels and a kernel as large as the image: 15 times as long as the
convolution itself, at ResNet-20's first stage. A product of the inputs, once for every horizontal tap, with the cotangents, once for every
vertical one, has all pairs of taps in it. The operands of a few images stay in the processor's caches.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Bytes of a product's operands. Blocks of 2 to 8 MB were the fastest, within a fifth of each other, on 2 cores of an AMD EPYC.
BLOCK_BYTES = 4_000_000

Pair = tuple[int, int]


def worthwhile(inputs: Any, cotangent: Any, taps: Pair) -> bool:
    """Whether the operands of all images need several blocks. Where not, as for images of 8x8 pixels, the convolution is as fast."""
    return len(cotangent) * _bytes_of_an_image(inputs, cotangent, taps) > BLOCK_BYTES


def of(
    inputs: Float[Array, "n h w i"],
    cotangent: Float[Array, "n ho wo o"],
    *,
    taps: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    precision: Any = None,
) -> Float[Array, "kh kw i o"]:
    """The gradient of the kernel of ``lax.conv_general_dilated(inputs, kernel, strides, padding, rhs_dilation=dilation)``, of one group."""
    images, height, width = cotangent.shape[:3]
    at_once = _images_at_once(inputs, cotangent, taps)
    # Every count-th image: where devices share the images, each has some of every block.
    split = [each.reshape(at_once, images // at_once, *each.shape[1:]) for each in (inputs, cotangent)]
    around = [(0, 0, 0), *((*side, 0) for side in padding), (0, 0, 0)]
    # Rows of the inputs by what is left of them when divided by the stride: in each of these the taps are shifts.
    shifts = [
        [(tap, tap * dilation[0] // strides[0]) for tap in range(taps[0]) if tap * dilation[0] % strides[0] == phase]
        for phase in range(strides[0])
    ]

    def block(index: Any) -> list[Array]:
        x, dy = (lax.dynamic_index_in_dim(each, index, 1, keepdims=False) for each in split)
        x = lax.pad(x, jnp.zeros((), x.dtype), around)
        across = [
            lax.slice_in_dim(x, tap * dilation[1], tap * dilation[1] + (width - 1) * strides[1] + 1, strides[1], 2)
            for tap in range(taps[1])
        ]
        rows, products = jnp.concatenate(across, -1), []
        for phase, moved in enumerate(shifts):
            if not moved:
                continue
            reach = height + max(shift for _, shift in moved)
            down = [jnp.pad(dy, ((0, 0), (shift, reach - height - shift), (0, 0), (0, 0))) for _, shift in moved]
            those = lax.slice_in_dim(rows, phase, phase + (reach - 1) * strides[0] + 1, strides[0], 1)
            products.append(lax.dot_general(those, jnp.concatenate(down, -1), (((0, 1, 2), (0, 1, 2)), ((), ())), precision=precision))
        return products

    first = block(0)
    sums = (
        first
        if at_once == images
        else lax.fori_loop(1, images // at_once, lambda index, sums: [a + b for a, b in zip(sums, block(index), strict=True)], first)
    )
    by_tap = {}
    for moved, product in zip([moved for moved in shifts if moved], sums, strict=True):
        parts = product.reshape(taps[1], inputs.shape[3], len(moved), cotangent.shape[3])
        by_tap |= {tap: parts[:, :, place] for place, (tap, _) in enumerate(moved)}
    return jnp.stack([by_tap[tap] for tap in range(taps[0])])


def _images_at_once(inputs: Any, cotangent: Any, taps: Pair) -> int:
    images, most = len(cotangent), BLOCK_BYTES // _bytes_of_an_image(inputs, cotangent, taps)
    return max(n for n in range(1, max(1, min(most, images)) + 1) if images % n == 0)


def _bytes_of_an_image(inputs: Any, cotangent: Any, taps: Pair) -> int:
    pixels = math.prod(cotangent.shape[1:3])
    return pixels * (taps[1] * inputs.shape[3] + taps[0] * cotangent.shape[3]) * inputs.dtype.itemsize
