"""Batch normalisation as a function, in two forms, equal but for rounding: with JAX's own derivative, and with one that is written out.

What is written out passes over memory less often: on the way back the input alone is read again beside the cotangent, once for both sums
and once for the result (Ioffe and Szegedy 2015, arXiv 1502.03167, Section 3), and a ReLU behind the normalisation is known from it as well.
``explicit`` has no forward-mode derivative; ``plain`` keeps it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

Groups = Float[Array, "*groups n h w c"]
PerChannel = Float[Array, "*groups c"]
# The backends that ``explicit`` is written for: XLA makes fewer passes or kernels of it there, and as many bytes and no fewer on a TPU.
WRITTEN_FOR = ("cpu", "gpu")


def plain(
    x: Groups, scale: Float[Array, "c"], bias: Float[Array, "c"], epsilon: float, rectify: bool = False
) -> tuple[Groups, PerChannel, PerChannel]:
    """Normalises over images and pixels, of several groups each by itself.

    Args:
      x: activations.
      scale, bias: float32.
      epsilon: added to the variance.
      rectify: whether values below zero become zero.

    Returns:
      The normalised x in its dtype; mean and biased variance in float32.
    """
    wide, grouped = x.astype(jnp.float32), x.ndim == 5
    axes = (1, 2, 3) if grouped else (0, 1, 2)
    mean, square = wide.mean(axes, keepdims=grouped), (wide * wide).mean(axes, keepdims=grouped)
    var = jnp.maximum(square - mean * mean, 0)
    # As broadcast here, and not by affine: the programs that results were measured with, bit for bit.
    y = ((wide - mean) * (scale * lax.rsqrt(var + epsilon)) + bias).astype(x.dtype)
    shape = (*x.shape[:-4], x.shape[-1])
    return nnx.relu(y) if rectify else y, mean.reshape(shape), var.reshape(shape)


def explicit(
    x: Groups, scale: Float[Array, "c"], bias: Float[Array, "c"], epsilon: float, rectify: bool = False
) -> tuple[Groups, PerChannel, PerChannel]:
    """The same as ``plain``, but for the order of sums."""
    return _explicit(x, scale, bias, epsilon, rectify)


def _normalised(x: Any, scale: Any, bias: Any, epsilon: float, rectify: bool) -> Any:
    wide = x.astype(jnp.float32)
    sums = _sums(wide, wide * wide)
    mean, square = sums / (x.size // sums[0].size)
    var = jnp.maximum(square - mean * mean, 0)
    return affine(x, mean, var, scale, bias, epsilon, rectify), mean, var


def _forward(x: Any, scale: Any, bias: Any, epsilon: float, rectify: bool) -> Any:
    y, mean, var = _normalised(x, scale, bias, epsilon, rectify)
    return (y, mean, var), (x, scale, bias, mean, var)


def _backward(epsilon: float, rectify: bool, saved: Any, cotangents: Any) -> Any:
    x, scale, bias, mean, var = saved
    dy, dmean, dvar = cotangents
    count = x.size // mean.size
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    wide, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    if rectify:
        dy = jnp.where(wide * _wide(factor) > _wide(mean * factor - bias), dy, 0)
    total, along = _sums(dy, dy * wide)
    along -= mean * total
    slope = (2 * dvar - factor * inverse**2 * along) / count
    level = (dmean - factor * total) / count - slope * mean
    # Without x - mean: XLA's CPU backend would keep it from the way here, or write it out for all who need it.
    dx = _wide(factor) * dy + _wide(slope) * wide + _wide(level)
    dscale, dbias = (per_group.reshape(-1, len(scale)).sum(0) for per_group in (along * inverse, total))
    return dx.astype(x.dtype), dscale, dbias


_explicit = jax.custom_vjp(_normalised, nondiff_argnums=(3, 4))
_explicit.defvjp(_forward, _backward)


def affine(x: Groups, mean: PerChannel, var: PerChannel, scale: Any, bias: Any, epsilon: float, rectify: bool = False) -> Groups:
    """``scale (x - mean) / sqrt(var + epsilon) + bias``, computed in float32, returned in the dtype of x."""
    factor = scale * lax.rsqrt(var + epsilon)
    y = ((x.astype(jnp.float32) - _wide(mean)) * _wide(factor) + bias).astype(x.dtype)
    return nnx.relu(y) if rectify else y


def _sums(*terms: Groups) -> Float[Array, "terms *groups c"]:
    # The sums over pixels share a pass, those over images are one array: XLA's GPU backend makes two kernels of it, not three.
    return jnp.stack([term.sum((-3, -2)) for term in terms]).sum(-2)


def _wide(per_channel: PerChannel) -> Float[Array, "*groups 1 1 1 c"]:
    return per_channel[..., None, None, None, :]
