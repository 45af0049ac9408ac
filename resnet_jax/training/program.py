"""The compiled functions of an experiment: initialise, train some steps, score. Runs that differ in their seed share them."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.evaluation import exact
from resnet_jax.models import Apply
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.training import mesh as mesh_lib
from resnet_jax.training import optimizer as optimizer_lib
from resnet_jax.training import state as state_lib
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

    def place(self, data: Examples, preprocessing: Preprocessing) -> Resident:
        """Puts a training set on every device."""
        return jax.device_put(step_lib.Resident(data.images, data.labels, preprocessing), mesh_lib.replicated(self.mesh))  # pyright: ignore[reportArgumentType]

    def score(
        self, state: TrainState, preprocessing: Preprocessing, data: Examples, expected_examples: int, batch_size: int
    ) -> exact.Score:
        """Scores every example once; see ``evaluation.exact.evaluate``."""
        return exact.evaluate(
            self.apply,
            state.params,
            state.batch_stats,
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
    create = functools.partial(state_lib.create, experiment.model, optimizer, execution=experiment.execution)
    apply, abstract = jax.eval_shape(create, jax.eval_shape(lambda: jax.random.key(0)))
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=replicated), abstract)

    steps = functools.partial(
        step_lib.resident_steps,
        batch_size=experiment.batch_size,
        pad=experiment.data.pad,
        flip=experiment.data.flip,
        apply=apply,
        optimizer=optimizer,
        sharding=mesh_lib.batch(mesh),
    )
    jitted = jax.jit(steps, static_argnames=("steps",), donate_argnums=0, out_shardings=replicated)
    return Program(
        mesh=mesh,
        apply=apply,
        init=jax.jit(lambda key: create(key)[1], out_shardings=replicated, compiler_options=quick_to_compile()),
        abstract_state=abstract,
        train=lambda state, data, count: jitted(state, data, steps=count),
    )


def abstract_preprocessing(experiment: Experiment) -> Preprocessing:
    """Shapes of the constants that normalise the experiment's images."""
    height, width, channels = experiment.model.input_shape
    mean = (height, width, channels) if experiment.data.normalization == "pixel_mean" else (channels,)
    return Preprocessing(jax.ShapeDtypeStruct(mean, jnp.float32), jax.ShapeDtypeStruct((channels,), jnp.float32))  # pyright: ignore[reportArgumentType]
