"""Scoring the newest checkpoint of a run, or weights from elsewhere."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax.data import sources, views
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.evaluation.exact import Score
from resnet_jax.models import Architecture
from resnet_jax.models.pretrained.card import View
from resnet_jax.models.pretrained.loading import Pretrained
from resnet_jax.studies import result
from resnet_jax.training import mesh, start, trained
from resnet_jax.training.workdir import Workdir


def score(source: Path, *, data: str | None, split: str | None, batch_size: int, data_dir: str | None) -> dict[str, Any]:
    """Scores a run's newest whole checkpoint, or a file of weights, every example once.

    Images are prepared as those are that the network was trained on: the constants are stored beside the weights.

    Returns:
      ``error_percent``, ``mean_loss``, ``examples``, ``split``, ``protocol``, and ``step`` (None of a file).

    Raises:
      UserError: where there is neither, or the images do not fit the network.
    """
    if not source.exists():
        raise UserError(f"there is neither a run nor a file of weights at {source}")
    if start.is_run(source):
        return _score_run(source, data, split, batch_size, data_dir)
    return score_weights(start.weights_of(source), data=data, split=split, batch_size=batch_size, data_dir=data_dir)


def score_weights(weights: Pretrained, *, data: str | None, split: str | None, batch_size: int, data_dir: str | None) -> dict[str, Any]:
    """``score`` for weights that are loaded already."""
    card = weights.card
    name = data or card.data
    if not name:
        raise UserError(f"{card.source} does not say which images it was trained on: say which to score, as --data cifar10")
    info = sources.describe(name, data_dir)
    split = split or ("test" if "test" in info.examples else "validation")
    # What is resized and cropped fits whatever its size, and files of others do not say for which one they are.
    _check(card.architecture, info, split, batch_size, sized=not (card.view.crop or card.convention))
    mean, size = np.shape(card.view.mean), (card.view.crop,) * 2 if card.view.crop else info.image_shape[:2]
    if len(mean) == 3 and mean[:2] != size:
        raise UserError(f"the weights subtract a mean image of {mean}; the images of {info.name} are shown as {(*size, mean[2])}")
    found = exact.evaluate(
        weights.apply(),
        weights.params,
        weights.batch_stats,
        Preprocessing(*card.constants()),
        views.load(info, split, card.view, batch_size),
        batch_size=batch_size,
        expected_examples=info.examples[split],
        sharding=mesh.batch(mesh.make(batch=batch_size)),
    )
    return _found(found, split, None, weights_protocol(weights, info, split))


def weights_protocol(weights: Pretrained, info: DatasetInfo, split: str) -> dict[str, Any]:
    """The circumstances of a score of weights from elsewhere: how they were trained is not among them."""
    view = weights.card.view
    height, width, _ = weights.architecture.input_shape if None in info.image_shape else info.image_shape
    return {
        "dataset": info.name,
        "dataset_version": info.version,
        "test_images": info.examples[split],
        "weights": weights.card.source,
        "sha256": weights.card.sha256,
        "padding": "explicit symmetric",
        "preprocessing": _said(view),
        "view": f"single {view.crop or height}x{view.crop or width}"
        + (f" of the shorter side at {view.resize}, {view.interpolation}" if view.resize else ""),
        "dtype": weights.architecture.dtype,
    }


def _said(view: View) -> str:
    if isinstance(view.mean[0], tuple):
        return "pixel_mean"
    mean, deviation = (", ".join(f"{number:.4g}" for number in numbers) for numbers in (view.mean, view.deviation))
    return f"channel: mean {mean}, deviation {deviation}"


def _score_run(run: Path, data: str | None, split: str | None, batch_size: int, data_dir: str | None) -> dict[str, Any]:
    experiment, _ = Workdir(run).experiment()
    info = sources.describe(data or experiment.data.name, data_dir)
    split = split or experiment.data.test_split
    _check(experiment.model, info, split, batch_size, sized=True)
    found = trained.newest(run)
    scored = exact.evaluate(
        found.program.apply,
        *found.state.scored(),
        found.preprocessing,
        sources.read(info, split),
        batch_size=batch_size,
        expected_examples=info.examples[split],
        sharding=mesh.batch(found.program.mesh),
    )
    return _found(scored, split, found.step, result.protocol(experiment, info) | {"test_images": scored.examples})


def _found(score: Score, split: str, step: int | None, protocol: dict[str, Any]) -> dict[str, Any]:
    return {
        "error_percent": score.error_percent,
        "mean_loss": score.mean_loss,
        "examples": score.examples,
        "split": split,
        "step": step,
        "protocol": protocol,
    }


def _check(model: Architecture, info: DatasetInfo, split: str, batch_size: int, *, sized: bool) -> None:
    if split not in info.examples:
        raise UserError(f"{info.name} has no split {split!r}; it has {', '.join(sorted(info.examples))}")
    if batch_size < 1 or batch_size % jax.device_count():
        raise UserError(f"--batch-size is {batch_size}; use a positive multiple of the {jax.device_count()} devices")
    fits = info.image_shape == model.input_shape if sized else info.image_shape[2] == model.input_shape[2]
    if not fits or info.num_classes != model.num_classes:
        raise UserError(
            f"{info.name} has images of {info.image_shape} in {info.num_classes} classes; the network takes {model.input_shape} "
            f"in {model.num_classes}"
        )
