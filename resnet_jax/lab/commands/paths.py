"""``resnet-jax lab paths``."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnet_jax import options as options_lib
from resnet_jax.errors import UserError
from resnet_jax.lab.commands import output
from resnet_jax.lab.looking import Looking

if TYPE_CHECKING:
    from resnet_jax.lab.paths import Paths
    from resnet_jax.studies.findings import Finding, Table

# Rows of a table at most; the figure and the files have all lengths.
_ROWS = 28


@dataclass(frozen=True, kw_only=True)
class Options(Looking, output.Output):
    """How long the paths through a trained residual network are, which gradient paths of each length carry, and which are the effective
    ones, that carry nearly all of it (Veit et al. 2016, Section 4.3 and Figure 6).
    """

    images: int = 100
    """The first so many of the split."""
    draws: int = 10
    """Paths of each length, at random; the same ones for networks of as many units."""
    seed: int = 0
    """Of the draws."""


def run(arguments: Sequence[str]) -> None:
    """See ``Options``."""
    options = options_lib.parse("lab paths", Options, arguments)
    options.check("paths")
    if options.draws < 1:
        raise UserError(f"--draws is {options.draws}; give at least 1")
    from resnet_jax.lab import figures, paths, subjects

    chosen = subjects.chosen(options)
    found, seconds = {}, {}
    for name, (weights, examples) in chosen.items():
        began = time.perf_counter()
        with output.progress(name, options.draws * (sum(weights.architecture.stages) + 1)) as told:
            found[name] = paths.measure(
                weights,
                examples,
                draws=options.draws,
                batch_size=options.batch_size,
                seed=options.seed,
                told=told,
            )
        seconds[name] = time.perf_counter() - began
    finding = described(found, seconds, [len(examples) for _, examples in chosen.values()])
    output.show(finding, lambda: figures.paths(found), options, options.sources, arguments)


def described(found: "Mapping[str, Paths]", seconds: Mapping[str, float], images: Sequence[int]) -> "Finding":
    """Tables and data."""
    from resnet_jax.lab.paths import MOST
    from resnet_jax.studies.findings import Finding, Table

    summary, data = [], {}
    for (name, each), count in zip(found.items(), images, strict=True):
        lengths = each.effective
        of_paths, of_gradient = (100 * float(shares[lengths.start : lengths.stop].sum()) for shares in (each.share, each.carried))
        units, (shortest, longest) = len(each.lengths) - 1, (lengths[0], lengths[-1])
        summary.append((name, count, units, f"{shortest} to {longest}", of_paths, of_gradient, units / 2, round(seconds[name], 1)))
        effective = {"shortest": shortest, "longest": longest, "of_paths_percent": of_paths, "of_gradient_percent": of_gradient}
        data[name] = {"images": count, "seconds": seconds[name], "effective": effective} | each._asdict()
    headings = ("network", "images", "units", "effective paths, length", "of all paths, %", "of the gradient, %", "mean length", "seconds")
    return Finding(
        name="paths",
        title="Paths",
        caption="Share of all paths by their length, the number of branches that they pass; norm of the gradient that one of them carries "
        "from the loss to an image (mean, and least to most of the draws); share of the gradient that all of a length carry, filled: the "
        f"effective paths, the fewest neighbouring lengths with {100 * MOST:g} % of it; {images[0]:,} images. After Veit et al. 2016, "
        "Figure 6.",
        tables=(Table("effective paths", headings, tuple(summary)), *(_by_length(name, each) for name, each in found.items())),
        rows=[
            {
                "network": name,
                "length": length,
                "of all paths": float(each.share[length]),
                "gradient of one": float(each.gradient[:, length].mean()),
                "least": float(each.gradient[:, length].min()),
                "most": float(each.gradient[:, length].max()),
                "of the gradient": float(each.carried[length]),
            }
            for name, each in found.items()
            for length in each.lengths.tolist()
        ],
        data=data,
    )


def _by_length(name: str, each: "Paths") -> "Table":
    from resnet_jax.studies.findings import Table

    headings = ("length", "of all paths, %", "gradient of one, mean", "least", "most", "of the gradient, %")
    rows = []
    for length in each.lengths.tolist()[:: -(-len(each.lengths) // _ROWS)]:
        norms = each.gradient[:, length]
        gradients = (float(norms.mean()), float(norms.min()), float(norms.max()))
        rows.append((str(length), 100 * float(each.share[length]), *gradients, 100 * float(each.carried[length])))
    return Table(f"{name}, by the length of paths", headings, tuple(rows))
