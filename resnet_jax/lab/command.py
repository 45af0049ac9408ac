"""``resnet-jax lab``: what trained networks do inside. Each command prints a table, and writes its data and a figure where asked."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from resnet_jax import options as options_lib
from resnet_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ResponsesOptions:
    """Standard deviations of the responses of 3x3 layers (He et al. 2015, Figure 7), and of every unit the length of its branch over that
    of its input, the cosine between branch and shortcut, and the length of its gradient.
    """

    sources: Positional[tuple[Path, ...]]
    """Runs, or files of weights that 'resnet-jax weights import' wrote: residual networks and their plain twins, say."""
    images: int = 1000
    """The first so many of the split."""
    data: str | None = None
    """Data set; the one that each was trained on where not given."""
    split: str | None = None
    """The test split where not given."""
    batch_size: int = 200
    data_dir: str | None = None
    """Where prepared data sets are looked for, before $TFDS_DATA_DIR and ~/tensorflow_datasets."""
    to: Path | None = None
    """Folder for responses.csv, responses.json, responses.svg and responses.png."""
    json: bool = False
    """Print everything as JSON instead of the tables."""


def responses(arguments: Sequence[str]) -> None:
    """Strength of layers and branches, Figure 7: resnet-jax lab responses RUN [RUN ...] [--to DIR]"""
    options = options_lib.parse("lab responses", ResponsesOptions, arguments)
    if min(options.images, options.batch_size) < 1:
        raise UserError(f"--images is {options.images} and --batch-size {options.batch_size}; give at least 1")
    if not options.sources:
        raise UserError("give at least one run or file of weights: resnet-jax lab responses RUN")
    from resnet_jax.lab import figures, subjects
    from resnet_jax.lab import responses as responses_lib

    chosen = [subjects.load(source, options.data, options.split, options.images, options.data_dir) for source in options.sources]
    names = subjects.names(options.sources)
    found = {
        name: responses_lib.measure(weights, examples, batch_size=options.batch_size)
        for name, (weights, examples) in zip(names, chosen, strict=True)
    }
    images = [len(examples.labels) for _, examples in chosen]
    if options.json:
        print(json.dumps(_data(found, images)))
    else:
        _print(found, images)
    if options.to is not None:
        figures.responses(found, options.to / "responses")
        (options.to / "responses.json").write_text(json.dumps(_data(found, images), indent=1))
        with (options.to / "responses.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("network", "layer", "standard deviation"))
            rows.writerows((name, *row) for name, each in found.items() for row in zip(each.layers, each.deviation.tolist(), strict=True))


def _data(found: dict[str, Any], images: list[int]) -> list[dict[str, Any]]:
    return [
        {"network": name, "images": count, "layers": each.layers}
        # JSON has no word for what is not a number.
        | {key: [None if value != value else value for value in getattr(each, key).tolist()] for key in each._fields[1:]}
        for (name, each), count in zip(found.items(), images, strict=True)
    ]


def _print(found: dict[str, Any], images: list[int]) -> None:
    import numpy as np
    from rich.table import Table

    from resnet_jax.console import out

    table = Table(title="standard deviation of 3x3 layers' responses")
    for heading in ("network", "images", "layers", "mean", "median", "least", "most"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for (name, each), count in zip(found.items(), images, strict=True):
        numbers = (f(each.deviation) for f in (np.mean, np.median, np.min, np.max))
        table.add_row(name, f"{count:,}", str(len(each.layers)), *(f"{number:.3f}" for number in numbers))
    out.print(table)
    for name, each in found.items():
        table = Table("unit", "branch over input", "cosine with the shortcut", "gradient", title=f"{name}, unit by unit")
        for unit, row in enumerate(zip(each.ratio, each.cosine, each.gradient, strict=True)):
            table.add_row(str(unit), *("" if number != number else f"{number:.3g}" for number in row))
        out.print(table)


COMMANDS = {"responses": responses}


def run(arguments: Sequence[str]) -> None:
    """Dispatches to a command of the laboratory."""
    options_lib.dispatch("lab", COMMANDS, arguments)
