"""Runs that begin with weights: fine-tuning."""

import dataclasses
import hashlib
import shlex
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.configured import configured, parts
from resnet_jax.data.augmentation import Normalization, Preprocessing
from resnet_jax.errors import UserError
from resnet_jax.models import norms
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm
from resnet_jax.models.pretrained import card, inference
from resnet_jax.models.pretrained.loading import FILE_NAME, Pretrained, abstract, load_pretrained
from resnet_jax.tensors import files
from resnet_jax.training import mesh, trained
from resnet_jax.training.experiment import Experiment, Start
from resnet_jax.training.state import TrainState, tree_digest


def weights_of(source: Path) -> Pretrained:
    """The weights of a run, or of a file or folder of this project's format.

    Raises:
      UserError: where there is neither, and for a file in the format of others, with the command that brings it in.
    """
    if not source.exists():
        raise UserError(f"there is neither a run nor a file of weights at {source}")
    if is_run(source):
        return trained.weights(source)
    try:
        return load_pretrained(source)
    except UserError as error:
        if source.is_dir() or card.KEY in files.open_tensors(source).metadata:
            raise
        raise UserError(f"{error}. To bring it in: resnet-jax weights import {source} --as NAMES --to FILE.safetensors") from error


def is_run(source: Path) -> bool:
    """Whether a path that exists stands for a run, and not for a file of weights."""
    return source.is_dir() and not (source / FILE_NAME).exists()


def start_from(
    experiment: Experiment,
    source: Path,
    *,
    new_head: bool = False,
    freeze_trunk: bool = False,
    normalization: Normalization = "weights",
) -> Experiment:
    """The same experiment, begun with weights.

    Args:
      experiment: its network is that of the weights, but for classes (with ``new_head``), image size, dtype and ``FrozenBatchNorm``.
      source: imported weights, or a run.
      new_head: the classifier is drawn anew, by the run's seed.
      freeze_trunk: nothing but the classifier is trained, and statistics of normalisations stay as they are.
      normalization: of the images; with the constants of the weights, unless said otherwise.

    Raises:
      UserError: for another network, naming what differs and how to ask for it.
    """
    found = weights_of(source)
    if freeze_trunk:
        norm, options = parts(experiment.model.norm)
        if norm is BatchNorm:
            kept = {"epsilon": options["epsilon"]} if "epsilon" in options else {}
            frozen = configured(FrozenBatchNorm, **kept) if kept else FrozenBatchNorm
            experiment = replace(experiment, model=replace(experiment.model, norm=frozen))
        _, params, _ = abstract(experiment.model)
        # Before the classifier there may be parameters of the trunk: a last normalisation's.
        trunk = (*(str(key) for key in params if key != "head"), *(f"head/{key}" for key in params["head"] if key != "linear"))
        experiment = replace(experiment, optimizer=replace(experiment.optimizer, frozen=trunk))
    start = Start(file=str(source), digest=digest(found), new_head=new_head)
    experiment = replace(experiment, start=start, data=replace(experiment.data, normalization=normalization))
    _check(experiment, found)
    return experiment


def load(experiment: Experiment) -> Pretrained | None:
    """The weights that an experiment begins with; None where they are drawn.

    Raises:
      UserError: where they are gone, others than they were, or do not fit.
    """
    start = experiment.start
    if not start.file:
        return None
    found = weights_of(Path(start.file))
    if digest(found) != start.digest:
        raise UserError(f"{start.file} holds other weights than those that the experiment starts from: give it anew, with --init-from")
    _check(experiment, found)
    return found


def preprocessing(experiment: Experiment, weights: Pretrained | None) -> Preprocessing | None:
    """Constants of the weights, one of every pixel; None where the experiment measures its own."""
    if weights is None or experiment.data.normalization != "weights":
        return None
    mean, deviation = weights.card.constants()
    return Preprocessing(np.array(np.broadcast_to(mean, experiment.model.input_shape)), deviation)


def begun(state: TrainState, experiment: Experiment, weights: Pretrained) -> TrainState:
    """A state at step 0 with weights in place of those drawn."""
    params, batch_stats = weights.params, weights.batch_stats
    change = {(BatchNorm, FrozenBatchNorm): norms.freeze, (FrozenBatchNorm, BatchNorm): norms.thaw}.get(
        (parts(weights.architecture.norm)[0], parts(experiment.model.norm)[0])
    )
    if change is not None:
        params, batch_stats = change(params, batch_stats)
    if experiment.start.new_head:
        params = params | {"head": params["head"] | {"linear": state.params["head"]["linear"]}}
    # The state's arrays are given up to the first step: those of the weights are copied.
    params, batch_stats = (
        jax.tree.map(lambda old, new: mesh.put(np.asarray(new, old.dtype), old.sharding), old, new)
        for old, new in ((state.params, params), (state.batch_stats, batch_stats))
    )
    return state._replace(
        params=params,
        batch_stats=batch_stats,
        ema=jax.tree.map(jnp.copy, params) if state.ema else state.ema,
        statistics=jax.tree.map(jnp.copy, batch_stats) if state.statistics else state.statistics,
    )


def digest(weights: Pretrained) -> str:
    """sha256 over parameters, statistics and the constants of images, whatever file they lie in."""
    seen = repr(dataclasses.astuple(weights.card.view))
    return hashlib.sha256(f"{seen} {tree_digest((weights.params, weights.batch_stats))}".encode()).hexdigest()


def _check(experiment: Experiment, weights: Pretrained) -> None:
    ours, theirs = experiment.model, weights.architecture
    fields = [field for field in inference.differing(ours, theirs) if field != "num_classes"]
    if ours.input_shape[2] != theirs.input_shape[2]:
        raise UserError(f"the weights take images of {theirs.input_shape[2]} channels, the experiment has {ours.input_shape[2]}")
    if fields:
        texts = {field: inference.said(theirs, field) for field in fields}
        said = "; ".join(f"model.{field} is {inference.said(ours, field)}, of the weights {text}" for field, text in texts.items())
        # A part with arguments is quoted for the shell, numbers are not.
        asked = " ".join(f"--model.{f.replace('_', '-')} {_quoted(text) if '(' in text else text}" for f, text in texts.items())
        raise UserError(f"the weights are of another network than the experiment: {said}. Ask for theirs: {asked}")
    if ours.num_classes != theirs.num_classes and not experiment.start.new_head:
        raise UserError(
            f"the weights have {theirs.num_classes} classes, the experiment {ours.num_classes}: --new-head draws a new classifier"
        )
    size = np.asarray(weights.card.view.mean).shape
    if len(size) == 3 and size != ours.input_shape and experiment.data.normalization == "weights":
        raise UserError(
            f"the weights subtract a mean image of {size}, the experiment's images are {ours.input_shape}: use --data.normalization channel"
        )


def _quoted(text: str) -> str:
    # Double quotes keep the single ones of a part's arguments readable.
    return f'"{text}"' if not set('"$`\\!') & set(text) else shlex.quote(text)
