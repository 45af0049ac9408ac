"""``resnet-jax lab lesions``."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnet_jax import options as options_lib
from resnet_jax.errors import UserError
from resnet_jax.lab.commands import output
from resnet_jax.lab.looking import Looking

if TYPE_CHECKING:
    from resnet_jax.lab.lesions import Lesion
    from resnet_jax.studies.findings import Finding, Table

# Of the numbers of units and pairs; the figure and the files have all.
_SHOWN = (1, 2, 3, 5, 10, 15, 20)


@dataclass(frozen=True, kw_only=True)
class Options(Looking, output.Output):
    """Errors of a trained network after lesions (Veit et al. 2016, Section 4): each unit deleted alone, 1, 2, ... at once, and 1, 2, ...
    pairs of equal structure exchanged; the same of its plain twin, whose deleted units hand on what they are given.
    """

    deleted: int = 20
    """Units deleted at once, at most."""
    exchanged: int = 20
    """Pairs exchanged, at most."""
    draws: int = 10
    """Lesions of each number, at random; the same ones for networks of as many units."""
    seed: int = 0
    """Of the draws."""


def run(arguments: Sequence[str]) -> None:
    """See ``Options``."""
    options = options_lib.parse("lab lesions", Options, arguments)
    options.check("lesions")
    if options.draws < 1 or min(options.deleted, options.exchanged) < 0:
        given = f"--draws is {options.draws}, --deleted {options.deleted}, --exchanged {options.exchanged}"
        raise UserError(f"{given}; give at least 1 draw, and 0 or more units and pairs")
    from resnet_jax.lab import figures, lesions, subjects

    chosen = subjects.chosen(options)
    found, seconds = {}, {}
    for name, (weights, examples) in chosen.items():
        planned = lesions.plan(
            lesions.exchangeable(weights),
            most_deleted=options.deleted,
            most_exchanged=options.exchanged,
            draws=options.draws,
            seed=options.seed,
        )
        began = time.perf_counter()
        with output.progress(name, len(planned)) as told:
            errors = lesions.measure(
                weights,
                examples,
                planned,
                batch_size=options.batch_size,
                told=told,
            )
        seconds[name] = time.perf_counter() - began
        found[name] = list(zip(planned, errors.tolist(), strict=True))
    finding = described(found, seconds, [len(examples) for _, examples in chosen.values()])
    output.show(finding, lambda: figures.lesions(found), options, options.sources, arguments)


def described(found: "Mapping[str, Sequence[tuple[Lesion, float]]]", seconds: Mapping[str, float], images: Sequence[int]) -> "Finding":
    """Tables and data."""
    import numpy as np

    from resnet_jax.studies.findings import Finding, Table

    summary = []
    for (name, each), count in zip(found.items(), images, strict=True):
        one = [error for lesion, error in each if lesion.kind == "one"]
        summary.append(
            (name, count, len(one), each[0][1], float(np.median(one)), max(one), int(np.argmax(one)), len(each), round(seconds[name], 1))
        )
    headings = ("network", "images", "units", "whole, error %", "one deleted, median", "most", "of unit", "lesions", "seconds")
    return Finding(
        name="lesions",
        title="Lesions",
        caption="Error after each unit was deleted alone (thin: of the whole network), after several were at once (median, and least to "
        f"most), and after pairs were exchanged; {images[0]:,} images. After Veit et al. 2016, Section 4.",
        tables=(Table("error after lesions", headings, tuple(summary)), *(_spread(name, each) for name, each in found.items())),
        rows=[
            {
                "network": name,
                "lesion": lesion.kind,
                "units": " ".join(map(str, lesion.deleted or lesion.order)),
                "number": len(lesion.deleted) or lesion.pairs,
                "tau": lesion.tau,
                "error percent": error,
            }
            for name, each in found.items()
            for lesion, error in each
        ],
        data={
            name: {"seconds": seconds[name], "lesions": [lesion._asdict() | {"error_percent": error} for lesion, error in each]}
            for name, each in found.items()
        },
    )


def _spread(name: str, each: "Sequence[tuple[Lesion, float]]") -> "Table":
    """Errors by how much was done."""
    import numpy as np

    from resnet_jax.studies.findings import Table

    groups: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for lesion, error in each:
        if lesion.kind in ("several", "exchanged"):
            groups.setdefault((lesion.kind, len(lesion.deleted) or lesion.pairs), []).append((lesion.tau, error))
    rows = []
    for (kind, number), values in groups.items():
        if number not in _SHOWN:
            continue
        taus, errors = (np.asarray(column) for column in zip(*values, strict=True))
        done = f"{number} {'unit' if kind == 'several' else 'pair'}{'s' if number > 1 else ''} {'deleted' if kind == 'several' else kind}"
        tau = float(taus.mean()) if kind == "exchanged" else None
        rows.append((done, tau, *(float(f(errors)) for f in (np.median, np.min, np.max))))
    return Table(f"{name}, by how much was done", ("lesions", "tau, mean", "error %, median", "least", "most"), tuple(rows))
