"""Shared pieces of the analyses' figures, which are drawn within ``studies.figures.style``."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_jax.studies import figures

Name = TypeVar("Name")
Result = TypeVar("Result")


def panels(
    xlabels: Sequence[str], ylabels: Sequence[str], **subplots: Any
) -> tuple[Figure, list[Axes]]:
    """Returns a row of panels, one per label of the horizontal axis."""
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    axes = list(figure.subplots(1, len(xlabels), squeeze=False, **subplots)[0])
    for panel, label, ylabel in itertools.zip_longest(axes, xlabels, ylabels):
        panel.set_xlabel(label)
        panel.set_ylabel(ylabel)
        panel.grid(axis="y", color=figures.GRAY, alpha=0.25, linewidth=0.6)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=not label.startswith("Kendall")))
    return figure, axes


def styled(results: Mapping[Name, Result]) -> Iterator[tuple[Name, Result, Any]]:
    """Yields name, result and a line style that differs in color, stroke and marker."""
    colors, strokes, markers = figures.COLORS, ("-", "--", ":", "-."), "os^Dvx"
    for i, (name, result) in enumerate(results.items()):
        color, stroke, marker = colors[i % len(colors)], strokes[i % 4], markers[i % 6]
        style = {"color": color, "linestyle": stroke, "linewidth": 1}
        yield name, result, style | {"marker": marker, "markersize": 2.5}


def fill(panel: Axes, x: Any, low: Any, high: Any, style: Any) -> None:
    """Shades a range around a line."""
    panel.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
