"""What a run carries from step to step."""

import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jaxtyping import Array, Int, Key

from resnet_jax.models import Apply, Architecture, Execution
from resnet_jax.models.architecture import Variables


class TrainState(NamedTuple):
    """A pytree of arrays (or of their shapes: the annotations are documentation); model, optimizer and schedule are not in it."""

    step: Int[Array, ""]
    """Steps done."""
    params: Variables
    batch_stats: Variables
    opt_state: Any
    key: Key[Array, ""]
    """The run's root key; never advanced, everything random is a function of it and of the step."""
    ema: Variables
    """Moving average of ``params``; empty where there is none."""
    statistics: Variables
    """What is scored with in place of ``batch_stats``, see ``resnet_jax.training.statistics``; empty where there is none."""

    def scored(self) -> tuple[Variables, Variables]:
        """Parameters and statistics that a score uses."""
        return self.ema or self.params, self.statistics or self.batch_stats


def create(
    architecture: Architecture,
    optimizer: optax.GradientTransformationExtraArgs,
    key: Key[Array, ""],
    execution: Execution = Execution(),
    *,
    ema: bool = False,
    statistics: bool = False,
) -> tuple[Apply, TrainState]:
    """Returns the network as a function, and its state at step 0. Trace it: ``jax.jit`` or ``jax.eval_shape``."""
    init_key = jax.random.fold_in(key, 0)
    apply, params, batch_stats = architecture.init(init_key, execution=execution)
    state = TrainState(
        step=jnp.int32(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        key=key,
        ema=params if ema else {},
        statistics=batch_stats if statistics else {},
    )
    return apply, state


def digest(state: TrainState) -> str:
    """sha256 over every leaf of a state, see ``tree_digest``."""
    return tree_digest(plain(state))


def tree_digest(tree: Any) -> str:
    """sha256 over every leaf: path, dtype, shape and bytes, in order."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        # What is split over processes is gathered: all of them have to ask.
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        array = np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def plain(state: TrainState) -> TrainState:
    """The same state with the key as its raw data, for what knows only numbers."""
    return state._replace(key=jax.random.key_data(state.key))


def from_plain(state: TrainState) -> TrainState:
    """Undoes ``plain``."""
    return state._replace(key=jax.random.wrap_key_data(state.key))
