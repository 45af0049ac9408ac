"""Training and test curves as in He et al. 2015, Figures 1 and 6: one panel per family, one color per depth."""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from resnet_jax.studies.ledger import FAIL_PERCENT
from resnet_jax.studies.results import Cell
from resnet_jax.training import config
from resnet_jax.training.run_dir import Record, Workdir

POINTS = 200
"""Maximum number of points of a curve: a panel has about 300 pixels."""
_DASHES: tuple[Any, ...] = (
    "-",
    (0, (4, 1.4)),
    (0, (5, 1.3, 1, 1.3)),
    (0, (1.2, 1.2)),
    (0, (8, 2)),
    (0, (4, 1, 1, 1, 1, 1)),
)
_WIDTH, _AXES, _BELOW, _ABOVE, _LEGEND_ROW = 3.4, 2.3, 0.5, 0.12, 0.18


@dataclass(frozen=True)
class Curve:
    """Error against steps: mean, least and most over the seeds that reached each step."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Member:
    """A variant in its family."""

    name: str
    stages: tuple[int, ...]
    train: Curve | None
    test: Curve | None

    @property
    def curves(self) -> list[Curve]:
        return [curve for curve in (self.train, self.test) if curve is not None]


def panels(cells: Sequence[Cell]) -> list[tuple[str, Markup]]:
    """Draws the title and ``<svg>`` of each family with curves, on the same axes."""
    grouped = families(cells)
    members = [member for family in grouped for member in family]
    if not members:
        return []
    steps = max(int(curve.steps[-1]) for member in members for curve in member.curves)
    limit = error_limit(members, steps)
    depths = sorted({member.stages for member in members}, key=lambda stages: (sum(stages), stages))
    drawn = []
    for number, family in enumerate(grouped):
        title, labels = common([member.name for member in family])
        columns = max(1, min(4, 34 // (max(len(shortened(label)) for label in labels) + 5)))
        rows = -(-len(family) // columns) if len(family) > 1 else 0
        height = _AXES + _BELOW + _ABOVE + rows * _LEGEND_ROW
        with style():
            figure = Figure(figsize=(_WIDTH, height))
            panel = figure.add_axes((0.125, _BELOW / height, 0.855, _AXES / height))
            _axes(panel, steps, limit)
            handles = [
                _draw(panel, member, label, depths.index(member.stages))
                for member, label in zip(family, labels, strict=True)
            ]
            if len(handles) > 1:
                place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "frameon": False}
                panel.legend(
                    handles=handles,
                    ncols=columns,
                    handlelength=1.9,
                    columnspacing=0.9,
                    labelspacing=0.3,
                    **place,
                )
            names = ", ".join(member.name for member in family)
            drawn.append(
                (
                    title,
                    svg(
                        figure, f"Training and test error against steps: {names}", f"curves{number}"
                    ),
                )
            )
    return drawn


def families(cells: Sequence[Cell]) -> list[list[Member]]:
    """Groups variants with curves whose networks differ in ``stages`` alone, one of each depth, shallowest first."""
    groups: list[tuple[str, list[Member]]] = []
    for cell in cells:
        records = [run.records() for run in cell.runs]
        train, test = curve(records, "train"), curve(records, "test")
        if train is None and test is None:
            continue
        model = (
            cell.results[0]["model"]
            if cell.results
            else Workdir(cell.runs[0].source).read_experiment_file()["experiment"]["model"]
        )
        member = Member(cell.name, tuple(model["stages"]), train, test)
        rest = config.fingerprint(
            {name: value for name, value in model.items() if name != "stages"}
        )
        # Networks of one depth that were trained differently would be two lines of one color.
        fitting = (
            group
            for key, group in groups
            if key == rest and all(member.stages != other.stages for other in group)
        )
        group = next(fitting, None)
        if group is None:
            groups.append((rest, group := []))
        group.append(member)
    return [
        sorted(members, key=lambda member: (sum(member.stages), member.stages))
        for _, members in groups
    ]


def common(names: Sequence[str]) -> tuple[str, list[str]]:
    """Splits names into their common part and the rest: plain-20 and plain-56 are "plain", "20" and "56"."""
    if len(names) == 1:
        return names[0], [""]
    # Numbers and fingerprints are not cut.
    words = [re.findall(r"\([^()]*\)|\d+|[^\W\d_]+|[\W_]", name) for name in names]
    shortest = min(map(len, words))
    begin = next(
        (at for at in range(shortest) if len({parts[at] for parts in words}) > 1), shortest
    )
    end = next(
        (at for at in range(shortest - begin) if len({parts[-1 - at] for parts in words}) > 1),
        shortest - begin,
    )
    own = ["".join(parts[begin : len(parts) - end]).strip(" -_") for parts in words]
    before, after = "".join(words[0][:begin]), "".join(words[0][len(words[0]) - end :])
    title = (f"{before}…{after}" if before and after else before + after).strip(" -_")
    # matplotlib leaves labels that begin with _ out of a legend.
    return (
        (title, own)
        if title and all(own)
        else (", ".join(map(shortened, names)), [name.strip("_") or "–" for name in names])
    )


def curve(runs: Sequence[Sequence[Record]], split: str) -> Curve | None:
    """Returns the curve over runs, averaged within at most ``POINTS`` windows of steps; None without records."""
    points = [
        {record["step"]: record["error_percent"] for record in records if record["split"] == split}
        for records in runs
    ]
    steps = np.array(sorted(set().union(*points)), dtype=float)
    if not steps.size:
        return None
    windows = np.array_split(steps, min(POINTS, steps.size))
    ends = [window[-1] for window in windows]
    means = np.full((len(points), len(windows)), np.nan)
    for row, run in zip(means, points, strict=True):
        places = np.searchsorted(ends, list(run))
        number, total = (
            np.bincount(places, weights, len(windows)) for weights in (None, list(run.values()))
        )
        np.divide(total, number, out=row, where=number > 0)
    centers = np.array([window.mean() for window in windows])
    return Curve(
        centers, np.nanmean(means, axis=0), np.nanmin(means, axis=0), np.nanmax(means, axis=0)
    )


def error_limit(members: Sequence[Member], steps: int) -> float:
    """Returns the upper end of the axis: above 95 % of the errors after the first quarter, and the best test error of every member."""
    curves = [curve for member in members for curve in member.curves]
    late = np.concatenate([curve.mean[curve.steps > steps / 4] for curve in curves])
    typical = np.percentile(
        late if late.size else np.concatenate([curve.mean for curve in curves]), 95
    )
    limit = 1.1 * max(
        float(typical), *(float(member.test.mean.min()) for member in members if member.test), 0.0
    )
    unit = 5.0 if limit > 10 else 1.0 if limit > 2 else 0.5
    return min(100.0, max(unit, unit * np.ceil(limit / unit)))


def _axes(panel: Axes, steps: int, limit: float) -> None:
    panel.set_ylim(0, limit)
    panel.set_xlim(0, steps)
    scale, label = (
        (1e4, "iter. (1e4)")
        if steps >= 20_000
        else (1e3, "iter. (1e3)")
        if steps >= 2000
        else (1, "step")
    )
    panel.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=scale == 1, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step / scale:g}"))
    panel.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    panel.set_xlabel(label, labelpad=2)
    panel.set_ylabel("error (%)", labelpad=2)
    panel.grid(axis="y", color=GRAY, alpha=0.3, linewidth=0.6)
    panel.tick_params(axis="y", length=0)


def _draw(panel: Axes, member: Member, label: str, look: int) -> Line2D:
    color, dashes = COLORS[look % len(COLORS)], _DASHES[look % len(_DASHES)]
    for curve, width, shade, order in ((member.train, 0.8, 0.1, 2), (member.test, 1.8, 0.16, 3)):
        if curve is None:
            continue
        if (curve.high > curve.low).any():
            panel.fill_between(
                curve.steps,
                curve.low,
                curve.high,
                color=color,
                alpha=shade,
                linewidth=0,
                zorder=order,
            )
        marker = "." if curve.steps.size < 5 else ""
        panel.plot(
            curve.steps,
            curve.mean,
            color=color,
            linestyle=dashes,
            linewidth=width,
            marker=marker,
            zorder=order + 0.5,
        )
    return Line2D(
        [], [], color=color, linestyle=dashes, linewidth=1.8, label=shortened(label) or None
    )


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
        **dict.fromkeys(
            ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
        ),
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
    body = re.sub(
        r' d="([^"]*)"',
        lambda path: re.sub(r"(\.\d\d)\d+", r"\1", " " + " ".join(path[0].split())),
        body,
    )
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
        _scale(
            panel,
            [
                value
                for cell in finished
                for value in (*cell.error.values, *published.get(cell.name, ()))
            ],
        )
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
            panel.text(
                FAIL_PERCENT,
                1,
                f" fail: above {FAIL_PERCENT:g} % ",
                transform=at,
                va="bottom",
                ha=side,
            )
        return svg(
            figure,
            f"Test error of the last step of {len(finished)} variants, seed by seed",
            "errors",
        )


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
            look: dict[str, Any] = {
                "marker": "o",
                "markersize": 4.2,
                "color": COLORS[0],
                "markeredgewidth": 0,
                "alpha": 0.7,
            }
        else:
            look = {"marker": "x", "markersize": 5.5, "color": INK, "markeredgewidth": 1.4}
        panel.plot(result["value"], height, clip_on=False, **look)
    for value in published:
        panel.plot(
            value,
            row,
            marker="D",
            markersize=7,
            markerfacecolor="none",
            markeredgecolor=COLORS[1],
            markeredgewidth=1.6,
        )
    sides = panel.get_yaxis_transform()
    panel.text(0, row - 0.4, shortened(cell.name), transform=sides, va="center", ha="left")
    panel.text(
        1, row - 0.4, str(error), transform=sides, va="center", ha="right", fontweight="bold"
    )


def _scale(panel: Axes, values: Sequence[float]) -> None:
    """Sets the axis: linear, or beyond a factor of 10 logarithmic above the smallest error and linear to 0."""
    above = [value for value in values if value > 0]
    low, high = min(values), max(values)
    if not above or 0 < high / 10 <= low:
        pad = max(0.08 * (high - low), 0.02 * high, 0.05)
        panel.set_xlim(low - pad, high + pad)
        panel.set_xticks(
            [
                tick
                for tick in panel.get_xticks()
                if max(0, low - pad) <= tick <= min(100, high + pad)
            ]
        )
    else:
        panel.set_xscale("symlog", linthresh=min(above), linscale=0.4)
        panel.set_xlim(0.8 * low if low else -0.3 * min(above), 1.15 * high)
        powers = [10.0**power for power in range(-3, 3)]
        ticks = [
            digit * power
            for power in powers
            for digit in ((1, 2, 5) if high < 300 * min(above) else (1,))
        ]
        panel.set_xticks(
            [0.0] * (low == 0) + [tick for tick in ticks if min(above) <= tick <= 1.15 * high]
        )
        panel.set_xticks([], minor=True)
    panel.xaxis.set_major_formatter("{x:g}")
    panel.set_xlabel("test error of the last step (%)")


def shortened(name: str) -> str:
    """Returns the name, without its middle if it is too long."""
    return (
        name
        if len(name) <= LONGEST_NAME
        else f"{name[: LONGEST_NAME // 2]}…{name[-LONGEST_NAME // 2 + 1 :]}"
    )
