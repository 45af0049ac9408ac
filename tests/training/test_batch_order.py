"""The order of device-resident examples: every epoch whole, a function of key and step alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from resnet_jax.training import step

KEY = jax.random.key(11)
# Batches that divide the set, span its epochs, or are larger than it.
SIZES = [(4, 10), (7, 3), (5, 5)]


@functools.partial(jax.jit, static_argnames=("steps", "batch_size", "examples"))
def jitted(key: jax.Array, first: jax.Array, *, steps: int, batch_size: int, examples: int) -> jax.Array:
    return step.batch_indices(key, first, steps=steps, batch_size=batch_size, examples=examples)


def batches(first: int, steps: int, *, batch_size: int, examples: int, key: jax.Array = KEY) -> np.ndarray:
    indices = np.asarray(jitted(key, jnp.int32(first), steps=steps, batch_size=batch_size, examples=examples))
    assert indices.shape == (steps, batch_size)
    return indices


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
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert tuple(epochs[0]) != tuple(range(100))
    again, other = (batches(0, 5, batch_size=100, examples=100, key=jax.random.key(seed)) for seed in (11, 12))
    assert np.array_equal(again, epochs)
    assert not np.array_equal(other, epochs)


def test_examples_are_uniform_over_positions() -> None:
    """2,000 epochs of 5 examples, within five standard deviations."""
    epochs = batches(0, 2000, batch_size=5, examples=5)
    counts = np.array([np.bincount(epochs[:, place], minlength=5) for place in range(5)])
    assert np.abs(counts - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)


def test_batch_indices_are_exact_for_large_steps() -> None:
    """Position p is place p mod n of epoch p div n, in Python's integers: 3,072 epochs of CIFAR-10, and the last that 31 bits count."""
    for first in (600_000, 2**31 // 256 - 2):
        indices = batches(first, 1, batch_size=256, examples=50_000).ravel()
        positions = [first * 256 + i for i in range(256)]
        assert positions[-1] < 2**31
        orders = {epoch: np.asarray(step.epoch_order(KEY, jnp.int32(epoch), 50_000)) for epoch in {p // 50_000 for p in positions}}
        assert indices.tolist() == [int(orders[p // 50_000][p % 50_000]) for p in positions]
