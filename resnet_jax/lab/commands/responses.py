"""``resnet-jax lab responses``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resnet_jax import options as options_lib
from resnet_jax.errors import UserError
from resnet_jax.lab.commands import output
from resnet_jax.lab.looking import Looking

if TYPE_CHECKING:
    from resnet_jax.lab.responses import Responses
    from resnet_jax.studies.findings import Finding


@dataclass(frozen=True, kw_only=True)
class Options(Looking, output.Output):
    """Standard deviations of the responses of 3x3 layers (He et al. 2015, Figure 7), and of every unit the length of its branch over that
    of its input, the cosine between branch and shortcut, and the length of its gradient.
    """

    steps: tuple[int, ...] = ()
    """Of each run: 0, before training, and steps whose checkpoints it kept (--checkpointing.keep-every K keeps every K-th). Then
    normalisations have the statistics of the images looked at. Where not given, the newest step, with its running statistics."""


def run(arguments: Sequence[str]) -> None:
    """See ``Options``."""
    options = options_lib.parse("lab responses", Options, arguments)
    options.check("responses")
    from resnet_jax.lab import figures, responses, subjects

    if any(step < 0 for step in options.steps):
        raise UserError(f"--steps are {list(options.steps)}: give 0, before training, or later ones")
    found, images = {}, []
    for name, source in zip(subjects.names(options.sources), options.sources, strict=True):
        for step in options.steps or (None,):
            weights, examples = subjects.load(source, options, step)
            then = name
            if step is not None:
                weights, then = subjects.settled(weights, examples), f"{name}, step {step}"
            found[then] = responses.measure(weights, examples, batch_size=options.batch_size)
            images.append(len(examples))
    finding = described(found, images)
    output.show(finding, lambda: figures.responses(found), options, options.sources, arguments)


def described(found: "Mapping[str, Responses]", images: Sequence[int]) -> "Finding":
    """Tables and data."""
    import numpy as np

    from resnet_jax.studies.findings import Finding, Table

    numbers = [
        (name, count, len(each.layers), *(float(f(each.deviation)) for f in (np.mean, np.median, np.min, np.max)))
        for (name, each), count in zip(found.items(), images, strict=True)
    ]
    headings = ("network", "images", "layers", "mean", "median", "least", "most")
    units = [
        Table(
            f"{name}, unit by unit",
            ("unit", "branch over input", "cosine with the shortcut", "gradient"),
            tuple((str(unit), *map(float, row)) for unit, row in enumerate(zip(each.ratio, each.cosine, each.gradient, strict=True))),
        )
        for name, each in found.items()
    ]
    return Finding(
        name="responses",
        title="Responses of layers",
        caption="Standard deviation of the responses of 3x3 layers, after BN and before the nonlinearity, in the layers' order and sorted "
        f"by magnitude; {images[0]:,} images. After He et al. 2015, Figure 7.",
        tables=(Table("standard deviation of 3x3 layers' responses", headings, tuple(numbers)), *units),
        rows=[
            {"network": name, "layer": layer, "standard deviation": value}
            for name, each in found.items()
            for layer, value in zip(each.layers, each.deviation.tolist(), strict=True)
        ],
        data={name: {"images": count} | each._asdict() for (name, each), count in zip(found.items(), images, strict=True)},
    )
