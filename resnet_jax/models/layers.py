"""Convolution and small layers of the papers, on top of Flax's.

Every layer computes in the dtype of its input; parameters and statistics are float32.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Key

from resnet_jax import kernels as kernels_lib
from resnet_jax.errors import UserError
from resnet_jax.kernels import Kernels, convolution

Activation = Float[Array, "n h w c"]
# As Conv: (in_features, out_features, kernel_size, stride=1, *, dilation=1, groups=1, rngs) -> module.
ConvFactory = Callable[..., Any]
# (features, *, rngs) -> module, called with (x) and, if its call names it, train.
NormFactory = Callable[..., Any]

# He et al. 2015b (arXiv 1502.01852), eq. 10, not truncated. One object, so that equal layers compare equal.
he_normal = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _follow_input(arrays: Any, /, **_: Any) -> Any:
    return tuple(None if array is None else jnp.asarray(array, arrays[0].dtype) for array in arrays)


class Conv(nnx.Conv):
    """Convolution without bias, He-initialized, padded symmetrically by dilation * (kernel - 1) / 2.

    ``SAME`` is not used: at stride 2 it pads asymmetrically, unlike the papers' implementations. ``kernel_size`` is odd,
    ``groups`` is ResNeXt's cardinality.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        stride: int = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        kernels: Kernels = "auto",
        rngs: nnx.Rngs,
    ):
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise UserError(
                f"A {kernel_size}x{kernel_size} kernel cannot be padded symmetrically: use an odd size."
            )
        if groups < 1 or in_features % groups or out_features % groups:
            raise UserError(
                f"groups={groups} does not divide a convolution from {in_features} to {out_features} features."
            )
        side = dilation * (kernel_size - 1) // 2
        super().__init__(
            in_features,
            out_features,
            (kernel_size, kernel_size),
            (stride, stride),
            padding=((side, side), (side, side)),
            kernel_dilation=(dilation, dilation),
            feature_group_count=groups,
            use_bias=False,
            kernel_init=he_normal,
            conv_general_dilated=convolution.convolve
            if kernels_lib.resolve(kernels) == "cpu"
            else lax.conv_general_dilated,
            promote_dtype=_follow_input,
            rngs=rngs,
        )


class ReLU(nnx.Module):
    """max(x, 0)."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        pass

    def __call__(self, x: Activation) -> Activation:
        return nnx.relu(x)


class Bias(nnx.Module):
    """Scalar bias, initially 0. Fixup (Zhang et al. 2019, arXiv 1901.09321), Section 3.2, rule 3."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.bias = nnx.Param(jnp.zeros(()))

    def __call__(self, x: Activation) -> Activation:
        return x + self.bias[...].astype(x.dtype)


class Multiplier(nnx.Module):
    """Scalar multiplier, initially 1. Fixup, Section 3.2, rule 3."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x: Activation) -> Activation:
        return x * self.scale[...].astype(x.dtype)


class SqueezeExcitation(nnx.Module):
    """Squeeze-and-excitation with biases (Hu et al. 2018, arXiv 1709.01507, eqs. 2 to 4).

    The hidden layer has ``features // reduction`` channels.
    """

    def __init__(self, features: int, *, reduction: int = 16, rngs: nnx.Rngs):
        if not 1 <= reduction <= features:
            raise UserError(
                f"Squeeze-and-excitation cannot reduce {features} features by {reduction}: use 1 to {features}."
            )
        self.squeeze = nnx.Linear(features, features // reduction, kernel_init=he_normal, rngs=rngs)
        self.excite = nnx.Linear(features // reduction, features, kernel_init=he_normal, rngs=rngs)

    def __call__(self, x: Activation) -> Activation:
        mean = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        gates = jax.nn.sigmoid(self.excite(nnx.relu(self.squeeze(mean))))
        return x * gates[:, None, None].astype(x.dtype)


def needs_key(key: Key[Array, ""] | None, what: str) -> Key[Array, ""]:
    """Returns the key; raises UserError if there is none."""
    if key is None:
        raise UserError(
            f"{what} is random in training: call the network with key=jax.random.key(...)."
        )
    return key


def keep(
    key: Key[Array, ""] | None, rate: Any, shape: tuple[int, ...], what: str
) -> Float[Array, "..."]:
    """Returns a mask of zeros and ones, zero with probability ``rate`` (broadcast to ``shape``)."""
    return jax.random.bernoulli(needs_key(key, what), 1 - rate, shape).astype(jnp.float32)
