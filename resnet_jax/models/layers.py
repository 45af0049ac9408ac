"""Layers of the papers and their sequences, in the input's dtype with float32 parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resnet_jax.errors import UserError
from resnet_jax.kernels import conv_general_dilated, relu
from resnet_jax.kernels.typing import Array, ArrayLike, Float, Key
from resnet_jax.models import components
from resnet_jax.models.components import Part

Activation = Float[Array, "n h w c"]
Output = Float[Array, "n ho wo co"]
# Class of (features, *, rngs), called with (x) and the mode that its call declares.
Layers = tuple[type, ...]
Rngs = nnx.Rngs | int | np.integer | Array
"""Streams, or their seed or key."""

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
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        *,
        dilation: int = 1,
        groups: int = 1,
        rngs: nnx.Rngs,
    ):
        sizes = kernel_size if isinstance(kernel_size, tuple) else (kernel_size,) * 2
        if len(sizes) != 2 or not all(size > 0 and size % 2 for size in sizes):
            kernel = "x".join(map(str, sizes))
            raise UserError(f"a {kernel} kernel has no center: use two odd sizes.")
        padding: Any = tuple((dilation * (size - 1) // 2,) * 2 for size in sizes)
        if groups < 1 or in_features % groups or out_features % groups:
            widths = f"{in_features} to {out_features} features"
            raise UserError(f"groups={groups} does not divide {widths}.")
        super().__init__(
            in_features,
            out_features,
            sizes,
            stride if isinstance(stride, tuple) else (stride,) * 2,
            padding=padding,
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
        return relu(x)


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


def checked(part: object, y: Any, *shape: Any) -> Any:
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

    def __init__(self, layers: Layers, features: int, *, norm: Part, rngs: nnx.Rngs):
        parts = [norm if layer is Norm else layer for layer in layers]
        self.layers = nnx.List([components.make(part, features, rngs=rngs) for part in parts])

    def __call__(self, x: Activation, *, train: bool | None = None) -> Activation:
        layers = list(self.layers)
        while layers:
            layer = layers.pop(0)
            options = components.accepted(layer, train=train)
            if layers and type(layers[0]) is ReLU and components.takes(layer, "rectify"):
                del layers[0]
                options["rectify"] = True
            # Flax's layers promote to float32.
            x = checked(layer, layer(x, **options), *x.shape).astype(x.dtype)
        return x


def needs_key(key: Key[Array, ""] | None, what: str) -> Key[Array, ""]:
    """Returns the key; raises UserError without one."""
    if key is None:
        raise UserError(f"{what} is random in training: call with key=jax.random.key(...).")
    return key


def keep(key: Key[Array, ""] | None, rate: ArrayLike, shape: tuple[int, ...], what: str) -> Array:
    """Returns a mask of zeros and ones, zero with probability ``rate`` (broadcast to ``shape``)."""
    return jax.random.bernoulli(needs_key(key, what), 1 - rate, shape).astype(jnp.float32)


def rngs_of(rngs: Rngs) -> nnx.Rngs:
    """Returns the streams; a seed may be a NumPy integer."""
    if isinstance(rngs, nnx.Rngs):
        return rngs
    try:
        return nnx.Rngs(int(rngs) if isinstance(rngs, np.integer) else rngs)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"rngs must be nnx.Rngs, a key or a seed, got {rngs!r:.80}.") from error
