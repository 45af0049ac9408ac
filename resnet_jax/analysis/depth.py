"""Error against depth: the degradation of plain networks. He et al. 2015 (arXiv 1512.03385), Section 1 and Figure 1."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from tyro.conf import Positional

from resnet_jax.analysis import plots, subjects
from resnet_jax.errors import UserError
from resnet_jax.models import components
from resnet_jax.models.stems import NoTransition
from resnet_jax.studies import figures
from resnet_jax.studies import results as results_lib
from resnet_jax.studies.findings import Finding, Table
from resnet_jax.studies.results import Spread, VariantRuns
from resnet_jax.training import config


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Output):
    """Training and test error against depth, and the depth from which networks stop learning (He et al. 2015, Figure 1)."""

    sources: Positional[tuple[Path, ...]]
    """Runs, directories of runs, or committed results. Networks that differ in depth alone form a line."""
    threshold: float = 10.0
    """Training error in percent above which a network has not learned."""


def run(options: Options, arguments: Sequence[str]) -> None:
    """Runs ``resnet-jax analyze depth``."""
    if not options.sources:
        raise UserError("no runs: give at least one directory, as resnet-jax analyze depth RUNS.")
    if not 0 <= options.threshold < 100:
        raise UserError(f"--threshold must be in [0, 100) percent, got {options.threshold:g}.")
    collected = results_lib.collect(options.sources)
    results = families(collected)
    directories = [member.source for variant in collected for member in variant.runs]
    subjects.show(
        describe(results, options.threshold),
        lambda: draw(results, options.threshold),
        options,
        directories,
        arguments,
    )


class Depth(NamedTuple):
    variant: VariantRuns
    layers: int

    @property
    def training(self) -> Spread:
        """Training error of the last step in percent."""
        return self.variant.spread("training_error_percent")

    @property
    def test(self) -> Spread:
        """Test error of the last step in percent."""
        return self.variant.error


class Family(NamedTuple):
    """Networks that differ in depth alone and share a training recipe, sorted by depth."""

    title: str
    depths: tuple[Depth, ...]


def families(collected: Sequence[VariantRuns]) -> list[Family]:
    """Groups variants that differ in ``stages`` alone, one per depth. Raises UserError if no run is finished."""
    groups: dict[tuple[str, int], dict[int, Depth]] = {}
    for variant in (variant for variant in collected if variant.results):
        model, protocol = variant.results[0]["model"], variant.results[0]["protocol"]
        depth = Depth(variant, layers(model))
        key = config.fingerprint(
            {"protocol": protocol}
            | {name: value for name, value in model.items() if name != "stages"}
        )
        # Variants of equal depth that differ otherwise start another line.
        line = next(
            number
            for number in itertools.count()
            if depth.layers not in groups.get((key, number), {})
        )
        groups.setdefault((key, line), {})[depth.layers] = depth
    if not groups:
        raise UserError("no run is finished. Continue the runs, or name others.")
    ordered = [tuple(depths[number] for number in sorted(depths)) for depths in groups.values()]
    return [
        Family(figures.common_name([depth.variant.name for depth in depths]), depths)
        for depths in ordered
    ]


def stops_learning(family: Family, threshold: float = 10.0) -> int | None:
    """Returns the least depth from which on the median training error stays above ``threshold`` percent, or None."""
    failing = itertools.takewhile(
        lambda depth: depth.training.median > threshold, reversed(family.depths)
    )
    return min((depth.layers for depth in failing), default=None)


def layers(model: dict[str, Any]) -> int:
    """Counts layers with weights of a resolved architecture: stem, convolutions of branches and transitions, classifier."""
    _, arguments = components.parts(components.parse(model["branch"]))
    transitions = (
        len(model["stages"]) - 1 if model["transition"] != config.resolve(NoTransition) else 0
    )
    return 2 + len(arguments.get("kernels", (3, 3))) * sum(model["stages"]) + transitions


def describe(results: Sequence[Family], threshold: float) -> Finding:
    """Returns tables and numbers."""
    pairs = [(family, depth) for family in results for depth in family.depths]
    kinds = sorted(
        {result["training_error_of"] for _, depth in pairs for result in depth.variant.results}
    )
    columns = (
        "network",
        "layers",
        "seeds",
        "training error %, mean",
        "median",
        "test error %, mean",
    )
    errors = tuple(
        (
            depth.variant.name,
            depth.layers,
            len(depth.variant.results),
            depth.training.mean,
            depth.training.median,
            depth.test.mean,
        )
        for _, depth in pairs
    )
    limits = tuple(
        (
            family.title,
            " ".join(str(depth.layers) for depth in family.depths),
            stops_learning(family, threshold) or "none",
        )
        for family in results
    )
    heading = f"stops learning at (layers; median above {threshold:g} % from there on)"
    return Finding(
        name="depth",
        title="Depth",
        caption=f"Training error (bold; of {', or '.join(kinds)}) and test error (thin) of the last step, mean and range over seeds; "
        f"dotted: {threshold:g} %. After He et al. 2015, Figure 1.",
        tables=(
            Table("error by depth", columns, errors),
            Table("depth at which learning stops", ("networks", "depths", heading), limits),
        ),
        rows=[
            {
                "networks": family.title,
                "network": depth.variant.name,
                "layers": depth.layers,
                "seed": result["seed"],
            }
            | {
                "training error percent": result["training_error_percent"],
                "test error percent": result["value"],
            }
            for family, depth in pairs
            for result in depth.variant.results
        ],
    )


def draw(results: Sequence[Family], threshold: float) -> Figure:
    """Draws Figure 1 of He et al. 2015, by depth."""
    figure, (panel,) = plots.panels("layers with weights")
    for _, family, style in plots.styled(dict(enumerate(results))):
        depths = [depth.layers for depth in family.depths]
        for name, linestyle, width in (("training", "-", 1.8), ("test", "--", 0.7)):
            spreads: list[Spread] = [getattr(depth, name) for depth in family.depths]
            mean = np.array([spread.mean for spread in spreads])
            ranges = [
                mean - [min(spread.values) for spread in spreads],
                [max(spread.values) for spread in spreads] - mean,
            ]
            line = style | {"linestyle": linestyle, "linewidth": width}
            panel.errorbar(
                depths,
                mean,
                ranges,
                capsize=2,
                elinewidth=0.7,
                label=f"{figures.shortened(family.title)}, {name}",
                **line,
            )
    panel.axhline(threshold, color=figures.INK, linewidth=0.8, linestyle=":")
    panel.set_xticks(sorted({depth.layers for family in results for depth in family.depths}))
    panel.set_ylabel("error (%)")
    # Room for the markers of errors of 0.
    panel.set_ylim(bottom=-0.02 * panel.get_ylim()[1])
    panel.legend(frameon=False)
    return figure
