"""Why imported weights score worse than their authors say: each usual misreading is tried, and its error measured."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from resnet_jax.configured import Factory, configured, parts
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.evaluation import exact
from resnet_jax.models import Apply, Architecture
from resnet_jax.models.architecture import Variables
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.pretrained.card import IMAGENET_VIEW, Numbers
from resnet_jax.models.pretrained.loading import Pretrained, abstract
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.models.stems import CeilPooledStem, ImageNetStem

# Errors this close, in points, are one error: another machine rounds a few images of a thousand to the other side.
TOLERANCE = 0.1

# Mean and deviation that published networks were trained with; scale 0 to 1.
NORMALISATIONS: dict[str, tuple[Numbers, Numbers]] = {
    "ImageNet's mean and deviation": (IMAGENET_VIEW.mean, IMAGENET_VIEW.deviation),
    "CIFAR-10's mean and deviation": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "CIFAR-10's mean, deviations of single images (0.2023, 0.1994, 0.2010)": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "mean and deviation 0.5": ((0.5,) * 3, (0.5,) * 3),
    "values of 0 to 1": ((0.0,) * 3, (1.0,) * 3),
    "values of 0 to 255": ((0.0,) * 3, (1 / 255,) * 3),
    "values of 0 to 255 less Caffe's mean": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255,) * 3),
}
EPSILONS = (1e-3, 1e-5, 1e-6)
# Readings of a round, at most, that are scored on all images.
LEADING = 4


@dataclass(frozen=True)
class Reading:
    """One way to read weights: all that decides their answers, and that neither names nor shapes of tensors show."""

    weights: Pretrained
    same_padding: bool = False
    """TensorFlow's: what is missing at stride 2 is padded right and below."""
    blue_first: bool = False
    """Channels of images as OpenCV and Caffe read them."""

    def variables(self) -> tuple[Variables, Variables]:
        """Parameters and statistics; blue comes first by turning round the first kernel."""
        if not self.blue_first:
            return self.weights.params, self.weights.batch_stats
        turned = jax.tree.map_with_path(lambda path, leaf: leaf[:, :, ::-1] if _is_first_kernel(path) else leaf, self.weights.params)
        return turned, self.weights.batch_stats

    def apply(self) -> Apply:
        """The network as a function."""
        apply, params, batch_stats = abstract(self.weights.architecture)
        if not self.same_padding:
            return apply
        model: Any = nnx.merge(apply.graphdef, params, batch_stats)
        for _, module in nnx.iter_graph(model):
            if isinstance(module, nnx.Conv) and module.strides != (1, 1):
                total = [max(size - step, 0) for size, step in zip(module.kernel_size, (2, 2), strict=True)]
                module.padding = tuple((each // 2, each - each // 2) for each in total)
        return Apply(nnx.split(model)[0])


@dataclass(frozen=True)
class Trial:
    """The error under one reading."""

    change: str
    """What was read otherwise; empty: nothing."""
    error_percent: float


@dataclass(frozen=True)
class Diagnosis:
    """What was tried, in rounds: each starts from the best reading of the one before."""

    rounds: tuple[tuple[Trial, ...], ...]
    causes: tuple[str, ...]
    """In what the best reading differs from the weights as they were given."""
    reading: Reading
    """The best."""
    error_percent: float
    """Under it, on all images."""


def diagnose(
    weights: Pretrained,
    batches: Callable[[int], Iterable[Examples]],
    *,
    error_percent: float,
    images: int,
    tried_on: int,
    batch_size: int,
    claimed: float,
) -> Diagnosis:
    """Tries the usual misreadings of weights, one by one and then in company, until they score as claimed or none helps.

    Args:
      weights: as they were imported.
      batches: makes the batches of the first so many images, shown as the card says but for their normalisation.
      error_percent: of the weights as they were imported, on all images.
      images: how many there are; a misreading is a cause only where it makes the error on all of them less.
      tried_on: how many every misreading is tried on.
      batch_size: of the batches.
      claimed: error to reach, percent.
    """

    def error(reading: Reading, count: int) -> float:
        params, batch_stats = reading.variables()
        constants = Preprocessing(*reading.weights.card.constants())
        found = exact.evaluate(
            reading.apply(), params, batch_stats, constants, batches(count), batch_size=batch_size, expected_examples=count
        )
        return found.error_percent

    given = best = Reading(weights)
    least = error_percent
    rounds: list[tuple[Trial, ...]] = []
    changes: dict[str, str] = {}
    while least > claimed + TOLERANCE:
        readings = list(alternatives(best))
        trials = [Trial(change, error(reading, tried_on)) for change, reading in readings]
        rounds.append((Trial("", least if tried_on == images else error(best, tried_on)), *trials))
        # Some images order readings that are nearly alike by chance: those in the lead are scored on all.
        leading = sorted(range(len(trials)), key=lambda index: trials[index].error_percent)[:LEADING]
        limit = trials[leading[0]].error_percent + _noise(trials[leading[0]].error_percent, tried_on)
        scores = {
            index: trials[index].error_percent if tried_on == images else error(readings[index][1], images)
            for index in leading
            if trials[index].error_percent <= limit
        }
        first = min(scores, key=scores.__getitem__)
        # An error that is the same, but for rounding, is no better for being nearer to what is claimed.
        if scores[first] > max(least - TOLERANCE, claimed + TOLERANCE):
            break
        change, best = readings[first]
        least = scores[first]
        changes[change.partition(":")[0]] = change
    causes = tuple(change for aspect, change in changes.items() if _ASPECTS[aspect](best) != _ASPECTS[aspect](given))
    return Diagnosis(tuple(rounds), causes, best, least)


def _noise(error_percent: float, images: int) -> float:
    """Twice the standard deviation of the difference of two such errors, points."""
    fraction = (error_percent / 100 * images + 1) / (images + 2)
    return 200 * math.sqrt(2 * fraction * (1 - fraction) / images)


def applied(reading: Reading) -> Pretrained | None:
    """The weights so read, to be kept; None where no network of ours does what the reading does."""
    params, _ = reading.variables()
    return None if reading.same_padding else dataclasses.replace(reading.weights, params=params)


def alternatives(reading: Reading) -> Iterator[tuple[str, Reading]]:
    """Every reading that differs from one in a single thing, with what it is."""
    weights, architecture = reading.weights, reading.weights.architecture
    yield (
        "padding: " + _not(reading.same_padding, "right and below at stride 2 (SAME)"),
        dataclasses.replace(reading, same_padding=not reading.same_padding),
    )
    if architecture.input_shape[2] == 3:
        yield (
            "channels of images: " + _not(reading.blue_first, "blue, green, red"),
            dataclasses.replace(reading, blue_first=not reading.blue_first),
        )
        for name, (mean, deviation) in NORMALISATIONS.items():
            if (mean, deviation) != (weights.card.view.mean, weights.card.view.deviation):
                view = dataclasses.replace(weights.card.view, mean=mean, deviation=deviation)
                card = dataclasses.replace(weights.card, view=view)
                yield f"normalisation: {name}", dataclasses.replace(reading, weights=dataclasses.replace(weights, card=card))
    for change, other in _networks(architecture):
        card = dataclasses.replace(weights.card, architecture=other)
        yield change, dataclasses.replace(reading, weights=dataclasses.replace(weights, card=card))


def _networks(architecture: Architecture) -> Iterator[tuple[str, Architecture]]:
    branch = parts(architecture.branch)[1]
    if branch.get("kernels") == (1, 3, 1):
        moved = 1 - branch.get("stride_at", 0)
        where = "3x3 (v1.5)" if moved else "first 1x1 (v1)"
        yield (
            f"stride of bottlenecks: in the {where}",
            dataclasses.replace(architecture, branch=configured(architecture.branch, stride_at=moved)),
        )
    norm, options = parts(architecture.norm)
    if norm is BatchNorm:
        for epsilon in EPSILONS:
            if epsilon != options.get("epsilon", 1e-5):
                changed = dataclasses.replace(architecture, norm=configured(architecture.norm, epsilon=epsilon))
                yield f"epsilon of BatchNorm: {epsilon:g}", changed
    shortcut, options = parts(architecture.shortcut)
    if shortcut is ZeroPad:
        other = {"pad": "pad-both", "pad-both": "pad"}[options.get("resize") or "pad"]
        side = "behind" if other == "pad" else "on both sides of"
        yield f"option A: missing channels {side} those of x", dataclasses.replace(architecture, shortcut=configured(ZeroPad, resize=other))
    if architecture.stem in (ImageNetStem, CeilPooledStem):
        ceil = architecture.stem is ImageNetStem
        stem = CeilPooledStem if ceil else ImageNetStem
        yield (
            f"pooling of the stem: {'from the first pixel, rounded up (Caffe)' if ceil else 'symmetric'}",
            dataclasses.replace(architecture, stem=stem),
        )


# What a change is a change of, by the beginnings of their names: a later round may undo what an earlier one did.
_ASPECTS: dict[str, Callable[[Reading], Any]] = {
    "padding": lambda reading: reading.same_padding,
    "channels of images": lambda reading: reading.blue_first,
    "normalisation": lambda reading: (reading.weights.card.view.mean, reading.weights.card.view.deviation),
    "stride of bottlenecks": lambda reading: _argument(reading.weights.architecture.branch, "stride_at", 0),
    "epsilon of BatchNorm": lambda reading: _argument(reading.weights.architecture.norm, "epsilon", 1e-5),
    "option A": lambda reading: _argument(reading.weights.architecture.shortcut, "resize", "pad"),
    "pooling of the stem": lambda reading: reading.weights.architecture.stem,
}


def _argument(factory: Factory, name: str, default: Any) -> Any:
    return parts(factory)[1].get(name, default)


def _not(already: bool, what: str) -> str:
    return f"not {what}" if already else what


def _is_first_kernel(path: Any) -> bool:
    keys = [step.key for step in path]
    return keys[0] == "stem" and keys[-1] == "kernel" and keys[1:3] in (["conv", "kernel"], ["convs", 0])
