"""Training and test curves as in He et al. 2015, Figures 1 and 6: one panel per family, one color per depth."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from resnet_jax.studies import figures
from resnet_jax.studies.cells import Cell
from resnet_jax.training import resolved
from resnet_jax.training.workdir import Record, Workdir

POINTS = 200
"""Maximum number of points of a curve: a panel has about 300 pixels."""
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.4)), (0, (5, 1.3, 1, 1.3)), (0, (1.2, 1.2)), (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)))
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
        columns = max(1, min(4, 34 // (max(len(figures.shortened(label)) for label in labels) + 5)))
        rows = -(-len(family) // columns) if len(family) > 1 else 0
        height = _AXES + _BELOW + _ABOVE + rows * _LEGEND_ROW
        with figures.style():
            figure = Figure(figsize=(_WIDTH, height))
            panel = figure.add_axes((0.125, _BELOW / height, 0.855, _AXES / height))
            _axes(panel, steps, limit)
            handles = [_draw(panel, member, label, depths.index(member.stages)) for member, label in zip(family, labels, strict=True)]
            if len(handles) > 1:
                place = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "frameon": False}
                panel.legend(handles=handles, ncols=columns, handlelength=1.9, columnspacing=0.9, labelspacing=0.3, **place)
            names = ", ".join(member.name for member in family)
            drawn.append((title, figures.svg(figure, f"Training and test error against steps: {names}", f"curves{number}")))
    return drawn


def families(cells: Sequence[Cell]) -> list[list[Member]]:
    """Groups variants with curves whose networks differ in ``stages`` alone, one of each depth, shallowest first."""
    groups: list[tuple[str, list[Member]]] = []
    for cell in cells:
        records = [run.records() for run in cell.runs]
        train, test = curve(records, "train"), curve(records, "test")
        if train is None and test is None:
            continue
        model = cell.results[0]["model"] if cell.results else Workdir(cell.runs[0].source).read_experiment_file()["experiment"]["model"]
        member = Member(cell.name, tuple(model["stages"]), train, test)
        rest = resolved.fingerprint({name: value for name, value in model.items() if name != "stages"})
        # Networks of one depth that were trained differently would be two lines of one color.
        fitting = (group for key, group in groups if key == rest and all(member.stages != other.stages for other in group))
        group = next(fitting, None)
        if group is None:
            groups.append((rest, group := []))
        group.append(member)
    return [sorted(members, key=lambda member: (sum(member.stages), member.stages)) for _, members in groups]


def common(names: Sequence[str]) -> tuple[str, list[str]]:
    """Splits names into their common part and the rest: plain-20 and plain-56 are "plain", "20" and "56"."""
    if len(names) == 1:
        return names[0], [""]
    # Numbers and fingerprints are not cut.
    words = [re.findall(r"\([^()]*\)|\d+|[^\W\d_]+|[\W_]", name) for name in names]
    shortest = min(map(len, words))
    begin = next((at for at in range(shortest) if len({parts[at] for parts in words}) > 1), shortest)
    end = next((at for at in range(shortest - begin) if len({parts[-1 - at] for parts in words}) > 1), shortest - begin)
    own = ["".join(parts[begin : len(parts) - end]).strip(" -_") for parts in words]
    before, after = "".join(words[0][:begin]), "".join(words[0][len(words[0]) - end :])
    title = (f"{before}…{after}" if before and after else before + after).strip(" -_")
    # matplotlib leaves labels that begin with _ out of a legend.
    return (title, own) if title and all(own) else (", ".join(map(figures.shortened, names)), [name.strip("_") or "–" for name in names])


def curve(runs: Sequence[Sequence[Record]], split: str) -> Curve | None:
    """Returns the curve over runs, averaged within at most ``POINTS`` windows of steps; None without records."""
    points = [{record["step"]: record["error_percent"] for record in records if record["split"] == split} for records in runs]
    steps = np.array(sorted(set().union(*points)), dtype=float)
    if not steps.size:
        return None
    windows = np.array_split(steps, min(POINTS, steps.size))
    ends = [window[-1] for window in windows]
    means = np.full((len(points), len(windows)), np.nan)
    for row, run in zip(means, points, strict=True):
        places = np.searchsorted(ends, list(run))
        number, total = (np.bincount(places, weights, len(windows)) for weights in (None, list(run.values())))
        np.divide(total, number, out=row, where=number > 0)
    centers = np.array([window.mean() for window in windows])
    return Curve(centers, np.nanmean(means, axis=0), np.nanmin(means, axis=0), np.nanmax(means, axis=0))


def error_limit(members: Sequence[Member], steps: int) -> float:
    """Returns the upper end of the axis: above 95 % of the errors after the first quarter, and the best test error of every member."""
    curves = [curve for member in members for curve in member.curves]
    late = np.concatenate([curve.mean[curve.steps > steps / 4] for curve in curves])
    typical = np.percentile(late if late.size else np.concatenate([curve.mean for curve in curves]), 95)
    limit = 1.1 * max(float(typical), *(float(member.test.mean.min()) for member in members if member.test), 0.0)
    unit = 5.0 if limit > 10 else 1.0 if limit > 2 else 0.5
    return min(100.0, max(unit, unit * np.ceil(limit / unit)))


def _axes(panel: Axes, steps: int, limit: float) -> None:
    panel.set_ylim(0, limit)
    panel.set_xlim(0, steps)
    scale, label = (1e4, "iter. (1e4)") if steps >= 20_000 else (1e3, "iter. (1e3)") if steps >= 2000 else (1, "step")
    panel.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=scale == 1, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step / scale:g}"))
    panel.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    panel.set_xlabel(label, labelpad=2)
    panel.set_ylabel("error (%)", labelpad=2)
    panel.grid(axis="y", color=figures.GRAY, alpha=0.3, linewidth=0.6)
    panel.tick_params(axis="y", length=0)


def _draw(panel: Axes, member: Member, label: str, look: int) -> Line2D:
    color, dashes = figures.COLORS[look % len(figures.COLORS)], _DASHES[look % len(_DASHES)]
    for curve, width, shade, order in ((member.train, 0.8, 0.1, 2), (member.test, 1.8, 0.16, 3)):
        if curve is None:
            continue
        if (curve.high > curve.low).any():
            panel.fill_between(curve.steps, curve.low, curve.high, color=color, alpha=shade, linewidth=0, zorder=order)
        marker = "." if curve.steps.size < 5 else ""
        panel.plot(curve.steps, curve.mean, color=color, linestyle=dashes, linewidth=width, marker=marker, zorder=order + 0.5)
    return Line2D([], [], color=color, linestyle=dashes, linewidth=1.8, label=figures.shortened(label) or None)
