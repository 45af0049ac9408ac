"""Trained networks and the images they are analyzed on."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array
from matplotlib.figure import Figure

from resnet_jax.data import sources
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.lab import command
from resnet_jax.lab.command import Options
from resnet_jax.models import StochasticDepth, norms
from resnet_jax.models.architecture import Variables
from resnet_jax.models.pretrained import loading
from resnet_jax.models.pretrained.loading import Pretrained
from resnet_jax.studies.findings import Finding
from resnet_jax.training import start, trained

Result = TypeVar("Result")


def load(source: Path, options: Options, step: int | None = None) -> tuple[Pretrained, Examples]:
    """Returns the weights of a run or file, of the newest step by default, and the images that the options select."""
    if step is not None and not start.is_run(source):
        raise UserError(f"{source} is not a run directory, so it has no step {step}. Leave out --steps, or name a run.")
    weights = start.weights_of(source) if step is None else trained.weights(source, step)
    name = options.data or weights.card.data
    if not name:
        raise UserError(f"the data set of {weights.card.source} is unknown. Name one, as --data cifar10.")
    info = sources.describe(name, options.data_dir)
    split = options.split or ("test" if "test" in info.examples else "validation")
    if split not in info.examples:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(info.examples)}.")
    network = weights.architecture
    if (tuple(info.image_shape), info.num_classes) != (network.input_shape, network.num_classes):
        raise UserError(
            f"{name} has images of shape {info.image_shape} and {info.num_classes} classes; the network takes {network.input_shape} "
            f"and has {network.num_classes}. Give a data set that fits, --data."
        )
    examples = sources.read(info, split)
    return weights, Examples(examples.images[: options.images], examples.labels[: options.images])


def analyze(
    options: Options,
    arguments: Sequence[str],
    measure: Callable[[Pretrained, Examples], Result],
    describe: Callable[[dict[str, Result], int, dict[str, float]], Finding],
    draw: Callable[[dict[str, Result]], Figure],
) -> None:
    """Measures every network and shows the results by short name."""
    results, images, seconds = {}, 0, {}
    sources = zip(short_names(options.sources), [load(source, options) for source in options.sources], strict=True)
    for name, (weights, examples) in sources:
        start, images = time.perf_counter(), len(examples)
        results[name] = measure(weights, examples)
        seconds[name] = round(time.perf_counter() - start, 1)
    command.show(describe(results, images, seconds), lambda: draw(results), options, options.sources, arguments)


def inputs(weights: Pretrained, examples: Examples) -> tuple[tuple[Variables, Variables], Preprocessing]:
    """Returns (parameters, statistics) and normalization statistics. Raises UserError if there are no images."""
    if not len(examples):
        raise UserError("no images to analyze: give at least one.")
    return jax.device_put((weights.params, weights.batch_stats)), Preprocessing(*weights.card.constants())


def with_batch_statistics(weights: Pretrained, examples: Examples) -> Pretrained:
    """Returns the weights with the BatchNorm statistics of the images, as one batch, in place of the running statistics."""
    network = dataclasses.replace(weights.architecture, stochastic_depth=StochasticDepth())
    apply, _, _ = loading.abstract(network)
    variables, constants = inputs(weights, examples)

    @jax.jit
    def statistics(variables: Any, images: Array) -> Variables:
        model: Any = nnx.merge(apply.graphdef, *variables, copy=True)
        norms.set_momentum_aside(model)
        model(constants(images), True, key=jax.random.key(0))
        return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    return dataclasses.replace(weights, batch_stats=statistics(variables, examples.images))


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the paths that tell them apart; equal paths are numbered."""
    parts = [path.resolve().parts for path in paths]
    longest = max(map(len, parts))
    ends = (["/".join(part[-length:]) for part in parts] for length in range(1, longest + 1))
    names = next(names for names in ends if len(set(names)) == len(set(parts)))
    return [f"{name} ({number})" if names[:number].count(name) else name for number, name in enumerate(names)]
