"""The command line, ``resnet-jax COMMAND``. Commands do heavy imports themselves."""

import argparse
import dataclasses
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from resnet_jax import distributed
from resnet_jax.cli import options as options_lib
from resnet_jax.cli.options import EXPERIMENT, Command, later
from resnet_jax.errors import Interrupted, NonFiniteLoss, UserError


def summary(arguments: Sequence[str]) -> None:
    """Count a network without building it: NETWORK|FILE.py:FUNCTION [--depth N] [--shortcut A]"""
    from resnet_jax import models
    from resnet_jax.models.catalog import FAMILIES

    name, rest = options_lib.first(
        "summary", arguments, "a network, as cifar_resnet or resnet50, or " + EXPERIMENT
    )

    parser = argparse.ArgumentParser("resnet-jax summary", add_help=False, allow_abbrev=False)
    parser.add_argument("--depth", type=int)
    depth = parser.parse_known_args(rest)[0].depth
    if name is None:
        base = models.cifar_architecture(depth or 110)
    elif ":" in name:
        base = options_lib.experiment(name).model
    else:
        base = models.architecture(name, depth)

    @dataclass(frozen=True, kw_only=True)
    class Summary:
        """Parameters, multiply-adds (the papers' FLOPs, for one image) and projections, by stage."""

        depth: int | None = None
        """Layers: 6n+2 for cifar_resnet, cifar_plain and cifar_preresnet, 18 to 200 for the imagenet families."""
        json: bool = False
        """Print parameters, multiply_adds, projections and stages as JSON."""
        model: Annotated[models.Architecture, tyro.conf.arg(name="")] = field(default=base)

    Summary.__doc__ = f"{Summary.__doc__} Families, with --depth: {', '.join(FAMILIES)}. Networks: {', '.join(models.NETWORKS)}."
    options = options_lib.parse(f"summary {name or 'NETWORK'}", Summary, rest)
    counts = models.count(options.model)
    if options.json:
        print(json.dumps(dataclasses.asdict(counts)))
        return
    from resnet_jax.terminal import Table, out, terminal

    def shape(sizes: Sequence[int]) -> str:
        return "x".join(map(str, sizes))

    stages = counts.stages
    rows = [
        (
            s.name,
            s.num_blocks or None,
            shape(s.output_shape),
            s.parameters,
            s.multiply_adds,
            s.projections or None,
        )
        for s in stages
    ]
    rows.append(
        (
            "all",
            sum(stage.num_blocks for stage in stages),
            "",
            counts.parameters,
            counts.multiply_adds,
            counts.projections,
        )
    )
    title = f"{name}{f' --depth {depth}' if depth else ''}, one image of {shape(options.model.input_shape)}"
    out.print(
        terminal(
            Table(
                title,
                ("", "blocks", "output", "parameters", "multiply-adds", "projections"),
                tuple(rows),
            )
        )
    )


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Write a TFDS data set into the data directory. Training never downloads."""

    name: Positional[str]
    """digits (embedded, no network), cifar10, imagenet2012, or another image-classification set of TFDS."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder of files that TFDS cannot download, such as ILSVRC2012_img_train.tar."""
    data_dir: str | None = None
    """Folder to write to; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


def prepare(arguments: Sequence[str]) -> None:
    """Write a data set into the data directory: digits|cifar10|imagenet2012|NAME [--from DIR]"""
    options = options_lib.parse("prepare", PrepareOptions, arguments)
    from resnet_jax.data.prepare import prepare as prepare_set

    info = prepare_set(options.name, options.data_dir, archives=options.from_)
    examples = ", ".join(f"{count} {split}" for split, count in info.examples.items())
    print(f"{info.name} {info.version} is in {info.directory}: {examples}")


COMMANDS: dict[str, Command] = {
    name: later(f"resnet_jax.{reference}", doc)
    for name, (reference, doc) in {
        "train": (
            "cli.train:train",
            "Train an experiment, or continue it: FILE.py:FUNCTION --workdir DIR [--steps N] [--FIELD VALUE]",
        ),
        "evaluate": (
            "cli.evaluate:evaluate",
            "Score a run, or imported weights: RUN_OR_FILE [--protocol 256/224 ten-crop]",
        ),
        "study": (
            "cli.study:study",
            "Compare experiments over seeds: FILE.py:FUNCTION --seeds N --workdir DIR [--data digits]",
        ),
        "report": (
            "cli.study:report",
            "Table of runs, and report.html: RUN [RUN ...]; a paper's numbers beside ours: --paper he2015",
        ),
        "weights": (
            "cli.weights:run",
            "Import weights of torchvision, timm or akamaster, and export them: import|export|show FILE",
        ),
        "data": (
            "cli.data:run",
            "Show the images of a training step: preview FILE.py:FUNCTION [--to FILE.png]",
        ),
        "analyze": (
            "cli.analyze:run",
            "Analyze trained networks: responses RUN [RUN ...] [--to DIR]",
        ),
        "doctor": (
            "cli.doctor:doctor",
            "List versions, devices and data sets, and problems with their remedies",
        ),
        "plan": (
            "cli.plan:run",
            "Compile a step for target hardware that is not attached: FILE.py:FUNCTION --target tpu:v5e:16x16",
        ),
    }.items()
} | {"summary": summary, "prepare": prepare}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; launch/README.md lists the exit codes."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs every save.
    try:
        options_lib.dispatch("", COMMANDS, arguments, before=_cache_compiled_programs)
    except (
        UserError,
        KeyboardInterrupt,
        Interrupted,
        NonFiniteLoss,
        distributed.NeverMet,
    ) as error:
        codes = {KeyboardInterrupt: 130, distributed.NeverMet: distributed.PEER_LOST}
        print(f"resnet-jax: {str(error) or 'stopped'}", file=sys.stderr)
        distributed.leave(codes.get(type(error), getattr(error, "exit_code", 2)))
    except Exception as error:
        if not distributed.several():
            raise
        traceback.print_exc()
        if distributed.lost(error):
            print(
                f"resnet-jax: {distributed.name()}: another process was lost; the same command, in all, continues",
                file=sys.stderr,
            )
            distributed.leave(distributed.PEER_LOST)
        distributed.leave(1)


def _cache_compiled_programs() -> None:
    """Sets the default of JAX_COMPILATION_CACHE_DIR."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        folder = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "resnet_jax"))


if __name__ == "__main__":
    main()
