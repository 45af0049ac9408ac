"""Layers of the papers and their sequences, in the input's dtype with float32 parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float, Key

from resnet_jax.errors import UserError
from resnet_jax.kernels import conv_general_dilated
from resnet_jax.models import components

Activation = Float[Array, "n h w c"]
Output = Float[Array, "n ho wo co"]
# (features, *, rngs) -> module, called with (x) and, if its call declares it, train.
NormFactory = Callable[..., Callable[..., Activation]]
Layers = tuple[type, ...]

# He et al. 2015b (arXiv 1502.01852), eq. 10. One object: equal layers compare equal.
he_normal = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _follow_input(arrays: Any, /, **_: object) -> Any:
    return tuple(None if array is None else jnp.asarray(array, arrays[0].dtype) for array in arrays)


class Conv(nnx.Conv):
    """He-initialized convolution without bias, padded by dilation * (kernel - 1) / 2 on each side.

    At stride 2 ``SAME`` pads asymmetrically, unlike the papers' implementations.
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
        rngs: nnx.Rngs,
    ):
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise UserError(f"a {kernel_size}x{kernel_size} kernel has no center: use an odd size.")
        if groups < 1 or in_features % groups or out_features % groups:
            widths = f"{in_features} to {out_features} features"
            raise UserError(f"groups={groups} does not divide {widths}.")
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
            conv_general_dilated=conv_general_dilated,
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
    """Scalar bias, initially 0. Fixup (arXiv 1901.09321), Section 3.2, rule 3."""

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
    """Squeeze-and-excitation with biases (Hu et al. 2018, arXiv 1709.01507, eqs. 2 to 4)."""

    def __init__(self, features: int, *, reduction: int = 16, rngs: nnx.Rngs):
        if not 1 <= reduction <= features:
            raise UserError(f"reduction={reduction}: give 1 to {features}, the features.")
        self.squeeze = nnx.Linear(features, features // reduction, kernel_init=he_normal, rngs=rngs)
        self.excite = nnx.Linear(features // reduction, features, kernel_init=he_normal, rngs=rngs)

    def __call__(self, x: Activation) -> Activation:
        mean = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        gates = jax.nn.sigmoid(self.excite(nnx.relu(self.squeeze(mean))))
        return x * gates[:, None, None].astype(x.dtype)


class Norm:
    """Placeholder for the network's normalization in a sequence of layers."""


def checked(part: object, y: Any, *shape: int) -> Any:
    """Returns the result of a part; raises UserError unless it has the shape (-1: at least 1)."""
    actual = getattr(y, "shape", None)
    sizes = actual or ()
    matches = [n == size or (size == -1 and n != 0) for n, size in zip(sizes, shape, strict=False)]
    if len(sizes) != len(shape) or not all(matches):
        returned = type(y).__name__ if actual is None else actual
        hint = " (-1: at least 1)" * (-1 in shape)
        raise UserError(f"{type(part).__name__} must return shape {shape}, got {returned}{hint}.")
    return y


def width_of(part: object) -> int:
    """Returns the channels of a branch or transition; raises UserError for one without."""
    width = getattr(part, "out_features", None)
    if not isinstance(width, int):
        raise UserError(f"{type(part).__name__} must have its width as an attribute out_features.")
    return width


class Sequence(nnx.Module):
    """Layers in a row. One whose call takes ``rectify`` also applies the ReLU behind it."""

    def __init__(self, layers: Layers, features: int, *, norm: NormFactory, rngs: nnx.Rngs):
        classes = [norm if layer is Norm else layer for layer in layers]
        self.layers = nnx.List([cls(features, rngs=rngs) for cls in classes])

    def __call__(self, x: Activation, *, train: bool) -> Activation:
        layers = list(self.layers)
        while layers:
            layer = layers.pop(0)
            options = components.accepted(layer, train=train)
            if layers and type(layers[0]) is ReLU and components.takes(layer, "rectify"):
                del layers[0]
                options["rectify"] = True
            x = checked(layer, layer(x, **options), *x.shape)
        return x


def needs_key(key: Key[Array, ""] | None, what: str) -> Key[Array, ""]:
    """Returns the key; raises UserError without one."""
    if key is None:
        raise UserError(f"{what} is random in training: call with key=jax.random.key(...).")
    return key


def keep(key: Key[Array, ""] | None, rate: ArrayLike, shape: tuple[int, ...], what: str) -> Array:
    """Returns a mask of zeros and ones, zero with probability ``rate`` (broadcast to ``shape``)."""
    return jax.random.bernoulli(needs_key(key, what), 1 - rate, shape).astype(jnp.float32)
