"""``resnet-jax evaluate``: a run, or imported weights, under one protocol or several."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from resnet_jax import options as options_lib
from resnet_jax import processes
from resnet_jax.processes import Joining


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Score the newest checkpoint of a run, or imported weights, every example exactly once."""

    run: Positional[Path]
    """Folder or URL that 'resnet-jax train' wrote to, or what 'resnet-jax weights import' wrote."""
    data: str | None = None
    """Data set to score; the one that it was trained on where not given."""
    split: str | None = None
    """Split to score; the test split where not given."""
    protocol: tuple[str, ...] = ()
    """How images are shown: 256/224 (shorter side / central square), 236/224-bicubic, ten-crop, multi-scale, or several of them; as the run
    or the weights say where not given."""
    batch_size: int = 500
    """Images a call; ten crops count as ten images, and larger images as several."""
    data_dir: str | None = None
    """Where prepared data sets are looked for, before $TFDS_DATA_DIR and ~/tensorflow_datasets."""
    json: bool = False
    """Print error_percent, top5_error_percent, examples and protocol as JSON; of several protocols, a list."""
    joining: Annotated[Joining, tyro.conf.arg(name="")] = field(default=Joining())


def evaluate(arguments: Sequence[str]) -> None:
    """See ``resnet_jax.cli.evaluate``."""
    options = options_lib.parse("evaluate", EvaluateOptions, arguments)
    processes.connect(options.joining)
    from resnet_jax.evaluation import protocols
    from resnet_jax.studies import score
    from resnet_jax.training.workdir import Workdir

    asked = [protocols.parse(text) for text in options.protocol] or [None]
    source = Workdir.to_read(options.run).path
    results = score.score(
        source, data=options.data, split=options.split, batch_size=options.batch_size, data_dir=options.data_dir, asked=asked
    )
    if not processes.is_first():
        return
    found = results[0]
    what = options.run if found["step"] is None else f"{options.run}, step {found['step']}"
    if options.json:
        print(json.dumps(found if len(results) == 1 else results))
    elif len(results) == 1:
        print(f"{what}: error {found['error_percent']:.2f} % on {found['examples']} images of {found['split']}")
    else:
        from rich.table import Table

        from resnet_jax.console import out

        table = Table("protocol", "top-1 error, %", "top-5 error, %", "images", "seconds", title=f"{what}, {found['split']}")
        for each in results:
            top5 = each["top5_error_percent"]
            rest = "" if top5 is None else f"{top5:.2f}", str(each["examples"]), f"{each['seconds']:.1f}"
            table.add_row(each["protocol"]["view"], f"{each['error_percent']:.2f}", *rest)
        out.print(table)
