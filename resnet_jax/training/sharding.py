"""Mesh and shardings of a run, and the compiled functions of an experiment on them."""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key

from resnet_jax.data.augment_device import Augmentation, Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import CommandError, UserError, users_line
from resnet_jax.evaluation import exact, protocols
from resnet_jax.kernels import quick_to_compile, quick_to_run
from resnet_jax.models import Apply, Architecture
from resnet_jax.models.components import component, parts
from resnet_jax.training import optimizer, step
from resnet_jax.training.config import Experiment
from resnet_jax.training.optimizer import is_stacked
from resnet_jax.training.step import Batch, Learning, TrainState

Tree = TypeVar("Tree")


def make(devices: int | None = None, fsdp: int = 1, among: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with the axes ``data`` and ``fsdp``; a batch is split over both.

    Args:
      devices: number of devices; None: all.
      fsdp: devices that share one copy of the parameters and of the optimizer's state.
      among: devices to choose from; None: those of all processes.
    """
    # Sorted, because a process reads contiguous rows for its devices.
    available = sorted(among or jax.devices(), key=operator.attrgetter("process_index", "id"))
    used = available[:devices]
    if devices is not None and not 1 <= devices <= len(available):
        raise UserError(f"devices must be 1 to {len(available)}, got {devices}.")
    if fsdp < 1 or len(used) % fsdp:
        raise UserError(f"fsdp must divide the {len(used)} devices of the run, got {fsdp}.")
    if among is None and len({device.process_index for device in used}) < jax.process_count():
        raise UserError(f"devices must be {len(available)}, so that every process has one.")
    return Mesh(np.array(used).reshape(-1, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of whole arrays."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: split along the first axis."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def of_state(mesh: Mesh, state: TrainState) -> TrainState:
    """Returns the shardings of a state of arrays or shapes.

    Those of the optimizer and the parameters are split over ``fsdp`` along the largest axis that it
    divides (Rajbhandari et al. 2020, arXiv 1910.02054, stage 3).
    """
    size = mesh.shape["fsdp"]

    def split(path: jax.tree_util.KeyPath, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        # A scan runs over the first axis of stacked blocks.
        axes = range(is_stacked(path), leaf.ndim)
        sizes = [(leaf.shape[axis], axis) for axis in axes if leaf.shape[axis] % size == 0]
        if size == 1 or not sizes:
            return replicated(mesh)
        # The last of equal axes: output features.
        return NamedSharding(mesh, PartitionSpec(*(None,) * max(sizes)[1], "fsdp"))

    names = ("params", "opt_state", "ema")
    by_name = {name: jax.tree.map_with_path(split, getattr(state, name)) for name in names}
    return jax.tree.map(lambda _: replicated(mesh), state)._replace(**by_name)


def put(tree: Tree, sharding: NamedSharding) -> Tree:
    """Places arrays, which every process holds whole, on the devices."""

    def place(array: np.ndarray | jax.Array) -> jax.Array:
        whole = np.asarray(array)
        # ``jax.device_put`` would compare the values of all processes. Without the copy, donation
        # on CPU could overwrite the caller's buffer.
        return jax.make_array_from_callback(
            whole.shape, sharding, lambda index: np.array(whole[index])
        )

    return jax.tree.map(place, tree)


@dataclass(frozen=True)
class Program:
    """An experiment on a mesh; functions compile at their first call."""

    experiment: Experiment
    mesh: Mesh
    apply: Apply
    abstract_state: TrainState
    init: Callable[[Key[Array, ""]], TrainState]
    """From the root key."""
    train: Any
    """``step.train_steps``, jitted; the state is donated."""
    recompute_statistics: Callable[[TrainState, Iterable[Batch], Preprocessing], TrainState]
    """Sets precise BatchNorm statistics, over all images of some training batches, as in He et
    al.'s released models (KaimingHe/deep-residual-networks). EMA needs them: running statistics
    belong to the trained parameters."""

    @property
    def abstract_preprocessing(self) -> Preprocessing:
        """Shapes and shardings of the normalization constants."""
        shape, normalization = self.experiment.model.input_shape, self.experiment.data.normalization
        mean = shape[2:] if normalization in ("channel", "imagenet") else shape
        return Preprocessing(*(self.abstract(size, np.float32) for size in (mean, shape[2:])))

    def abstract_inputs(self, examples: int) -> tuple[TrainState, Batch, Preprocessing]:
        """Returns shapes and shardings of the inputs of ``train`` on a set of ``examples``."""
        place = replicated(self.mesh)
        if self.experiment.data.crop is not None:
            examples, place = self.experiment.batch_size, batch(self.mesh)
        shape = (examples, *self.experiment.model.input_shape)
        images = self.abstract(shape, np.uint8, place)
        labels = self.abstract(shape[:1], np.int32, place)
        return self.abstract_state, Batch(images, labels), self.abstract_preprocessing

    def abstract(self, shape: tuple[int, ...], dtype: Any, place: Any = None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place or replicated(self.mesh))

    def put(self, arrays: Tree) -> Tree:
        return put(arrays, replicated(self.mesh))

    def score(
        self,
        state: TrainState,
        preprocessing: Preprocessing,
        data: Examples | Iterable[Examples],
        expected_examples: int,
        batch_size: int,
        between: Callable[[], None] = lambda: None,
    ) -> exact.Score:
        """Evaluates every example once, see ``evaluation.exact.tally``."""
        return exact.tally(
            functools.partial(self._score_batch, *state.scored(), preprocessing),
            data,
            batch_size=batch_size,
            expected_examples=expected_examples,
            sharding=batch(self.mesh),
            # Processes share streamed images; each has all of those in memory.
            processes=1 if isinstance(data, Examples) else jax.process_count(),
            between=between,
        )

    @property
    def _score_batch(self) -> Any:
        # Replicated sums, so that every process can fetch them.
        return _jit(exact.score_batch, self.mesh, _layout(replicated(self.mesh)), apply=self.apply)

    def trace_score(self, data: Batch, preprocessing: Preprocessing, batch_size: int) -> None:
        """Traces ``score`` on images like ``data``."""
        rows, place = protocols.rows(batch_size, 1, self.mesh.size), batch(self.mesh)
        images, labels = (self.abstract((rows, *a.shape[1:]), a.dtype, place) for a in data[:2])
        self._score_batch.eval_shape(*self.abstract_state.scored(), preprocessing, images, labels)


def compiled(
    experiment: Experiment,
    devices: int | None = None,
    fsdp: int = 1,
    among: Sequence[Any] | None = None,
) -> Program:
    """Returns the program of an experiment on a mesh, see ``make``."""
    mesh = make(devices, fsdp, among)
    model, batches = experiment.model, experiment.evaluation.statistics_batches
    group_size, ema = parts(model.norm)[1].get("group_size", 0), experiment.optimizer.ema
    update = optimizer.make(experiment.optimizer, experiment.schedule)
    options = {"optimizer": update, "execution": experiment.execution}
    options |= {"ema": ema > 0, "statistics": batches > 0}
    with report_trace_errors():
        experiment.schedule.check_rates(experiment.steps)
        apply, shapes = _traced(model, **options)
        step.check_loss(experiment.loss, model.num_classes)
    shardings = of_state(mesh, shapes)
    layout, whole = _layout(shardings), replicated(mesh)
    learning = Learning(
        apply,
        update,
        experiment.loss,
        experiment.distillation,
        ema,
        accumulation=_microbatches(experiment, group_size, mesh.size),
        group_size=group_size,
        augmentation=augmentation(experiment),
        classes=model.num_classes,
        batch_size=experiment.batch_size,
        streamed=experiment.data.crop is not None,
        sharding=batch(mesh) if mesh.size > 1 else None,
        whole=whole if fsdp > 1 else None,
    )

    def recompute_statistics(
        state: TrainState, data: Iterable[Batch], preprocessing: Preprocessing
    ) -> TrainState:
        if not batches:
            return state
        measured, _ = _traced(replace(model, norm=component(model.norm, momentum=0.0)), **options)
        measuring = replace(learning, apply=measured)
        add = _jit(step.add_batch_moments, mesh, _layout(whole), learning=measuring)
        totals = jax.tree.map(jnp.zeros_like, state.batch_stats)
        for number, images in enumerate(data):
            totals = add(state, totals, images, preprocessing, jnp.int32(number))
        return _jit(step.set_statistics, mesh, layout, count=batches)(state, totals)

    return Program(
        experiment,
        mesh,
        apply,
        jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), shapes, shardings),
        init=_jit(_initial, mesh, layout, model=model, **options),
        train=_jit(step.train_steps, mesh, _layout((shardings, whole)), learning=learning),
        recompute_statistics=recompute_statistics,
    )


@contextlib.contextmanager
def report_trace_errors() -> Iterator[None]:
    """Raises a UserError with file and line if a component fails while it is traced."""
    try:
        yield
    except CommandError:
        raise
    except Exception as error:
        first_line = str(error).partition("\n")[0]
        reason = f"{users_line(error)}{type(error).__name__}: {first_line}"
        raise UserError(f"the experiment cannot be traced: {reason}") from error


def _layout(shardings: Any) -> Any:
    """Makes a tree of shardings hashable."""
    leaves, structure = jax.tree.flatten(shardings)
    return structure, tuple(leaves)


@functools.lru_cache(maxsize=256)
def _jit(function: Callable[..., Any], mesh: Mesh, layout: Any, **static: Any) -> Any:
    """Compiles a function with static arguments; experiments share equal ones."""
    is_initial = function is _initial
    options: Any = {}
    if function is step.train_steps:
        options = {"donate_argnames": "state", "static_argnames": "steps"}
    platform = mesh.devices.flat[0].platform
    return jax.jit(
        functools.partial(function, **static),
        out_shardings=jax.tree.unflatten(*layout),
        compiler_options=quick_to_compile() if is_initial else quick_to_run(platform),
        **options,
    )


def _initial(key: Key[Array, ""], *, model: Architecture, **options: Any) -> TrainState:
    return step.create(model, key=key, **options)[1]


@functools.lru_cache(maxsize=64)
def _traced(model: Architecture, **options: Any) -> tuple[Apply, TrainState]:
    """Returns the network and the shapes of the state."""
    return jax.eval_shape(lambda: step.create(model, key=jax.random.key(0), **options))


def augmentation(experiment: Experiment) -> Augmentation:
    """Returns the augmentation on the device."""
    return Augmentation(**{f.name: getattr(experiment.data, f.name) for f in fields(Augmentation)})


def _microbatches(experiment: Experiment, group_size: int, devices: int) -> int:
    """Returns a multiple of ``optimizer.accumulation`` that ``images_per_device`` allows."""
    least, size = experiment.optimizer.accumulation, experiment.batch_size
    group = group_size or size
    limit = experiment.execution.images_per_device * devices
    if not limit or size // least <= limit:
        return least
    for count in range(least, size // group + 1, least):
        if size // group % count == 0 and size // count <= limit:
            return count
    raise UserError(
        f"execution.images_per_device is {limit // devices}, but {devices} devices hold the "
        f"{group} images that BatchNorm normalizes together. Use --model.norm "
        f"'BatchNorm(group_size=N)' with N up to {limit}, or more images_per_device."
    )
