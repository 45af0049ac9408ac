"""The gradient of a convolution's kernel as matrix products over pixels, for a few images at a time.

XLA's CPU backend computes it as a convolution with images as channels and a kernel as large as the image, which of few channels, as in
ResNet-20's first stages, takes longer. A product of the inputs, once for every horizontal tap, with the cotangents, once for every
vertical one, has all pairs of taps in it. Rows of padding have no part in it. The operands of a few images stay in the processor's caches.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Bytes of a product's operands. Blocks of 2 to 8 MB were the fastest, within a fifth of each other, on 2 cores of an AMD EPYC.
BLOCK_BYTES = 4_000_000
# Of inputs. On the same cores the convolution takes a third of the time at 3 channels (the 7x7 of a stem; half of it for a 3x3), 1.2 times
# as long at 16 and 32, and 0.7 to 1.0 times at 64 to 512.
CHANNELS = range(8, 64)

Pair = tuple[int, int]


def large(inputs: Any, cotangent: Any, taps: Pair) -> bool:
    """Whether the operands of all images need several blocks. Where not, as for images of 8x8 pixels, the convolution is as fast."""
    return len(cotangent) * _bytes_of_an_image(inputs, cotangent, taps) > BLOCK_BYTES


def worthwhile(inputs: Any, cotangent: Any, taps: Pair) -> bool:
    """Whether products are faster than the convolution: for large images, neither of a few colours nor of many channels."""
    return large(inputs, cotangent, taps) and inputs.shape[3] in CHANNELS


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
    phases = _phases(taps[0], strides[0], dilation[0], padding[0][0], inputs.shape[1], height)

    def block(index: Any) -> list[Array]:
        x, dy = (lax.dynamic_index_in_dim(each, index, 1, keepdims=False) for each in split)
        wide = _padded(x, 2, *padding[1])
        across = [
            lax.slice_in_dim(wide, tap * dilation[1], tap * dilation[1] + (width - 1) * strides[1] + 1, strides[1], 2)
            for tap in range(taps[1])
        ]
        rows = jnp.concatenate(across, -1)
        return [_product(rows, dy, phase, strides[0], precision) for phase in phases]

    first = block(0)
    sums = (
        first
        if at_once == images
        else lax.fori_loop(1, images // at_once, lambda index, sums: [a + b for a, b in zip(sums, block(index), strict=True)], first)
    )
    nothing = jnp.zeros((taps[1], inputs.shape[3], cotangent.shape[3]), inputs.dtype)
    by_tap = dict.fromkeys(range(taps[0]), nothing)
    for phase, product in zip(phases, sums, strict=True):
        parts = product.reshape(taps[1], inputs.shape[3], len(phase.taps), cotangent.shape[3])
        by_tap |= {tap: parts[:, :, place] for place, (tap, _) in enumerate(phase.taps)}
    return jnp.stack([by_tap[tap] for tap in range(taps[0])])


class _Phase(NamedTuple):
    """Rows of the padded inputs that leave the same remainder when divided by the stride: among these, vertical taps are shifts."""

    taps: list[Pair]
    """The taps that meet these rows, and by how many of them each is shifted, the least first."""
    first: int
    """Of these rows the first that is no padding and meets a row of cotangents by some tap."""
    rows: int
    """How many rows from there on do."""
    start: int
    """The first among the rows of the inputs."""


def _phases(taps: int, stride: int, dilation: int, top: int, rows: int, height: int) -> list[_Phase]:
    phases = []
    for remainder in range(stride):
        moved = [(tap, tap * dilation // stride) for tap in range(taps) if tap * dilation % stride == remainder]
        if not moved:
            continue
        first = max(moved[0][1], -((remainder - top) // stride))
        last = min(moved[-1][1] + height - 1, (top + rows - 1 - remainder) // stride)
        if first <= last:
            phases.append(_Phase(moved, first, last - first + 1, first * stride + remainder - top))
    return phases


def _product(rows: Array, cotangent: Array, phase: _Phase, stride: int, precision: Any) -> Array:
    shifts = [shift for _, shift in phase.taps]
    above, below = max(shifts[-1] - phase.first, 0), max(phase.first + phase.rows - shifts[0] - cotangent.shape[1], 0)
    tall, top = _padded(cotangent, 1, above, below), above + phase.first
    down = [lax.slice_in_dim(tall, top - shift, top - shift + phase.rows, axis=1) for shift in shifts]
    those = lax.slice_in_dim(rows, phase.start, phase.start + (phase.rows - 1) * stride + 1, stride, 1)
    return lax.dot_general(those, jnp.concatenate(down, -1), (((0, 1, 2), (0, 1, 2)), ((), ())), precision=precision)


def _padded(images: Array, axis: int, low: int, high: int) -> Array:
    padded = lax.pad(images, jnp.zeros((), images.dtype), [(low, high, 0) if each == axis else (0, 0, 0) for each in range(4)])
    # XLA would pad within the concatenation, comparing indices for every value: that takes twice as long.
    return lax.optimization_barrier(padded)


def _images_at_once(inputs: Any, cotangent: Any, taps: Pair) -> int:
    images, most = len(cotangent), BLOCK_BYTES // _bytes_of_an_image(inputs, cotangent, taps)
    return max(n for n in range(1, max(1, min(most, images)) + 1) if images % n == 0)


def _bytes_of_an_image(inputs: Any, cotangent: Any, taps: Pair) -> int:
    pixels = math.prod(cotangent.shape[1:3])
    return pixels * (taps[1] * inputs.shape[3] + taps[0] * cotangent.shape[3]) * inputs.dtype.itemsize
