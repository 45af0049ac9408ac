"""Figures as inline SVG, and the one that shows every cell: its error, seed by seed."""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from resnet_jax.studies.cells import Cell
from resnet_jax.studies.ledger import FAIL_PERCENT

# Okabe and Ito's colours: told apart with any colour vision, and on light and dark paper.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GREY = "#808080"
# matplotlib knows no 'currentColor'; this one stands for it until the SVG is written.
INK = "#010203"
FONT_SIZE = 8.5
# A phone shows 390 pixels: a figure made much wider has to be made too small to read.
_WIDTH, _ROW, _ABOVE, _BELOW = 4.1, 0.4, 0.3, 0.55
LONGEST_NAME = 36
_MANY_TICKS = 10


@contextlib.contextmanager
def style() -> Iterator[None]:
    """In which every figure is made and written."""
    given: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "resnet_jax",
        "font.size": FONT_SIZE,
        # A name with dollars is no formula.
        "text.parse_math": False,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
    }
    given |= dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with matplotlib.rc_context(given), warnings.catch_warnings():
        # The page's reader has the letters; those of matplotlib's own font only measure the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def svg(figure: Figure, label: str, key: str) -> Markup:
    """An ``<svg>`` element that takes its ink, and lighter colours where that is dark, from the page.

    Args:
      figure: made within ``style``.
      label: what it shows, for those who cannot see it.
      key: tells its definitions from those of the page's other figures.
    """
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return inline(text.getvalue(), label, key)


def inline(written: str, label: str, key: str) -> Markup:
    """What ``svg`` returns, from a figure that was written within ``style``."""
    body = re.sub(r"<metadata>.*?</metadata>", "", written, flags=re.DOTALL)
    # Inside a page, a style of the figure would be one of the whole page, and an identifier is one for all figures.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r' id="[\w.]+_\d+"| font-family:[^;"]*;?', "", body)
    body = re.sub(r'( id="|#)([pmC][\da-f_]{6,}\b)', rf"\1{key}-\2", body)
    body = re.sub(r' d="([^"]*)"', lambda path: f' d="{_short(path[1])}"', body)
    body = re.sub(r"\s*\n\s*", "\n", body.replace(INK, "currentColor"))
    for number, colour in enumerate(COLOURS):
        body = body.replace(colour, f"var(--c{number}, {colour})")
    head, _, rest = body[body.index("<svg") :].partition(">")
    head += f' role="img" aria-label="{escape(label)}" stroke-linejoin="round"'
    return Markup(f"{head}>{rest}")


def _short(path: str) -> str:
    return re.sub(r"(\.\d\d)\d+", r"\1", " ".join(path.split()))


def error_by_cell(cells: Sequence[Cell], published: Mapping[str, Sequence[float]]) -> Markup:
    """Every seed a dot, the mean a stroke on a band of one standard deviation each way; empty where no cell has results.

    Args:
      cells: from top to bottom.
      published: name of a cell to the errors that were published of it under the same circumstances: hollow diamonds.
    """
    shown = [cell for cell in cells if cell.results]
    if not shown:
        return Markup()
    values = [value for cell in shown for value in (*cell.error.values, *published.get(cell.name, ()))]
    height = _ABOVE + _ROW * len(shown) + _BELOW
    with style():
        figure = Figure(figsize=(_WIDTH, height))
        panel = figure.add_axes((0.05, _BELOW / height, 0.9, _ROW * len(shown) / height))
        zero = _scale(panel, values)
        panel.set_ylim(len(shown) - 0.3, -0.7)
        panel.set_yticks([])
        panel.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
        panel.tick_params(axis="x", which="both", length=3)
        panel.set_axisbelow(True)
        for row, cell in enumerate(shown):
            _row(panel, row, cell, published.get(cell.name, ()), zero)
        if any(cell.failed for cell in shown):
            panel.axvline(FAIL_PERCENT, color=INK, linewidth=1, linestyle=(0, (4, 2)))
            # Beside the line, where there is room.
            right = panel.transData.transform((FAIL_PERCENT, 0))[0] < panel.transAxes.transform((0.6, 0))[0]
            panel.text(
                FAIL_PERCENT,
                1.0,
                f" fail: above {FAIL_PERCENT:g} % ",
                transform=panel.get_xaxis_transform(),
                va="bottom",
                ha="left" if right else "right",
            )
        return svg(figure, f"Test error of the last step of {len(shown)} cells, seed by seed", "errors")


def _row(panel: Axes, row: int, cell: Cell, published: Sequence[float], zero: float) -> None:
    error = cell.error
    left, right = panel.get_xlim()
    panel.hlines(row, left, right, color=GREY, alpha=0.25, linewidth=0.6)
    if not math.isnan(error.deviation):
        low, high = max(error.mean - error.deviation, left), min(error.mean + error.deviation, right)
        panel.hlines(row, low, high, color=COLOURS[0], alpha=0.28, linewidth=9)
    panel.vlines(max(error.mean, zero), row - 0.22, row + 0.22, color=INK, linewidth=1.4)
    # Seeds that found the same error still show as many.
    heights = row + (np.linspace(-0.12, 0.12, len(cell.results)) if len(cell.results) > 1 else np.zeros(1))
    for result, height in zip(cell.results, heights, strict=True):
        diverged = result["diverged_at_step"] is not None
        panel.plot(
            max(result["value"], zero),
            height,
            marker="x" if diverged else "o",
            markersize=5.5 if diverged else 4.2,
            color=INK,
            markerfacecolor="none" if diverged else COLOURS[0],
            markeredgecolor=INK if diverged else COLOURS[0],
            markeredgewidth=1.4 if diverged else 0,
            alpha=1 if diverged else 0.7,
            clip_on=False,
        )
    for value in published:
        panel.plot(max(value, zero), row, marker="D", markersize=7, markerfacecolor="none", markeredgecolor=COLOURS[1], markeredgewidth=1.6)
    sides = panel.get_yaxis_transform()
    panel.text(0, row - 0.4, shortened(cell.name), transform=sides, va="center", ha="left")
    panel.text(1, row - 0.4, str(error), transform=sides, va="center", ha="right", fontweight="bold")


def _scale(panel: Axes, values: Sequence[float]) -> float:
    """Sets the axis of errors so that the smallest and the largest can both be read.

    Returns:
      Where an error of 0 stands: a logarithmic axis has a place for it left of all others.
    """
    above = [value for value in values if value > 0]
    label = "test error of the last step (%)"
    if not above or max(above) <= 10 * min(above):
        low, high = min(values), max(values)
        pad = max(0.08 * (high - low), 0.02 * high, 0.05)
        panel.set_xlim(low - pad, high + pad)
        panel.set_xticks([tick for tick in panel.get_xticks() if max(0, low - pad) <= tick <= min(100, high + pad)])
        panel.set_xlabel(label)
        return 0.0
    low, high = min(above), max(above)
    zero = low / 2.5
    panel.set_xscale("log")
    panel.set_xlim((low if len(above) == len(values) else zero) / 1.25, high * 1.15)
    ticks = _ticks(*panel.get_xlim())
    if len(above) < len(values):
        ticks = [zero, *(tick for tick in ticks if tick >= low)]
    panel.set_xticks(ticks, ["0" if tick == zero else f"{tick:g}" for tick in ticks])
    panel.set_xticks([], minor=True)
    panel.set_xlabel(f"{label}, logarithmic")
    return zero


def _ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, ... as far as there is room, else powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for leading in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**power for power in powers for digit in leading]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= _MANY_TICKS:
            break
    return ticks


def shortened(name: str) -> str:
    """The middle left out of a long name: cells differ where they begin and end."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"
