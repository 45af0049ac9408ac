"""Precise BatchNorm: statistics averaged over training batches, in place of moving averages.

Used by He et al.'s released models (KaimingHe/deep-residual-networks, README). Averaged parameters (EMA) need them:
moving averages belong to the trained parameters.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from resnet_jax.data.augment_device import Augmentation, Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.models import Apply, Architecture
from resnet_jax.models.components import component, parts
from resnet_jax.models.execution import quick_to_compile, quick_to_run
from resnet_jax.models.resnet import Variables
from resnet_jax.training import optimizer as optimizer_lib
from resnet_jax.training import sharding as sharding_lib
from resnet_jax.training import step
from resnet_jax.training.config import Experiment
from resnet_jax.training.step import (
    Batches,
    Learning,
    Metrics,
    ResidentData,
    StreamedBatch,
    TrainState,
)


def add_batch(
    state: TrainState,
    totals: Variables,
    data: ResidentData | StreamedBatch,
    number: Int[Array, ""],
    *,
    batches: Batches,
    group_size: int,
    apply: Apply,
) -> Variables:
    """Adds the means and mean squares of training batch ``number``, in groups of ``group_size`` images, to ``totals``.

    ``apply`` has a BatchNorm momentum of 0: its statistics are those of its batch.
    """
    params, _ = state.scored()
    key = jax.random.fold_in(jax.random.fold_in(state.key, 4), state.step)
    batch_key = jax.random.fold_in(key, number + 1)
    images, labels = data.images, data.labels
    if isinstance(data, ResidentData):
        indices = data.order(jax.random.fold_in(key, 0), number, 1, batches.size)[0]
        images, labels = images[indices], labels[indices]
    batch = batches(batch_key, data.preprocessing, images, labels)
    groups = batch.images.reshape(-1, group_size, *batch.images.shape[1:])
    keys = jax.random.split(batch_key, len(groups))
    _, of_groups = jax.vmap(
        lambda images, key: apply(params, state.batch_stats, images, train=True, key=key)
    )(groups, keys)
    moments = _map_variance(of_groups, lambda mean, var: var + mean * mean)
    return jax.tree.map(lambda total, moment: total + moment.mean(axis=0), totals, moments)


def finish(state: TrainState, totals: Variables, *, count: int) -> TrainState:
    """Returns the state with the mean and variance over all images of ``count`` batches."""
    moments = jax.tree.map(lambda total: total / count, totals)
    return state._replace(
        statistics=_map_variance(moments, lambda mean, square: jnp.maximum(square - mean * mean, 0))
    )


def _map_variance(tree: Any, function: Callable[[Array, Array], Array]) -> Any:
    """Replaces ``var`` by a function of ``mean`` and ``var`` in every layer."""
    if not isinstance(tree, dict):
        return tree
    if tree.keys() == {"mean", "var"}:
        return {"mean": tree["mean"], "var": function(tree["mean"], tree["var"])}
    return {name: _map_variance(inner, function) for name, inner in tree.items()}


@dataclass(frozen=True)
class Program:
    """An experiment on a mesh; each function compiles at its first call."""

    mesh: Mesh
    apply: Apply
    abstract_state: TrainState
    init: Callable[[Key[Array, ""]], TrainState]
    """From the root key."""
    train: Callable[[TrainState, Any, int], tuple[TrainState, Metrics]]
    """``step.train_steps``; the state is donated."""
    recompute_statistics: Callable[[TrainState, Any], TrainState]
    """Sets precise statistics, if the experiment has them, from ``ResidentData`` data or ``StreamedBatch`` batches."""

    def place(self, data: Examples, preprocessing: Preprocessing) -> ResidentData:
        """Puts a training set on every device."""
        return self.constants(ResidentData(data.images, data.labels, preprocessing))  # pyright: ignore[reportArgumentType]

    def constants(self, arrays: Any) -> Any:
        """Puts arrays, such as normalization constants, on every device."""
        return sharding_lib.put(arrays, sharding_lib.replicated(self.mesh))

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
        params, batch_stats = state.scored()
        # Replicated sums, so that every process can fetch them.
        score_batch = _jit(
            exact.score_batch, self.mesh, sharding_lib.replicated(self.mesh), apply=self.apply
        )
        return exact.tally(
            lambda images, labels: score_batch(params, batch_stats, preprocessing, images, labels),
            data,
            batch_size=batch_size,
            expected_examples=expected_examples,
            sharding=sharding_lib.batch(self.mesh),
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
    """Returns the program of an experiment on a mesh, see ``mesh.make``. Equal computations share compiled functions."""
    mesh = sharding_lib.make(devices, fsdp, among)
    model, count, ema = (
        experiment.model,
        experiment.evaluation.statistics_batches,
        experiment.optimizer.ema,
    )
    group_size = parts(model.norm)[1].get("group_size", 0)
    optimizer = optimizer_lib.make(experiment.optimizer, experiment.schedule)
    fields = {
        "optimizer": optimizer,
        "execution": experiment.execution,
        "ema": ema > 0,
        "statistics": count > 0,
    }
    apply, shapes = _traced(model, **fields)
    shardings, whole = sharding_lib.of_state(mesh, shapes), sharding_lib.replicated(mesh)
    leaves, structure = jax.tree.flatten(shardings)
    layout = (tuple(leaves), structure)
    batches = batches_of(
        experiment, model.num_classes, sharding_lib.batch(mesh) if mesh.size > 1 else None
    )
    learning = Learning(
        apply,
        optimizer,
        experiment.loss,
        ema,
        accumulation=_microbatches(experiment, group_size, mesh.size),
        group_size=group_size or 1,
        whole=whole if fsdp > 1 else None,
    )

    def recompute_statistics(state: TrainState, data: Any) -> TrainState:
        if not count:
            return state
        measured = dataclasses.replace(model, norm=component(model.norm, momentum=0.0))
        options = {
            "batches": batches,
            "group_size": group_size or experiment.batch_size,
            "apply": _traced(measured, **fields)[0],
        }
        add, totals = (
            _jit(add_batch, mesh, whole, **options),
            jax.tree.map(jnp.zeros_like, state.batch_stats),
        )
        for number, batch in enumerate(
            itertools.repeat(data, count) if isinstance(data, ResidentData) else data
        ):
            totals = add(state, totals, batch, jnp.int32(number))
        return _jit(finish, mesh, layout, count=count)(state, totals)

    return Program(
        mesh=mesh,
        apply=apply,
        abstract_state=jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, shardings
        ),
        init=_jit(_initial, mesh, layout, once=True, model=model, **fields),
        train=_jit(step.train_steps, mesh, layout, steps=True, batches=batches, learning=learning),
        recompute_statistics=recompute_statistics,
    )


@functools.lru_cache(maxsize=256)
def _jit(
    function: Callable[..., Any],
    mesh: Mesh,
    out: Any,
    *,
    once: bool = False,
    steps: bool = False,
    **static: Any,
) -> Any:
    """Returns ``jax.jit`` of a module-level function with static arguments; equal arguments return the same object.

    Args:
      out: sharding of the result, or leaves and structure of the state's shardings.
      once: compile fast rather than run fast.
      steps: donate the state; ``steps`` is static.
    """
    if isinstance(out, tuple):
        state = jax.tree.unflatten(out[1], out[0])
        out = (state, sharding_lib.replicated(mesh)) if steps else state
    options = quick_to_compile() if once else quick_to_run(mesh.devices.flat[0].platform)
    named = {"donate_argnums": 0, "static_argnames": "steps"} if steps else {}
    return jax.jit(
        functools.partial(function, **static), out_shardings=out, compiler_options=options, **named
    )


def _initial(key: Key[Array, ""], *, model: Architecture, **fields: Any) -> TrainState:
    return step.create(model, key=key, **fields)[1]


@functools.lru_cache(maxsize=64)
def _traced(model: Architecture, **fields: Any) -> tuple[Apply, TrainState]:
    """Returns the network and the shapes of the state."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(functools.partial(step.create, model, **fields), key=key)


def batches_of(
    experiment: Experiment, classes: int, sharding: jax.sharding.Sharding | None = None
) -> Batches:
    """Returns the preprocessing of the experiment."""
    data = experiment.data
    augmentation = Augmentation(
        pad=data.pad, flip=data.flip, erasing=data.erasing, mix=data.mix, color=data.color
    )
    return Batches(experiment.batch_size, augmentation, classes, sharding)


def _microbatches(experiment: Experiment, group_size: int, devices: int) -> int:
    """Returns ``optimizer.accumulation``, or the next larger number that ``execution.images_per_device`` allows."""
    limit, batch, least = (
        experiment.execution.images_per_device,
        experiment.batch_size,
        experiment.optimizer.accumulation,
    )
    groups = batch // (group_size or batch)
    for count in range(least, max(groups, least) + 1, least):
        if (count == least or groups % count == 0) and (
            not limit or batch // count <= limit * devices
        ):
            return count
    raise UserError(
        f"execution.images_per_device is {limit}, but {devices} devices hold the {group_size or batch} images that BatchNorm normalizes "
        f"together: use --model.norm 'BatchNorm(group_size=N)' with N up to {limit * devices}, or more images_per_device"
    )


def abstract_preprocessing(experiment: Experiment) -> Preprocessing:
    """Returns the shapes of the normalization constants."""
    *size, channels = experiment.model.input_shape
    mean = (
        (channels,)
        if experiment.data.normalization in ("channel", "imagenet")
        else (*size, channels)
    )
    shapes: Any = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (mean, (channels,))]
    return Preprocessing(*shapes)
