"""The order of examples: every epoch whole, and a function of key and step alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data import order

KEY = jax.random.key(11)


@functools.partial(jax.jit, static_argnames=("steps", "batch_size", "examples"), compiler_options={"xla_backend_optimization_level": 0})
def jitted(key: jax.Array, first: jax.Array, *, steps: int, batch_size: int, examples: int) -> jax.Array:
    return order.batch_indices(key, first, steps=steps, batch_size=batch_size, examples=examples)


def batches(first: int, steps: int, *, batch_size: int, examples: int, key: jax.Array = KEY) -> np.ndarray:
    found = np.asarray(jitted(key, jnp.int32(first), steps=steps, batch_size=batch_size, examples=examples))
    assert found.shape == (steps, batch_size)
    return found


SIZES = pytest.mark.parametrize(("batch_size", "examples"), [(4, 10), (7, 3), (5, 5), (10, 1)])


@SIZES
def test_every_epoch_holds_every_example_exactly_once(batch_size: int, examples: int) -> None:
    """Whether batches divide the set, straddle its epochs, or are larger than it."""
    steps = examples * 6
    stream = batches(0, steps, batch_size=batch_size, examples=examples).ravel()
    epochs = stream.reshape(-1, examples)
    assert len(epochs) == 6 * batch_size
    assert np.sort(epochs, axis=1).tolist() == [list(range(examples))] * len(epochs)


def test_a_batch_may_end_one_epoch_and_begin_the_next() -> None:
    """10 examples in batches of 4: the third batch holds the last two of the first epoch and the first two of the second."""
    found = batches(0, 5, batch_size=4, examples=10)
    first, second = [*found[0], *found[1], *found[2][:2]], [*found[2][2:], *found[3], *found[4]]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


@pytest.mark.quick(1)
@SIZES
def test_batches_do_not_depend_on_how_many_are_asked_for_at_a_time(batch_size: int, examples: int) -> None:
    one = np.concatenate([batches(first, 1, batch_size=batch_size, examples=examples) for first in range(14)])
    seven = [batches(first, 7, batch_size=batch_size, examples=examples) for first in (0, 7)]
    assert np.array_equal(np.concatenate(seven), one)


@pytest.mark.parametrize("first", [0, 1, 2, 3, 5, 12])
def test_batches_are_the_same_from_any_first_step(first: int) -> None:
    whole = batches(0, 20, batch_size=4, examples=10)
    assert np.array_equal(batches(first, 7, batch_size=4, examples=10), whole[first : first + 7])


def test_epochs_and_keys_differ() -> None:
    """Each epoch its own order, each key another; the same key the same."""
    epochs = batches(0, 5, batch_size=100, examples=100)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert tuple(epochs[0]) != tuple(range(100))
    again, other = (batches(0, 5, batch_size=100, examples=100, key=jax.random.key(seed)) for seed in (11, 12))
    assert np.array_equal(again, epochs)
    assert not np.array_equal(other, epochs)


def test_every_example_comes_at_every_place_equally_often() -> None:
    """2,000 epochs of 5 examples: how often each comes at each place, within five standard deviations."""
    epochs = batches(0, 2000, batch_size=5, examples=5)
    times = np.array([np.bincount(epochs[:, place], minlength=5) for place in range(5)])
    assert np.abs(times - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("first", "batch_size", "examples"),
    [(600_000, 256, 1_281_167), (600_000, 256, 50_000), (2**31 // 256 - 2, 256, 50_000)],
    ids=["ImageNet's last step", "CIFAR-10, 3,072 epochs", "the last that 31 bits can count"],
)
def test_positions_far_into_a_run_are_right(first: int, batch_size: int, examples: int) -> None:
    """Position p of the run is place p mod n of epoch p div n, in Python's integers of any size."""
    found = batches(first, 1, batch_size=batch_size, examples=examples).ravel()
    positions = [first * batch_size + i for i in range(batch_size)]
    assert positions[-1] < 2**31
    orders = {epoch: np.asarray(order.epoch_order(KEY, jnp.int32(epoch), examples)) for epoch in {p // examples for p in positions}}
    assert found.tolist() == [int(orders[p // examples][p % examples]) for p in positions]
    assert all(np.array_equal(np.sort(one), np.arange(examples)) for one in orders.values())
