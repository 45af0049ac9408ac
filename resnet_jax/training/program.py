"""The compiled functions of an experiment: initialise, train some steps, score. Runs that differ in their seed share them.

Several seeds are trained by one program: their states stand behind each other along a first axis, also where it is one seed.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from resnet_jax.configured import configured, parts
from resnet_jax.data.augmentation import Augmentation, Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.data.streaming import Streamed
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.models import Apply, Architecture
from resnet_jax.models.execution import quick_to_compile, quick_to_run
from resnet_jax.training import mesh as mesh_lib
from resnet_jax.training import optimizer as optimizer_lib
from resnet_jax.training import stacks
from resnet_jax.training import state as state_lib
from resnet_jax.training import step as step_lib
from resnet_jax.training.experiment import Checkpointing, Data, Evaluation, Experiment, Loading, Start
from resnet_jax.training.state import TrainState
from resnet_jax.training.statistics import Measurement
from resnet_jax.training.step import Arrived, Batches, Learning, Metrics, Resident

# Stands for the model where the network is given as a function.
_NO_MODEL = Architecture(stages=(), features=())


@dataclass(frozen=True)
class Program:
    """What an experiment compiles to on a mesh. ``states`` are the states of one or more seeds, see ``stack``."""

    mesh: Mesh
    apply: Apply
    init: Callable[[Key[Array, ""]], TrainState]
    """Key to the state of one seed at step 0, laid out as ``abstract_state``."""
    abstract_state: TrainState
    """Shapes, dtypes and shardings of the state of one seed."""
    train: Callable[[TrainState, Any, int], tuple[TrainState, Metrics]]
    """States, data, number of steps to the states after them and metrics (seeds, steps); the given states are used up. The data are
    ``Resident``, or ``Arrived`` and one step."""
    norms: Callable[[TrainState, Any], Any]
    """States and data of the next step to what ``step.norms`` says of it, of each seed."""
    finite: Callable[[TrainState], Any]
    """States to whether all that each seed has learned is finite."""
    settle: Callable[[TrainState, Any], TrainState]
    """States and data to states with the statistics that scores use; the same states where those are the moving averages. The data are
    ``Resident``, or an iterable of ``Arrived``."""

    def stack(self, states: Sequence[TrainState]) -> TrainState:
        """The states of several seeds as one, each on its devices."""
        return stacks.stacked(self.mesh, stacks.Layout.of(self.abstract_state))(*states)

    def unstack(self, states: TrainState) -> list[TrainState]:
        """Undoes ``stack``."""
        return stacks.unstacked(stacks.Layout.of(self.abstract_state))(states)

    def place(self, data: Examples, preprocessing: Preprocessing) -> Resident:
        """Puts a training set on every device."""
        return mesh_lib.put(step_lib.Resident(data.images, data.labels, preprocessing), mesh_lib.replicated(self.mesh))  # pyright: ignore[reportArgumentType]

    def arrive(self, batch: Streamed, preprocessing: Preprocessing) -> Arrived:
        """Puts this process's part of a streamed batch on its devices."""
        images, labels = (mesh_lib.shared(self.mesh, array) for array in (batch.images, batch.labels))
        return Arrived(images, labels, self.constants(preprocessing))

    def constants(self, preprocessing: Preprocessing) -> Preprocessing:
        """Puts the constants that normalise images on every device."""
        return mesh_lib.put(preprocessing, mesh_lib.replicated(self.mesh))

    def score(
        self,
        states: TrainState,
        preprocessing: Preprocessing,
        data: Examples | Iterable[Examples],
        expected_examples: int,
        batch_size: int,
        between: Callable[[], None] = lambda: None,
    ) -> list[exact.Score]:
        """Scores every example once with the network of each seed; see ``evaluation.exact.tally``."""
        variables = states.scored()
        score_batch = _scoring(self.apply, self.mesh)
        return exact.tally(
            lambda images, labels: score_batch(variables, preprocessing, images, labels),
            data,
            batch_size=batch_size,
            expected_examples=expected_examples,
            sharding=mesh_lib.batch(self.mesh),
            # Streamed images are read by all processes together, those in memory by each.
            processes=1 if isinstance(data, Examples) else jax.process_count(),
            between=between,
        )


def compiled(
    experiment: Experiment, devices: int | None = None, seeds: int = 1, fsdp: int = 1, among: Sequence[Any] | None = None
) -> Program:
    """Returns the program of an experiment; each of its functions compiles at its first call.

    Experiments that compute alike share it, whatever they are called, on which data set they are, or when they score and save.

    Args:
      experiment: what to run.
      devices, fsdp, among: see ``mesh.make``.
      seeds: seeds that stand beside each other on devices of their own; more are vectorised on each.

    Raises:
      UserError: for devices that cannot be laid out so, or a batch that cannot be divided as ``execution.images_per_device`` asks.
    """
    # What no compiled function depends on, or depends on through the shapes of its arguments.
    plain = dataclasses.replace(
        experiment,
        name="",
        steps=0,
        data=_on_device(experiment.data),
        evaluation=Evaluation(statistics_batches=experiment.evaluation.statistics_batches),
        checkpointing=Checkpointing(),
        start=Start(),
        loading=Loading(),
    )
    # Every batch is shared equally by the devices of a seed.
    batch = math.gcd(experiment.batch_size, experiment.evaluation.batch_size)
    return _program(plain, mesh_lib.make(devices, seeds, batch, fsdp, among), experiment.data.crop is not None)


def _on_device(data: Data) -> Data:
    return Data(name="", **{name: getattr(data, name) for name in ("pad", "flip", "colour", "erasing", "mix")})


@functools.lru_cache(maxsize=64)
def _program(experiment: Experiment, mesh: Mesh, streams: bool) -> Program:
    apply, abstract, forgetful = _traced(experiment)
    shardings = mesh_lib.of_state(mesh, abstract)
    placed = jax.tree.map(lambda a, sharding: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), abstract, shardings)
    # Networks that differ in how they begin (the bias of a gate, say) have the same function and share the rest.
    same_function = dataclasses.replace(experiment, model=_NO_MODEL)
    group_size = parts(experiment.model.norm)[1].get("group_size", 0)
    classes, layout = experiment.model.num_classes, stacks.Layout.of(placed)
    train, norms, settle = _training(apply, forgetful, group_size, classes, same_function, mesh, layout, streams)
    create = _creation(experiment)
    return Program(
        mesh=mesh,
        apply=apply,
        init=jax.jit(lambda key: create(experiment.model, key=key)[1], out_shardings=shardings, compiler_options=quick_to_compile()),
        abstract_state=placed,
        train=train,
        norms=norms,
        finite=stacks.finite(mesh),
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


def batches_of(experiment: Experiment, classes: int, sharding: jax.sharding.Sharding | None = None) -> Batches:
    """How the images of an experiment become batches."""
    data = experiment.data
    augmentation = Augmentation(pad=data.pad, flip=data.flip, erasing=data.erasing, mix=data.mix, colour=data.colour)
    return Batches(experiment.batch_size, augmentation, classes, sharding)


@functools.lru_cache(maxsize=64)
def _training(
    apply: Apply,
    forgetful: Apply | None,
    group_size: int,
    classes: int,
    experiment: Experiment,
    mesh: Mesh,
    layout: stacks.Layout,
    streams: bool,
) -> tuple[Any, Any, Any]:
    by_seed, states_by_seed = mesh_lib.by_seed(mesh), mesh_lib.by_seed(mesh, layout.state)
    share = mesh_lib.devices_of_a_batch(mesh)
    batches = batches_of(experiment, classes, mesh_lib.batch(mesh) if share > 1 else None)
    learning = Learning(
        apply=apply,
        optimizer=optimizer_lib.make(experiment.optimizer, experiment.schedule),
        loss=experiment.loss,
        ema=experiment.optimizer.ema,
        accumulation=_parts_of_a_batch(experiment, group_size, share),
        group_size=group_size or 1,
        whole=mesh_lib.replicated(mesh) if mesh.shape["fsdp"] > 1 else None,
    )

    jit = _jit(mesh)

    @functools.partial(jit, static_argnames=("steps",), donate_argnums=0, out_shardings=(states_by_seed, by_seed))
    def train(states: TrainState, data: Resident | Arrived, steps: int) -> tuple[TrainState, Metrics]:
        if streams:
            assert steps == 1
            some = functools.partial(step_lib.streamed_step, batches=batches, learning=learning)
        else:
            some = functools.partial(step_lib.resident_steps, steps=steps, batches=batches, learning=learning)
        return mesh_lib.over_seeds(some, mesh)(states, data)

    of_step = functools.partial(step_lib.norms, batches=batches, learning=learning)
    norms = jit(mesh_lib.over_seeds(of_step, mesh), out_shardings=by_seed)
    if forgetful is None:
        return train, norms, _unchanged
    measurement = Measurement(batches, group_size or experiment.batch_size, forgetful, experiment.evaluation.statistics_batches)
    if not streams:
        return train, norms, jit(mesh_lib.over_seeds(measurement.resident, mesh), out_shardings=states_by_seed)
    nothing, added, settled = (
        jit(mesh_lib.over_seeds(function, mesh), out_shardings=out)
        for function, out in (
            (measurement.nothing, by_seed),
            (measurement.added, by_seed),
            (lambda both: measurement.settled(*both), states_by_seed),
        )
    )

    def settle(states: TrainState, arriving: Iterable[Arrived]) -> TrainState:
        totals = nothing(states)
        for number, data in enumerate(arriving):
            totals = added((states, totals), data, jnp.int32(number))
        return settled((states, totals))

    return train, norms, settle


@functools.lru_cache(maxsize=64)
def _scoring(apply: Apply, mesh: Mesh) -> Callable[..., exact.Sums]:
    def one(variables: Any, preprocessing: Preprocessing, images: Array, labels: Array) -> exact.Sums:
        params, batch_stats = variables
        return exact.score_batch(params, batch_stats, preprocessing, images, labels, apply=apply)

    # Whole on every device of a seed, so that every process can fetch them.
    return _jit(mesh)(mesh_lib.over_seeds(one, mesh), out_shardings=mesh_lib.by_seed(mesh))


def _jit(mesh: Mesh) -> Callable[..., Any]:
    """``jax.jit`` with the compiler options of what runs often on these devices, which need not be this machine's."""
    return functools.partial(jax.jit, compiler_options=quick_to_run(mesh.devices.flat[0].platform))


def _parts_of_a_batch(experiment: Experiment, group_size: int, devices: int) -> int:
    """Into how many parts a batch is divided so that a device has at most ``execution.images_per_device`` at once."""
    most, batch, divided = experiment.execution.images_per_device, experiment.batch_size, experiment.optimizer.accumulation
    if not most or batch // divided <= most * devices:
        return divided
    if not group_size:
        raise UserError(
            f"execution.images_per_device is {most}, and BatchNorm sees all {batch} images of a batch at once: give it groups, as "
            f"--model.norm 'BatchNorm(group_size={max(n for n in range(1, most + 1) if batch % n == 0)})', or 0 images_per_device"
        )
    groups = batch // group_size
    fitting = [n for n in range(divided, groups + 1, divided) if groups % n == 0 and batch // n <= most * devices]
    if not fitting:
        raise UserError(
            f"execution.images_per_device is {most}: {devices} devices have a whole BatchNorm group of {group_size} images at once; "
            f"give {-(-group_size // devices)} or more"
        )
    return fitting[0]


def _unchanged(states: TrainState, _: Any) -> TrainState:
    return states


def abstract_preprocessing(experiment: Experiment) -> Preprocessing:
    """Shapes of the constants that normalise the experiment's images."""
    height, width, channels = experiment.model.input_shape
    mean = (channels,) if experiment.data.normalization in ("channel", "imagenet") else (height, width, channels)
    return Preprocessing(jax.ShapeDtypeStruct(mean, jnp.float32), jax.ShapeDtypeStruct((channels,), jnp.float32))  # pyright: ignore[reportArgumentType]
