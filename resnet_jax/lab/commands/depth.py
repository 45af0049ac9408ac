"""``resnet-jax lab depth``."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from resnet_jax import options as options_lib
from resnet_jax.errors import UserError
from resnet_jax.lab.commands import output

if TYPE_CHECKING:
    from resnet_jax.lab.depth import Family
    from resnet_jax.studies.findings import Finding


@dataclass(frozen=True, kw_only=True)
class Options(output.Output):
    """Training and test errors of runs against the depth of their networks, and from which depth on a network stops learning (He et al.
    2015, Figure 1); experiments/degradation.py:depths is a study for it.
    """

    sources: Positional[tuple[Path, ...]]
    """Runs, folders that hold them, or files of committed results; networks that differ in depth alone are a line."""
    threshold: float = 10.0
    """Training error in percent: a network above it has not learned."""


def run(arguments: Sequence[str]) -> None:
    """See ``Options``."""
    options = options_lib.parse("lab depth", Options, arguments)
    if not options.sources:
        raise UserError("give at least one folder of runs: resnet-jax lab depth RUNS")
    if not 0 <= options.threshold < 100:
        raise UserError(f"--threshold is {options.threshold:g}; give a training error in percent, 0 or more and less than 100")
    from resnet_jax.lab import depth, figures
    from resnet_jax.studies import cells

    collected = cells.collect(options.sources)
    found = depth.families(collected)
    training_error_of = sorted({result["training_error_of"] for cell in collected for result in cell.results})
    finding = described(found, options.threshold, training_error_of)
    folders = [run.source for cell in collected for run in cell.runs]
    output.show(finding, lambda: figures.depth(found, options.threshold), options, folders, arguments)


def described(found: "Sequence[Family]", threshold: float, training_error_of: Sequence[str]) -> "Finding":
    """Tables and data."""
    from resnet_jax.lab.depth import stops_learning
    from resnet_jax.studies.findings import Finding, Table

    every = [(family, each) for family in found for each in family.depths]
    stops = {index: stops_learning(family, threshold) for index, family in enumerate(found)}
    columns = ("network", "layers", "seeds", "training error %, mean", "median", "least", "most", "test error %, mean")
    errors = tuple(
        (
            each.cell.name,
            each.layers,
            len(each.cell.results),
            train.mean,
            train.median,
            train.best,
            max(train.values, default=None),
            each.test.mean,
        )
        for _, each in every
        for train in (each.training,)
    )
    verdicts = tuple(
        (family.title, " ".join(str(each.layers) for each in family.depths), stops[index] or "none") for index, family in enumerate(found)
    )
    above = f"stops learning at (layers; median above {threshold:g} % from there on)"
    return Finding(
        name="depth",
        title="Depth",
        caption=f"Training error (bold; of {', or '.join(training_error_of)}) and test error (thin) of the last step against the number of "
        f"layers with weights, mean and range over seeds; dotted: {threshold:g} %. After He et al. 2015, Figure 1.",
        tables=(Table("error by depth", columns, errors), Table("where learning stops", ("networks", "depths", above), verdicts)),
        rows=[
            {
                "networks": family.title,
                "network": each.cell.name,
                "layers": each.layers,
                "seed": result["seed"],
                "training error percent": result["training_error_percent"],
                "test error percent": result["value"],
            }
            for family, each in every
            for result in each.cell.results
        ],
        data={
            "threshold_percent": threshold,
            "training_error_of": training_error_of,
            "families": [
                {
                    "networks": family.title,
                    "stops_learning_at_layers": stops[index],
                    "depths": [
                        {
                            "network": each.cell.name,
                            "layers": each.layers,
                            "seeds": [result["seed"] for result in each.cell.results],
                            "training_error_percent": each.training.values,
                            "test_error_percent": each.test.values,
                        }
                        for each in family.depths
                    ],
                }
                for index, family in enumerate(found)
            ],
        },
    )
