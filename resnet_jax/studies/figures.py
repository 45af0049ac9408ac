"""Figures of the report: curves as in He et al. 2015, Figures 1 and 6, and errors by variant."""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from resnet_jax.studies import results
from resnet_jax.studies.ledger import FAIL_PERCENT
from resnet_jax.studies.results import VariantRuns
from resnet_jax.training.run_dir import Record, Workdir

# Okabe and Ito's colors: distinguishable with any color vision.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STROKES = ("-", "--", ":", "-.")
INK = "#010203"  # "currentColor" in SVG, which matplotlib lacks
POINTS = 200  # of a curve at most: a panel has about 300 pixels
_STYLE = Path(__file__).with_name("style.mplstyle")
_WIDTH = 4.1  # inches; phones are 390 pixels wide


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Context manager with the style in which every figure is drawn and written."""
    with matplotlib.style.context(_STYLE), warnings.catch_warnings():
        # The browser has the glyphs.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def svg(figure: Figure, label: str, key: str) -> Markup:
    """Returns a figure drawn within ``style`` as an element; ``key`` prefixes its identifiers."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    body = text.getvalue()
    # Styles would apply to the whole page.
    body = re.sub(r"<(metadata|style).*?</\1>", "", body[body.index("<svg") :], flags=re.DOTALL)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\1{key}-", body)
    # Hundredths of a point.
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), body)
    body = body.replace(INK, "currentColor")
    for number, color in enumerate(COLORS):
        body = body.replace(color, f"var(--c{number}, {color})")
    attributes = f'role="img" aria-label="{escape(label)}" stroke-linejoin="round"'
    return Markup(body.replace("<svg", f"<svg {attributes}", 1))


def shortened(name: str) -> str:
    return name if len(name) <= 36 else f"{name[:18]}…{name[-17:]}"


def without_fingerprint(name: str) -> str:
    return re.sub(r" \([\da-f]{6}\)$", "", name)


def common_name(names: Sequence[str]) -> str:
    """Returns the common part of names that differ in numbers: "plain" for plain-20, plain-56."""
    if len(names) == 1:
        return names[0]
    words = [re.findall(r"\d+|\D+", without_fingerprint(name)) for name in names]
    columns = zip(*words, strict=False)
    title = "".join(column[0] if len(set(column)) == 1 else "…" for column in columns)
    return title.strip(" -_…") or ", ".join(map(shortened, names))


class Curve(NamedTuple):
    """Error against steps: mean, least and most over the seeds that reached each step."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


Curves = dict[str, Curve]
"""Curves of a variant by split."""


def curve(runs: Sequence[Sequence[Record]], split: str) -> Curve | None:
    """Returns the curve over runs, averaged within ``POINTS`` windows; None without records."""
    points = [
        {record["step"]: record["error_percent"] for record in records if record["split"] == split}
        for records in runs
    ]
    steps = np.array(sorted(set().union(*points)), dtype=float)
    if not steps.size:
        return None
    errors = np.ma.masked_invalid([[run.get(step, np.nan) for step in steps] for run in points])
    windows = np.array_split(np.arange(steps.size), min(POINTS, steps.size))
    means = np.ma.stack([errors[:, window].mean(axis=1) for window in windows])
    statistics = means.mean(axis=1), means.min(axis=1), means.max(axis=1)
    centers = np.array([steps[window].mean() for window in windows])
    return Curve(centers, *(np.ma.filled(values, np.nan) for values in statistics))


def panels(variants: Sequence[VariantRuns]) -> list[tuple[str, Markup]]:
    """Draws the curves of variants on equal axes; returns titles and ``<svg>``.

    Variants that differ in ``stages`` alone share a panel.
    """
    networks = []
    for variant in variants:
        records = [Workdir(run.source).records() for run in variant.runs if run.source.is_dir()]
        curves = {split: line for split in ("test", "train") if (line := curve(records, split))}
        if curves:
            model = variant.experiment["model"]
            blocks = sum(model["stages"])
            networks.append((model, blocks, (variant.name, blocks, curves)))
    if not networks:
        return []
    limits = axis_limits([curves for *_, (*_, curves) in networks])
    depths = sorted({blocks for _, blocks, _ in networks})
    drawn = []
    for number, family in enumerate(results.families(networks)):
        names = [name for name, *_ in family]
        columns = 2 if max(map(len, names)) < 17 else 1
        height = 2.9 + 0.18 * math.ceil(len(family) / columns)
        with style():
            figure = Figure(figsize=(_WIDTH, height))
            panel = figure.add_subplot(xlabel="step", ylabel="error (%)", **limits)
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            for name, blocks, curves in family:
                _draw_curves(panel, shortened(name), curves, depths.index(blocks))
            figure.legend(loc="outside upper left", ncols=columns)
            label = f"Training and test error against steps: {', '.join(names)}"
            drawn.append((common_name(names), svg(figure, label, f"curves{number}")))
    return drawn


def axis_limits(variants: Sequence[Curves]) -> dict[str, tuple[float, float]]:
    """Returns ``xlim`` to the last step and ``ylim`` above best test and 95 % of late errors."""
    lines = [line for curves in variants for line in curves.values()]
    steps = np.concatenate([line.steps for line in lines])
    errors = np.concatenate([line.mean for line in lines])
    late = errors[steps > steps.max() / 4]
    best = [curves["test"].mean.min() for curves in variants if "test" in curves]
    highest = max(np.percentile(late, 95), *best, 0.5)
    return {"xlim": (0, float(steps.max())), "ylim": (0, min(100.0, 1.1 * float(highest)))}


def _draw_curves(panel: Axes, name: str, curves: Curves, depth: int) -> None:
    line: Record = {"color": COLORS[depth % len(COLORS)], "label": name}
    line["linestyle"] = STROKES[depth % len(STROKES)]
    for split, (steps, mean, low, high) in curves.items():
        width, alpha = (1.8, 0.16) if split == "test" else (0.8, 0.1)
        line["marker"] = "." if steps.size < 5 else ""
        panel.plot(steps, mean, linewidth=width, zorder=2 + width, **line)
        if (high > low).any():
            panel.fill_between(steps, low, high, color=line["color"], alpha=alpha, linewidth=0)
        line["label"] = None


def draw_errors(
    variants: Sequence[VariantRuns], published: Mapping[str, Sequence[float]]
) -> Markup:
    """Draws a row per variant: a dot per seed, mean ± standard deviation, published errors."""
    finished = [variant for variant in variants if variant.results]
    if not finished:
        return Markup()
    with style():
        figure = Figure(figsize=(_WIDTH, 0.85 + 0.44 * len(finished)))
        panel = figure.add_subplot(xlabel="test error of the last step (%)", yticks=[])
        panel.set_ylim(len(finished) - 0.4, -0.75)
        failed = any(variant.failed for variant in finished)
        values = [value for variant in finished for value in variant.error.values]
        values += [value for errors in published.values() for value in errors]
        _scale(panel, values + [FAIL_PERCENT] * failed)
        panel.grid(axis="x")
        for row, variant in enumerate(finished):
            _draw_row(panel, row, variant, published.get(variant.name, ()))
        if failed:
            rows = np.arange(len(finished))  # not across the names between them
            limits = np.full(rows.size, FAIL_PERCENT)
            panel.vlines(limits, rows - 0.25, rows + 0.25, INK, "--", linewidth=1)
            panel.set_title(f"dashed: fail: above {FAIL_PERCENT:g} %")
        label = f"Test error of the last step of {len(finished)} variants, seed by seed"
        return svg(figure, label, "errors")


def _draw_row(panel: Axes, row: int, variant: VariantRuns, published: Sequence[float]) -> None:
    error, (blue, orange, *_) = variant.error, COLORS
    band = {"xerr": error.deviation, "ecolor": f"{blue}48", "elinewidth": 9}
    panel.errorbar(error.mean, row, fmt="|", color=INK, markersize=12, **band)
    values = np.array([result["value"] for result in variant.results])
    diverged = np.array([result["diverged_at_step"] is not None for result in variant.results])
    # Seeds with the same error remain separate dots.
    heights = row + np.linspace(-0.1, 0.1, values.size) * (values.size > 1)
    for kept, marker, color, edge in (~diverged, "o", blue, 0), (diverged, "x", INK, 1.4):
        dots = {"color": color, "markersize": 4.5, "markeredgewidth": edge}
        panel.plot(values[kept], heights[kept], marker, clip_on=False, in_layout=False, **dots)
    diamond = {"markerfacecolor": "none", "markeredgecolor": orange, "markeredgewidth": 1.6}
    panel.plot(published, [row] * len(published), "D", markersize=7, **diamond)
    text = {"transform": panel.get_yaxis_transform(), "va": "center"}
    panel.text(0, row - 0.46, shortened(variant.name), **text)
    panel.text(1, row - 0.46, str(error), ha="right", fontweight="bold", **text)


def _scale(panel: Axes, errors: Sequence[float]) -> None:
    """Sets the axis: linear, or logarithmic with 0 for errors beyond a factor of 10."""
    low, high = min(errors), max(errors)
    if low >= high / 10:
        pad = max(0.08 * (high - low), 0.02 * high, 0.05)
        panel.set_xlim(low - pad, high + pad)
    else:
        least = min(error for error in errors if error > 0)
        panel.set_xscale("symlog", linthresh=least, linscale=0.4)
        panel.set_xlim(0.8 * low if low else -0.3 * least, 1.15 * high)
    panel.xaxis.set_major_formatter("{x:g}")
