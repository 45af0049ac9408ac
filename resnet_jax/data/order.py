"""The order of device-resident training examples, as a function of (key, step)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key


def epoch_order(key: Key[Array, ""], epoch: Int[Array, ""], examples: int) -> Int[Array, "examples"]:
    """Permutation of one epoch, a function of ``(key, epoch)``."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)


def batch_indices(key: Key[Array, ""], first: Int[Array, ""], *, steps: int, batch_size: int, examples: int) -> Int[Array, "steps batch"]:
    """Indices of the batches of ``steps`` steps from step ``first`` on. A batch may span two epochs."""
    start = first * batch_size
    first_epoch = start // examples
    # Relative to the first epoch, so that positions stay small.
    positions = start % examples + jnp.arange(steps * batch_size)
    touched = -(-(steps * batch_size + examples - 1) // examples)
    orders = jax.vmap(lambda epoch: epoch_order(key, epoch, examples))(first_epoch + jnp.arange(touched))
    return orders[positions // examples, positions % examples].reshape(steps, batch_size)
