"""Max-pooling of 3x3 windows at stride 2, in two forms of equal values and gradients: with XLA's own derivative, and one written out.

XLA knows which pixel was the largest by a second pass that keeps four integers and a float32 for every window, and adds up gradients by a
scatter. What is written out keeps one byte a window, and takes from it, at every pixel, the gradients of the up to four
windows that it was the largest of.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from resnet_jax.models.convolution import Gradients, Pairs, form_of

WRITTEN_FOR = ("cpu", "gpu")
_WINDOW, _STRIDE = 3, 2
_TAPS = tuple(itertools.product(range(_WINDOW), repeat=2))


def max_pool(x: Float[Array, "n h w c"], padding: Pairs, gradients: Gradients = "auto") -> Float[Array, "n ho wo c"]:
    """The largest of each window; of equal pixels the first has the gradient.

    Args:
      x: activations.
      padding: pixels above and below, left and right, which are never the largest.
      gradients: XLA's own (plain), or written out (explicit, auto on CPU and GPU; no forward-mode derivative).
    """
    if form_of(gradients, WRITTEN_FOR) == "explicit":
        return _explicit(x, padding)
    return nnx.max_pool(x, (_WINDOW, _WINDOW), strides=(_STRIDE, _STRIDE), padding=padding)  # pyright: ignore[reportArgumentType]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _explicit(x: Any, padding: Pairs) -> Any:
    return functools.reduce(jnp.maximum, _taps(x, padding))


def _forward(x: Any, padding: Pairs) -> Any:
    taps = _taps(x, padding)
    best, first = taps[0], jnp.zeros(taps[0].shape, jnp.uint8)
    for number, tap in enumerate(taps[1:], 1):
        first = jnp.where(tap > best, jnp.uint8(number), first)
        best = jnp.maximum(best, tap)
    return best, (first, x.shape)


def _backward(padding: Pairs, saved: Any, cotangent: Any) -> Any:
    first, (_, *sizes, _) = saved
    total = jnp.zeros((), cotangent.dtype)
    for number, tap in enumerate(_TAPS):
        edges = [
            (place - low, size + low - place - _span(count), _STRIDE - 1)
            for place, (low, _), size, count in zip(tap, padding, sizes, first.shape[1:3], strict=True)
        ]
        part = jnp.where(first == number, cotangent, 0)
        total += lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), *edges, (0, 0, 0)))
    return (total,)


_explicit.defvjp(_forward, _backward)


def _taps(x: Any, padding: Pairs) -> list[Any]:
    """Of every window its first pixel, its second, ..."""
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)))
    spans = [_span((size - _WINDOW) // _STRIDE + 1) for size in padded.shape[1:3]]
    return [padded[:, down : down + spans[0] : _STRIDE, across : across + spans[1] : _STRIDE] for down, across in _TAPS]


def _span(windows: int) -> int:
    """Pixels from the first window's first to the last window's first."""
    return (windows - 1) * _STRIDE + 1
