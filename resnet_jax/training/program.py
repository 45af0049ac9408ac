"""Compiled functions of an experiment on a mesh."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Key

from resnet_jax.data.augment_device import Augmentation, Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.kernels import quick_to_compile, quick_to_run
from resnet_jax.models import Apply, Architecture
from resnet_jax.models.components import component, parts
from resnet_jax.training import optimizer, sharding, step
from resnet_jax.training.config import Experiment
from resnet_jax.training.step import Batch, Learning, Metrics, TrainState


@dataclass(frozen=True)
class Program:
    """An experiment on a mesh; each function compiles at its first call."""

    mesh: Mesh
    apply: Apply
    abstract_state: TrainState
    init: Callable[[Key[Array, ""]], TrainState]
    """From the root key."""
    train: Callable[[TrainState, Batch, Preprocessing, int], tuple[TrainState, Metrics]]
    """``step.train_steps``; the state is donated."""
    recompute_statistics: Callable[[TrainState, Iterable[Batch], Preprocessing], TrainState]
    """Sets precise BatchNorm statistics, those of all images of some training batches, as in He et
    al.'s released models (KaimingHe/deep-residual-networks, README). EMA needs them: running
    statistics belong to the trained parameters."""

    def put(self, arrays: Any) -> Any:
        """Puts a tree of arrays on every device."""
        return sharding.put(arrays, sharding.replicated(self.mesh))

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
        # Replicated sums, so that every process can fetch them.
        sums = _layout(sharding.replicated(self.mesh))
        score_batch = _jit(exact.score_batch, self.mesh, sums, apply=self.apply)
        return exact.tally(
            functools.partial(score_batch, *state.scored(), preprocessing),
            data,
            batch_size=batch_size,
            expected_examples=expected_examples,
            sharding=sharding.batch(self.mesh),
            # Processes share streamed images; each holds those in memory whole.
            processes=1 if isinstance(data, Examples) else jax.process_count(),
            between=between,
        )


def compiled(
    experiment: Experiment,
    devices: int | None = None,
    fsdp: int = 1,
    among: Sequence[Any] | None = None,
) -> Program:
    """Returns the program of an experiment on a mesh, see ``sharding.make``."""
    mesh = sharding.make(devices, fsdp, among)
    model, batches = experiment.model, experiment.evaluation.statistics_batches
    group_size = parts(model.norm)[1].get("group_size", 0)
    update = optimizer.make(experiment.optimizer, experiment.schedule)
    options = {
        "optimizer": update,
        "execution": experiment.execution,
        "ema": experiment.optimizer.ema > 0,
        "statistics": batches > 0,
    }
    apply, shapes = _traced(model, **options)
    shardings = sharding.of_state(mesh, shapes)
    layout, whole = _layout(shardings), sharding.replicated(mesh)
    learning = Learning(
        apply,
        update,
        experiment.loss,
        experiment.optimizer.ema,
        accumulation=_microbatches(experiment, group_size, mesh.size),
        group_size=group_size,
        augmentation=augmentation(experiment),
        classes=model.num_classes,
        batch_size=experiment.batch_size,
        streamed=experiment.data.crop is not None,
        sharding=sharding.batch(mesh) if mesh.size > 1 else None,
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
        for number, batch in enumerate(data):
            totals = add(state, totals, batch, preprocessing, jnp.int32(number))
        return _jit(step.set_statistics, mesh, layout, count=batches)(state, totals)

    return Program(
        mesh,
        apply,
        jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), shapes, shardings),
        init=_jit(_initial, mesh, layout, model=model, **options),
        train=_jit(step.train_steps, mesh, _layout((shardings, whole)), learning=learning),
        recompute_statistics=recompute_statistics,
    )


def _layout(shardings: Any) -> Any:
    """Makes a tree of shardings hashable."""
    leaves, structure = jax.tree.flatten(shardings)
    return tuple(leaves), structure


@functools.lru_cache(maxsize=256)
def _jit(function: Callable[..., Any], mesh: Mesh, layout: Any, **static: Any) -> Any:
    """Compiles a function with static arguments; experiments share equal ones."""
    leaves, structure = layout
    options: dict[str, Any] = {"compiler_options": quick_to_run(mesh.devices.flat[0].platform)}
    if function is _initial:
        options = {"compiler_options": quick_to_compile()}
    elif function is step.train_steps:
        options |= {"donate_argnames": "state", "static_argnames": "steps"}
    shardings = jax.tree.unflatten(structure, leaves)
    return jax.jit(functools.partial(function, **static), out_shardings=shardings, **options)


def _initial(key: Key[Array, ""], *, model: Architecture, **options: Any) -> TrainState:
    return step.create(model, key=key, **options)[1]


@functools.lru_cache(maxsize=64)
def _traced(model: Architecture, **options: Any) -> tuple[Apply, TrainState]:
    """Returns the network and the shapes of the state."""
    return jax.eval_shape(lambda: step.create(model, key=jax.random.key(0), **options))


def augmentation(experiment: Experiment) -> Augmentation:
    """Returns the augmentation on the device."""
    return Augmentation(**{f.name: getattr(experiment.data, f.name) for f in fields(Augmentation)})


def abstract_preprocessing(experiment: Experiment) -> Preprocessing:
    """Returns the shapes of the normalization constants."""
    shape, per_channel = experiment.model.input_shape, ("channel", "imagenet")
    mean = shape[2:] if experiment.data.normalization in per_channel else shape
    shapes: Any = (jax.ShapeDtypeStruct(size, jnp.float32) for size in (mean, shape[2:]))
    return Preprocessing(*shapes)


def _microbatches(experiment: Experiment, group_size: int, devices: int) -> int:
    """Returns a multiple of ``optimizer.accumulation`` that ``images_per_device`` allows."""
    least, batch = experiment.optimizer.accumulation, experiment.batch_size
    group = group_size or batch
    limit = experiment.execution.images_per_device * devices
    if not limit or batch // least <= limit:
        return least
    for count in range(least, batch // group + 1, least):
        if batch // group % count == 0 and batch // count <= limit:
            return count
    raise UserError(
        f"execution.images_per_device is {limit // devices}, but {devices} devices hold the "
        f"{group} images that BatchNorm normalizes together. Use --model.norm "
        f"'BatchNorm(group_size=N)' with N up to {limit}, or more images_per_device."
    )
