"""Loss along filter-normalized random directions: Li et al. 2018 (arXiv 1712.09913), Section 4."""

import functools
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from resnet_jax.analysis import plots, subjects
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.models.architecture import Variables
from resnet_jax.studies import figures
from resnet_jax.studies.findings import Finding
from resnet_jax.training.step import is_stacked
from resnet_jax.weights.loading import Pretrained


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Loss on a grid around networks, along two filter-normalized random directions (Li et al.
    2018)."""

    points: int = 21
    """Points per direction; odd."""
    reach: float = 1.0
    """Largest offset, in norms of each filter."""
    seed: int = 0
    """Seed of the directions."""
    images: int = 500


def run(options: Options) -> subjects.Outcome:
    """Runs ``resnet-jax analyze landscape``."""
    names = "points", "reach", "seed", "batch_size"
    measure_network = functools.partial(measure, **{name: getattr(options, name) for name in names})
    return subjects.analyze(options, measure_network, describe, draw)


class Landscape(NamedTuple):
    """A slice through the parameters around a network, in inference mode."""

    offsets: Float[np.ndarray, "points"]
    """In norms of each filter."""
    loss: Float[np.ndarray, "points points"]
    """Mean cross-entropy in nats; may be non-finite. NaN counts as infinite in the properties."""
    error_percent: Float[np.ndarray, "points points"]
    num_classes: int

    @property
    def center(self) -> float:
        """Loss of the network itself."""
        return float(self.loss[self.loss.shape[0] // 2, self.loss.shape[0] // 2])

    @property
    def highest(self) -> float:
        """Highest loss."""
        return float(np.max(self._losses()))

    def at(self, distance: float) -> float:
        """Returns the median loss at a distance from the center, within half a grid step."""
        distances = np.hypot(self.offsets[:, None], self.offsets)
        ring = np.abs(distances - distance) <= (self.offsets[1] - self.offsets[0]) / 2
        return float(np.median(self._losses()[ring]))

    def percent_below(self, loss: float) -> float:
        """Returns the percentage of points with a lower loss."""
        return 100 * float(np.mean(self._losses() < loss))

    def _losses(self) -> Float[np.ndarray, "points points"]:
        return np.where(np.isnan(self.loss), np.inf, self.loss)


def directions(params: Variables, seed: int, number: int) -> Variables:
    """Returns a Gaussian direction with the filter norms of the parameters (Section 4).

    d_ij / |d_ij| * |theta_ij|; 0 for biases and normalization (``ignore='biasbn'`` in the authors'
    code). Equal seeds draw equal numbers at equal paths.
    """

    def direction(path: Any, leaf: Any) -> np.ndarray:
        # The blocks of a stack have separate filters.
        stacked = int(is_stacked(path))
        if leaf.ndim - stacked <= 1:
            return np.zeros(leaf.shape, np.float32)
        path_hash = zlib.crc32(jax.tree_util.keystr(path).encode())
        gaussian = np.random.default_rng((seed, number, path_hash)).standard_normal(leaf.shape)
        axes = tuple(range(stacked, leaf.ndim - 1))
        norms, drawn_norms = (
            np.sqrt(np.square(np.float64(x)).sum(axes, keepdims=True)) for x in (leaf, gaussian)
        )
        return (gaussian / drawn_norms * norms).astype(np.float32)

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
    if points < 3 or points % 2 == 0 or not 0 < reach < math.inf:
        raise UserError(
            "points must be odd and at least 3, reach finite and above 0, "
            f"got {points} and {reach:g}."
        )
    half = points // 2
    offsets = reach * np.arange(-half, half + 1) / half
    both = jax.device_put([directions(weights.params, seed, number) for number in (0, 1)])
    network = subjects.network(weights)
    numbers = {"batch_size": batch_size, "expected_examples": len(examples)}
    loss, error = np.zeros((2, points, points))
    for index in subjects.track(list(np.ndindex(points, points)), weights.card.source):
        params = _move(network.params, both, offsets[list(index)].astype(np.float32))
        score = exact.evaluate(*network._replace(params=params), examples, **numbers)
        loss[index], error[index] = score.mean_loss, score.error_percent
    return Landscape(offsets, loss, error, weights.architecture.num_classes)


@jax.jit
def _move(params: Variables, both: list[Variables], offset: Float[np.ndarray, "2"]) -> Variables:
    return jax.tree.map(lambda x, d1, d2: x + offset[0] * d1 + offset[1] * d2, params, *both)


def describe(
    results: Mapping[str, Landscape], images: int, seconds: Mapping[str, float]
) -> Finding:
    """Returns table and numbers."""
    offsets = next(iter(results.values())).offsets
    points, reach = len(offsets), offsets[-1]
    summary = [
        {
            "network": name,
            "images": images,
            "error %, center": result.error_percent[points // 2, points // 2],
            "loss, center": result.center,
            f"median at distance {reach / 2:g}": result.at(reach / 2),
            f"at {reach:g}": result.at(reach),
            "highest": result.highest,
            "% of the slice better than guessing": result.percent_below(
                math.log(result.num_classes)
            ),
            "seconds": seconds[name],
        }
        for name, result in results.items()
    ]
    title = "loss around the network (nats); better than guessing: below log(classes)"
    rows = []
    for name, result in results.items():
        columns = {
            "direction 1": offsets[:, None],
            "direction 2": offsets,
            "loss": result.loss,
            "error percent": result.error_percent,
        }
        rows += subjects.rows({"network": name, **columns})
    return Finding(
        name="landscape",
        title="Loss landscape",
        caption=f"Mean cross-entropy (nats, logarithmic levels) on {points} by {points} points "
        "around each network (the cross), along two filter-normalized random directions; running "
        f"statistics, {images:,} images. Dots: non-finite. After Li et al. 2018, Section 4.",
        tables=(subjects.table(title, summary),),
        rows=rows,
    )


def draw(results: Mapping[str, Landscape]) -> Figure:
    """Draws contours of the loss at shared levels (Li et al. 2018, Figure 5)."""
    columns = min(len(results), 3)
    rows, side = -(-len(results) // columns), min(plots.WIDTH / columns, 3.3)
    figure = Figure(figsize=(side * columns, (side + 0.25) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    levels = contour_levels(np.concatenate([result.loss.ravel() for result in results.values()]))
    for panel, (name, result) in zip(panels, results.items(), strict=False):
        if levels:
            _draw_contours(panel, result, levels)
        non_finite = np.stack(np.nonzero(~np.isfinite(result.loss)))
        panel.plot(*result.offsets[non_finite], ".", color=figures.INK, markersize=3)
        panel.plot(0, 0, "+", color=figures.COLORS[1], markersize=8, markeredgewidth=1.6)
        panel.set_title(figures.shortened(name), fontsize=figures.FONT_SIZE)
        panel.set_aspect("equal")
    for panel in panels[len(results) :]:
        panel.set_axis_off()
    figure.supxlabel("direction 1, in norms of each filter", fontsize=figures.FONT_SIZE)
    figure.supylabel("direction 2", fontsize=figures.FONT_SIZE)
    return figure


def _draw_contours(panel: Axes, result: Landscape, levels: list[float]) -> None:
    # matplotlib's first axis is vertical. Interpolation is in logarithms.
    loss = np.maximum(np.ma.masked_invalid(result.loss.T), levels[0] / 10)
    contours = result.offsets, result.offsets, np.log10(loss), np.log10(levels)
    # Translucent grays: the page may be dark.
    shades = [(0.5, 0.5, 0.5, alpha) for alpha in np.linspace(0, 0.55, len(levels) + 1)]
    panel.contourf(*contours, colors=shades, extend="both")
    lines = panel.contour(*contours, colors=figures.INK, linewidths=0.6, linestyles="-")
    size = 0.75 * figures.FONT_SIZE
    panel.clabel(lines, fmt=lambda height: f"{10**height:.3g}", fontsize=size)


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
