"""Trained networks, images to analyze them on, switches in their blocks, panels of figures."""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
from cycler import cycler
from flax import nnx
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike
from tyro.conf import Positional

from resnet_jax import terminal
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.models import Apply, Execution
from resnet_jax.models.components import Part, component, parts
from resnet_jax.models.resnet import Variables
from resnet_jax.models.shortcuts import NoShortcut
from resnet_jax.studies import figures, score
from resnet_jax.studies.report import Finding
from resnet_jax.terminal import Table
from resnet_jax.training import config, fine_tune
from resnet_jax.training.config import Positive
from resnet_jax.training.run_dir import Record
from resnet_jax.weights import loading
from resnet_jax.weights.loading import Pretrained

Shortcut = Callable[[Array, Array], Array]
Merge = Callable[[Shortcut, Array, Array, Array], Array]
"""Returns the output of a block from its shortcut, input, branch, and switch (a boolean)."""
Columns = Mapping[str, Any]
"""Columns of a table, which broadcast against each other."""
Outcome = tuple[Finding, Callable[[], Figure]]
"""A finding, and the function that draws its figure."""


@runtime_checkable
class Result(Protocol):
    """The measurements of one network; ``summary`` is its row of the first table."""

    def summary(self) -> Record: ...

    def columns(self) -> Columns: ...


T = TypeVar("T")
R = TypeVar("R", bound=Result)


@dataclass(frozen=True, kw_only=True)
class Output:
    """Options of every analysis."""

    to: Path | None = None
    """Output directory. Default: analysis/ in the first run directory, for 'resnet-jax report'."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        config.check("", type(self), self)


@dataclass(frozen=True, kw_only=True)
class Options(Output):
    """Options of analyses on images."""

    sources: Positional[tuple[Path, ...]] = ()
    """Run directories, or weights written by 'resnet-jax weights import'."""
    images: Positive = 1000
    data: str | None = None
    """Default: the training set's."""
    split: str | None = None
    """Default: the test split."""
    batch_size: Positive = 200
    data_dir: str | None = None
    """Prepared data sets, searched before $TFDS_DATA_DIR and ~/tensorflow_datasets."""


OptionsT = TypeVar("OptionsT", bound=Options)


def analyze(
    options: OptionsT,
    measure: Callable[[Pretrained, Examples, OptionsT], R],
    draw: Callable[[dict[str, R]], Figure],
    details: Callable[[str, R], Table] | None = None,
    *,
    title: str,
    heading: str,
    caption: str,
    steps: Sequence[int] = (),
) -> Outcome:
    """Measures every network, at every step if there are ``steps``.

    ``heading`` is that of the first table, ``details`` returns a further one of a network.
    """
    networks = {
        network if step is None else f"{network}, step {step}": load(source, options, step)
        for network, source in zip(short_names(options.sources), options.sources, strict=True)
        for step in steps or (None,)
    }
    results, summaries, rows = {}, [], []
    for network, (weights, examples) in networks.items():
        start = time.perf_counter()
        result = results[network] = measure(weights, examples, options)
        seconds = {"seconds": round(time.perf_counter() - start, 1)}
        head = {"network": network, "images": len(examples)}
        summaries.append(head | result.summary() | seconds)
        columns = {"network": network, **result.columns()}
        values = (array.ravel().tolist() for array in np.broadcast_arrays(*columns.values()))
        rows += [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]
    others = [details(*item) for item in results.items()] if details else []
    finding = Finding(
        name=type(options).__module__.rpartition(".")[2],
        title=title,
        caption=f"{caption} {summaries[-1]['images']:,} images.",
        tables=(Table.from_rows(heading, summaries), *others),
        rows=rows,
    )
    return finding, lambda: draw(results)


def load(source: Path, options: Options, step: int | None = None) -> tuple[Pretrained, Examples]:
    """Returns the weights of a run (at a step, by default the newest) or file, and its images."""
    weights = fine_tune.weights_of(source, step)
    data = options.data, options.split, options.data_dir
    return weights, score.images_of(weights, *data, options.images)


def short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of the paths that tell them apart."""
    split = [path.resolve().parts for path in paths]
    ends = (["/".join(path[-length:]) for path in split] for length in itertools.count(1))
    return next(names for names in ends if len(set(names)) == len(set(split)))


class Network(NamedTuple):
    """A network as an argument of compiled functions, and the first arguments of ``evaluate``."""

    apply: Apply
    params: Variables
    batch_stats: Variables
    constants: Preprocessing


def network(weights: Pretrained, execution: Execution = Execution()) -> Network:
    params, batch_stats = jax.device_put((weights.params, weights.batch_stats))
    constants = Preprocessing(*weights.card.constants())
    return Network(weights.apply(execution), params, batch_stats, constants)


def batches(examples: Examples, size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    cuts = range(size, len(examples), size)
    parts = (np.split(array, cuts) for array in (examples.images, examples.labels))
    return list(zip(*parts, strict=True))


def mean(values: Iterable[T]) -> T:
    """Averages the arrays of all batches over images, their last axis, in float64."""

    def average(*batches: np.ndarray) -> np.ndarray | np.generic:
        return np.concatenate(batches, axis=-1).mean(axis=-1, dtype=np.float64)

    return jax.tree.map(average, *map(jax.device_get, values))


def track(items: Sequence[T], description: str) -> Iterable[T]:
    """Iterates with a progress bar on a terminal."""
    options = {"console": terminal.err, "disable": not terminal.err.is_terminal}
    return rich.progress.track(items, description, transient=True, **options)


def panels(
    xlabels: Sequence[str], ylabels: Sequence[str], **subplots: Any
) -> tuple[Figure, list[Axes]]:
    """Returns a row of panels, one per label of the horizontal axis."""
    figure = Figure(figsize=(7.2, 3.0))
    axes = figure.subplots(1, len(xlabels), squeeze=False, **subplots)[0].tolist()
    for panel, label, ylabel in itertools.zip_longest(axes, xlabels, ylabels):
        panel.set(xlabel=label, ylabel=ylabel)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=not label.startswith("Kendall")))
    return figure, axes


def styled(items: Iterable[T]) -> Iterator[tuple[T, Record]]:
    """Yields items with line styles that differ in color, stroke and marker."""
    styles = cycler(color=figures.COLORS * 2, linestyle=figures.STROKES * 3, marker="os^Dvx" * 2)
    for item, style in zip(items, styles(), strict=False):
        yield item, {"linewidth": 1, "markersize": 2.5, **style}


def fill(panel: Axes, x: ArrayLike, low: ArrayLike, high: ArrayLike, style: Record) -> None:
    panel.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def is_plain(weights: Pretrained) -> bool:
    return parts(weights.architecture.shortcut)[0] is NoShortcut


def switched(
    weights: Pretrained, shortcut: Part, merge: Merge
) -> Callable[[Float[np.ndarray | Array, "blocks"]], Network]:
    """Returns the network as a function of switches (0 or 1), with one compiled program for all."""
    original, (cls, arguments) = network(weights), parts(shortcut)
    switch = component(_switchable(cls, merge), **arguments)
    architecture = dataclasses.replace(weights.architecture, shortcut=switch)
    apply, _, shapes = loading.abstract(architecture, Execution())
    stats = nnx.traversals.flatten_mapping(original.batch_stats)
    places = [path for path in nnx.traversals.flatten_mapping(shapes) if path[-1] == "switch"]
    stacks = weights.build().exchangeable()

    def switch_blocks(switches: np.ndarray | Array) -> Network:
        by_stack = (switches[stack.start : stack.stop] for stack in stacks)
        both = stats | dict(zip(places, by_stack, strict=True))
        batch_stats = nnx.traversals.unflatten_mapping(both)
        return original._replace(apply=apply, batch_stats=batch_stats)

    return switch_blocks


# Cached, so that equal networks share a compiled program.
@functools.cache
def _switchable(shortcut: type[Any], merge: Merge) -> type[nnx.Module]:
    class Switchable(shortcut):
        def __init__(self, *args: object, **kwargs: object):
            super().__init__(*args, **kwargs)
            self.switch = nnx.Variable(jnp.ones(()))

        def __call__(self, x: Array, branch: Array, **kwargs: object) -> Array:
            call = functools.partial(super().__call__, **kwargs)
            return merge(call, x, branch, self.switch[...] > 0)

    return Switchable
