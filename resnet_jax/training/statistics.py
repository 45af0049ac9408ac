"""BatchNorm statistics as averages over training batches, in place of moving averages.

He et al.'s released models had them: "the mean and variance are computed using average (not moving average) on a sufficiently large
training batch after the training procedure" (KaimingHe/deep-residual-networks, README). Averaged parameters (EMA) need them: moving
averages belong to the parameters that were trained, not to their average.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int, Key

from resnet_jax.data import order
from resnet_jax.models import Apply
from resnet_jax.models.architecture import Variables
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Arrived, Batches, Resident


@dataclass(frozen=True)
class Measurement:
    """How the statistics of a batch are measured; static."""

    batches: Batches
    """As in training."""
    group_size: int
    """Images that are normalised together, as in training."""
    forgetful: Apply
    """The network with a momentum of 0 and normalisation over the whole of what it is given: its statistics afterwards are those of that
    group."""
    count: int
    """Number of batches."""

    def resident(self, state: TrainState, data: Resident) -> TrainState:
        """Returns the state with ``statistics`` that belong to the parameters a score uses, over batches of images on the device.

        Which batches is a function of the run's key and of the step.
        """
        indices = order.batch_indices(
            jax.random.fold_in(_key(state), 0), jnp.int32(0), steps=self.count, batch_size=self.batches.size, examples=data.labels.shape[0]
        )

        def one(totals: Variables, inputs: tuple[Int[Array, ""], Int[Array, "batch"]]) -> tuple[Variables, None]:
            number, chosen = inputs
            return self._added(state, totals, number, data.chosen(chosen)), None

        totals, _ = lax.scan(one, self.nothing(state), (jnp.arange(self.count), indices))
        return self.settled(state, totals)

    def nothing(self, state: TrainState) -> Variables:
        """Totals before the first batch."""
        return jax.tree.map(jnp.zeros_like, state.batch_stats)

    def added(self, state_and_totals: tuple[TrainState, Variables], data: Arrived, number: Int[Array, ""]) -> Variables:
        """Totals with those of one streamed batch more, its number counted from 0."""
        state, totals = state_and_totals
        return self._added(state, totals, number, (data.preprocessing, data.images, data.labels))

    def settled(self, state: TrainState, totals: Variables) -> TrainState:
        """The state with the statistics that ``count`` batches add up to.

        The mean is the mean of the groups' means; the variance the mean of their variances plus the variance of their means, which is that
        of all the images together.
        """
        return state._replace(statistics=_variances(jax.tree.map(lambda total: total / self.count, totals)))

    def _added(self, state: TrainState, totals: Variables, number: Int[Array, ""], images: Any) -> Variables:
        params, _ = state.scored()
        batch_key = jax.random.fold_in(_key(state), number + 1)
        batch = self.batches(batch_key, *images)
        groups = batch.images.reshape(self.batches.size // self.group_size, self.group_size, *batch.images.shape[1:])
        keys = jax.random.split(batch_key, len(groups))
        _, found = jax.vmap(lambda images, key: self.forgetful(params, state.batch_stats, images, train=True, key=key))(groups, keys)
        return jax.tree.map(lambda total, each: total + each.mean(axis=0), totals, _moments(found))


def _key(state: TrainState) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.fold_in(state.key, 4), state.step)


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
