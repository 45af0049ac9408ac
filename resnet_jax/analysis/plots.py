"""Shared pieces of the analyses' figures, which are drawn within ``studies.figures.style``."""

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from resnet_jax.studies import figures

WIDTH = 7.2  # inches
Style = dict[str, Any]
Name, Result = TypeVar("Name"), TypeVar("Result")


def panels(*xlabels: str, **subplots: Any) -> tuple[Figure, list[Axes]]:
    """Returns a row of panels, one per label of the horizontal axis."""
    figure = Figure(figsize=(WIDTH, 3.0), layout="constrained")
    axes = list(figure.subplots(1, len(xlabels), squeeze=False, **subplots)[0])
    for panel, label in zip(axes, xlabels, strict=True):
        panel.set_xlabel(label)
        panel.grid(axis="y", color=figures.GRAY, alpha=0.25, linewidth=0.6)
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=not label.startswith("Kendall")))
    return figure, axes


def styled(results: Mapping[Name, Result]) -> Iterator[tuple[Name, Result, Style]]:
    """Yields name, result and a line style that differs in color, stroke and marker."""
    colors, strokes, markers = figures.COLORS, ("-", "--", ":", "-."), "os^Dvx"
    for i, (name, result) in enumerate(results.items()):
        color, stroke, marker = colors[i % len(colors)], strokes[i % 4], markers[i % 6]
        style = {"color": color, "linestyle": stroke, "linewidth": 1}
        yield name, result, style | {"marker": marker, "markersize": 2.5}


def fill(panel: Axes, x: Any, low: Any, high: Any, style: Style) -> None:
    """Shades a range around a line."""
    panel.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
