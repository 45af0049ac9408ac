"""Training and test curves as in He et al. 2015, Figures 1 and 6: a panel a family, a colour a depth, thin training, bold testing."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

# More cannot be told apart in a panel of some 300 pixels.
POINTS = 200
# Told apart in grey as well.
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.4)), (0, (5, 1.3, 1, 1.3)), (0, (1.2, 1.2)), (0, (8, 2)), (0, (4, 1, 1, 1, 1, 1)))
_WIDTH, _AXES_HEIGHT, _BELOW, _ABOVE, _LEGEND_ROW = 3.4, 2.3, 0.5, 0.12, 0.18


@dataclass(frozen=True)
class Curve:
    """Error against steps, over the seeds that reached each of them."""

    steps: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Member:
    """A cell in its family."""

    name: str
    label: str
    """What tells its name from those of the others; empty where it is alone."""
    stages: tuple[int, ...]
    train: Curve | None
    test: Curve | None

    @property
    def curves(self) -> list[Curve]:
        return [curve for curve in (self.train, self.test) if curve is not None]


@dataclass(frozen=True)
class Family:
    """Cells whose networks differ in depth alone, from the shallowest."""

    title: str
    members: tuple[Member, ...]


def panels(cells: Sequence[Cell]) -> list[tuple[str, Markup]]:
    """Title and ``<svg>`` of each family that has curves; all have the same axes."""
    found = families(cells)
    every = [member for family in found for member in family.members]
    if not every:
        return []
    steps = max(int(curve.steps[-1]) for member in every for curve in member.curves)
    limit = error_limit(every, steps)
    depths = sorted({member.stages for member in every}, key=lambda stages: (sum(stages), stages))
    drawn = []
    for number, family in enumerate(found):
        columns = _columns(family)
        rows = -(-len(family.members) // columns) if len(family.members) > 1 else 0
        height = _AXES_HEIGHT + _BELOW + _ABOVE + rows * _LEGEND_ROW
        with figures.style():
            figure = Figure(figsize=(_WIDTH, height))
            panel = figure.add_axes((0.125, _BELOW / height, 0.855, _AXES_HEIGHT / height))
            _axes(panel, steps, limit)
            handles = [_draw(panel, member, depths.index(member.stages)) for member in family.members]
            if len(handles) > 1:
                panel.legend(
                    # matplotlib fills column after column; depths are read along a row.
                    handles=[handle for column in range(columns) for handle in handles[column::columns]],
                    loc="lower left",
                    bbox_to_anchor=(-0.02, 1.02),
                    ncols=columns,
                    frameon=False,
                    handlelength=1.9,
                    columnspacing=0.9,
                    handletextpad=0.6,
                    borderaxespad=0.1,
                    borderpad=0.1,
                    labelspacing=0.3,
                )
            names = ", ".join(member.name for member in family.members)
            drawn.append((family.title, figures.svg(figure, f"Training and test error against steps: {names}", f"curves{number}")))
    return drawn


def families(cells: Sequence[Cell]) -> list[Family]:
    """Puts cells together whose networks are the same but for ``stages``, one of each depth; cells without curves are left out."""
    found: dict[tuple[str, int], list[Member]] = {}
    for cell in cells:
        records = [run.records() for run in cell.runs]
        train, test = curve(records, "train"), curve(records, "test")
        if train is None and test is None:
            continue
        model = _model(cell)
        made = Member(cell.name, "", tuple(model["stages"]), train, test)
        rest = resolved.fingerprint({name: value for name, value in model.items() if name != "stages"})
        # Networks of one depth that were trained differently: a panel with two lines of one colour would tell neither.
        place = next(at for at in itertools.count() if all(made.stages != other.stages for other in found.get((rest, at), ())))
        found.setdefault((rest, place), []).append(made)
    return [_named(sorted(members, key=lambda member: (sum(member.stages), member.stages))) for members in found.values()]


def _named(members: Sequence[Member]) -> Family:
    title, labels = common([member.name for member in members])
    return Family(title, tuple(replace(member, label=label) for member, label in zip(members, labels, strict=True)))


def _model(cell: Cell) -> dict[str, Any]:
    if cell.results:
        return cell.results[0]["model"]
    return Workdir(cell.runs[0].source).read_experiment_file()["experiment"]["model"]


def common(names: Sequence[str]) -> tuple[str, list[str]]:
    """What names have in common, and what is each one's own: plain-20 and plain-56 are "plain", "20" and "56"; numbers are not cut."""
    if len(names) == 1:
        return names[0], [""]
    # A part of a fingerprint is one word.
    words = [re.findall(r"\([^()]*\)|\d+|[^\W\d_]+|[\W_]", name) for name in names]
    shortest = min(len(each) for each in words)
    begin = next((at for at in range(shortest) if len({each[at] for each in words}) > 1), shortest)
    end = next((at for at in range(shortest - begin) if len({each[-1 - at] for each in words}) > 1), shortest - begin)
    own = ["".join(each[begin : len(each) - end]).strip(" -_") for each in words]
    before, after = "".join(words[0][:begin]), "".join(words[0][len(words[0]) - end :])
    title = (f"{before}…{after}" if before and after else before + after).strip(" -_")
    # matplotlib leaves what begins with _ out of a legend.
    return (title, own) if title and all(own) else (", ".join(map(figures.shortened, names)), [name.strip("_") or "–" for name in names])


def curve(runs: Sequence[Sequence[Record]], split: str) -> Curve | None:
    """Mean, least and most over runs, averaged within windows of steps where there are more than ``POINTS``; None of no records."""
    points = [{record["step"]: record["error_percent"] for record in records if record["split"] == split} for records in runs]
    steps = np.array(sorted(set().union(*points)), dtype=float)
    if not steps.size:
        return None
    windows = np.array_split(np.arange(steps.size), min(POINTS, steps.size))
    window_of = np.repeat(np.arange(len(windows)), [len(window) for window in windows])
    means = np.full((len(points), len(windows)), np.nan)
    for row, run in zip(means, points, strict=True):
        windows_of_run = window_of[np.searchsorted(steps, list(run))]
        number = np.bincount(windows_of_run, minlength=len(windows))
        total = np.bincount(windows_of_run, weights=list(run.values()), minlength=len(windows))
        np.divide(total, number, out=row, where=number > 0)
    return Curve(
        np.array([steps[window].mean() for window in windows]),
        np.nanmean(means, axis=0),
        np.nanmin(means, axis=0),
        np.nanmax(means, axis=0),
    )


def error_limit(members: Sequence[Member], steps: int) -> float:
    """Upper end of the axis: almost all that follows the first quarter of the steps, and of every test curve its least error."""
    curves = [each for member in members for each in member.curves]
    late = np.concatenate([each.mean[each.steps > steps / 4] for each in curves])
    typical = np.percentile(late if late.size else np.concatenate([each.mean for each in curves]), 95)
    least = max((float(member.test.mean.min()) for member in members if member.test), default=0.0)
    limit = 1.1 * max(float(typical), least)
    unit = 5.0 if limit > 10 else 1.0 if limit > 2 else 0.5
    return min(100.0, max(unit, unit * np.ceil(limit / unit)))


def _columns(family: Family) -> int:
    """As many as fit over a panel, and as many in each row: the lines and their distances take 26 points, a letter less than 6."""
    labels = [figures.shortened(member.label) for member in family.members]
    for rows in range(1, len(labels)):
        columns = -(-len(labels) // rows)
        if sum(26 + 5.8 * max(map(len, labels[column::columns])) for column in range(columns)) < 72 * 0.9 * _WIDTH:
            return columns
    return 1


def _axes(panel: Axes, steps: int, limit: float) -> None:
    panel.set_ylim(0, limit)
    panel.set_xlim(0, steps)
    thousands = next((unit for unit in (10_000, 1_000) if steps >= 2 * unit), 1)
    panel.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=thousands == 1, steps=[1, 2, 5, 10]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step / thousands:g}"))
    panel.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    panel.set_xlabel({10_000: "iter. (1e4)", 1_000: "iter. (1e3)", 1: "step"}[thousands], labelpad=2)
    panel.set_ylabel("error (%)", labelpad=2)
    panel.grid(axis="y", color=figures.GREY, alpha=0.3, linewidth=0.6)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", length=3)


def _draw(panel: Axes, member: Member, look: int) -> Line2D:
    colour, dashes = figures.COLOURS[look % len(figures.COLOURS)], _DASHES[look % len(_DASHES)]
    for each, width, shade, order in ((member.train, 0.8, 0.1, 2), (member.test, 1.8, 0.16, 3)):
        if each is None:
            continue
        if (each.high > each.low).any():
            panel.fill_between(each.steps, each.low, each.high, color=colour, alpha=shade, linewidth=0, zorder=order)
        marker = "." if each.steps.size < 5 else ""
        panel.plot(each.steps, each.mean, color=colour, linestyle=dashes, linewidth=width, marker=marker, zorder=order + 0.5)
    return Line2D([], [], color=colour, linestyle=dashes, linewidth=1.8, label=figures.shortened(member.label) or None)
