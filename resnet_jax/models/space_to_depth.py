"""A convolution at stride 2 as one at stride 1 on blocks of 2x2 pixels: the same values from the same kernel.

Images have 3 channels, and units that multiply matrices have 8 to 128 of their places for them. Blocks have 12, and the kernel, with a row
and a column of zeros in front, half as many taps each way: the 7x7 of ResNet's stem becomes a 4x4. Ying et al. 2018 (arXiv 1811.06992),
Section 3.2.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclass(frozen=True)
class SpaceToDepth:
    """A drop-in for ``lax.conv_general_dilated`` (NHWC, HWIO, explicit padding) of odd kernels at stride 2, padded by half of them, on
    images of even sides. Whatever else is convolved as it stands.
    """

    inner: Callable[..., Array]
    """The convolution that is given the blocks: ``convolution.plain`` or ``convolution.explicit``."""

    def __call__(
        self,
        inputs: Float[Array, "n h w i"],
        kernel: Float[Array, "kh kw i o"],
        strides: Sequence[int],
        padding: Sequence[tuple[int, int]],
        **rest: Any,
    ) -> Float[Array, "n ho wo o"]:
        """Returns what ``inner`` does, to rounding."""
        half = tuple((taps // 2, taps // 2) for taps in kernel.shape[:2])
        dilated = rest.get("rhs_dilation") not in (None, (1, 1)) or rest.get("lhs_dilation") not in (None, (1, 1))
        odd = any(side % 2 for side in inputs.shape[1:3]) or not all(taps % 2 for taps in kernel.shape[:2])
        if tuple(strides) != (2, 2) or tuple(padding) != half or dilated or odd or rest.get("feature_group_count", 1) != 1:
            return self.inner(inputs, kernel, strides, padding, **rest)
        # out[i] = sum_a x[2 i + a - side] k[a]: with `side % 2` zeros in front of k the first tap falls on the first pixel of a block.
        front = tuple(side % 2 for side, _ in half)
        room = tuple((before, (taps + before) % 2) for before, taps in zip(front, kernel.shape[:2], strict=True))
        blocks_before = tuple((side + before) // 2 for (side, _), before in zip(half, front, strict=True))
        kernel = _blocks(jnp.pad(kernel, (*room, (0, 0), (0, 0))).transpose(3, 0, 1, 2)).transpose(1, 2, 3, 0)
        around = tuple((low, taps - 1 - low) for low, taps in zip(blocks_before, kernel.shape[:2], strict=True))
        return self.inner(_blocks(inputs), kernel, (1, 1), around, **rest)


def _blocks(images: Float[Array, "n h w c"]) -> Float[Array, "n h/2 w/2 4*c"]:
    number, height, width, channels = images.shape
    split = images.reshape(number, height // 2, 2, width // 2, 2, channels)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(number, height // 2, width // 2, 4 * channels)
