"""``resnet-jax lab landscape``."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnet_jax import options as options_lib
from resnet_jax.lab.commands import output
from resnet_jax.lab.looking import Looking

if TYPE_CHECKING:
    from resnet_jax.lab.landscape import Landscape
    from resnet_jax.studies.findings import Finding


@dataclass(frozen=True, kw_only=True)
class Options(Looking, output.Output):
    """Loss around trained networks, along two random directions whose filters are as long as the network's (Li et al. 2018, Section 4)."""

    points: int = 21
    """Along either direction; odd. The time grows with its square."""
    reach: float = 1.0
    """The farthest along either direction, in norms of each filter."""
    seed: int = 0
    """Of the directions; the same ones for twins."""
    images: int = 500
    """The first so many of the split."""


def run(arguments: Sequence[str]) -> None:
    """See ``Options``."""
    options = options_lib.parse("lab landscape", Options, arguments)
    options.check("landscape")
    from resnet_jax.lab import figures, landscape, subjects

    chosen = subjects.chosen(options)
    found, seconds = {}, {}
    for name, (weights, examples) in chosen.items():
        began = time.perf_counter()
        with output.progress(name, options.points**2) as told:
            found[name] = landscape.measure(
                weights,
                examples,
                points=options.points,
                reach=options.reach,
                seed=options.seed,
                batch_size=options.batch_size,
                told=told,
            )
        seconds[name] = time.perf_counter() - began
    images = [len(examples) for _, examples in chosen.values()]
    classes = [weights.architecture.num_classes for weights, _ in chosen.values()]
    output.show(described(found, seconds, images, classes), lambda: figures.landscape(found), options, options.sources, arguments)


def described(found: "Mapping[str, Landscape]", seconds: Mapping[str, float], images: Sequence[int], classes: Sequence[int]) -> "Finding":
    """Table and data."""
    import numpy as np

    from resnet_jax.studies.findings import Finding, Table

    reach = float(next(iter(found.values())).offsets[-1])
    rows = []
    for (name, each), count, number in zip(found.items(), images, classes, strict=True):
        middle = len(each.offsets) // 2
        distances = (each.centre, each.at(reach / 2), each.at(reach), each.highest)
        guessing = each.percent_below(float(np.log(number)))
        rows.append((name, count, float(each.error_percent[middle, middle]), *distances, guessing, round(seconds[name], 1)))
    columns = (
        "network",
        "images",
        "error %, centre",
        "loss, centre",
        f"median at distance {reach / 2:g}",
        f"at {reach:g}",
        "highest",
        "% of the slice better than guessing",
        "seconds",
    )
    points = len(next(iter(found.values())).offsets)
    return Finding(
        name="landscape",
        title="Loss landscape",
        caption=f"Mean cross-entropy (nats, logarithmic levels) on a slice of {points} by {points} points through each network as trained "
        "(the cross), along two random directions whose filters have the norms of the network's filters; running statistics, "
        f"{images[0]:,} images. Dots: not finite. After Li et al. 2018, Section 4.",
        tables=(Table("loss around the network (nats); better than guessing: below the logarithm of the classes", columns, tuple(rows)),),
        rows=[
            {
                "network": name,
                "direction 1": float(each.offsets[one]),
                "direction 2": float(each.offsets[other]),
                "loss": float(each.loss[one, other]),
                "error percent": float(each.error_percent[one, other]),
            }
            for name, each in found.items()
            for one, other in np.ndindex(each.loss.shape)
        ],
        data={
            name: {"images": count, "seconds": seconds[name], **each._asdict()}
            for (name, each), count in zip(found.items(), images, strict=True)
        },
    )
