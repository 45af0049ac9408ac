"""Scoring the newest checkpoint of a run, or weights from elsewhere, under one protocol or several."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax.data import sources, views
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.evaluation import dense, exact, protocols
from resnet_jax.evaluation.exact import Score
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.models import Apply, Architecture
from resnet_jax.models.pretrained.card import View
from resnet_jax.models.pretrained.loading import Pretrained
from resnet_jax.studies import result
from resnet_jax.training import mesh, start, trained
from resnet_jax.training.workdir import Workdir

# How the protocol of a score says that the mean image of the weights does not have the size of what they were shown.
AVERAGED = "pixel_mean, averaged over pixels"


def score(
    source: Path,
    *,
    data: str | None,
    split: str | None,
    batch_size: int,
    data_dir: str | None,
    asked: Sequence[Protocol | None] = (None,),
) -> list[dict[str, Any]]:
    """Scores a run's newest whole checkpoint, or a file of weights, every example once under each protocol.

    Images are normalised as those are that the network was trained on: the constants are stored beside the weights. A mean image of another
    size than a protocol's crop is replaced by its mean over pixels.

    Args:
      source: folder of a run, or a file of weights.
      data: set to score; None: the one that it was trained on.
      split: None: the test split.
      batch_size: views of the network's own size that are computed at once; ten crops of an image are ten, and larger ones more.
      data_dir: where prepared sets are looked for first.
      asked: protocols; None: that of the run, or of the card of the weights.

    Returns:
      For each of ``asked`` ``error_percent``, ``top5_error_percent`` (None of at most five classes), ``mean_loss``, ``examples``,
      ``split``, ``step`` (None of a file), ``protocol``, and ``seconds``.

    Raises:
      UserError: where there is neither, or the images do not fit the network.
    """
    if not source.exists():
        raise UserError(f"there is neither a run nor a file of weights at {source}")
    if start.is_run(source):
        return _score_run(source, data, split, batch_size, data_dir, asked)
    weights = start.weights_of(source)
    return [score_weights(weights, data=data, split=split, batch_size=batch_size, data_dir=data_dir, asked=each) for each in asked]


def score_weights(
    weights: Pretrained, *, data: str | None, split: str | None, batch_size: int, data_dir: str | None, asked: Protocol | None = None
) -> dict[str, Any]:
    """``score`` for weights that are loaded already, under one protocol."""
    card = weights.card
    name = data or card.data
    if not name:
        raise UserError(f"{card.source} does not say which images it was trained on: say which to score, as --data cifar10")
    info = sources.describe(name, data_dir)
    split = split or ("test" if "test" in info.examples else "validation")
    shown = asked or protocols.of(card.view)
    # What is resized and cropped fits whatever its size, and files of others do not say for which one they are.
    _check(card.architecture, info, split, batch_size, sized=not (shown.crop or shown.scales or card.convention))
    mean, size = np.shape(card.view.mean), (shown.crop,) * 2 if shown.crop else info.image_shape[:2]
    if asked is None and len(mean) == 3 and mean[:2] != size:
        raise UserError(f"the weights subtract a mean image of {mean}; the images of {info.name} are shown as {(*size, mean[2])}")
    over = mesh.make()
    params, batch_stats = jax.device_put((weights.params, weights.batch_stats), mesh.replicated(over))
    constants = Preprocessing(*card.constants())
    network = _Network(card.architecture, weights.apply(), params, batch_stats, constants, mesh.batch(over))
    scored = network.score(info, split, shown, batch_size)
    return _found(scored, split, None, info, weights_protocol(weights, info, split, shown))


def weights_protocol(weights: Pretrained, info: DatasetInfo, split: str, shown: Protocol | None = None) -> dict[str, Any]:
    """The circumstances of a score of weights from elsewhere: how they were trained is not among them."""
    view = weights.card.view
    shown = shown or protocols.of(view)
    height, width, _ = weights.architecture.input_shape if None in info.image_shape else info.image_shape
    return {
        "dataset": info.name,
        "dataset_version": info.version,
        "test_images": info.examples[split],
        "weights": weights.card.source,
        "sha256": weights.card.sha256,
        "padding": "explicit symmetric",
        "preprocessing": _said(view, shown),
        "view": shown.view(height, width),
        "dtype": weights.architecture.dtype,
    }


def _said(view: View, shown: Protocol) -> str:
    if isinstance(view.mean[0], tuple):
        return "pixel_mean" if _fits(np.shape(view.mean), shown) else AVERAGED
    mean, deviation = (", ".join(f"{number:.4g}" for number in numbers) for numbers in (view.mean, view.deviation))
    return f"channel: mean {mean}, deviation {deviation}"


def _fits(mean: tuple[int, ...], shown: Protocol) -> bool:
    """Whether constants of a shape can be subtracted from what a protocol shows; of whole images at no certain size they can."""
    return len(mean) == 1 or (mean[:2] == (shown.crop,) * 2 if shown.crop else not (shown.resize or shown.scales))


def _fitting(preprocessing: Preprocessing, shown: Protocol) -> Preprocessing:
    if _fits(preprocessing.mean.shape, shown):
        return preprocessing
    return preprocessing._replace(mean=np.asarray(preprocessing.mean).mean((0, 1)))


def _score_run(
    run: Path, data: str | None, split: str | None, batch_size: int, data_dir: str | None, asked: Sequence[Protocol | None]
) -> list[dict[str, Any]]:
    experiment, _ = Workdir(run).experiment()
    info = sources.describe(data or experiment.data.name, data_dir)
    split = split or experiment.data.test_split
    own = protocols.parse(experiment.evaluation.protocol) if experiment.evaluation.protocol else Protocol()
    for each in asked:
        shown = each or own
        _check(experiment.model, info, split, batch_size, sized=not (shown.crop or shown.scales))
    found = trained.newest(run)
    params, batch_stats = found.state.scored()
    sharding = mesh.batch(found.program.mesh)
    network = _Network(experiment.model, found.program.apply, params, batch_stats, found.preprocessing, sharding)
    results = []
    for each in asked:
        shown = each or own
        scored = network.score(info, split, shown, batch_size)
        protocol = result.protocol(experiment, info) | {"test_images": info.examples[split]}
        if each is not None:
            protocol["view"] = each.view()
        if not _fits(found.preprocessing.mean.shape, shown):
            protocol["preprocessing"] = AVERAGED
        results.append(_found(scored, split, found.step, info, protocol))
    return results


@dataclass(frozen=True)
class _Network:
    model: Architecture
    apply: Apply
    params: Any
    batch_stats: Any
    preprocessing: Preprocessing
    sharding: jax.sharding.NamedSharding

    def score(self, info: DatasetInfo, split: str, shown: Protocol, batch_size: int) -> tuple[Score, float]:
        """With the seconds that it took."""
        began = time.perf_counter()
        network = self.apply, self.params, self.batch_stats, _fitting(self.preprocessing, shown)
        if shown.scales:
            height, width, _ = self.model.input_shape
            found = dense.evaluate(*network, info, split, shown, pixels=batch_size * height * width, sharding=self.sharding)
        else:
            images = views.load(info, split, shown, batch_size)
            expected = info.examples[split]
            found = exact.evaluate(*network, images, batch_size=batch_size, expected_examples=expected, sharding=self.sharding)
        return found, time.perf_counter() - began


def _found(scored: tuple[Score, float], split: str, step: int | None, info: DatasetInfo, protocol: dict[str, Any]) -> dict[str, Any]:
    score, seconds = scored
    return {
        "error_percent": score.error_percent,
        "top5_error_percent": score.top5_error_percent if info.num_classes > exact.TOP else None,
        "mean_loss": score.mean_loss,
        "examples": score.examples,
        "split": split,
        "step": step,
        "protocol": protocol,
        "seconds": round(seconds, 2),
    }


def _check(model: Architecture, info: DatasetInfo, split: str, batch_size: int, *, sized: bool) -> None:
    if split not in info.examples:
        raise UserError(f"{info.name} has no split {split!r}; it has {', '.join(sorted(info.examples))}")
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; give 1 image or more")
    fits = info.image_shape == model.input_shape if sized else info.image_shape[2] == model.input_shape[2]
    if not fits or info.num_classes != model.num_classes:
        raise UserError(
            f"{info.name} has images of {info.image_shape} in {info.num_classes} classes; the network takes {model.input_shape} "
            f"in {model.num_classes}"
        )
