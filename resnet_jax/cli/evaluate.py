"""``resnet-jax evaluate``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from resnet_jax import distributed
from resnet_jax.cli import options as options_lib
from resnet_jax.distributed import Joining


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Score the newest checkpoint of a run, or imported weights, every example exactly once."""

    run: Positional[Path]
    """Folder of a run, or a file that 'resnet-jax weights import' wrote."""
    data: str | None = None
    """Data set; default: the one of the training."""
    split: str | None = None
    """Split; default: the test split."""
    protocol: tuple[str, ...] = ()
    """Crops of an image: 256/224 (shorter side / central square), 236/224-bicubic, ten-crop, multi-scale, or several of them; default: that
    of the run or the weights."""
    batch_size: int = 500
    """Images per call; ten crops count as ten images, and larger images as several."""
    data_dir: str | None = None
    """Folder of prepared data sets, searched before $TFDS_DATA_DIR and ~/tensorflow_datasets."""
    json: bool = False
    """Print error_percent, top5_error_percent, examples and protocol as JSON; for several protocols, a list."""
    joining: Annotated[Joining, tyro.conf.arg(name="")] = field(default=Joining())


def evaluate(arguments: Sequence[str]) -> None:
    """See ``resnet_jax.cli.evaluate``."""
    options = options_lib.parse("evaluate", EvaluateOptions, arguments)
    distributed.connect(options.joining)
    from resnet_jax.evaluation import protocols
    from resnet_jax.studies import score

    results = score.score(
        options.run,
        data=options.data,
        split=options.split,
        batch_size=options.batch_size,
        data_dir=options.data_dir,
        requested=[protocols.parse(text) for text in options.protocol] or [None],
    )
    if not distributed.is_first():
        return
    first = results[0]
    title = f"{options.run}" if first["step"] is None else f"{options.run}, step {first['step']}"
    if options.json:
        print(json.dumps(first if len(results) == 1 else results))
    elif len(results) == 1:
        print(
            f"{title}: error {first['error_percent']:.2f} % on {first['examples']} images of {first['split']}"
        )
    else:
        from resnet_jax.terminal import Table, out, terminal

        rows = tuple(
            (
                result["protocol"]["view"],
                f"{result['error_percent']:.2f}",
                ""
                if result["top5_error_percent"] is None
                else f"{result['top5_error_percent']:.2f}",
                result["examples"],
                f"{result['seconds']:.1f}",
            )
            for result in results
        )
        header = ("protocol", "top-1 error, %", "top-5 error, %", "images", "seconds")
        out.print(terminal(Table(f"{title}, {first['split']}", header, rows)))
