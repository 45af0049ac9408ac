"""Distance of residual blocks from the identity, and the change left to the branch (He et al. 2015, Section 3.1).

A block that maps 5 to 5.1 has the branch F(5) = 0.1. To reach 5.2, the output changes by 2 %, the branch by 100 %.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key
from matplotlib.figure import Figure

from resnet_jax.analysis import plots, subjects
from resnet_jax.analysis.responses import norm
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.models import Apply, Execution, activations
from resnet_jax.studies import figures
from resnet_jax.studies.findings import Finding, Table
from resnet_jax.weights.loading import Pretrained


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Distance of each block from the identity, and changes of branch and output under noise on the image."""

    change: float = 2.0
    """Norm of the noise, in percent of the image's norm."""
    seed: int = 0


def run(options: Options, arguments: Sequence[str]) -> None:
    """Runs ``resnet-jax analyze identity``."""
    numbers = {
        "change": options.change / 100,
        "batch_size": options.batch_size,
        "seed": options.seed,
    }
    describe_one = functools.partial(describe, change=options.change)
    subjects.analyze(options, arguments, functools.partial(measure, **numbers), describe_one, draw)


class Identity(NamedTuple):
    """Ratios of norms per block in inference mode, means over images; NaN for concatenation.

    The output is the branch merged with the shortcut, before what the order places after the addition.
    """

    distance: Float[np.ndarray, "blocks"]
    """Distance of the output from the shortcut over the norm of the shortcut; NaN without a shortcut of that shape."""
    leverage: Float[np.ndarray, "blocks"]
    """Norm of the output over that of the branch: percent of the branch per percent of the output."""
    branch_change: Float[np.ndarray, "blocks"]
    """Relative change of the branch under noise on the image."""
    output_change: Float[np.ndarray, "blocks"]
    """Relative change of the output under the same noise."""


def measure(
    weights: Pretrained,
    examples: Examples,
    *,
    change: float = 0.02,
    batch_size: int = 200,
    seed: int = 0,
) -> Identity:
    """Measures a network; ``change`` is the norm of the noise over that of the normalized image."""
    if not len(examples) or not change > 0:
        raise UserError(
            f"at least 1 image and a change above 0 are needed, got {len(examples)} images and a change of {change:g}."
        )
    apply, blocks = (
        weights.apply(Execution(blocks="loop", kernels="plain")),
        sum(weights.architecture.stages),
    )
    variables, constants = subjects.inputs(weights, examples)
    sums = []
    for start in range(0, len(examples), batch_size):
        key = jax.random.fold_in(jax.random.key(seed), start)
        images = examples.images[start : start + batch_size]
        sums.append(
            jax.device_get(
                _sums(variables, constants, images, key, change, apply=apply, blocks=blocks)
            )
        )
    return Identity(
        *(
            np.asarray(np.sum(column, axis=0, dtype=np.float64) / len(examples))
            for column in zip(*sums, strict=True)
        )
    )


@functools.partial(jax.jit, static_argnames=("apply", "blocks"))
def _sums(
    variables: tuple[Any, Any],
    constants: Preprocessing,
    images: Array,
    key: Key[Array, ""],
    change: Float[ArrayLike, ""],
    *,
    apply: Apply,
    blocks: int,
) -> tuple[Float[Array, "blocks"], ...]:
    images = constants(images)
    noise = jax.random.normal(key, images.shape)
    noise *= (change * norm(images) / norm(noise)).reshape(-1, 1, 1, 1)
    patterns = tuple(f"block*{part}" for part in ("/branch", "/shortcut", activations.INPUT))

    def activations_of(images: Array) -> dict[str, Array]:
        _, taps = activations.of(apply, *variables, images, patterns)
        return {name: value.astype(jnp.float32) for name, value in taps.items()}

    before, after = activations_of(images), activations_of(images + noise)

    def block_sums(block: int) -> tuple[Array, ...]:
        names = [pattern.replace("*", str(block)) for pattern in patterns]
        (branch, output, x), (noisy_branch, noisy_output, _) = (
            [taps[name] for name in names] for taps in (before, after)
        )
        branch_change = (norm(noisy_branch - branch) / norm(branch)).sum()
        if output.shape != branch.shape:
            nan = jnp.full_like(branch_change, jnp.nan)
            return nan, nan, branch_change, nan
        shortcut = x if x.shape == output.shape else output - branch
        # A plain block that changes the shape has no shortcut.
        distance = jnp.where(
            norm(shortcut) > 0, norm(output - shortcut) / norm(shortcut), jnp.nan
        ).sum()
        return (
            distance,
            (norm(output) / norm(branch)).sum(),
            branch_change,
            (norm(noisy_output - output) / norm(output)).sum(),
        )

    return tuple(jnp.stack(column) for column in zip(*map(block_sums, range(blocks)), strict=True))


def describe(
    results: Mapping[str, Identity], images: int, _seconds: Mapping[str, float], *, change: float
) -> Finding:
    """Returns table and numbers."""
    headings = (
        "distance from the identity",
        f"branch change for {change:g} % of the output, %",
        "branch changed, %",
        "output changed, %",
        "branch over output",
    )

    def blocks(result: Identity) -> np.ndarray:
        ratio = result.branch_change / result.output_change
        percent = (change * result.leverage, 100 * result.branch_change, 100 * result.output_change)
        return np.stack([result.distance, *percent, ratio], axis=1)

    medians = tuple(
        (name, images, *np.nanmedian(blocks(result), axis=0).tolist())
        for name, result in results.items()
    )
    return Finding(
        name="identity",
        title="Distance from the identity",
        caption="Per block: distance of the output from the shortcut; norm of the output over that of the branch; change of the branch "
        f"over that of the output for {change:g} % of noise on the image. {images:,} images. After He et al. 2015, Section 3.1.",
        tables=(Table("medians over blocks", ("network", "images", *headings), medians),),
        rows=[
            {"network": name, "block": i} | dict(zip(headings, row, strict=True))
            for name, result in results.items()
            for i, row in enumerate(blocks(result).tolist())
        ],
    )


def draw(results: Mapping[str, Identity]) -> Figure:
    figure, panels = plots.panels("block", "block", "block")
    for name, result, style in plots.styled(results):
        for panel, values in zip(
            panels,
            (result.distance, result.leverage, result.branch_change / result.output_change),
            strict=True,
        ):
            panel.plot(np.arange(len(values)), values, label=name, **style)
    titles = (
        "distance from the identity",
        "output over branch",
        "branch change over output change",
    )
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=figures.FONT_SIZE)
        panel.set_ylim(bottom=0)
    panels[0].set_ylabel("ratio of norms")
    panels[0].legend(frameon=False)
    return figure
