"""What the laboratory looks at: a trained network, and images that it was not trained on."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array

from resnet_jax.data import sources
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.lab.looking import Looking
from resnet_jax.models import Apply, StochasticDepth, norms
from resnet_jax.models.architecture import Variables
from resnet_jax.models.pretrained import loading
from resnet_jax.models.pretrained.loading import Pretrained
from resnet_jax.training import start, trained


def load(source: Path, looking: Looking, step: int | None = None) -> tuple[Pretrained, Examples]:
    """The weights of a run or of a file of this project's format, and images of a split.

    Args:
      source: the run, or the file.
      looking: which images.
      step: of a run; None: its newest.

    Raises:
      UserError: where something of it is missing, or does not fit the network.
    """
    if step is not None and not (source.exists() and start.is_run(source)):
        raise UserError(f"{source} is no run, and has no step {step}: leave out --steps, or name a run")
    weights = start.weights_of(source) if step is None else trained.weights(source, step)
    name = looking.data or weights.card.data
    if not name:
        raise UserError(f"{weights.card.source} does not say which images it was trained on: say which to look at, as --data cifar10")
    info = sources.describe(name, looking.data_dir)
    split = looking.split or ("test" if "test" in info.examples else "validation")
    if split not in info.examples:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(info.examples)}")
    shape = weights.architecture.input_shape
    if tuple(info.image_shape) != shape:
        raise UserError(
            f"images of {name} have the shape {info.image_shape}, and the network takes {shape}: give a set of that size, --data"
        )
    if info.num_classes != weights.architecture.num_classes:
        classes = f"{info.num_classes} classes, and the network {weights.architecture.num_classes}"
        raise UserError(f"{name} has {classes}: give the set that it was trained on, --data")
    found = sources.read(info, split)
    return weights, Examples(found.images[: looking.images], found.labels[: looking.images])


def chosen(looking: Looking) -> dict[str, tuple[Pretrained, Examples]]:
    """All that are looked at, by their names. Raises UserError as ``load``."""
    return {name: load(source, looking) for name, source in zip(names(looking.sources), looking.sources, strict=True)}


def settled(weights: Pretrained, examples: Examples) -> Pretrained:
    """With statistics of normalisations that are those of the images: before the first steps, running ones are those of nothing.

    All images pass at once, and none of the branches is dropped.
    """
    network = dataclasses.replace(weights.architecture, stochastic_depth=StochasticDepth())
    apply, _, _ = loading.abstract(network)
    constants = Preprocessing(*weights.card.constants())
    measured = jax.jit(_statistics, static_argnames="apply")(weights.params, weights.batch_stats, constants, examples.images, apply=apply)
    return dataclasses.replace(weights, batch_stats=measured)


def _statistics(params: Variables, batch_stats: Variables, constants: Preprocessing, images: Array, *, apply: Apply) -> Variables:
    model: Any = nnx.merge(apply.graphdef, params, batch_stats, copy=True)
    norms.set_momentum_aside(model)
    model(constants(images), True, key=jax.random.key(0))
    return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def names(given: Sequence[Path]) -> list[str]:
    """Short names for runs: the ends of their paths, as long as it takes to tell them apart."""
    parts = [path.resolve().parts for path in given]
    for length in range(1, max(map(len, parts)) + 1):
        shortened = ["/".join(each[-length:]) for each in parts]
        if len(set(shortened)) == len(set(parts)):
            return [f"{name} ({number})" if shortened[:number].count(name) else name for number, name in enumerate(shortened)]
    return [str(path) for path in given]
