"""Loss landscape: slices along filter-normalized random directions. Li et al. 2018 (arXiv 1712.09913), Section 4."""

import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from resnet_jax.analysis import plots, subjects
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.evaluation.exact import Sums
from resnet_jax.models import Apply
from resnet_jax.models.resnet import Variables
from resnet_jax.studies import figures
from resnet_jax.studies.findings import Finding, Table
from resnet_jax.training.step import is_stacked
from resnet_jax.weights.loading import Pretrained


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Loss on a grid around networks, along two filter-normalized random directions (Li et al. 2018)."""

    points: int = 21
    """Points per direction; odd."""
    reach: float = 1.0
    """Largest offset, in norms of each filter."""
    seed: int = 0
    """Seed of the directions."""
    images: int = 500


def run(options: Options, arguments: Sequence[str]) -> None:
    """Runs ``resnet-jax analyze landscape``."""
    numbers = {name: getattr(options, name) for name in ("points", "reach", "seed", "batch_size")}
    subjects.analyze(options, arguments, functools.partial(measure, **numbers), describe, draw)


class Landscape(NamedTuple):
    """A slice through the parameters around a network, in inference mode."""

    offsets: Float[np.ndarray, "points"]
    """In norms of each filter."""
    loss: Float[np.ndarray, "points points"]
    """Mean cross-entropy in nats; may be non-finite."""
    error_percent: Float[np.ndarray, "points points"]
    num_classes: int

    @property
    def center(self) -> float:
        return float(self.loss[len(self.offsets) // 2, len(self.offsets) // 2])

    @property
    def highest(self) -> float:
        """Highest loss. NaN counts as infinite, here and below."""
        return float(np.max(self._losses()))

    def at(self, distance: float) -> float:
        """Returns the median loss of the points at a distance from the center, within half a grid step."""
        ring = (
            np.abs(np.hypot(self.offsets[:, None], self.offsets) - distance)
            <= (self.offsets[1] - self.offsets[0]) / 2
        )
        return float(np.median(self._losses()[ring]))

    def percent_below(self, loss: float) -> float:
        """Returns the percentage of points with a lower loss."""
        return 100 * float(np.mean(self._losses() < loss))

    def _losses(self) -> Float[np.ndarray, "points points"]:
        return np.where(np.isnan(self.loss), np.inf, self.loss)


def directions(params: Variables, seed: int, number: int) -> Variables:
    """Returns a Gaussian direction with the filter norms of the parameters: d_ij / |d_ij| * |theta_ij| (Section 4).

    0 for biases and normalization (``ignore='biasbn'`` in the authors' code). Equal seeds draw equal numbers at equal paths.
    """

    def direction(path: Any, leaf: Any) -> np.ndarray:
        stacked = is_stacked(path)
        if leaf.ndim - stacked <= 1:
            return np.zeros(leaf.shape, np.float32)
        path_hash = zlib.crc32(jax.tree_util.keystr(path).encode())
        gaussian = np.random.default_rng((seed, number, path_hash)).standard_normal(leaf.shape)
        # The blocks of a stack have separate filters.
        axes = tuple(range(int(stacked), leaf.ndim - 1))
        norms, drawn_norms = (
            np.sqrt(np.square(np.float64(array)).sum(axes, keepdims=True))
            for array in (leaf, gaussian)
        )
        return np.asarray(gaussian / drawn_norms * norms, np.float32)

    return jax.tree.map_with_path(direction, params)


def measure(
    weights: Pretrained,
    examples: Examples,
    *,
    points: int = 21,
    reach: float = 1.0,
    seed: int = 0,
    batch_size: int = 200,
) -> Landscape:
    """Measures the loss on a square grid with one compiled program; arguments as in ``Options``."""
    variables, constants = subjects.inputs(weights, examples)
    if points < 3 or points % 2 == 0:
        raise UserError(f"points must be an odd number of at least 3, got {points}.")
    if not 0 < reach < math.inf:
        raise UserError(f"reach must be finite and above 0, got {reach:g}.")
    if seed < 0:
        raise UserError(f"seed must be at least 0, got {seed}.")
    half = points // 2
    offsets = reach * np.arange(-half, half + 1) / half
    both = jax.device_put(tuple(directions(weights.params, seed, number) for number in (0, 1)))
    apply = weights.apply()
    loss, error = np.zeros((2, points, points))
    for index in subjects.track(list(np.ndindex(points, points)), weights.card.source):
        offset = jnp.asarray(offsets[list(index)], jnp.float32)
        score = functools.partial(_score, variables, both, offset, constants, apply=apply)
        total = exact.tally(score, examples, batch_size=batch_size, expected_examples=len(examples))
        loss[index], error[index] = total.mean_loss, total.error_percent
    return Landscape(offsets, loss, error, weights.architecture.num_classes)


@functools.partial(jax.jit, static_argnames=("apply",))
def _score(
    variables: Any,
    both: Any,
    offset: Float[Array, "2"],
    constants: Any,
    images: Array,
    labels: Array,
    *,
    apply: Apply,
) -> Sums:
    params, batch_stats = variables
    moved = jax.tree.map(
        lambda leaf, first, second: leaf + offset[0] * first + offset[1] * second, params, *both
    )
    return exact.score_batch(moved, batch_stats, constants, images, labels, apply=apply)


def describe(
    results: Mapping[str, Landscape], images: int, seconds: Mapping[str, float]
) -> Finding:
    """Returns table and numbers."""
    offsets = next(iter(results.values())).offsets
    points, reach = len(offsets), float(offsets[-1])
    rows = []
    for name, result in results.items():
        losses = (result.center, result.at(reach / 2), result.at(reach), result.highest)
        error = float(result.error_percent[points // 2, points // 2])
        rows.append(
            (
                name,
                images,
                error,
                *losses,
                result.percent_below(math.log(result.num_classes)),
                seconds[name],
            )
        )
    columns = (
        "network",
        "images",
        "error %, center",
        "loss, center",
        f"median at distance {reach / 2:g}",
        f"at {reach:g}",
        "highest",
    )
    columns += ("% of the slice better than guessing", "seconds")
    return Finding(
        name="landscape",
        title="Loss landscape",
        caption=f"Mean cross-entropy (nats, logarithmic levels) on {points} by {points} points around each network (the cross), along two "
        f"filter-normalized random directions; running statistics, {images:,} images. Dots: non-finite. After Li et al. 2018, Section 4.",
        tables=(
            Table(
                "loss around the network (nats); better than guessing: below log(classes)",
                columns,
                tuple(rows),
            ),
        ),
        rows=[
            {
                "network": name,
                "direction 1": x,
                "direction 2": y,
                "loss": loss,
                "error percent": error,
            }
            for name, result in results.items()
            for x, losses, errors in zip(
                result.offsets.tolist(),
                result.loss.tolist(),
                result.error_percent.tolist(),
                strict=True,
            )
            for y, loss, error in zip(result.offsets.tolist(), losses, errors, strict=True)
        ],
    )


def draw(results: Mapping[str, Landscape]) -> Figure:
    """Draws contours of the loss at shared levels (Li et al. 2018, Figure 5)."""
    columns = min(len(results), 3)
    rows, side = -(-len(results) // columns), min(plots.WIDTH / columns, 3.3)
    figure = Figure(figsize=(side * columns, (side + 0.25) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    levels = contour_levels(np.concatenate([result.loss.ravel() for result in results.values()]))
    # Translucent grays: the page may be dark.
    shades = [(0.5, 0.5, 0.5, alpha) for alpha in np.linspace(0, 0.55, len(levels) + 1)]
    for panel, (name, result) in zip(panels, results.items(), strict=False):
        if levels:
            # matplotlib's first axis is vertical. Interpolation is in logarithms.
            heights, log_levels = (
                np.log10(np.maximum(np.ma.masked_invalid(result.loss.T), levels[0] / 10)),
                np.log10(levels),
            )
            panel.contourf(
                result.offsets, result.offsets, heights, log_levels, colors=shades, extend="both"
            )
            lines = panel.contour(
                result.offsets,
                result.offsets,
                heights,
                log_levels,
                colors=figures.INK,
                linewidths=0.6,
                linestyles="-",
            )
            panel.clabel(
                lines, fmt=lambda height: f"{10**height:.3g}", fontsize=0.75 * figures.FONT_SIZE
            )
        panel.plot(
            *result.offsets[np.stack(np.nonzero(~np.isfinite(result.loss)))],
            ".",
            color=figures.INK,
            markersize=3,
        )
        panel.plot(0, 0, "+", color=figures.COLORS[1], markersize=8, markeredgewidth=1.6)
        panel.set_title(figures.shortened(name), fontsize=figures.FONT_SIZE)
        panel.set_aspect("equal")
    for panel in panels[len(results) :]:
        panel.set_axis_off()
    figure.supxlabel("direction 1, in norms of each filter", fontsize=figures.FONT_SIZE)
    figure.supylabel("direction 2", fontsize=figures.FONT_SIZE)
    return figure


def contour_levels(losses: Float[np.ndarray, "losses"]) -> list[float]:
    """Returns two to ten levels inside the range of the positive finite losses, or none."""
    positive = losses[np.isfinite(losses) & (losses > 0)]
    if not positive.size or positive.min() == positive.max():
        return []
    low, high = float(positive.min()), float(positive.max())
    for subs in ((1, 2, 5), (1,)):
        ticks = LogLocator(subs=subs, numticks=10).tick_values(low, high)
        levels = [float(tick) for tick in ticks if low < tick < high]
        if 1 < len(levels) <= 10:
            return levels
    return np.geomspace(low, high, 5)[1:-1].tolist()
