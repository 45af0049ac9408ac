"""The host's time of a call, and that the loop moves and compiles nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax import models
from resnet_jax.bench import dispatch

TINY = models.cifar_architecture(8, input_shape=(8, 8, 3), features=(4, 4, 4))


def test_a_compilation_in_the_loop_is_an_error() -> None:
    twice, given = jax.jit(lambda x: 2 * x), [jnp.ones(3), jnp.ones(5)]
    with dispatch.quiet():
        pass
    twice(given[0])
    with dispatch.quiet():
        twice(given[0])
    with pytest.raises(dispatch.Recompiled, match="compiled in the loop"), dispatch.quiet():
        twice(given[1])


def test_a_transfer_in_the_loop_is_an_error() -> None:
    add = jax.jit(lambda x, y: x + y)
    there = jnp.ones(3)
    add(there, np.ones(3, np.float32))
    with pytest.raises(Exception, match="[Dd]isallowed"), dispatch.quiet():
        add(there, np.ones(3, np.float32))


@pytest.mark.slow
def test_rows_are_by_the_steps_of_a_call() -> None:
    rows = dispatch.measure(TINY, [1, 2], batch_size=2, count=2)
    assert [row["steps"] for row in rows] == [1, 2]
    for row in rows:
        assert 0 < row["host_seconds_least"] <= row["host_seconds"] <= row["host_seconds_most"]
        np.testing.assert_allclose(row["host_seconds_a_step"] * row["steps"], row["host_seconds"])
        assert row["state_bytes"] > 2 * 4 * models.count(TINY).parameters
