"""The states of several seeds as one: behind each other along a first axis, on their devices."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from resnet_jax.training import mesh as mesh_lib
from resnet_jax.training.state import TrainState


@dataclass(frozen=True)
class Layout:
    """The shardings of the state of one seed, where they are a key."""

    treedef: Any
    leaves: tuple[jax.sharding.NamedSharding, ...]

    @staticmethod
    def of(abstract_state: TrainState) -> "Layout":
        """Of a state of shapes that have shardings."""
        leaves, treedef = jax.tree.flatten(abstract_state)
        return Layout(treedef, tuple(leaf.sharding for leaf in leaves))

    @property
    def state(self) -> TrainState:
        """A state of shardings."""
        return jax.tree.unflatten(self.treedef, self.leaves)


@functools.lru_cache(maxsize=64)
def stacked(mesh: Mesh, layout: Layout) -> Callable[..., TrainState]:
    """Makes one of several states."""

    def stack(*states: TrainState) -> TrainState:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    return jax.jit(stack, out_shardings=mesh_lib.by_seed(mesh, layout.state))


@functools.lru_cache(maxsize=64)
def unstacked(layout: Layout) -> Callable[[TrainState], list[TrainState]]:
    """Undoes ``stacked``."""

    @functools.partial(jax.jit, out_shardings=layout.state)
    def one(states: TrainState, index: Array) -> TrainState:
        return jax.tree.map(lambda leaf: leaf[index], states)

    return lambda states: [one(states, jnp.int32(index)) for index in range(states.step.shape[0])]


@functools.lru_cache(maxsize=64)
def finite(mesh: Mesh) -> Callable[[TrainState], Any]:
    """Says of each seed whether all that it has learned is finite."""

    def one(state: TrainState) -> Array:
        arrays = jax.tree.leaves((state.params, state.batch_stats, state.opt_state, state.ema, state.statistics))
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays]))

    return jax.jit(mesh_lib.over_seeds(one, mesh), out_shardings=mesh_lib.by_seed(mesh))
