"""Convolution, batch normalisation and classifier as the papers use them, over Flax's own layers.

Precision: every layer computes in the dtype of its input; parameters and statistics are float32. So the dtype of a network is said
once, where the images enter, and reaches whatever a user adds.
"""

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from resnet_jax.models import convolution
from resnet_jax.models.convolution import Gradients

# He et al. 2015b (arXiv 1502.01852), eq. 10: zero mean, variance 2 / fan_in, not truncated. One object, so that equal layers compare equal.
he_normal = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _follow_input(arrays: Any, /, **_: Any) -> Any:
    dtype = arrays[0].dtype
    return tuple(None if array is None else jnp.asarray(array, dtype) for array in arrays)


class Conv(nnx.Conv):
    """Convolution without bias (a normalisation follows), He-initialised, padded symmetrically by (kernel - 1) / 2.

    ``SAME`` is not used: at stride 2 it pads asymmetrically, which the papers' implementations do not.

    Args:
      in_features: input channels.
      out_features: output channels.
      kernel_size: side of the square kernel, odd.
      stride: step in pixels, both directions.
      gradients: see ``resnet_jax.models.convolution``.
      rngs: stream ``params``.
    """

    def __init__(
        self, in_features: int, out_features: int, kernel_size: int, stride: int = 1, *, gradients: Gradients = "auto", rngs: nnx.Rngs
    ):
        side = (kernel_size - 1) // 2
        form = convolution.explicit if convolution.gradients_for_backend(gradients) == "explicit" else convolution.plain
        super().__init__(
            in_features,
            out_features,
            (kernel_size, kernel_size),
            (stride, stride),
            padding=((side, side), (side, side)),
            use_bias=False,
            kernel_init=he_normal,
            conv_general_dilated=form,
            promote_dtype=_follow_input,
            rngs=rngs,
        )


class BatchNorm(nnx.BatchNorm):
    """Batch normalisation (Ioffe and Szegedy 2015) over all images of the global batch, statistics and arithmetic in float32.

    momentum 0.9 (``running = 0.9 running + 0.1 batch``, torch's 0.1) and epsilon 1e-5, as in fb.resnet.torch. The running variance
    averages the biased batch variance.
    """

    def __init__(self, features: int, *, momentum: float = 0.9, epsilon: float = 1e-5, rngs: nnx.Rngs):
        super().__init__(features, momentum=momentum, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool) -> Float[Array, "n h w c"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().__call__(x, use_running_average=not train).astype(x.dtype)


class Head(nnx.Module):
    """Global average pooling and a fully connected layer; float32 inside, so logits are float32 whatever the network computes in."""

    def __init__(self, in_features: int, num_classes: int, *, rngs: nnx.Rngs):
        self.linear = nnx.Linear(in_features, num_classes, kernel_init=he_normal, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n classes"]:
        return self.linear(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))


@runtime_checkable
class ConvFactory(Protocol):
    """``Conv`` with everything but its shape already chosen."""

    def __call__(self, in_features: int, out_features: int, kernel_size: int, stride: int = 1, *, rngs: nnx.Rngs) -> nnx.Module: ...


@runtime_checkable
class NormFactory(Protocol):
    """A normalisation layer's class, or a partial of one; the layer is called as ``norm(x, train=train)``."""

    def __call__(self, features: int, *, rngs: nnx.Rngs) -> nnx.Module: ...
