"""Initial state, and the digest, which changes with every bit of a state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from resnet_jax.training import optimizer, sharding, step
from resnet_jax.training.config import Experiment
from resnet_jax.training.step import TrainState


def small(seed: int = 0) -> TrainState:
    rng = np.random.default_rng(seed)
    params = {"conv": {"kernel": np.float32(rng.normal(size=(2, 3)))}, "norm": {"scale": np.float32(rng.normal(size=3))}}
    opt_state = ((), jax.tree.map(lambda p: 3 * p, params), (np.int32(7), np.float32(0.1), np.bool_(True)))
    stats = [{"norm": {"mean": np.float32(rng.normal(size=3))}} for _ in range(2)]
    ema = jax.tree.map(lambda p: 0.5 * p, params)
    return TrainState(np.int32(7), params, stats[0], opt_state, jax.random.key(seed), ema, stats[1])


def with_leaf(index: int, leaf: np.ndarray) -> TrainState:
    """``small()`` with one of its leaves, the key being its two numbers, exchanged."""
    leaves, treedef = jax.tree.flatten(step.plain(small()))
    leaves[index] = leaf
    return step.from_plain(jax.tree.unflatten(treedef, leaves))


def test_digest_changes_with_any_single_bit() -> None:
    """About 1,200 bits of step, parameters, statistics, optimizer state, key and averages: no two digests are equal."""
    digests = {step.digest(small())}
    bits = 0
    for index, leaf in enumerate(jax.tree.leaves(step.plain(small()))):
        content = np.asarray(leaf).tobytes()
        dtype = np.asarray(leaf).dtype
        for bit in range(8 * len(content) if dtype != np.bool_ else 1):
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            digests.add(step.digest(with_leaf(index, np.frombuffer(bytes(changed), dtype).reshape(leaf.shape))))
            bits += 1
    assert bits > 1100
    assert len(digests) == bits + 1


def test_digest_of_equal_states_is_equal_on_any_devices() -> None:
    """In NumPy, on one device, on eight."""
    expected = step.digest(small())
    assert len(expected) == 64
    for devices in (1, 8):
        placed = jax.device_put(small(), sharding.replicated(sharding.make(devices)))
        assert len(placed.params["norm"]["scale"].sharding.device_set) == devices
        assert step.digest(placed) == expected


def test_digest_distinguishes_negative_zero_from_zero() -> None:
    """Equal numbers, another bit."""
    zeros = [with_leaf(1, np.full((2, 3), zero, np.float32)) for zero in (0.0, -0.0)]
    assert step.digest(zeros[0]) != step.digest(zeros[1])


def test_digest_distinguishes_names_dtypes_and_shapes_of_equal_bytes() -> None:
    for other in (
        small()._replace(params={"conv": small().params["conv"], "other": small().params["norm"]}),
        small()._replace(params=jax.tree.map(lambda p: p.view(np.int32), small().params)),
        small()._replace(params=jax.tree.map(lambda p: p.reshape(-1, 3, 1), small().params)),
        small()._replace(step=np.array([7], np.int32)),
    ):
        bytes_of = [b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(step.plain(each))) for each in (other, small())]
        assert bytes_of[0] == bytes_of[1]
        assert step.digest(other) != step.digest(small())


def test_plain_state_is_restored() -> None:
    """The key too."""
    plain = step.plain(small())
    assert all(np.asarray(leaf).dtype.kind in "fiub" for leaf in jax.tree.leaves(plain))
    back = step.from_plain(plain)
    assert step.digest(back) == step.digest(small())
    assert jax.random.bits(back.key) == jax.random.bits(small().key)


def test_created_state_is_at_step_0_with_the_given_key(tiny: Experiment) -> None:
    """Momentum is 0, running means are 0, running variances 1. Another key gives other parameters."""
    tx = optimizer.make(tiny.optimizer, tiny.schedule)
    options = {"xla_backend_optimization_level": 0}
    create = jax.jit(lambda key: step.create(tiny.model, tx, key, ema=True, statistics=True)[1], compiler_options=options)
    one, same, other = create(jax.random.key(5)), create(jax.random.key(5)), create(jax.random.key(6))
    assert int(one.step) == 0
    assert np.array_equal(jax.random.key_data(one.key), jax.random.key_data(jax.random.key(5)))
    assert step.digest(one) == step.digest(same)
    kernels = [found.params["stem"]["conv"]["kernel"] for found in (one, other)]
    assert not np.array_equal(*kernels)
    stats: Any = one.batch_stats["stem"]["after"]["layers"][0]
    assert np.array_equal(stats["mean"], np.zeros(4))
    assert np.array_equal(stats["var"], np.ones(4))
    momentum = next(s for s in one.opt_state if hasattr(s, "trace")).trace
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(momentum))
    assert jax.tree.structure(momentum) == jax.tree.structure(one.params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(one.params))
    for average, first in ((one.ema, one.params), (one.statistics, one.batch_stats)):
        jax.tree.map(np.testing.assert_array_equal, average, first)
    _, without = jax.eval_shape(lambda: step.create(tiny.model, tx, jax.random.key(5)))
    assert (without.ema, without.statistics) == ({}, {})


def test_scored_prefers_average_and_precise_statistics() -> None:
    full = small()
    assert full.scored() == (full.ema, full.statistics)
    assert full._replace(ema={}).scored() == (full.params, full.statistics)
    assert full._replace(statistics={}).scored() == (full.ema, full.batch_stats)
    assert full._replace(ema={}, statistics={}).scored() == (full.params, full.batch_stats)
