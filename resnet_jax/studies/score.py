"""Scores of runs and imported weights, under one or several protocols."""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import DatasetInfo, Examples
from resnet_jax.errors import Positive, UserError, check, require
from resnet_jax.evaluation import dense, exact, protocols
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.models import Apply, Architecture, Execution
from resnet_jax.models.resnet import Variables
from resnet_jax.training import fine_tune, run_dir, sharding
from resnet_jax.training.run_dir import Record, Workdir
from resnet_jax.weights.loading import Pretrained

AVERAGED = "pixel_mean, averaged over pixels"


def score(
    source: Path | Pretrained,
    *,
    data: str | None,
    split: str | None,
    batch_size: int,
    data_dir: str | None,
    requested: Sequence[Protocol | None] = (None,),
) -> list[Record]:
    """Scores the newest valid checkpoint of a run, or weights, once per protocol.

    Args:
      data: None: the training set's.
      split: None: the test split.
      batch_size: views of the network's input size per call.
      requested: None: the protocol of the run, or of the weights' card. A mean image of another
        size than a requested crop is averaged over its pixels.

    Returns:
      One result per protocol. ``top5_error_percent`` is None for at most five classes, ``step``
      for weights. Protocols of weights, and of other data sets, have no training fields.
    """
    check("--batch-size", Positive, batch_size)
    experiment = own = step = None
    weights = source if isinstance(source, Pretrained) else fine_tune.weights_of(source)
    if isinstance(source, Path) and fine_tune.is_run(source):
        experiment, _ = Workdir(source).experiment()
        text, step = experiment.evaluation.protocol, int(weights.card.counters[""])
        own = protocols.parse(text) if text else Protocol()
        if data is None or datasets.describe(data, data_dir).name == experiment.data.name:
            split = split or experiment.data.test_split
    info, split = dataset_of(weights, data, split, data_dir)
    columns, present = match_classes(weights, info, split, data_dir)
    if experiment is not None:
        # Another set, or another version of it, is not the one of the training.
        same_data = experiment.data.name == info.name and "train" in info.examples
        if not same_data or experiment.data.digest not in ("", info.version):
            experiment = None
    apply, classes = weights.apply(Execution()), sum(present)
    if columns != (*range(weights.architecture.num_classes),) or not all(present):
        apply = _Matched(apply.graphdef, columns, present)
    results = []
    for protocol in requested:
        result = _score(weights, apply, info, split, protocol or own, batch_size)
        result["step"] = step
        if classes <= exact.TOP:
            result["top5_error_percent"] = None
        if classes < weights.architecture.num_classes:
            result["protocol"]["classes"] = f"{classes} of {weights.architecture.num_classes}"
        if experiment is not None:
            theirs, result["protocol"] = result["protocol"], run_dir.protocol(experiment, info)
            result["protocol"]["test_images"] = theirs["test_images"]
            if protocol:
                result["protocol"]["view"] = protocol.view()
            if theirs["preprocessing"] == AVERAGED:
                result["protocol"]["preprocessing"] = AVERAGED
        results.append(result)
    return results


def dataset_of(
    weights: Pretrained, data: str | None, split: str | None, data_dir: str | None
) -> tuple[DatasetInfo, str]:
    """Returns the data set, by default that of the training, and the split, by default test."""
    name = data or weights.card.data
    if not name:
        source = weights.card.source
        raise UserError(f"{source} does not name its data set: give one, as --data cifar10")
    info = datasets.describe(name, data_dir)
    names = ", ".join(sorted(info.examples))
    split = split or next((s for s in ("test", "validation") if s in info.examples), names)
    require(split in info.examples, f"{info.name} has no split {split!r}; it has {names}")
    return info, split


def match_classes(
    weights: Pretrained, info: DatasetInfo, split: str, data_dir: str | None
) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Returns the network's class for each class of a set, by name, and whether it is scored.

    Classes without names, which are numbers, are matched by number. Of another set than the
    training's, classes without images are not scored.
    """
    card, count, names = weights.card, weights.architecture.num_classes, info.classes
    # Libraries label the classes of ImageNet by other names than TFDS, in the same order.
    trained = () if card.convention and card.data else card.classes
    if not trained and card.data != info.name:
        trained = _names(card.data, data_dir)
    if len(trained) != count or tuple(map(str, range(count))) in (names, trained):
        trained = names
    unknown = ", ".join([name for name in names if name not in trained][:5])
    fits = not unknown and (trained is not names or len(names) == count)
    problem = f"{info.name} has {len(names)} classes; the network has {count}"
    require(fits, problem + (unknown and f", but not {unknown}"))
    columns, present = tuple(map(trained.index, names)), (True,) * len(names)
    if card.data not in ("", info.name):
        labels = {*datasets.labels(info, split).tolist()}
        present = tuple(label in labels for label in range(len(names)))
    return columns, present


def _names(data: str, data_dir: str | None) -> tuple[str, ...]:
    """Returns the classes of a training set; TFDS knows those of sets that are not prepared."""
    with contextlib.suppress(UserError):
        return datasets.describe(data, data_dir).classes
    try:
        import tensorflow_datasets as tfds

        features: Any = tfds.builder(data).info.features
        return tuple(features["label"].names)
    except Exception:  # TFDS raises many types.
        return ()


@dataclass(frozen=True)
class _Matched(Apply):
    """A network with the logits of matched classes; absent ones are never the best."""

    columns: tuple[int, ...]
    present: tuple[bool, ...]

    def __call__(self, *args: Any, **options: Any) -> tuple[Array, Variables]:
        logits, batch_stats = super().__call__(*args, **options)
        logits = logits[..., np.array(self.columns)]
        return jnp.where(np.array(self.present), logits, -1e30), batch_stats


def _check_images(info: DatasetInfo, model: Architecture, *, any_size: bool) -> None:
    shape, expected = info.image_shape, model.input_shape
    fits = shape[2] == expected[2] and (any_size or shape == expected)
    remedy = "; give a --protocol such as 36/32" if shape[2] == expected[2] else ""
    require(fits, f"{info.name} has images of {shape} but the network takes {expected}{remedy}")


def images_of(
    weights: Pretrained, data: str | None, split: str | None, data_dir: str | None, count: int
) -> Examples:
    """Returns the first images of a set in the view of the weights, and the network's labels."""
    info, split = dataset_of(weights, data, split, data_dir)
    protocol = protocols.of(weights.card.view)
    _check_images(info, weights.architecture, any_size=bool(protocol.crop))
    columns, _ = match_classes(weights, info, split, data_dir)
    count = min(count, info.examples[split])
    (batch,) = protocols.batches(info, split, protocol, count, count=count)
    return Examples(batch.images, np.array(columns, np.int32)[batch.labels])


def _score(
    weights: Pretrained,
    apply: Apply,
    info: DatasetInfo,
    split: str,
    requested: Protocol | None,
    batch_size: int,
) -> Record:
    card, model = weights.card, weights.architecture
    protocol = requested or protocols.of(card.view)
    # Crops fit every network, and the input size of foreign files is a guess.
    any_size = bool(protocol.crop or protocol.scales or card.convention)
    _check_images(info, model, any_size=any_size)
    mean, deviation = card.constants()
    size = (protocol.crop,) * 2 if protocol.crop else info.image_shape[:2]
    if requested is None and mean.ndim == 3 and mean.shape[:2] != size:
        images = f"the images of {info.name} are scored as {(*size, mean.shape[2])}"
        raise UserError(f"the weights subtract a mean image of {mean.shape}; {images}")
    if not _fits(mean, protocol):
        mean = mean.mean((0, 1))
    began = time.perf_counter()
    mesh = sharding.make()
    replicated, of_batch = sharding.replicated(mesh), sharding.batch(mesh)
    params, batch_stats = jax.device_put((weights.params, weights.batch_stats), replicated)
    network = apply, params, batch_stats, Preprocessing(mean, deviation)
    if protocol.scales:
        pixels = batch_size * model.input_shape[0] * model.input_shape[1]
        scored = dense.evaluate(*network, info, split, protocol, pixels=pixels, sharding=of_batch)
    else:
        images = protocols.load(info, split, protocol, batch_size)
        options = {"batch_size": batch_size, "expected_examples": info.examples[split]}
        scored = exact.evaluate(*network, images, sharding=of_batch, **options)
    return {
        "error_percent": scored.error_percent,
        "top5_error_percent": scored.top5_error_percent,
        "mean_loss": scored.mean_loss,
        "examples": scored.examples,
        "split": split,
        "seconds": round(time.perf_counter() - began, 2),
        "protocol": weights_protocol(weights, info, split, protocol),
    }


def weights_protocol(
    weights: Pretrained, info: DatasetInfo, split: str, protocol: Protocol
) -> Record:
    """Returns the protocol of a score, without training fields."""
    card, model = weights.card, weights.architecture
    height, width, _ = model.input_shape if None in info.image_shape else info.image_shape
    mean, deviation = card.constants()
    if mean.ndim == 1:
        channels = [", ".join(f"{x:.4g}" for x in constants) for constants in (mean, deviation)]
        preprocessing = "channel: mean {}, deviation {}".format(*channels)
    else:
        preprocessing = "pixel_mean" if _fits(mean, protocol) else AVERAGED
    return {
        "dataset": info.name,
        "dataset_version": info.version,
        "test_images": info.examples[split],
        "weights": card.source,
        "sha256": card.sha256,
        "padding": "explicit symmetric",
        "preprocessing": preprocessing,
        "view": protocol.view(height, width),
        "dtype": model.dtype,
    }


def _fits(mean: np.ndarray, protocol: Protocol) -> bool:
    if mean.ndim == 1:
        return True
    if protocol.crop:
        return mean.shape[:2] == (protocol.crop, protocol.crop)
    return not (protocol.resize or protocol.scales)
