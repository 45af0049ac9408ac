"""Scores of runs and imported weights, under one or several protocols."""

import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError, check_range
from resnet_jax.evaluation import dense, exact, protocols
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.models import Architecture
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
    check_range({"--batch-size": batch_size}, 1)
    experiment = own = step = None
    weights = source if isinstance(source, Pretrained) else fine_tune.weights_of(source)
    if isinstance(source, Path) and fine_tune.is_run(source):
        experiment, _ = Workdir(source).experiment()
        text, step = experiment.evaluation.protocol, int(weights.card.counters[""])
        own = protocols.parse(text) if text else Protocol()
        if data not in (None, experiment.data.name):
            experiment = None
        elif not split:
            split = experiment.data.test_split
    info, split = dataset_of(weights, data, split, data_dir)
    results = []
    for protocol in requested:
        result = _score(weights, info, split, protocol or own, batch_size)
        result["step"] = step
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
    split = split or ("test" if "test" in info.examples else "validation")
    if split not in info.examples:
        names = ", ".join(sorted(info.examples))
        raise UserError(f"{info.name} has no split {split!r}; it has {names}")
    return info, split


def check_images(info: DatasetInfo, model: Architecture, *, any_size: bool = False) -> None:
    """Raises UserError unless the network takes the images and has their classes."""
    shape, classes = info.image_shape, info.num_classes
    same = (shape[2], classes) == (model.input_shape[2], model.num_classes)
    if not same or not (any_size or shape == model.input_shape):
        taken = f"the network takes {model.input_shape} in {model.num_classes}"
        raise UserError(f"{info.name} has images of {shape} in {classes} classes; {taken}")


def _score(
    weights: Pretrained, info: DatasetInfo, split: str, requested: Protocol | None, batch_size: int
) -> Record:
    card, model = weights.card, weights.architecture
    protocol = requested or protocols.of(card.view)
    # Crops fit every network, and the input size of foreign files is a guess.
    any_size = bool(protocol.crop or protocol.scales or card.convention)
    check_images(info, model, any_size=any_size)
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
    network = weights.apply(), params, batch_stats, Preprocessing(mean, deviation)
    if protocol.scales:
        pixels = batch_size * model.input_shape[0] * model.input_shape[1]
        scored = dense.evaluate(*network, info, split, protocol, pixels=pixels, sharding=of_batch)
    else:
        scored = exact.evaluate(
            *network,
            protocols.load(info, split, protocol, batch_size),
            batch_size=batch_size,
            expected_examples=info.examples[split],
            sharding=of_batch,
        )
    return {
        "error_percent": scored.error_percent,
        "top5_error_percent": scored.top5_error_percent if info.num_classes > exact.TOP else None,
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
