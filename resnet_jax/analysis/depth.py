"""Error against depth, the degradation of plain networks: He et al. 2015, Section 1 and Figure 1."""

import collections
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tyro.conf import Positional

from resnet_jax.analysis import plots, subjects
from resnet_jax.errors import UserError
from resnet_jax.studies import figures
from resnet_jax.studies import results as results_lib
from resnet_jax.studies.findings import Finding
from resnet_jax.studies.results import Cell, Spread
from resnet_jax.training import config


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Output):
    """Training and test error against depth, and the depth from which networks stop learning
    (He et al. 2015, Figure 1)."""

    sources: Positional[tuple[Path, ...]]
    """Runs, directories of runs, or committed results. Networks that differ in depth alone form a
    line."""
    threshold: float = 10.0
    """Training error in percent above which a network has not learned."""


def run(options: Options) -> subjects.Outcome:
    """Runs ``resnet-jax analyze depth``."""
    lines = families(results_lib.collect(options.sources))
    threshold = options.threshold
    return describe(lines, threshold), lambda: draw(lines, threshold)


class Depth(NamedTuple):
    cell: Cell
    layers: int

    @property
    def training(self) -> Spread:
        """Training error of the last step in percent."""
        return self.cell.spread("training_error_percent")

    @property
    def test(self) -> Spread:
        """Test error of the last step in percent."""
        return self.cell.error


class Family(NamedTuple):
    """Networks that differ in depth alone and share a training recipe, sorted by depth."""

    title: str
    depths: list[Depth]


def families(collected: Sequence[Cell]) -> list[Family]:
    """Groups finished variants that differ in ``stages`` alone, one per depth."""
    groups: dict[tuple[str, int], list[Depth]] = {}
    seen: collections.Counter[tuple[str, int]] = collections.Counter()
    for cell in (cell for cell in collected if cell.results):
        model, protocol = cell.results[0]["model"], cell.results[0]["protocol"]
        key = config.fingerprint({"protocol": protocol, **model, "stages": None})
        depth = Depth(cell, layers(model))
        # Variants of equal depth that differ otherwise start another line.
        groups.setdefault((key, seen[key, depth.layers]), []).append(depth)
        seen[key, depth.layers] += 1
    if not groups:
        raise UserError("no run is finished. Continue the runs, or name others.")
    ordered = [sorted(depths, key=lambda depth: depth.layers) for depths in groups.values()]
    return [
        Family(figures.common([depth.cell.name for depth in depths])[0], depths)
        for depths in ordered
    ]


def stops_learning(family: Family, threshold: float = 10.0) -> int | None:
    """Returns the least depth from which on the median training error exceeds ``threshold``."""
    failing = itertools.takewhile(
        lambda depth: depth.training.median > threshold, reversed(family.depths)
    )
    return min((depth.layers for depth in failing), default=None)


def layers(model: dict[str, Any]) -> int:
    """Counts layers with weights: stem, convolutions of branches and transitions, classifier."""
    kernels = re.search(r"kernels=\(([\d, ]+)\)", model["branch"])
    convolutions = len(re.findall(r"\d+", kernels[1])) if kernels else 2
    # By class name alone: results outlive module names.
    transitions = not model["transition"].endswith(":NoTransition")
    stages = model["stages"]
    return 2 + convolutions * sum(stages) + transitions * (len(stages) - 1)


def describe(lines: Sequence[Family], threshold: float) -> Finding:
    """Returns tables and numbers."""
    pairs = [(family, depth) for family in lines for depth in family.depths]
    kinds = sorted({run["training_error_of"] for _, depth in pairs for run in depth.cell.results})
    errors = [
        {
            "network": depth.cell.name,
            "layers": depth.layers,
            "seeds": len(depth.cell.results),
            "training error %, mean": depth.training.mean,
            "median": depth.training.median,
            "test error %, mean": depth.test.mean,
        }
        for _, depth in pairs
    ]
    heading = f"stops learning at (layers; median above {threshold:g} % from there on)"
    limits = [
        {
            "networks": family.title,
            "depths": " ".join(str(depth.layers) for depth in family.depths),
            heading: stops_learning(family, threshold) or "none",
        }
        for family in lines
    ]
    return Finding(
        name="depth",
        title="Depth",
        caption=f"Training error (bold; of {', or '.join(kinds)}) and test error (thin) of the "
        f"last step, mean and range over seeds; dotted: {threshold:g} %. "
        "After He et al. 2015, Figure 1.",
        tables=(
            subjects.table("error by depth", errors),
            subjects.table("depth at which learning stops", limits),
        ),
        rows=[
            {
                "networks": family.title,
                "network": depth.cell.name,
                "layers": depth.layers,
                "seed": run["seed"],
                "training error percent": run["training_error_percent"],
                "test error percent": run["value"],
            }
            for family, depth in pairs
            for run in depth.cell.results
        ],
    )


def draw(lines: Sequence[Family], threshold: float) -> Figure:
    """Draws Figure 1 of He et al. 2015, by depth."""
    figure, (panel,) = plots.panels(["layers with weights"], ["error (%)"])
    for _, family, style in plots.styled(dict(enumerate(lines))):
        depths = [depth.layers for depth in family.depths]
        for name, linestyle, width in (("training", "-", 1.8), ("test", "--", 0.7)):
            spreads: list[Spread] = [getattr(depth, name) for depth in family.depths]
            mean = np.array([spread.mean for spread in spreads])
            low = mean - [min(spread.values) for spread in spreads]
            high = [max(spread.values) for spread in spreads] - mean
            line = style | {"linestyle": linestyle, "linewidth": width, "capsize": 2}
            label = f"{figures.shortened(family.title)}, {name}"
            panel.errorbar(depths, mean, [low, high], elinewidth=0.7, label=label, **line)
    panel.axhline(threshold, color=figures.INK, linewidth=0.8, linestyle=":")
    panel.set_xticks(sorted({depth.layers for family in lines for depth in family.depths}))
    # Room for the markers of errors of 0.
    panel.set_ylim(bottom=-0.02 * panel.get_ylim()[1])
    panel.legend(frameon=False)
    return figure
