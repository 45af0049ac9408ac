"""3x3 max pooling at stride 2 whose backward pass needs one byte per window.

XLA's own finds the maximum again with four integers and a float32 per window, and scatters gradients.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from resnet_jax.kernels.convolution import Padding

_TAPS = tuple(itertools.product(range(3), repeat=2))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: Float[Array, "n h w c"], padding: Padding) -> Float[Array, "n ho wo c"]:
    """Maximum of each window; of equal pixels the first gets the gradient."""
    return functools.reduce(jnp.maximum, _taps(x, padding))


def _forward(x: Any, padding: Padding) -> Any:
    best, *others = _taps(x, padding)
    argmax = jnp.zeros(best.shape, jnp.uint8)
    for number, tap in enumerate(others, 1):
        argmax = jnp.where(tap > best, jnp.uint8(number), argmax)
        best = jnp.maximum(best, tap)
    return best, (argmax, x.shape)


def _backward(padding: Padding, saved: Any, cotangent: Any) -> Any:
    argmax, (_, *sizes, _) = saved
    zero, total = jnp.zeros((), cotangent.dtype), 0
    for number, tap in enumerate(_TAPS):
        edges = []
        for place, (low, _), size, windows in zip(
            tap, padding, sizes, argmax.shape[1:3], strict=True
        ):
            edges.append((place - low, size + low - place - (2 * windows - 1), 1))
        part = jnp.where(argmax == number, cotangent, 0)
        total += lax.pad(part, zero, ((0, 0, 0), *edges, (0, 0, 0)))
    return (total,)


max_pool.defvjp(_forward, _backward)


def _taps(x: Any, padding: Padding) -> list[Any]:
    """First pixel of every window, second pixel of every window, and so on."""
    padded = lax.pad(
        x,
        jnp.array(-jnp.inf, x.dtype),
        ((0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)),
    )
    rows, columns = (2 * ((size - 3) // 2) + 1 for size in padded.shape[1:3])
    return [
        padded[:, down : down + rows : 2, across : across + columns : 2] for down, across in _TAPS
    ]
