"""The order of training examples, as a function of (key, step) and nothing else."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key


def epoch_order(key: Key[Array, ""], epoch: Int[Array, ""], examples: int) -> Int[Array, "examples"]:
    """The order of one epoch: a permutation that is a function of ``(key, epoch)`` alone."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)


def batch_indices(key: Key[Array, ""], first: Int[Array, ""], *, steps: int, batch_size: int, examples: int) -> Int[Array, "steps batch"]:
    """Examples of the batches of ``steps`` steps from step ``first`` on.

    Epochs follow each other without a gap: a batch may end one and begin the next, and every epoch holds every example once. Stateless,
    so a run resumed at any step, or dispatched in any number of steps at a time, sees the same batches.
    """
    start = first * batch_size
    first_epoch = start // examples
    # Positions are relative to the first epoch, and stay small however long the run is.
    positions = start % examples + jnp.arange(steps * batch_size)
    touched = -(-(steps * batch_size + examples - 1) // examples)
    orders = jax.vmap(lambda epoch: epoch_order(key, epoch, examples))(first_epoch + jnp.arange(touched))
    return orders[positions // examples, positions % examples].reshape(steps, batch_size)
