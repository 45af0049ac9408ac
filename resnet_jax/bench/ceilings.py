"""What a device reaches at best, measured: a large matrix product, and a copy."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp


def product(dtype: str, side: int) -> tuple[Callable[[], None], int]:
    """A square matrix product; returns it, ready to run, and its FLOPs."""
    a = jax.jit(lambda: jax.random.normal(jax.random.key(0), (side, side), dtype))()
    multiply = jax.jit(jnp.matmul)
    return functools.partial(_wait, lambda: multiply(a, a)), 2 * side**3


def copy(megabytes: int) -> tuple[Callable[[], None], int]:
    """Reads an array and writes its negative; returns it, ready to run, and the bytes that it moves."""
    array = jnp.ones(megabytes * 250_000, jnp.float32)
    negate = jax.jit(jnp.negative)
    return functools.partial(_wait, lambda: negate(array)), 2 * array.nbytes


def sizes(backend: str) -> tuple[int, int]:
    """Side of the matrices and megabytes of the array: tens of milliseconds on a CPU, milliseconds on an accelerator."""
    return (2048, 256) if backend == "cpu" else (8192, 2048)


def _wait(call: Callable[[], jax.Array]) -> None:
    jax.block_until_ready(call())
