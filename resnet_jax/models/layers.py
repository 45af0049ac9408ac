"""Convolution and small layers as the papers use them, over Flax's own.

Precision: every layer computes in the dtype of its input; parameters and statistics are float32. So the dtype of a network is said
once, where the images enter, and reaches whatever a user adds.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from resnet_jax.errors import UserError
from resnet_jax.models import convolution
from resnet_jax.models.convolution import Gradients
from resnet_jax.models.space_to_depth import SpaceToDepth

# He et al. 2015b (arXiv 1502.01852), eq. 10: zero mean, variance 2 / fan_in, not truncated. One object, so that equal layers compare equal.
he_normal = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _follow_input(arrays: Any, /, **_: Any) -> Any:
    dtype = arrays[0].dtype
    return tuple(None if array is None else jnp.asarray(array, dtype) for array in arrays)


class Conv(nnx.Conv):
    """Convolution without bias (a normalisation follows), He-initialised, padded symmetrically by dilation * (kernel - 1) / 2.

    ``SAME`` is not used: at stride 2 it pads asymmetrically, which the papers' implementations do not.

    Args:
      in_features: input channels.
      out_features: output channels.
      kernel_size: side of the square kernel, odd.
      stride: step in pixels, both directions.
      dilation: distance of the kernel's taps in pixels.
      groups: the channels are split into so many groups that do not see each other (ResNeXt's cardinality).
      gradients: see ``resnet_jax.models.convolution``.
      space_to_depth: see ``resnet_jax.models.space_to_depth``.
      rngs: stream ``params``.

    Raises:
      UserError: for an even kernel, or groups that do not divide both widths.
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
        gradients: Gradients = "auto",
        space_to_depth: bool = False,
        rngs: nnx.Rngs,
    ):
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise UserError(f"a kernel of {kernel_size}x{kernel_size} cannot be padded symmetrically: use an odd size")
        if groups < 1 or in_features % groups or out_features % groups:
            raise UserError(f"{groups} groups do not divide a convolution from {in_features} to {out_features} features")
        side = dilation * (kernel_size - 1) // 2
        explicit = convolution.form_of(gradients, convolution.WRITTEN_FOR) == "explicit"
        form = convolution.explicit if explicit else convolution.plain
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
            conv_general_dilated=SpaceToDepth(form) if space_to_depth else form,
            promote_dtype=_follow_input,
            rngs=rngs,
        )


class ReLU(nnx.Module):
    """max(x, 0)."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        pass

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return nnx.relu(x)


class Bias(nnx.Module):
    """One number, initially 0, added to every value. Fixup (Zhang et al. 2019, arXiv 1901.09321), Section 3.2, rule 3."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.bias = nnx.Param(jnp.zeros(()))

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return x + self.bias[...].astype(x.dtype)


class Multiplier(nnx.Module):
    """One number, initially 1, times every value. Fixup, Section 3.2, rule 3."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(()))

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return x * self.scale[...].astype(x.dtype)


class SqueezeExcitation(nnx.Module):
    """Channels weighted by what the whole image has in them (Hu et al. 2018, arXiv 1709.01507, eqs. 2 to 4), with biases.

    Args:
      features: channels.
      reduction: the hidden layer has ``features // reduction`` units; 16 in the paper.
    """

    def __init__(self, features: int, *, reduction: int = 16, rngs: nnx.Rngs):
        if not 1 <= reduction <= features:
            raise UserError(f"squeeze-and-excitation cannot reduce {features} features by {reduction}: use 1 to {features}")
        self.squeeze = nnx.Linear(features, features // reduction, kernel_init=he_normal, rngs=rngs)
        self.excite = nnx.Linear(features // reduction, features, kernel_init=he_normal, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        mean = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        gates = jax.nn.sigmoid(self.excite(nnx.relu(self.squeeze(mean))))
        return x * gates[:, None, None].astype(x.dtype)


def keep(key: Key[Array, ""] | None, rate: Any, shape: tuple[int, ...], what: str) -> Float[Array, "..."]:
    """A mask of zeros and ones, zero with probability ``rate``, a number or an array that broadcasts to ``shape``.

    Raises:
      UserError: without a key.
    """
    if key is None:
        raise UserError(f"{what} is random while training: call the network with key=jax.random.key(...)")
    return jax.random.bernoulli(key, 1 - rate, shape).astype(jnp.float32)


@runtime_checkable
class ConvFactory(Protocol):
    """``Conv`` with everything but its shape already chosen."""

    def __call__(
        self, in_features: int, out_features: int, kernel_size: int, stride: int = 1, *, dilation: int = 1, groups: int = 1, rngs: nnx.Rngs
    ) -> nnx.Module: ...


@runtime_checkable
class NormFactory(Protocol):
    """A normalisation's class, or that class with arguments; the layer is called with ``(x)`` and, where it names it, ``train``."""

    def __call__(self, features: int, *, rngs: nnx.Rngs) -> nnx.Module: ...
