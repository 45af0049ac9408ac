"""``resnet-jax lab identity``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resnet_jax import options as options_lib
from resnet_jax.errors import UserError
from resnet_jax.lab.commands import output
from resnet_jax.lab.looking import Looking

if TYPE_CHECKING:
    from resnet_jax.lab.identity import Identity
    from resnet_jax.studies.findings import Finding


@dataclass(frozen=True, kw_only=True)
class Options(Looking, output.Output):
    """How far each unit is from the identity, how much a branch has to change where the whole changes by a little, and how much both do
    change where the image does: a whole of 5.1 that becomes 5.2 changes by 2 %, the branch of 0.1 beside 5 by 100 %.
    """

    change: float = 2.0
    """Of the image, percent of its length: noise."""
    seed: int = 0
    """Of the noise."""


def run(arguments: Sequence[str]) -> None:
    """See ``Options``."""
    options = options_lib.parse("lab identity", Options, arguments)
    options.check("identity")
    if not options.change > 0:
        raise UserError(f"--change is {options.change:g}; give percent above 0")
    from resnet_jax.lab import figures, identity, subjects

    chosen = subjects.chosen(options)
    found = {
        name: identity.measure(weights, examples, change=options.change / 100, batch_size=options.batch_size, seed=options.seed)
        for name, (weights, examples) in chosen.items()
    }
    finding = described(found, [len(examples) for _, examples in chosen.values()], options.change)
    output.show(finding, lambda: figures.identity(found), options, options.sources, arguments)


def described(found: "Mapping[str, Identity]", images: Sequence[int], change: float) -> "Finding":
    """Tables and data."""
    import numpy as np

    from resnet_jax.studies.findings import Finding, Table

    def rows(each: "Identity") -> list[tuple[Any, ...]]:
        ratio = each.branch_change / each.whole_change
        columns = (each.distance, change * each.leverage, 100 * each.branch_change, 100 * each.whole_change, ratio)
        return [tuple(map(float, row)) for row in zip(*columns, strict=True)]

    headings = (
        "distance from the identity",
        f"asked of the branch for {change:g} % of the whole, %",
        "branch changed, %",
        "whole changed, %",
        "branch over whole",
    )
    medians = [
        (name, count, *map(float, np.nanmedian(np.asarray(rows(each)), axis=0)))
        for (name, each), count in zip(found.items(), images, strict=True)
    ]
    units = [
        Table(f"{name}, unit by unit", ("unit", *headings), tuple((str(unit), *row) for unit, row in enumerate(rows(each))))
        for name, each in found.items()
    ]
    return Finding(
        name="identity",
        title="Distance from the identity",
        caption="By unit: how far the whole is from what came in; its length over that of the branch, which is how many percent the "
        "branch has to change for 1 % of the whole; and how much more the branch did change than the whole where "
        f"{change:g} % of noise were added to the image. {images[0]:,} images. After the argument of He et al. 2015, Section 3.1.",
        tables=(Table("medians over units", ("network", "images", *headings), tuple(medians)), *units),
        rows=[
            {"network": name, "unit": unit} | dict(zip(headings, row, strict=True))
            for name, each in found.items()
            for unit, row in enumerate(rows(each))
        ],
        data={
            name: {"images": count, "change_percent": change} | each._asdict()
            for (name, each), count in zip(found.items(), images, strict=True)
        },
    )
