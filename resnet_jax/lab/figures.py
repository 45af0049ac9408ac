"""The laboratory's figures: told apart without colour. All are made within ``studies.figures.style``."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from resnet_jax.lab.depth import Family
from resnet_jax.lab.identity import Identity
from resnet_jax.lab.landscape import Landscape
from resnet_jax.lab.lesions import Lesion
from resnet_jax.lab.paths import Paths
from resnet_jax.lab.responses import Responses
from resnet_jax.studies import figures

# Of a page of two columns, in inches.
_WIDTH, _HEIGHT = 7.2, 3.0
_STROKES = ("-", "--", ":", "-.")
_MARKS = ("o", "s", "^", "D", "v", "x")
# Of contours, in a panel.
_MOST_LEVELS = 10


def responses(found: Mapping[str, Responses]) -> Figure:
    """Figure 7 of He et al. 2015: standard deviations of layer responses in the layers' order (left) and sorted (right).

    Args:
      found: by the name that the legend gives.
    """
    figure, panels = _panels("layer, from the image", "layer, sorted by magnitude", sharey=True)
    for (name, each), look in zip(found.items(), _looks(), strict=False):
        for panel, values in zip(panels, (each.deviation, np.sort(each.deviation)[::-1]), strict=True):
            panel.plot(np.arange(1, len(values) + 1), values, label=name, **look)
    for panel in panels:
        panel.set_ylim(bottom=0)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set_ylabel("standard deviation of the response")
    panels[1].legend(frameon=False)
    return figure


def lesions(found: Mapping[str, Sequence[tuple[Lesion, float]]]) -> Figure:
    """Errors after lesions: each unit deleted alone, several at once (Veit et al. 2016, Figure 5a), pairs exchanged (Figure 5b).

    Args:
      found: by the name that the legend gives, lesions and their errors in percent.
    """
    figure, panels = _panels("unit deleted", "units deleted at once", "order of the units, Kendall's tau", sharey=True)
    for (name, each), look in zip(found.items(), _looks(), strict=False):
        one = [(lesion.deleted[0], error) for lesion, error in each if lesion.kind == "one"]
        panels[0].plot(*np.transpose(one), label=name, **look)
        panels[0].axhline(next(error for lesion, error in each if lesion.kind == "none"), color=look["color"], linewidth=0.6)
        counts = sorted({len(lesion.deleted) for lesion, _ in each if lesion.kind == "several"})
        spread = [[error for lesion, error in each if lesion.kind == "several" and len(lesion.deleted) == count] for count in counts]
        panels[1].plot(counts, [np.median(errors) for errors in spread], **look)
        panels[1].fill_between(counts, [min(e) for e in spread], [max(e) for e in spread], color=look["color"], alpha=0.2, linewidth=0)
        exchanged = [(lesion.tau, error) for lesion, error in each if lesion.kind == "exchanged"]
        if exchanged:
            panels[2].plot(*np.transpose(exchanged), **look | {"linestyle": "none"}, alpha=0.7)
    panels[0].set_ylabel("error (%)")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    panels[2].invert_xaxis()
    for panel in panels[:2]:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def paths(found: Mapping[str, Paths]) -> Figure:
    """Figure 6 of Veit et al. 2016, by the length of paths: how many there are, what one carries, and what all of a length carry.

    Args:
      found: by the name that the legend gives.
    """
    figure, panels = _panels(*["length (branches passed)"] * 3)
    for (name, each), look in zip(found.items(), _looks(), strict=False):
        panels[0].plot(each.lengths, 100 * each.share, label=figures.shortened(name), **look)
        # An axis of logarithms has no place for what carries nothing.
        carrying = each.gradient.min(0) > 0
        lengths, gradient = each.lengths[carrying], each.gradient[:, carrying]
        panels[1].plot(lengths, gradient.mean(0), **look)
        panels[1].fill_between(lengths, gradient.min(0), gradient.max(0), color=look["color"], alpha=0.2, linewidth=0)
        panels[2].plot(each.lengths, 100 * each.carried, **look)
        effective = slice(each.effective.start, each.effective.stop)
        panels[2].fill_between(each.lengths[effective], 100 * each.carried[effective], color=look["color"], alpha=0.2, linewidth=0)
    titles = ("share of all paths (%)", "norm of the gradient of one path", "share of the gradient (%)")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_ylabel(title)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for panel in (panels[0], panels[2]):
        panel.set_ylim(bottom=0)
    _logarithmic(panels[1])
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def identity(found: Mapping[str, Identity]) -> Figure:
    """How far units are from the identity, and what a change is to their branches: unit by unit, by the name that the legend gives."""
    figure, panels = _panels("unit", "unit", "unit")
    titles = ("distance from the identity", "whole over branch", "branch's change over whole's")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=figures.FONT_SIZE)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for (name, each), look in zip(found.items(), _looks(), strict=False):
        for panel, values in zip(panels, (each.distance, each.leverage, each.branch_change / each.whole_change), strict=True):
            panel.plot(np.arange(len(values)), values, label=name, **look)
    for panel in panels:
        panel.set_ylim(bottom=0)
    panels[0].set_ylabel("ratio of lengths")
    panels[0].legend(frameon=False)
    return figure


def landscape(found: Mapping[str, Landscape]) -> Figure:
    """Contours of the loss around each network, at the same levels: Figure 5 of Li et al. 2018.

    Args:
      found: by the name that stands above the panel.
    """
    columns = min(len(found), 3)
    rows, side = -(-len(found) // columns), min(_WIDTH / columns, 3.3)
    figure = Figure(figsize=(side * columns, (side + 0.25) * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    levels = _levels(np.concatenate([each.loss.ravel() for each in found.values()]))
    # Greys that let through what is below: a page may be dark.
    shades = [(0.5, 0.5, 0.5, shade) for shade in np.linspace(0, 0.55, len(levels) + 1)]
    for panel, (name, each) in zip(panels, found.items(), strict=False):
        if levels:
            # matplotlib's first axis is the vertical one. Logarithms: between two points of the grid a loss may grow tenfold.
            heights = np.log10(np.maximum(np.ma.masked_invalid(each.loss.T), levels[0] / 10))
            panel.contourf(each.offsets, each.offsets, heights, np.log10(levels), colors=shades, extend="both")
            lines = panel.contour(each.offsets, each.offsets, heights, np.log10(levels), colors=figures.INK, linewidths=0.6, linestyles="-")
            panel.clabel(lines, fmt=_level, fontsize=0.75 * figures.FONT_SIZE, manual=_places(lines, 0.85 * float(each.offsets[-1])))
        lost = np.nonzero(~np.isfinite(each.loss))
        panel.plot(*each.offsets[np.stack(lost)], ".", color=figures.INK, markersize=3)
        panel.plot(0, 0, "+", color=figures.COLOURS[1], markersize=8, markeredgewidth=1.6)
        panel.set_title(figures.shortened(name), fontsize=figures.FONT_SIZE)
        panel.set_aspect("equal")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(5))
    for panel in panels[len(found) :]:
        panel.set_axis_off()
    figure.supxlabel("direction 1, in norms of each filter", fontsize=figures.FONT_SIZE)
    figure.supylabel("direction 2", fontsize=figures.FONT_SIZE)
    return figure


def depth(found: Sequence[Family], threshold: float) -> Figure:
    """Training error (bold) and test error (thin, dashed) against the number of layers, mean and range over seeds.

    Args:
      found: families of networks, a line each.
      threshold: training error in percent from which on a network has not learned.
    """
    figure, (panel,) = _panels("layers with weights")
    for family, look in zip(found, _looks(), strict=False):
        layers = [each.layers for each in family.depths]
        for name, more in (("training", {"linewidth": 1.8, "markersize": 4}), ("test", {"linewidth": 0.7})):
            spreads = [each.training if name == "training" else each.test for each in family.depths]
            mean = np.array([spread.mean for spread in spreads])
            ranges = [mean - [min(spread.values) for spread in spreads], [max(spread.values) for spread in spreads] - mean]
            style = look | more | {"linestyle": "-" if name == "training" else "--"}
            panel.errorbar(layers, mean, ranges, capsize=2, elinewidth=0.7, label=f"{figures.shortened(family.title)}, {name}", **style)
    panel.axhline(threshold, color=figures.INK, linewidth=0.8, linestyle=":")
    panel.set_xticks(sorted({each.layers for family in found for each in family.depths}))
    panel.set_ylabel("error (%)")
    # Errors of 0 are common, and their marks are not cut in half.
    panel.set_ylim(bottom=-0.02 * panel.get_ylim()[1])
    panel.legend(frameon=False)
    return figure


def _panels(*below: str, height: float = _HEIGHT, **given: Any) -> tuple[Figure, list[Axes]]:
    """A row of panels, by what stands below each."""
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    panels = list(figure.subplots(1, len(below), squeeze=False, **given)[0])
    for panel, label in zip(panels, below, strict=True):
        panel.set_xlabel(label)
        panel.grid(axis="y", color=figures.GREY, alpha=0.25, linewidth=0.6)
    return figure, panels


def _logarithmic(panel: Axes) -> None:
    """Upwards, with numbers that are no formulas."""
    panel.set_yscale("log")
    low, high = panel.get_ylim()
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,), numticks=8))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _levels(losses: Float[np.ndarray, "losses"]) -> list[float]:
    """Of contours: 1, 2, 5, 10, ... as far as they can be told apart, else powers of ten, or every second or third of them."""
    seen = losses[np.isfinite(losses) & (losses > 0)]
    low, high = (float(seen.min()), float(seen.max())) if seen.size else (1.0, 1.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every: list[tuple[tuple[int, ...], int]] = [((1, 2, 5), 1), ((1, 3), 1), *(((1,), step) for step in range(1, len(powers) + 1))]
    tried = ([digit * 10.0**power for power in powers[::step] for digit in digits] for digits, step in every)
    levels = next(inside for each in tried if len(inside := [level for level in each if low < level < high]) <= _MOST_LEVELS)
    # Where there is a single one, the figures of losses are less round.
    return levels if len(levels) > 1 else np.geomspace(low, high, 5)[1:-1].tolist() if low < high else []


def _level(height: float) -> str:
    """As its contour is labelled, given its logarithm."""
    return f"{10**height:.3g}" if height < 3 else f"{10**height:.0e}".replace("+0", "")


def _places(lines: ContourSet, within: float) -> list[tuple[float, float]]:
    """For the label of each contour, one direction after another: off the edges, the centre, and the labels of its neighbours."""
    found = []
    for number, path in enumerate(lines.get_paths()):
        places = np.asarray(path.vertices)
        farther = np.abs(places).max(1)
        inside = places[(within / 5 < farther) & (farther < within)]
        towards = np.array([np.cos(2.4 * number), np.sin(2.4 * number)])
        if len(inside):
            x, y = inside[np.argmax(inside @ towards / np.hypot(*inside.T))]
            found.append((float(x), float(y)))
    return found


def _looks() -> Iterator[Any]:
    """Of lines, one after another."""
    names = ("color", "linestyle", "marker")
    for look in zip(itertools.cycle(figures.COLOURS), itertools.cycle(_STROKES), itertools.cycle(_MARKS), strict=False):
        yield dict(zip(names, look, strict=True)) | {"markersize": 2.5, "linewidth": 1}
