"""Lesions against networks whose blocks are called one by one."""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resnet_jax.analysis import lesions
from resnet_jax.analysis.lesions import Lesion, Options
from resnet_jax.errors import UserError
from resnet_jax.models import Architecture, components
from resnet_jax.weights.loading import Pretrained
from small_network import EXAMPLES, MANY, SMALL, SMALL_PLAIN, blocks_of, walk, weights_of


@functools.cache
def balanced(network: Architecture, seed: int = 0) -> Pretrained:
    """Weights with a bias that gives every class a share of the images, so that lesions change predictions."""
    weights = weights_of(network, seed)
    logits = walk(weights, MANY.images, lambda _, block, x: block(x))
    linear = weights.params["head"]["linear"] | {"bias": -logits.mean(0)}
    return replace(weights, params=weights.params | {"head": {"linear": linear}})


LESIONS = [
    Lesion("none"),
    *(Lesion("one", (block,)) for block in range(3)),
    Lesion("several", (0, 2)),
    Lesion("exchanged", order=(1, 0, 2), pairs=1),
]


def error_by_hand(weights: Any, lesion: Lesion) -> float:
    """Returns the error in percent of the blocks called one by one, without the deleted branches."""
    _, blocks = blocks_of(weights)

    def call(number: int, block: Any, x: Any) -> Any:
        if lesion.order:
            block = blocks[lesion.order[number]]
        if number not in lesion.deleted:
            return block(x)
        branch = block.branch(x)
        if weights.architecture == SMALL:
            return jax.nn.relu(block.shortcut(x, jnp.zeros_like(branch), **components.accepted(block.shortcut, train=False)))
        return jax.nn.relu(x if x.shape == branch.shape else jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (0, 1))))

    return 100 * float(np.mean(np.argmax(walk(weights, MANY.images, call), axis=1) != MANY.labels))


def test_lesions_equal_blocks_called_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    for weights in (balanced(SMALL), balanced(SMALL_PLAIN, seed=5)):
        errors = lesions.score(weights, MANY, LESIONS, batch_size=35)
        np.testing.assert_allclose(errors, [error_by_hand(weights, lesion) for lesion in LESIONS])
        assert len(set(errors)) > 3, "lesions that change nothing would show nothing"
        with jax.log_compiles():
            lesions.score(weights, MANY, lesions.plan([range(2), range(2, 3)], Options(draws=2)), batch_size=35)
        assert "Finished XLA compilation" not in caplog.text, "all lesions share one program"


def test_plan_covers_every_block_and_number() -> None:
    groups = [range(4), range(4, 5), range(5, 8)]
    planned, again, other = (lesions.plan(groups, Options(deleted=5, exchanged=3, draws=4, seed=seed)) for seed in (1, 1, 2))
    assert planned == again != other
    assert planned[0] == Lesion("none")
    assert [lesion.deleted for lesion in planned if lesion.kind == "one"] == [(block,) for block in range(8)]
    several = [lesion.deleted for lesion in planned if lesion.kind == "several"]
    assert [len(set(blocks)) for blocks in several] == [number for number in range(1, 6) for _ in range(4)]
    exchanged = [lesion for lesion in planned if lesion.kind == "exchanged"]
    assert [lesion.pairs for lesion in exchanged] == [number for number in range(1, 4) for _ in range(4)]
    for lesion in exchanged:
        assert all(sorted(lesion.order[group.start : group.stop]) == list(group) for group in groups)
        assert lesion.pairs > 1 or sum(block != position for position, block in enumerate(lesion.order)) == 2
    unequal = lesions.plan([range(1), range(1, 2), range(2, 3)])
    assert max(len(lesion.deleted) for lesion in unequal) == 2
    assert not any(lesion.order for lesion in unequal)
    # Of the 6 pairs of 4 blocks, exchanging neighbors reverses one, exchanging the ends five.
    taus = [Lesion("exchanged", order=order).tau for order in ((1, 0, 2, 3), (3, 1, 2, 0))]
    np.testing.assert_allclose([Lesion("none").tau, *taus], [1, (5 - 1) / 6, (1 - 5) / 6])


def test_lesions_reject_blocks_that_do_not_exist_or_differ() -> None:
    for lesion in (Lesion("one", (3,)), Lesion("exchanged", order=(0, 2, 1))):
        with pytest.raises(UserError, match="does not fit"):
            lesions.score(weights_of(SMALL), EXAMPLES, [lesion])
