"""Scores of runs and imported weights, under one or several protocols."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.evaluation import dense, exact, protocols
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.models import Apply, Architecture
from resnet_jax.training import fine_tune, run_dir
from resnet_jax.training import sharding as sharding_lib
from resnet_jax.training.run_dir import Workdir
from resnet_jax.weights.loading import Pretrained

AVERAGED = "pixel_mean, averaged over pixels"


def score(
    source: Path,
    *,
    data: str | None,
    split: str | None,
    batch_size: int,
    data_dir: str | None,
    requested: Sequence[Protocol | None] = (None,),
) -> list[dict[str, Any]]:
    """Scores the newest valid checkpoint of a run, or a file of weights, on every example once per protocol.

    A mean image of another size than a protocol's crop is replaced by its mean over pixels.

    Args:
      source: run directory, or file of weights.
      data: None: the training set's.
      split: None: the test split.
      batch_size: views of the network's input size per call.
      data_dir: prepared data sets.
      requested: protocols; None: that of the run, or of the weights' card.

    Returns:
      One result per protocol. ``top5_error_percent`` is None for at most five classes, ``step`` for weights.
    """
    if not fine_tune.is_run(source):
        weights = fine_tune.weights_of(source)
        return [
            score_weights(
                weights,
                data=data,
                split=split,
                batch_size=batch_size,
                data_dir=data_dir,
                requested=protocol,
            )
            for protocol in requested
        ]
    experiment, _ = Workdir(source).experiment()
    info = datasets.describe(data or experiment.data.name, data_dir)
    split = split or experiment.data.test_split
    own = (
        protocols.parse(experiment.evaluation.protocol)
        if experiment.evaluation.protocol
        else Protocol()
    )
    for protocol in requested:
        view = protocol or own
        _check(experiment.model, info, split, batch_size, sized=not (view.crop or view.scales))
    newest = run_dir.newest(source)
    mean = newest.preprocessing
    network = _Network(
        experiment.model,
        newest.program.apply,
        *newest.state.scored(),
        mean,
        sharding_lib.batch(newest.program.mesh),
    )
    results = []
    for protocol in requested:
        description = run_dir.protocol(experiment, info) | {"test_images": info.examples[split]}
        if protocol:
            description["view"] = protocol.view()
        if not _fits(mean.mean.shape, protocol or own):
            description["preprocessing"] = AVERAGED
        results.append(
            network.score(info, split, protocol or own, batch_size)
            | {"step": newest.step, "protocol": description}
        )
    return results


def score_weights(
    weights: Pretrained,
    *,
    data: str | None,
    split: str | None,
    batch_size: int,
    data_dir: str | None,
    requested: Protocol | None = None,
) -> dict[str, Any]:
    """Scores loaded weights; see ``score``."""
    card = weights.card
    if not (name := data or card.data):
        raise UserError(
            f"{card.source} does not name its data set: give one, for example --data cifar10"
        )
    info = datasets.describe(name, data_dir)
    split = split or ("test" if "test" in info.examples else "validation")
    protocol = requested or protocols.of(card.view)
    # Crops fit every network, and the input size of foreign files is a guess.
    _check(
        card.architecture,
        info,
        split,
        batch_size,
        sized=not (protocol.crop or protocol.scales or card.convention),
    )
    mean, size = (
        np.shape(card.view.mean),
        (protocol.crop,) * 2 if protocol.crop else info.image_shape[:2],
    )
    if requested is None and len(mean) == 3 and mean[:2] != size:
        raise UserError(
            f"the weights subtract a mean image of {mean}; the images of {info.name} are scored as {(*size, mean[2])}"
        )
    devices = sharding_lib.make()
    params, batch_stats = jax.device_put(
        (weights.params, weights.batch_stats), sharding_lib.replicated(devices)
    )
    network = _Network(
        card.architecture,
        weights.apply(),
        params,
        batch_stats,
        Preprocessing(*card.constants()),
        sharding_lib.batch(devices),
    )
    return network.score(info, split, protocol, batch_size) | {
        "step": None,
        "protocol": weights_protocol(weights, info, split, protocol),
    }


def weights_protocol(
    weights: Pretrained, info: DatasetInfo, split: str, protocol: Protocol | None = None
) -> dict[str, Any]:
    """Returns the protocol of a score of weights, without their training."""
    view = weights.card.view
    protocol = protocol or protocols.of(view)
    height, width, _ = (
        weights.architecture.input_shape if None in info.image_shape else info.image_shape
    )
    if isinstance(view.mean[0], tuple):
        preprocessing = "pixel_mean" if _fits(np.shape(view.mean), protocol) else AVERAGED
    else:
        mean, deviation = (
            ", ".join(f"{number:.4g}" for number in numbers)
            for numbers in (view.mean, view.deviation)
        )
        preprocessing = f"channel: mean {mean}, deviation {deviation}"
    return {
        "dataset": info.name,
        "dataset_version": info.version,
        "test_images": info.examples[split],
        "weights": weights.card.source,
        "sha256": weights.card.sha256,
        "padding": "explicit symmetric",
        "preprocessing": preprocessing,
        "view": protocol.view(height, width),
        "dtype": weights.architecture.dtype,
    }


def _fits(mean: tuple[int, ...], protocol: Protocol) -> bool:
    """Returns whether the images of a protocol have the shape of the mean."""
    return len(mean) == 1 or (
        mean[:2] == (protocol.crop,) * 2
        if protocol.crop
        else not (protocol.resize or protocol.scales)
    )


class _Network(NamedTuple):
    model: Architecture
    apply: Apply
    params: Any
    batch_stats: Any
    preprocessing: Preprocessing
    sharding: jax.sharding.NamedSharding

    def score(
        self, info: DatasetInfo, split: str, protocol: Protocol, batch_size: int
    ) -> dict[str, Any]:
        began = time.perf_counter()
        preprocessing = self.preprocessing
        if not _fits(preprocessing.mean.shape, protocol):
            preprocessing = preprocessing._replace(mean=np.asarray(preprocessing.mean).mean((0, 1)))
        network = self.apply, self.params, self.batch_stats, preprocessing
        if protocol.scales:
            height, width, _ = self.model.input_shape
            scored = dense.evaluate(
                *network,
                info,
                split,
                protocol,
                pixels=batch_size * height * width,
                sharding=self.sharding,
            )
        else:
            images = protocols.load(info, split, protocol, batch_size)
            count = info.examples[split]
            scored = exact.evaluate(
                *network,
                images,
                batch_size=batch_size,
                expected_examples=count,
                sharding=self.sharding,
            )
        return {
            "error_percent": scored.error_percent,
            "top5_error_percent": scored.top5_error_percent
            if info.num_classes > exact.TOP
            else None,
            "mean_loss": scored.mean_loss,
            "examples": scored.examples,
            "split": split,
            "seconds": round(time.perf_counter() - began, 2),
        }


def _check(
    model: Architecture, info: DatasetInfo, split: str, batch_size: int, *, sized: bool
) -> None:
    if split not in info.examples:
        raise UserError(
            f"{info.name} has no split {split!r}; it has {', '.join(sorted(info.examples))}"
        )
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; give 1 image or more")
    fits = (
        info.image_shape == model.input_shape
        if sized
        else info.image_shape[2] == model.input_shape[2]
    )
    if not fits or info.num_classes != model.num_classes:
        raise UserError(
            f"{info.name} has images of {info.image_shape} in {info.num_classes} classes; the network takes {model.input_shape} "
            f"in {model.num_classes}"
        )
