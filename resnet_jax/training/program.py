"""The compiled functions of an experiment: initialise, train some steps, score. Runs that differ in their seed share them.

Several seeds are trained by one program: their states stand behind each other along a first axis, also where it is one seed.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
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
from resnet_jax.models import Apply, Architecture
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.training import mesh as mesh_lib
from resnet_jax.training import optimizer as optimizer_lib
from resnet_jax.training import state as state_lib
from resnet_jax.training import statistics
from resnet_jax.training import step as step_lib
from resnet_jax.training.experiment import Checkpointing, Data, Evaluation, Experiment, Start
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Metrics, Resident

# Stands for the model where the network is given as a function.
_NO_MODEL = Architecture(stages=(), features=())


@dataclass(frozen=True)
class Program:
    """What an experiment compiles to on a mesh. ``states`` are the states of one or more seeds, see ``stack``."""

    mesh: Mesh
    apply: Apply
    init: Callable[[Key[Array, ""]], TrainState]
    """Key to the state of one seed at step 0, replicated over the mesh."""
    abstract_state: TrainState
    """Shapes, dtypes and shardings of the state of one seed."""
    train: Callable[[TrainState, Resident, int], tuple[TrainState, Metrics]]
    """States, data, number of steps to the states after them and metrics (seeds, steps); the given states are used up."""
    settle: Callable[[TrainState, Resident], TrainState]
    """States and data to states with the statistics that scores use; the same states where those are the moving averages."""

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """The states of several seeds as one, each on its devices."""
        return _stacked(self.mesh)(*states)

    def unstack(self, states: TrainState) -> list[TrainState]:
        """Undoes ``stack``."""
        return _unstacked(self.mesh)(states)

    def place(self, data: Examples, preprocessing: Preprocessing) -> Resident:
        """Puts a training set on every device."""
        return jax.device_put(step_lib.Resident(data.images, data.labels, preprocessing), mesh_lib.replicated(self.mesh))  # pyright: ignore[reportArgumentType]

    def score(
        self, states: TrainState, preprocessing: Preprocessing, data: Examples, expected_examples: int, batch_size: int
    ) -> list[exact.Score]:
        """Scores every example once with the network of each seed; see ``evaluation.exact.evaluate``."""
        variables = states.scored()
        score_batch = _scoring(self.apply, self.mesh)
        return exact.tally(
            lambda images, labels: score_batch(variables, preprocessing, images, labels),
            data,
            batch_size=batch_size,
            expected_examples=expected_examples,
            sharding=mesh_lib.batch(self.mesh),
        )


def compiled(experiment: Experiment, devices: int | None = None, seeds: int = 1) -> Program:
    """Returns the program of an experiment; each of its functions compiles at its first call.

    Experiments that compute alike share it, whatever they are called, on which data set they are, or when they score and save.

    Args:
      experiment: what to run.
      devices: how many to use; None: all.
      seeds: seeds that stand beside each other on devices of their own; more are vectorised on each.
    """
    # What no compiled function depends on, or depends on through the shapes of its arguments.
    plain = dataclasses.replace(
        experiment,
        name="",
        steps=0,
        data=Data(name="", pad=experiment.data.pad, flip=experiment.data.flip),
        evaluation=Evaluation(statistics_batches=experiment.evaluation.statistics_batches),
        checkpointing=Checkpointing(),
        start=Start(),
    )
    # Every batch is shared equally by the devices of a seed.
    batch = math.gcd(experiment.batch_size, experiment.evaluation.batch_size)
    return _program(plain, mesh_lib.make(devices, seeds, batch))


@functools.lru_cache(maxsize=64)
def _program(experiment: Experiment, mesh: Mesh) -> Program:
    replicated = mesh_lib.replicated(mesh)
    apply, abstract, forgetful = _traced(experiment)
    # Networks that differ in how they begin (the bias of a gate, say) have the same function and share the rest.
    same_function = dataclasses.replace(experiment, model=_NO_MODEL)
    group_size = parts(experiment.model.norm)[1].get("group_size", 0) or experiment.batch_size
    train, settle = _training(apply, forgetful, group_size, same_function, mesh)
    create = _creation(experiment)
    return Program(
        mesh=mesh,
        apply=apply,
        init=jax.jit(lambda key: create(experiment.model, key=key)[1], out_shardings=replicated, compiler_options=quick_to_compile()),
        abstract_state=jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated), abstract),
        train=train,
        settle=settle,
    )


def _creation(experiment: Experiment) -> Callable[..., tuple[Apply, TrainState]]:
    return functools.partial(
        state_lib.create,
        optimizer=optimizer_lib.make(experiment.optimizer, experiment.schedule),
        execution=experiment.execution,
        ema=experiment.optimizer.ema > 0,
        statistics=experiment.evaluation.statistics_batches > 0,
    )


@functools.lru_cache(maxsize=64)
def _traced(experiment: Experiment) -> tuple[Apply, TrainState, Apply | None]:
    """What no layout over devices changes: the network, the shapes of the state, and the network that ``statistics.settle`` needs."""
    create = _creation(experiment)
    abstract_key = jax.eval_shape(lambda: jax.random.key(0))
    apply, abstract = jax.eval_shape(functools.partial(create, experiment.model), key=abstract_key)
    if not experiment.evaluation.statistics_batches:
        return apply, abstract, None
    whole = {"group_size": 0} if "group_size" in parts(experiment.model.norm)[1] else {}
    forgets = dataclasses.replace(experiment.model, norm=configured(experiment.model.norm, momentum=0.0, **whole))
    return apply, abstract, jax.eval_shape(functools.partial(create, forgets), key=abstract_key)[0]


@functools.lru_cache(maxsize=64)
def _training(apply: Apply, forgetful: Apply | None, group_size: int, experiment: Experiment, mesh: Mesh) -> tuple[Any, Any]:
    batches: dict[str, Any] = {
        "batch_size": experiment.batch_size,
        "pad": experiment.data.pad,
        "flip": experiment.data.flip,
        "sharding": mesh_lib.batch(mesh) if mesh.shape["data"] > 1 else None,
    }
    optimizer = optimizer_lib.make(experiment.optimizer, experiment.schedule)
    by_seed = mesh_lib.by_seed(mesh)

    @functools.partial(jax.jit, static_argnames=("steps",), donate_argnums=0, out_shardings=by_seed)
    def train(states: TrainState, data: Resident, steps: int) -> tuple[TrainState, Metrics]:
        some = functools.partial(
            step_lib.resident_steps, steps=steps, apply=apply, optimizer=optimizer, ema=experiment.optimizer.ema, **batches
        )
        return mesh_lib.over_seeds(some, mesh)(states, data)

    if forgetful is None:
        return train, _unchanged
    settle = functools.partial(
        statistics.settle,
        batches=experiment.evaluation.statistics_batches,
        group_size=group_size,
        forgetful=forgetful,
        **batches,
    )
    return train, jax.jit(mesh_lib.over_seeds(settle, mesh), out_shardings=by_seed)


@functools.lru_cache(maxsize=64)
def _scoring(apply: Apply, mesh: Mesh) -> Callable[..., exact.Sums]:
    def one(variables: Any, preprocessing: Preprocessing, images: Array, labels: Array) -> exact.Sums:
        params, batch_stats = variables
        return exact.score_batch(params, batch_stats, preprocessing, images, labels, apply=apply)

    return jax.jit(mesh_lib.over_seeds(one, mesh))


@functools.lru_cache(maxsize=64)
def _stacked(mesh: Mesh) -> Callable[..., TrainState]:
    def stack(*states: TrainState) -> TrainState:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    return jax.jit(stack, out_shardings=mesh_lib.by_seed(mesh))


@functools.lru_cache(maxsize=64)
def _unstacked(mesh: Mesh) -> Callable[[TrainState], list[TrainState]]:
    def unstack(states: TrainState) -> list[TrainState]:
        return [jax.tree.map(operator.itemgetter(index), states) for index in range(states.step.shape[0])]

    return jax.jit(unstack, out_shardings=mesh_lib.replicated(mesh))


def _unchanged(states: TrainState, _: Resident) -> TrainState:
    return states


def abstract_preprocessing(experiment: Experiment) -> Preprocessing:
    """Shapes of the constants that normalise the experiment's images."""
    height, width, channels = experiment.model.input_shape
    mean = (channels,) if experiment.data.normalization == "channel" else (height, width, channels)
    return Preprocessing(jax.ShapeDtypeStruct(mean, jnp.float32), jax.ShapeDtypeStruct((channels,), jnp.float32))  # pyright: ignore[reportArgumentType]
