"""Trained networks and the images they are analyzed on."""

import dataclasses
import functools
import json
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from tyro.conf import Positional

from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.models import Apply, Architecture, StochasticDepth, norms
from resnet_jax.models.components import Factory, component, parts
from resnet_jax.models.resnet import Variables
from resnet_jax.models.shortcuts import NoShortcut, ZeroPad
from resnet_jax.studies.findings import Finding
from resnet_jax.training import fine_tune, run_dir
from resnet_jax.weights import loading
from resnet_jax.weights.loading import Pretrained

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Output:
    """Options of every analysis."""

    to: Path | None = None
    """Output directory for JSON, CSV, SVG and PNG. Default: lab/ in the first run directory, which 'resnet-jax report'
    includes; none for imported weights."""
    json: bool = False
    """Print JSON instead of tables."""


@dataclass(frozen=True, kw_only=True)
class Options(Output):
    """Options of analyses on images."""

    sources: Positional[tuple[Path, ...]]
    """Run directories, or weights written by 'resnet-jax weights import'."""
    images: int = 1000
    """Number of images."""
    data: str | None = None
    """Data set. Default: the training set's."""
    split: str | None = None
    """Default: the test split."""
    batch_size: int = 200
    data_dir: str | None = None
    """Prepared data sets, searched before $TFDS_DATA_DIR and ~/tensorflow_datasets."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError(
                "no network to analyze: give at least one run directory or file of weights."
            )
        if min(self.images, self.batch_size) < 1:
            raise UserError(
                f"--images and --batch-size must be at least 1, got {self.images} and {self.batch_size}."
            )


def track(items: Sequence[Item], description: str) -> Iterable[Item]:
    """Iterates with a progress bar on a terminal."""
    from rich.progress import track

    from resnet_jax.terminal import err

    return track(items, description, console=err, transient=True, disable=not err.is_terminal)


def show(
    finding: Finding,
    draw: Callable[[], Figure],
    options: Output,
    sources: Sequence[Path],
    arguments: Sequence[str],
) -> None:
    """Writes the result beside the first run, and prints it, also where it cannot be written."""
    from resnet_jax import terminal
    from resnet_jax.studies import findings
    from resnet_jax.terminal import out
    from resnet_jax.training import fine_tune

    runs = [source for source in sources if fine_tune.is_run(source)]
    folder = options.to or (runs[0] / findings.FOLDER if runs else None)
    command = shlex.join(["resnet-jax", "analyze", finding.name, *arguments])
    try:
        files = findings.write(finding, command, draw, folder) if folder else []
    finally:
        if options.json:
            print(json.dumps(finding.plain(command), allow_nan=False))
        else:
            out.print(*map(terminal.terminal, finding.tables), sep="\n")
    if files and not options.json:
        endings = ", ".join(file.suffix for file in files)
        out.print(
            f"{finding.caption}\n{files[0].parent / finding.name}{endings}",
            highlight=False,
            soft_wrap=True,
        )


Result = TypeVar("Result")


def load(source: Path, options: Options, step: int | None = None) -> tuple[Pretrained, Examples]:
    """Returns the weights of a run or file, of the newest step by default, and the images that the options select."""
    if step is not None and not fine_tune.is_run(source):
        raise UserError(
            f"{source} is not a run directory, so it has no step {step}. Leave out --steps, or name a run."
        )
    weights = fine_tune.weights_of(source) if step is None else run_dir.weights(source, step)
    name = options.data or weights.card.data
    if not name:
        raise UserError(
            f"the data set of {weights.card.source} is unknown. Name one, as --data cifar10."
        )
    info = datasets.describe(name, options.data_dir)
    split = options.split or ("test" if "test" in info.examples else "validation")
    if split not in info.examples:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(info.examples)}.")
    network = weights.architecture
    if (tuple(info.image_shape), info.num_classes) != (network.input_shape, network.num_classes):
        raise UserError(
            f"{name} has images of shape {info.image_shape} and {info.num_classes} classes; the network takes {network.input_shape} "
            f"and has {network.num_classes}. Give a data set that fits, --data."
        )
    examples = datasets.read(info, split)
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
    datasets = zip(
        short_names(options.sources),
        [load(source, options) for source in options.sources],
        strict=True,
    )
    for name, (weights, examples) in datasets:
        fine_tune, images = time.perf_counter(), len(examples)
        results[name] = measure(weights, examples)
        seconds[name] = round(time.perf_counter() - fine_tune, 1)
    show(
        describe(results, images, seconds),
        lambda: draw(results),
        options,
        options.sources,
        arguments,
    )


def inputs(
    weights: Pretrained, examples: Examples
) -> tuple[tuple[Variables, Variables], Preprocessing]:
    """Returns (parameters, statistics) and normalization statistics. Raises UserError if there are no images."""
    if not len(examples):
        raise UserError("no images to analyze: give at least one.")
    return jax.device_put((weights.params, weights.batch_stats)), Preprocessing(
        *weights.card.constants()
    )


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
    return [
        f"{name} ({number})" if names[:number].count(name) else name
        for number, name in enumerate(names)
    ]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Switched:
    """A network as a static function of its original variables and switches."""

    apply: Apply
    stacks: tuple[tuple[int, int, int], ...]
    """Stage, index in the stage, and number of blocks of each stack."""

    def __call__(
        self,
        params: Variables,
        batch_stats: Variables,
        images: Array,
        switches: Float[Array, "blocks"],
        **options: Any,
    ) -> Float[Array, "n classes"]:
        """Returns the logits in inference mode; ``options`` as for ``Apply``."""
        stats, start = jax.tree.map(lambda leaf: leaf, batch_stats), 0
        for stage, stack, blocks in self.stacks:
            stacks = stats.setdefault("stages", {}).setdefault(stage, {})
            block = stacks.setdefault(stack, {}).setdefault("stacked", {})
            block.setdefault("shortcut", {})["switch"] = switches[start : start + blocks]
            start += blocks
        return self.apply(params, stats, images, train=False, **options)[0]


def network(architecture: Architecture, shortcut: Factory) -> Switched:
    """Returns the architecture with ``PassThrough`` or a shortcut of ``routed``."""
    apply, _, stats = loading.abstract(dataclasses.replace(architecture, shortcut=shortcut))
    stacks = [
        (stage, stack, block["stacked"]["shortcut"]["switch"].shape[0])
        for stage, stage_stacks in sorted(stats["stages"].items())
        for stack, block in sorted(stage_stacks.items())
    ]
    return Switched(apply, tuple(stacks))


def is_plain(architecture: Architecture) -> bool:
    """Returns whether the network has no shortcuts."""
    return parts(architecture.shortcut)[0] is NoShortcut


class Switch(nnx.Variable):
    """The switch of one block."""


class PassThrough(ZeroPad):
    """A plain block: its branch where the switch is 1, its input, resized as by option A, where it is 0.

    Veit et al. 2016 (Section 4.1) delete layers of plain networks so: a branch times 0 would leave nothing.
    """

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        super().__init__(in_features, out_features, stride, rngs)
        self.switch = Switch(jnp.ones(()))

    def __call__(self, x: Array, branch: Array, *, train: bool) -> Array:
        return jnp.where(self.switch[...] > 0, branch, self.carry(x, train=train))


def routed(shortcut: Factory) -> Factory:
    """Returns the shortcut with equal outputs and a switched gradient: through the branch at 1, through the shortcut at 0.

    The Jacobian of a block is a sum, so the gradients of all settings, the paths, add up to that of the network.
    """
    cls, arguments = parts(shortcut)
    return component(_routed(cls), **arguments) if arguments else _routed(cls)


@functools.cache
def _routed(shortcut: type[nnx.Module]) -> type[nnx.Module]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        shortcut.__init__(self, *args, **kwargs)
        self.switch = Switch(jnp.ones(()))

    def call(self: Any, x: Array, branch: Array, **kwargs: Any) -> Array:
        merge: Any = shortcut.__call__  # pyright: ignore[reportAttributeAccessIssue]
        by_branch = merge(self, lax.stop_gradient(x), branch, **kwargs)
        by_shortcut = merge(self, x, lax.stop_gradient(branch), **kwargs)
        return jnp.where(self.switch[...] > 0, by_branch, by_shortcut)

    return type(
        f"Routed{shortcut.__name__}",
        (shortcut,),
        {"__init__": init, "__call__": call, "__module__": __name__},
    )
