"""Fine-tuning: start from trained weights."""

import dataclasses
import hashlib
import shlex
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.data.augment_device import Normalization, Preprocessing
from resnet_jax.errors import UserError
from resnet_jax.models import norms
from resnet_jax.models.components import component, parts
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm
from resnet_jax.training import run_dir, sharding
from resnet_jax.training.config import Experiment, Start
from resnet_jax.training.step import TrainState, tree_digest
from resnet_jax.weights import card, files, inference
from resnet_jax.weights.loading import FILE_NAME, Pretrained, abstract, load_pretrained


def weights_of(source: Path) -> Pretrained:
    """Returns the weights of a run, or of a file or folder of imported weights."""
    if not source.exists():
        raise UserError(f"there is neither a run nor a file of weights at {source}")
    if is_run(source):
        return run_dir.weights(source)
    try:
        return load_pretrained(source)
    except UserError as error:
        if source.is_dir() or card.KEY in files.read(source)[1]:
            raise
        raise UserError(
            f"{error}. Foreign weights: resnet-jax weights import {source} --as NAMES --to FILE.safetensors"
        ) from error


def is_run(source: Path) -> bool:
    """Returns whether an existing path is a run rather than weights."""
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

    Only the image size, the dtype, ``FrozenBatchNorm`` and, with ``new_head``, the classes may differ from theirs. ``freeze_trunk``
    trains only the classifier and keeps BatchNorm statistics.

    Raises:
      UserError: for weights of another network.
    """
    weights = weights_of(source)
    if freeze_trunk:
        norm, options = parts(experiment.model.norm)
        if norm is BatchNorm:
            frozen = (
                component(FrozenBatchNorm, epsilon=options["epsilon"])
                if "epsilon" in options
                else FrozenBatchNorm
            )
            experiment = replace(experiment, model=replace(experiment.model, norm=frozen))
        _, params, _ = abstract(experiment.model)
        # In the head, a last normalization belongs to the trunk.
        trunk = (
            *(str(key) for key in params if key != "head"),
            *(f"head/{key}" for key in params["head"] if key != "linear"),
        )
        experiment = replace(experiment, optimizer=replace(experiment.optimizer, frozen=trunk))
    start = Start(file=str(source), digest=digest(weights), new_head=new_head)
    experiment = replace(
        experiment, start=start, data=replace(experiment.data, normalization=normalization)
    )
    _check(experiment, weights)
    return experiment


def load(experiment: Experiment) -> Pretrained | None:
    """Returns the weights that an experiment starts from, if any. Raises UserError if they are missing, changed, or do not fit."""
    start = experiment.start
    if not start.file:
        return None
    weights = weights_of(Path(start.file))
    if digest(weights) != start.digest:
        raise UserError(
            f"{start.file} holds other weights than those that the experiment starts from: name it again with --init-from"
        )
    _check(experiment, weights)
    return weights


def preprocessing(experiment: Experiment, weights: Pretrained | None) -> Preprocessing | None:
    """Returns the normalization constants of the weights, per pixel, if the experiment uses them."""
    if weights is None or experiment.data.normalization != "weights":
        return None
    mean, deviation = weights.card.constants()
    return Preprocessing(np.array(np.broadcast_to(mean, experiment.model.input_shape)), deviation)


def begun(state: TrainState, experiment: Experiment, weights: Pretrained) -> TrainState:
    """Replaces parameters and statistics of a state at step 0 by the weights."""
    params, batch_stats = weights.params, weights.batch_stats
    change = {(BatchNorm, FrozenBatchNorm): norms.freeze, (FrozenBatchNorm, BatchNorm): norms.thaw}
    both = parts(weights.architecture.norm)[0], parts(experiment.model.norm)[0]
    if both in change:
        params, batch_stats = change[both](params, batch_stats)
    if experiment.start.new_head:
        params = params | {"head": params["head"] | {"linear": state.params["head"]["linear"]}}
    # Copied: the state is donated to the first step.
    params, batch_stats = (
        jax.tree.map(
            lambda old, new: sharding.put(np.asarray(new, old.dtype), old.sharding), old, new
        )
        for old, new in ((state.params, params), (state.batch_stats, batch_stats))
    )
    return state._replace(
        params=params,
        batch_stats=batch_stats,
        ema=jax.tree.map(jnp.copy, params) if state.ema else state.ema,
        statistics=jax.tree.map(jnp.copy, batch_stats) if state.statistics else state.statistics,
    )


def digest(weights: Pretrained) -> str:
    """Returns the sha256 of parameters, statistics and normalization constants."""
    view = repr(dataclasses.astuple(weights.card.view))
    return hashlib.sha256(
        f"{view} {tree_digest((weights.params, weights.batch_stats))}".encode()
    ).hexdigest()


def _check(experiment: Experiment, weights: Pretrained) -> None:
    ours, theirs = experiment.model, weights.architecture
    if ours.input_shape[2] != theirs.input_shape[2]:
        raise UserError(
            f"the weights take images of {theirs.input_shape[2]} channels, the experiment has {ours.input_shape[2]}"
        )
    texts = {
        field: inference.field_text(theirs, field)
        for field in inference.differing(ours, theirs)
        if field != "num_classes"
    }
    if texts:
        differing = "; ".join(
            f"model.{field} is {inference.field_text(ours, field)}, of the weights {text}"
            for field, text in texts.items()
        )
        options = " ".join(
            f"--model.{f.replace('_', '-')} {shlex.quote(text) if '(' in text else text}"
            for f, text in texts.items()
        )
        raise UserError(
            f"the weights are of another network than the experiment: {differing}. Ask for theirs: {options}"
        )
    if ours.num_classes != theirs.num_classes and not experiment.start.new_head:
        raise UserError(
            f"the weights have {theirs.num_classes} classes, the experiment {ours.num_classes}: use --new-head"
        )
    size = np.asarray(weights.card.view.mean).shape
    if len(size) == 3 and size != ours.input_shape and experiment.data.normalization == "weights":
        raise UserError(
            f"the weights subtract a mean image of {size} from images of {ours.input_shape}: use --data.normalization channel"
        )
