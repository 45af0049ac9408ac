"""The order of device-resident examples: every epoch whole, a function of key and step alone."""

import jax
import jax.numpy as jnp
import numpy as np
from resnet_jax.training import step

KEY = jax.random.key(11)
# Batches that divide the set, span its epochs, or are larger than it.
SIZES = [(4, 10), (7, 3), (5, 5)]


jitted = jax.jit(step.batch_indices, static_argnames=("steps", "batch_size", "examples"))


def batches(first: int, steps: int, *, batch_size: int, examples: int, key: jax.Array = KEY) -> np.ndarray:
    return np.asarray(jitted(key, jnp.int32(first), steps=steps, batch_size=batch_size, examples=examples))


def test_every_epoch_holds_every_example_once() -> None:
    for batch_size, examples in SIZES:
        epochs = batches(0, examples * 6, batch_size=batch_size, examples=examples).reshape(-1, examples)
        assert len(epochs) == 6 * batch_size
        assert np.sort(epochs, axis=1).tolist() == [list(range(examples))] * len(epochs)


def test_batches_do_not_depend_on_the_dispatch() -> None:
    """Steps one by one, and seven at a time from any first step."""
    for batch_size, examples in SIZES[:2]:
        whole = np.concatenate([batches(first, 1, batch_size=batch_size, examples=examples) for first in range(14)])
        for first in (0, 2, 5, 7):
            assert np.array_equal(batches(first, 7, batch_size=batch_size, examples=examples), whole[first : first + 7])


def test_epochs_and_keys_differ() -> None:
    epochs = batches(0, 5, batch_size=100, examples=100)
    assert len({tuple(epoch) for epoch in epochs} | {tuple(range(100))}) == 6
    assert not np.array_equal(batches(0, 5, batch_size=100, examples=100, key=jax.random.key(12)), epochs)


def test_batch_indices_are_exact_for_large_steps() -> None:
    """Position p is place p mod n of epoch p div n, in Python's integers: 3,072 epochs of CIFAR-10, and the last that 31 bits count."""
    for first in (600_000, 2**31 // 256 - 2):
        indices = batches(first, 1, batch_size=256, examples=50_000).ravel()
        positions = [first * 256 + i for i in range(256)]
        assert positions[-1] < 2**31
        orders = {
            epoch: np.asarray(jax.random.permutation(jax.random.fold_in(KEY, epoch), 50_000)) for epoch in {p // 50_000 for p in positions}
        }
        assert indices.tolist() == [int(orders[p // 50_000][p % 50_000]) for p in positions]
