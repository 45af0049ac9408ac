"""Error against depth, the degradation of plain networks: He et al. 2015, Figure 1."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from matplotlib.figure import Figure
from tyro.conf import Positional

from resnet_jax.analysis import subjects
from resnet_jax.errors import require
from resnet_jax.studies import figures
from resnet_jax.studies import results as results_lib
from resnet_jax.studies.report import Finding
from resnet_jax.studies.results import VariantRuns
from resnet_jax.terminal import Table
from resnet_jax.training.config import Range
from resnet_jax.training.run_dir import Record

Family = list[VariantRuns]
"""Networks that differ in depth alone, by depth."""


@dataclass(frozen=True, kw_only=True)
class Options(subjects.Output):
    """Error against depth, and the depth at which learning stops (He et al. 2015, Figure 1)."""

    sources: Positional[tuple[Path, ...]]
    """Runs, their parents, or committed results. Networks that differ in depth alone are a line."""
    threshold: Annotated[float, Range(0, 100)] = 10.0
    """Training error in percent above which a network has not learned."""


def run(options: Options) -> subjects.Outcome:
    lines = families(results_lib.collect(options.sources))
    threshold = options.threshold
    return describe(lines, threshold), lambda: draw(lines, threshold)


def families(collected: Sequence[VariantRuns]) -> list[Family]:
    """Groups finished variants that differ in ``stages`` alone."""
    finished = sorted((variant for variant in collected if variant.results), key=depth)
    require(bool(finished), "no run is finished. Continue the runs, or name others.")
    results = (variant.results[0] for variant in finished)
    fields = (result["model"] | {"protocol": result["protocol"]} for result in results)
    return results_lib.families(zip(fields, map(depth, finished), finished, strict=True))


def title(family: Family) -> str:
    return figures.common_name([variant.name for variant in family])


def stops_learning(family: Family, threshold: float = 10.0) -> int | None:
    """Returns the least depth from which on the median training error is above ``threshold``."""
    stop = None
    for variant in reversed(family):
        if not variant.training_error.median > threshold:
            break
        stop = depth(variant)
    return stop


def depth(variant: VariantRuns) -> int:
    return layers(variant.results[0]["model"])


def layers(model: Record) -> int:
    """Counts layers with weights: stem, convolutions of branches and transitions, classifier."""
    kernels = re.search(r"kernels=\(([\d, ]+)\)", model["branch"])
    convolutions = len(re.findall(r"\d+", kernels[1])) if kernels else 2
    # By class name alone: results outlive module names.
    transitions = not model["transition"].endswith(":NoTransition")
    stages = model["stages"]
    return 2 + convolutions * sum(stages) + transitions * (len(stages) - 1)


def describe(lines: Sequence[Family], threshold: float) -> Finding:
    errors, limits, rows, kinds = [], [], [], set()
    for family in lines:
        depths = " ".join(str(depth(variant)) for variant in family)
        limits.append((title(family), depths, stops_learning(family, threshold) or "none"))
        for variant in family:
            name, training = variant.name, variant.training_error
            numbers = training.mean, training.median, variant.error.mean
            errors.append((name, depth(variant), len(variant.results), *numbers))
            for result in variant.results:
                kinds.add(result["training_error_of"])
                row = {"networks": title(family), "network": name, "layers": depth(variant)}
                row |= {"seed": result["seed"]}
                row |= {"training error percent": result["training_error_percent"]}
                rows.append(row | {"test error percent": result["value"]})
    percents = "training error %, mean", "median", "test error %, mean"
    heading = f"stops learning at (layers; median above {threshold:g} % from there on)"
    return Finding(
        name="depth",
        title="Depth",
        caption=f"Training error (bold; of {', or '.join(sorted(kinds))}) and test error (thin) "
        f"of the last step, mean and range over seeds; dotted: {threshold:g} %. "
        "After He et al. 2015, Figure 1.",
        tables=(
            Table("error by depth", ("network", "layers", "seeds", *percents), tuple(errors)),
            Table("depth at which learning stops", ("networks", "depths", heading), tuple(limits)),
        ),
        rows=rows,
    )


def draw(lines: Sequence[Family], threshold: float) -> Figure:
    """Draws Figure 1 of He et al. 2015, by depth."""
    figure, (panel,) = subjects.panels(["layers with weights"], ["error (%)"])
    looks = ("training", "training_error_percent", "-", 1.8), ("test", "value", "--", 0.7)
    for family, style in subjects.styled(lines):
        for name, field, stroke, width in looks:
            spreads = [variant.spread(field) for variant in family]
            mean = np.array([spread.mean for spread in spreads])
            low = mean - [min(spread.values) for spread in spreads]
            high = [max(spread.values) for spread in spreads] - mean
            line = style | {"linestyle": stroke, "linewidth": width, "elinewidth": 0.7}
            label = f"{figures.shortened(title(family))}, {name}"
            depths = list(map(depth, family))
            panel.errorbar(depths, mean, [low, high], capsize=2, label=label, **line)
    panel.axhline(threshold, color=figures.INK, linewidth=0.8, linestyle=":")
    panel.set_xticks(sorted({depth(variant) for family in lines for variant in family}))
    # Room for the markers of errors of 0.
    panel.set_ylim(bottom=-0.02 * panel.get_ylim()[1])
    panel.legend()
    return figure
