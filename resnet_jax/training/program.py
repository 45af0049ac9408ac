"""The compiled functions of an experiment: initialise, train some steps, score. Runs that differ in their seed share them."""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from resnet_jax.configured import configured, parts
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.evaluation import exact
from resnet_jax.models import Apply
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.training import mesh as mesh_lib
from resnet_jax.training import optimizer as optimizer_lib
from resnet_jax.training import state as state_lib
from resnet_jax.training import statistics
from resnet_jax.training import step as step_lib
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Metrics, Resident


@dataclass(frozen=True)
class Program:
    """What an experiment compiles to on a mesh."""

    mesh: Mesh
    apply: Apply
    init: Callable[[Key[Array, ""]], TrainState]
    """Key to the state at step 0, replicated over the mesh."""
    abstract_state: TrainState
    """Shapes, dtypes and shardings of the state."""
    train: Callable[[TrainState, Resident, int], tuple[TrainState, Metrics]]
    """State, data, number of steps to the state after them; the given state is used up."""

    settle: Callable[[TrainState, Resident], TrainState]
    """State and data to the state with the statistics that scores use; the same state where those are the moving averages."""

    def place(self, data: Examples, preprocessing: Preprocessing) -> Resident:
        """Puts a training set on every device."""
        return jax.device_put(step_lib.Resident(data.images, data.labels, preprocessing), mesh_lib.replicated(self.mesh))  # pyright: ignore[reportArgumentType]

    def score(
        self, state: TrainState, preprocessing: Preprocessing, data: Examples, expected_examples: int, batch_size: int
    ) -> exact.Score:
        """Scores every example once; see ``evaluation.exact.evaluate``."""
        params, batch_stats = state.scored()
        return exact.evaluate(
            self.apply,
            params,
            batch_stats,
            preprocessing,
            data,
            batch_size=batch_size,
            expected_examples=expected_examples,
            sharding=mesh_lib.batch(self.mesh),
        )


@functools.lru_cache(maxsize=16)
def compiled(experiment: Experiment, devices: int | None = None) -> Program:
    """Returns the program of an experiment, made once a process; each function compiles at its first call."""
    mesh = mesh_lib.make(devices)
    optimizer = optimizer_lib.make(experiment.optimizer, experiment.schedule)
    replicated = mesh_lib.replicated(mesh)
    create = functools.partial(
        state_lib.create,
        optimizer=optimizer,
        execution=experiment.execution,
        ema=experiment.optimizer.ema > 0,
        statistics=experiment.evaluation.statistics_batches > 0,
    )
    abstract_key = jax.eval_shape(lambda: jax.random.key(0))
    apply, abstract = jax.eval_shape(functools.partial(create, experiment.model), key=abstract_key)
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated), abstract)

    batches: dict[str, Any] = {
        "batch_size": experiment.batch_size,
        "pad": experiment.data.pad,
        "flip": experiment.data.flip,
        "sharding": mesh_lib.batch(mesh),
    }
    steps = functools.partial(step_lib.resident_steps, apply=apply, optimizer=optimizer, ema=experiment.optimizer.ema, **batches)
    jitted = jax.jit(steps, static_argnames=("steps",), donate_argnums=0, out_shardings=replicated)

    settle: Callable[[TrainState, Resident], TrainState] = _unchanged
    if experiment.evaluation.statistics_batches:
        group_size = parts(experiment.model.norm)[1].get("group_size", 0)
        whole = {"group_size": 0} if group_size else {}
        forgetful = dataclasses.replace(experiment.model, norm=configured(experiment.model.norm, momentum=0.0, **whole))
        forgets, _ = jax.eval_shape(functools.partial(create, forgetful), key=abstract_key)
        settle = jax.jit(
            functools.partial(
                statistics.settle,
                batches=experiment.evaluation.statistics_batches,
                group_size=group_size or experiment.batch_size,
                forgetful=forgets,
                **batches,
            ),
            out_shardings=replicated,
        )
    return Program(
        mesh=mesh,
        apply=apply,
        init=jax.jit(lambda key: create(experiment.model, key=key)[1], out_shardings=replicated, compiler_options=quick_to_compile()),
        abstract_state=abstract,
        train=lambda state, data, count: jitted(state, data, steps=count),
        settle=settle,
    )


def _unchanged(state: TrainState, _: Resident) -> TrainState:
    return state


def abstract_preprocessing(experiment: Experiment) -> Preprocessing:
    """Shapes of the constants that normalise the experiment's images."""
    height, width, channels = experiment.model.input_shape
    mean = (height, width, channels) if experiment.data.normalization == "pixel_mean" else (channels,)
    return Preprocessing(jax.ShapeDtypeStruct(mean, jnp.float32), jax.ShapeDtypeStruct((channels,), jnp.float32))  # pyright: ignore[reportArgumentType]
