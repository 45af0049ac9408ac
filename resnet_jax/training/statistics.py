"""Precise BatchNorm: statistics averaged over training batches, in place of moving averages.

Used by He et al.'s released models (KaimingHe/deep-residual-networks, README). Averaged parameters (EMA) need them:
moving averages belong to the trained parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from resnet_jax.models import Apply
from resnet_jax.models.architecture import Variables
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Arrived, Batches, Resident


def add_batch(
    state: TrainState,
    totals: Variables,
    data: Resident | Arrived,
    number: Int[Array, ""],
    *,
    batches: Batches,
    group_size: int,
    apply: Apply,
) -> Variables:
    """Adds the means and mean squares of training batch ``number``, in groups of ``group_size`` images, to ``totals``.

    ``apply`` has a BatchNorm momentum of 0: its statistics are those of its batch.
    """
    params, _ = state.scored()
    key = jax.random.fold_in(jax.random.fold_in(state.key, 4), state.step)
    batch_key = jax.random.fold_in(key, number + 1)
    images, labels = data.images, data.labels
    if isinstance(data, Resident):
        indices = data.order(jax.random.fold_in(key, 0), number, 1, batches.size)[0]
        images, labels = images[indices], labels[indices]
    batch = batches(batch_key, data.preprocessing, images, labels)
    groups = batch.images.reshape(-1, group_size, *batch.images.shape[1:])
    keys = jax.random.split(batch_key, len(groups))
    _, of_groups = jax.vmap(lambda images, key: apply(params, state.batch_stats, images, train=True, key=key))(groups, keys)
    moments = _map_variance(of_groups, lambda mean, var: var + mean * mean)
    return jax.tree.map(lambda total, moment: total + moment.mean(axis=0), totals, moments)


def finish(state: TrainState, totals: Variables, *, count: int) -> TrainState:
    """Returns the state with the mean and variance over all images of ``count`` batches."""
    moments = jax.tree.map(lambda total: total / count, totals)
    return state._replace(statistics=_map_variance(moments, lambda mean, square: jnp.maximum(square - mean * mean, 0)))


def _map_variance(tree: Any, function: Callable[[Array, Array], Array]) -> Any:
    """Replaces ``var`` by a function of ``mean`` and ``var`` in every layer."""
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {"mean", "var"}:
        return {"mean": tree["mean"], "var": function(tree["mean"], tree["var"])}
    return {name: _map_variance(inner, function) for name, inner in tree.items()}
