"""BatchNorm statistics as averages over training batches, in place of moving averages.

He et al.'s released models had them: "the mean and variance are computed using average (not moving average) on a sufficiently large
training batch after the training procedure" (KaimingHe/deep-residual-networks, README). Averaged parameters (EMA) need them: moving
averages belong to the parameters that were trained, not to their average.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from resnet_jax.data import order
from resnet_jax.models import Apply
from resnet_jax.models.architecture import Variables
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Resident, prepared


def settle(
    state: TrainState,
    data: Resident,
    *,
    batches: int,
    batch_size: int,
    group_size: int,
    pad: int,
    flip: bool,
    forgetful: Apply,
    sharding: jax.sharding.Sharding | None = None,
) -> TrainState:
    """Returns the state with ``statistics`` that belong to the parameters a score uses.

    The mean is the mean of the groups' means; the variance the mean of their variances plus the variance of their means, which is that
    of all the images together. Which batches is a function of the run's key and of the step.

    Args:
      state: replaced in ``statistics`` alone.
      data: the training set.
      batches, batch_size: how many, of how many images.
      group_size: images that are normalised together, as in training.
      pad, flip: of the augmentation, as in training.
      forgetful: the network with a momentum of 0 and normalisation over the whole of what it is given: its statistics afterwards are
        those of that group.
      sharding: of a batch.
    """
    params, _ = state.scored()
    key = jax.random.fold_in(jax.random.fold_in(state.key, 4), state.step)
    indices = order.batch_indices(
        jax.random.fold_in(key, 0), jnp.int32(0), steps=batches, batch_size=batch_size, examples=data.labels.shape[0]
    )

    def one(totals: Variables, inputs: tuple[Int[Array, ""], Int[Array, "batch"]]) -> tuple[Variables, None]:
        number, chosen = inputs
        batch_key = jax.random.fold_in(key, number + 1)
        batch = prepared(data, chosen, batch_key, pad=pad, flip=flip, sharding=sharding)
        groups = batch.images.reshape(batch_size // group_size, group_size, *batch.images.shape[1:])
        keys = jax.random.split(batch_key, len(groups))
        _, found = jax.vmap(lambda images, key: forgetful(params, state.batch_stats, images, train=True, key=key))(groups, keys)
        return jax.tree.map(lambda total, each: total + each.mean(axis=0), totals, _moments(found)), None

    totals = jax.tree.map(jnp.zeros_like, state.batch_stats)
    totals, _ = lax.scan(one, totals, (jnp.arange(batches), indices))
    return state._replace(statistics=_variances(jax.tree.map(lambda total: total / batches, totals)))


def _moments(statistics: Any) -> Any:
    """Variances to mean squares, which add up."""
    return _map(statistics, lambda mean, var: var + mean * mean)


def _variances(moments: Any) -> Any:
    return _map(moments, lambda mean, square: jnp.maximum(square - mean * mean, 0))


def _map(tree: Any, function: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {"mean", "var"}:
        return {"mean": tree["mean"], "var": function(tree["mean"], tree["var"])}
    return {name: _map(inner, function) for name, inner in tree.items()}
