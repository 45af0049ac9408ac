"""Trained weights of runs and files, and experiments that start from them."""

import dataclasses
import functools
import hashlib
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from resnet_jax.data.augment_device import Normalization, Preprocessing
from resnet_jax.errors import UserError, require
from resnet_jax.evaluation import protocols
from resnet_jax.models import norms
from resnet_jax.models.components import Factory, component, parts
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm
from resnet_jax.training import optimizer, sharding
from resnet_jax.training import step as step_lib
from resnet_jax.training.checkpoint import Checkpoints
from resnet_jax.training.config import Experiment, Start
from resnet_jax.training.run_dir import Workdir
from resnet_jax.training.sharding import Program
from resnet_jax.training.step import Teacher, TrainState, Tree
from resnet_jax.weights import files, inference
from resnet_jax.weights.card import KEY, Card, View
from resnet_jax.weights.loading import FILE_NAME, Pretrained, abstract, load_pretrained


class Restored(NamedTuple):
    """A run at a step."""

    experiment: Experiment
    program: Program
    step: int
    state: TrainState
    preprocessing: Preprocessing


def restore(run: Path, step: int | None = None) -> Restored:
    """Restores a run at a kept step; None: the newest; 0: the initialization."""
    workdir = Workdir(run)
    experiment, seed = workdir.experiment()
    if not workdir.checkpoints.is_dir():
        raise UserError(f"{run} has no checkpoint yet")
    if step == 0 and experiment.start.file:
        raise UserError(f"{run} starts from {experiment.start.file}: give that in place of step 0")
    program = sharding.compiled(experiment)
    checkpoints = Checkpoints(
        workdir.checkpoints,
        experiment.checkpointing,
        # Results go to stdout, possibly as JSON.
        say=functools.partial(print, file=sys.stderr),
        fingerprint=workdir.read_experiment_file()["fingerprint"],
        read_only=True,
    )
    like = program.abstract_state, program.abstract_preprocessing
    steps = 0, *checkpoints.steps()
    if step and step not in steps:
        raise UserError(f"{run} has no step {step}, but {', '.join(map(str, steps))}")
    if step:
        arrays = checkpoints.restore(step, *like)
        restored = arrays and (step, *arrays)
    else:
        restored = checkpoints.restore_newest(*like)
    if restored is None:
        raise UserError(f"{run} has no intact checkpoint")
    if step == 0:
        restored = 0, program.init(jax.random.key(seed)), restored[2]
    return Restored(experiment, program, *restored)


def weights_of(source: Path, step: int | None = None) -> Pretrained:
    """Returns the evaluated weights of a run, see ``restore``, or imported weights."""
    if not source.exists():
        raise UserError(f"there is neither a run nor a file of weights at {source}")
    if step is None and not is_run(source):
        try:
            return load_pretrained(source, "resnet-jax")
        except UserError as error:
            if source.is_dir() or KEY in files.read(source)[1]:
                raise
            command = f"resnet-jax weights import {source} --as NAMES --to FILE.safetensors"
            raise UserError(f"{error}. Foreign weights: {command}") from error
    experiment, _, step, state, constants = restore(source, step)
    mean, deviation = (np.asarray(array, np.float64).tolist() for array in constants)
    view = View(mean=mean, deviation=deviation)
    if name := experiment.evaluation.protocol:
        crop = protocols.parse(name)
        sizes = {"resize": crop.resize or 0, "crop": crop.crop or 0}
        view = replace(view, **sizes, interpolation=crop.interpolation)
    card = Card(
        architecture=experiment.model,
        view=view,
        source=f"{source.resolve().name}, step {step}",
        data=experiment.data.name,
        classes=experiment.data.classes,
        counters={"": float(step)},
    )
    return Pretrained(card, *jax.device_get(state.scored()))


def is_run(source: Path) -> bool:
    """Returns whether a path is a run rather than weights."""
    return source.is_dir() and not (source / FILE_NAME).exists()


def start_from(
    experiment: Experiment,
    source: Path,
    *,
    new_head: bool = False,
    freeze_trunk: bool = False,
    normalization: Normalization = "weights",
) -> Experiment:
    """Returns the experiment, starting from the weights of a file or a run.

    ``new_head`` allows other classes. ``freeze_trunk`` trains only the classifier.
    """
    weights = weights_of(source)
    if freeze_trunk:
        norm, options = parts(experiment.model.norm)
        if norm is BatchNorm:
            frozen: Factory = FrozenBatchNorm
            if "epsilon" in options:
                frozen = component(frozen, epsilon=options["epsilon"])
            experiment = replace(experiment, model=replace(experiment.model, norm=frozen))
        _, params, _ = abstract(experiment.model)
        # In the head, a last normalization belongs to the trunk.
        trunk = (
            *(str(key) for key in params if key != "head"),
            *(f"head/{key}" for key in params["head"] if key != "linear"),
        )
        experiment = replace(experiment, optimizer=replace(experiment.optimizer, frozen=trunk))
    experiment = replace(
        experiment,
        start=Start(file=str(source), digest=digest(weights), new_head=new_head),
        data=replace(experiment.data, normalization=normalization),
    )
    _check(experiment, weights)
    return experiment


def load(experiment: Experiment) -> Pretrained:
    """Returns the initial weights; raises UserError if they are missing or changed."""
    start = experiment.start
    weights = weights_of(Path(start.file))
    if digest(weights) != start.digest:
        raise UserError(f"{start.file} holds other weights than the experiment: use --init-from")
    _check(experiment, weights)
    return weights


def with_teacher(experiment: Experiment) -> tuple[Experiment, Teacher | None]:
    """Returns the experiment with the digest of its teacher, and the teacher, if any."""
    distillation, model = experiment.distillation, experiment.model
    source, shape = distillation.teacher, model.input_shape
    if not source:
        return experiment, None
    weights = weights_of(Path(source)) if Path(source).exists() else load_pretrained(source)
    theirs, (mean, deviation) = weights.architecture, weights.card.constants()
    pairs = {"channels": (theirs.input_shape[2], shape[2])}
    if distillation.weight:
        pairs["classes"] = theirs.num_classes, model.num_classes
    for name, (number, own) in pairs.items():
        require(number == own, f"the teacher {source} has {number} {name}, the student {own}.")
    size = mean.shape
    fits = size in (shape, shape[2:])
    require(fits, f"the teacher {source} has a mean image of {size}, the student images of {shape}")
    known = replace(experiment, distillation=replace(distillation, digest=digest(weights)))
    constants, apply = Preprocessing(mean, deviation), weights.apply(experiment.execution)
    return known, Teacher(apply, weights.params, weights.batch_stats, constants)


def preprocessing(experiment: Experiment, weights: Pretrained) -> Preprocessing | None:
    """Returns the normalization constants of the weights, if the experiment uses them."""
    if experiment.data.normalization != "weights":
        return None
    mean, deviation = weights.card.constants()
    return Preprocessing(np.array(np.broadcast_to(mean, experiment.model.input_shape)), deviation)


def initial_state(state: TrainState, experiment: Experiment, weights: Pretrained) -> TrainState:
    """Replaces parameters and statistics of a state at step 0 by the weights."""
    params, batch_stats = weights.params, weights.batch_stats
    norm, own_norm = parts(weights.architecture.norm)[0], parts(experiment.model.norm)[0]
    if (norm, own_norm) == (BatchNorm, FrozenBatchNorm):
        params, batch_stats = norms.freeze(params, batch_stats)
    elif (norm, own_norm) == (FrozenBatchNorm, BatchNorm):
        params, batch_stats = norms.thaw(params, batch_stats)
    if experiment.start.new_head:
        head = params.get("head", {}) | {"linear": state.params["head"]["linear"]}
        params = params | {"head": head}

    def place(old: Tree, new: Tree) -> Tree:
        return jax.tree.map(lambda o, n: sharding.put(np.asarray(n, o.dtype), o.sharding), old, new)

    update = optimizer.make(experiment.optimizer, experiment.schedule)
    # Copies, because the first step donates the state.
    return state._replace(
        opt_state=place(state.opt_state, update.init(params)),
        params=place(state.params, params),
        batch_stats=place(state.batch_stats, batch_stats),
        ema=place(state.ema, params) if state.ema else {},
        statistics=place(state.statistics, batch_stats) if state.statistics else {},
    )


def digest(weights: Pretrained) -> str:
    """Returns the sha256 of parameters, statistics and normalization constants."""
    view = repr(dataclasses.astuple(weights.card.view))
    arrays = step_lib.digest((weights.params, weights.batch_stats))
    return hashlib.sha256(f"{view} {arrays}".encode()).hexdigest()


def _check(experiment: Experiment, weights: Pretrained) -> None:
    ours, theirs = experiment.model, weights.architecture
    shape, channels, classes = ours.input_shape, theirs.input_shape[2], theirs.num_classes
    if shape[2] != channels:
        raise UserError(f"the weights take images of {channels} channels, got {shape[2]}")
    if fields := [f for f in inference.differing(ours, theirs) if f != "num_classes"]:
        texts = {f.replace("_", "-"): inference.field_text(theirs, f) for f in fields}
        options = " ".join(
            f"--model.{name} {shlex.quote(text) if '(' in text else text}"
            for name, text in texts.items()
        )
        raise UserError(f"the weights are of another network. Use {options}")
    if ours.num_classes != classes and not experiment.start.new_head:
        raise UserError(
            f"the weights have {classes} classes, not {ours.num_classes}: use --new-head"
        )
    size = np.shape(weights.card.view.mean)
    if experiment.data.normalization == "weights" and size not in (shape, shape[2:]):
        raise UserError(f"the mean image has the shape {size}: use --data.normalization channel")
