"""Figures as inline SVG; the error of every variant, seed by seed."""

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

# Okabe and Ito's colors: distinguishable with any color vision.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
GRAY = "#808080"
INK = "#010203"  # "currentColor" in SVG, which matplotlib lacks
FONT_SIZE = 8.5
# Inches; phones are 390 pixels wide.
_WIDTH, _ROW, _ABOVE, _BELOW = 4.1, 0.4, 0.3, 0.55
LONGEST_NAME = 36


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Context manager with the style in which every figure is drawn and written."""
    parameters: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "resnet_jax",
        "font.size": FONT_SIZE,
        "text.parse_math": False,  # names may contain dollars
        **dict.fromkeys(("axes.spines.left", "axes.spines.right", "axes.spines.top"), False),
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(parameters), warnings.catch_warnings():
        # The browser has the glyphs.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def svg(figure: Figure, label: str, key: str) -> Markup:
    """Renders a figure as an ``<svg>`` element; see ``inline``."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return inline(text.getvalue(), label, key)


def inline(text: str, label: str, key: str) -> Markup:
    """Returns the text of an SVG file as an ``<svg>`` element.

    The file was written within ``style``. ``label`` describes the figure, ``key`` makes its identifiers unique.
    """
    body = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Styles would apply to the whole page.
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r' id="[\w.]+_\d+"| font-family:[^;"]*;?', "", body)
    body = re.sub(r'( id="|#)([pmC][\da-f_]{6,}\b)', rf"\1{key}-\2", body)
    body = re.sub(r' d="([^"]*)"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", " " + " ".join(path[0].split())), body)
    body = re.sub(r"\s*\n\s*", "\n", body.replace(INK, "currentColor"))
    for number, color in enumerate(COLORS):
        body = body.replace(color, f"var(--c{number}, {color})")
    head, _, rest = body[body.index("<svg") :].partition(">")
    return Markup(f'{head} role="img" aria-label="{escape(label)}" stroke-linejoin="round">{rest}')


def error_by_cell(cells: Sequence[Cell], published: Mapping[str, Sequence[float]]) -> Markup:
    """Draws one dot per seed, the mean, a band of one standard deviation, and published errors by variant; empty without results."""
    finished = [cell for cell in cells if cell.results]
    if not finished:
        return Markup()
    height = _ABOVE + _ROW * len(finished) + _BELOW
    with style():
        figure = Figure(figsize=(_WIDTH, height))
        panel = figure.add_axes((0.05, _BELOW / height, 0.9, _ROW * len(finished) / height))
        _scale(panel, [value for cell in finished for value in (*cell.error.values, *published.get(cell.name, ()))])
        panel.set_ylim(len(finished) - 0.3, -0.7)
        panel.set_yticks([])
        panel.grid(axis="x", color=GRAY, alpha=0.25, linewidth=0.6)
        panel.tick_params(axis="x", which="both", length=3)
        panel.set_axisbelow(True)
        for row, cell in enumerate(finished):
            _row(panel, row, cell, published.get(cell.name, ()))
        if any(cell.failed for cell in finished):
            panel.axvline(FAIL_PERCENT, color=INK, linewidth=1, linestyle="--")
            side = "left" if panel.get_xlim()[1] > 4 * FAIL_PERCENT else "right"
            at = panel.get_xaxis_transform()
            panel.text(FAIL_PERCENT, 1, f" fail: above {FAIL_PERCENT:g} % ", transform=at, va="bottom", ha=side)
        return svg(figure, f"Test error of the last step of {len(finished)} variants, seed by seed", "errors")


def _row(panel: Axes, row: int, cell: Cell, published: Sequence[float]) -> None:
    error = cell.error
    left, right = panel.get_xlim()
    if not math.isnan(error.deviation):
        band = max(error.mean - error.deviation, left), min(error.mean + error.deviation, right)
        panel.hlines(row, *band, color=COLORS[0], alpha=0.28, linewidth=9)
    panel.vlines(error.mean, row - 0.22, row + 0.22, color=INK, linewidth=1.4)
    # Seeds with the same error remain separate dots.
    heights = row + np.linspace(-0.12, 0.12, len(cell.results)) * (len(cell.results) > 1)
    for result, height in zip(cell.results, heights, strict=True):
        if result["diverged_at_step"] is None:
            look: dict[str, Any] = {"marker": "o", "markersize": 4.2, "color": COLORS[0], "markeredgewidth": 0, "alpha": 0.7}
        else:
            look = {"marker": "x", "markersize": 5.5, "color": INK, "markeredgewidth": 1.4}
        panel.plot(result["value"], height, clip_on=False, **look)
    for value in published:
        panel.plot(value, row, marker="D", markersize=7, markerfacecolor="none", markeredgecolor=COLORS[1], markeredgewidth=1.6)
    sides = panel.get_yaxis_transform()
    panel.text(0, row - 0.4, shortened(cell.name), transform=sides, va="center", ha="left")
    panel.text(1, row - 0.4, str(error), transform=sides, va="center", ha="right", fontweight="bold")


def _scale(panel: Axes, values: Sequence[float]) -> None:
    """Sets the axis: linear, or beyond a factor of 10 logarithmic above the smallest error and linear to 0."""
    above = [value for value in values if value > 0]
    low, high = min(values), max(values)
    if not above or 0 < high / 10 <= low:
        pad = max(0.08 * (high - low), 0.02 * high, 0.05)
        panel.set_xlim(low - pad, high + pad)
        panel.set_xticks([tick for tick in panel.get_xticks() if max(0, low - pad) <= tick <= min(100, high + pad)])
    else:
        panel.set_xscale("symlog", linthresh=min(above), linscale=0.4)
        panel.set_xlim(0.8 * low if low else -0.3 * min(above), 1.15 * high)
        powers = [10.0**power for power in range(-3, 3)]
        ticks = [digit * power for power in powers for digit in ((1, 2, 5) if high < 300 * min(above) else (1,))]
        panel.set_xticks([0.0] * (low == 0) + [tick for tick in ticks if min(above) <= tick <= 1.15 * high])
        panel.set_xticks([], minor=True)
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xlabel("test error of the last step (%)")


def shortened(name: str) -> str:
    """Returns the name, without its middle if it is too long."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"
