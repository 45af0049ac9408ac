"""Loss along filter-normalized random directions: Li et al. 2018 (arXiv 1712.09913), Section 4."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from resnet_jax.analysis import subjects
from resnet_jax.analysis.subjects import Columns
from resnet_jax.data.datasets import Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.models.resnet import Variables
from resnet_jax.studies import figures
from resnet_jax.training.config import Positive, Range
from resnet_jax.training.optimizer import is_stacked
from resnet_jax.training.run_dir import Record
from resnet_jax.weights.loading import Pretrained


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Options):
    """Loss on a grid along two filter-normalized random directions (Li et al. 2018)."""

    points: Annotated[int, Range(3)] = 21
    """Points per direction; odd."""
    reach: Annotated[float, Range(1e-6)] = 1.0
    """Largest offset, in norms of each filter."""
    seed: int = 0
    """Seed of the directions."""
    images: Positive = 500

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points % 2 == 0:
            raise UserError(f"points must be odd, got {self.points}.")


def run(options: Options) -> subjects.Outcome:
    return subjects.analyze(
        options,
        measure,
        draw,
        title="Loss landscape",
        heading="loss around the network (nats); better than guessing: below log(classes)",
        caption="Mean cross-entropy (nats, logarithmic levels; dots: non-finite) on "
        f"{options.points} by {options.points} points around each network (the cross), along two "
        "filter-normalized random directions; running statistics. After Li et al. 2018, Section "
        "4.",
    )


class Landscape(NamedTuple):
    """A slice through the parameters around a network, in inference mode."""

    offsets: Float[np.ndarray, "points"]
    """In norms of each filter."""
    loss: Float[np.ndarray, "points points"]
    """Mean cross-entropy in nats; infinite where it is NaN."""
    error_percent: Float[np.ndarray, "points points"]
    num_classes: int

    def at(self, distance: float) -> float:
        """Returns the median loss at a distance from the center, within half a grid step."""
        distances = np.hypot(self.offsets[:, None], self.offsets)
        ring = np.abs(distances - distance) <= (self.offsets[1] - self.offsets[0]) / 2
        return float(np.median(self.loss[ring]))

    def summary(self) -> Record:
        reach, center = self.offsets[-1], (len(self.offsets) // 2,) * 2
        guessing = math.log(self.num_classes)
        return {
            "error %, center": self.error_percent[center],
            "loss, center": self.loss[center],
            f"median at distance {reach / 2:g}": self.at(reach / 2),
            f"at {reach:g}": self.at(reach),
            "highest": self.loss.max(),
            "% of the slice better than guessing": 100 * np.mean(self.loss < guessing),
        }

    def columns(self) -> Columns:
        return {
            "direction 1": self.offsets[:, None],
            "direction 2": self.offsets,
            "loss": self.loss,
            "error percent": self.error_percent,
        }


def directions(params: Variables, seed: int, number: int) -> Variables:
    """Returns a Gaussian direction with the filter norms of the parameters (Section 4).

    0 for biases and normalization, as ``ignore='biasbn'`` in the authors' code. Equal seeds draw
    equal numbers at equal paths.
    """

    def direction(path: jax.tree_util.KeyPath, leaf: np.ndarray | Array) -> np.ndarray:
        # The blocks of a stack have separate filters.
        stacked = int(is_stacked(path))
        if leaf.ndim - stacked <= 1:
            return np.zeros(leaf.shape, np.float32)
        path_hash = zlib.crc32(jax.tree_util.keystr(path).encode())
        gaussian = np.random.default_rng((seed, number, path_hash)).standard_normal(leaf.shape)
        axes = tuple(range(stacked, leaf.ndim - 1))
        squares = (np.square(np.float64(x)).sum(axes, keepdims=True) for x in (leaf, gaussian))
        norms, drawn_norms = map(np.sqrt, squares)
        return (gaussian / drawn_norms * norms).astype(np.float32)

    return jax.tree.map_with_path(direction, params)


def measure(weights: Pretrained, examples: Examples, options: Options = Options()) -> Landscape:
    """Measures the loss on a square grid with one compiled program."""
    points, size, half = options.points, options.batch_size, options.points // 2
    offsets = options.reach * np.arange(-half, half + 1) / half
    both = [directions(weights.params, options.seed, number) for number in (0, 1)]
    both = jax.device_put(both)
    network, count = subjects.network(weights), len(examples)
    loss, error = np.zeros((2, points, points))
    for index in subjects.track(list(np.ndindex(points, points)), weights.card.source):
        params = _move(network.params, both, offsets[list(index)].astype(np.float32))
        moved = network._replace(params=params)
        score = exact.evaluate(*moved, examples, batch_size=size, expected_examples=count)
        loss[index], error[index] = score.mean_loss, score.error_percent
    loss[np.isnan(loss)] = np.inf
    return Landscape(offsets, loss, error, weights.architecture.num_classes)


@jax.jit
def _move(params: Variables, both: list[Variables], offset: Float[Array, "2"]) -> Variables:
    return jax.tree.map(lambda x, d1, d2: x + offset[0] * d1 + offset[1] * d2, params, *both)


def draw(results: Mapping[str, Landscape]) -> Figure:
    """Draws contours of the loss at shared levels (Li et al. 2018, Figure 5)."""
    figure, panels = subjects.panels([""] * len(results), ["direction 2"], sharey=True)
    figure.supxlabel("direction 1, in norms of each filter")
    levels = contour_levels(np.concatenate([result.loss.ravel() for result in results.values()]))
    for panel, (name, result) in zip(panels, results.items(), strict=True):
        if levels:
            # matplotlib's first axis is vertical. Interpolation is in logarithms.
            loss = np.maximum(np.ma.masked_invalid(result.loss.T), levels[0] / 10)
            contours = result.offsets, result.offsets, np.log10(loss), np.log10(levels)
            lines = panel.contour(*contours, colors=figures.INK, linewidths=0.6, linestyles="-")
            panel.clabel(lines, fmt=lambda height: f"{10**height:.3g}", fontsize="x-small")
        non_finite = np.stack(np.nonzero(~np.isfinite(result.loss)))
        panel.plot(*result.offsets[non_finite], ".", color=figures.INK, markersize=3)
        panel.plot(0, 0, "+", color=figures.COLORS[1], markersize=8, markeredgewidth=1.6)
        panel.set_title(figures.shortened(name))
        panel.set_aspect("equal")
        panel.grid(visible=False)
    return figure


def contour_levels(losses: Float[np.ndarray, "losses"]) -> list[float]:
    """Returns at most ten levels inside the range of the positive finite losses."""
    positive = losses[np.isfinite(losses) & (losses > 0)]
    if not positive.size or np.ptp(positive) == 0:
        return []
    low, high = positive.min(), positive.max()
    ticks = np.outer(10.0 ** np.arange(-30, 30), (1, 2, 5)).ravel()
    levels = ticks[(low < ticks) & (ticks < high)]
    if len(levels) < 2:
        levels = np.geomspace(low, high, 5)[1:-1]
    return levels[:: -(-len(levels) // 10)].tolist()
