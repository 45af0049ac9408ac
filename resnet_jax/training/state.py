"""Training state."""

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
    """State of a run: a pytree of arrays or of their shapes."""

    step: Int[Array, ""]
    """Number of completed steps."""
    params: Variables
    batch_stats: Variables
    opt_state: Any
    key: Key[Array, ""]
    """Root key: all randomness is a function of it and of the step."""
    ema: Variables
    """Moving average of ``params``; empty without one."""
    statistics: Variables
    """Precise BatchNorm statistics, evaluated in place of ``batch_stats``; empty without."""

    def scored(self) -> tuple[Variables, Variables]:
        """Returns the parameters and statistics that evaluation uses."""
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
    """Returns the network as a function and its state at step 0, under ``jax.jit`` or ``jax.eval_shape``."""
    apply, params, batch_stats = architecture.init(jax.random.fold_in(key, 0), execution=execution)
    averages = params if ema else {}, batch_stats if statistics else {}
    return apply, TrainState(jnp.int32(0), params, batch_stats, optimizer.init(params), key, *averages)


def digest(state: TrainState) -> str:
    """Returns the sha256 of a state, see ``tree_digest``."""
    return tree_digest(plain(state))


def tree_digest(tree: Any) -> str:
    """Returns the sha256 over path, dtype, shape and bytes of every leaf. Collective where leaves are sharded."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        array = np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def is_stacked(path: Any) -> bool:
    """Returns whether the array at a path of ``jax.tree`` holds several blocks along its first axis."""
    return any(getattr(key, "key", None) == "stacked" for key in path)


def plain(state: TrainState) -> TrainState:
    """Returns the state with the key as raw numbers, for serialization."""
    return state._replace(key=jax.random.key_data(state.key))


def from_plain(state: TrainState) -> TrainState:
    """Inverse of ``plain``."""
    return state._replace(key=jax.random.wrap_key_data(state.key))
