"""The command line: ``resnet-jax COMMAND``. Arguments come from dataclasses through tyro; heavy imports wait until a command needs them."""

import dataclasses
import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from resnet_jax import compiled_programs, huge_pages, processes
from resnet_jax import options as options_lib
from resnet_jax.errors import UserError, nearest
from resnet_jax.options import EXPERIMENT
from resnet_jax.plan import offline


def train(arguments: Sequence[str]) -> None:
    """Train an experiment, or continue it: resnet-jax train FILE.py:FUNCTION --workdir DIR [--seed N] [--steps N] [--FIELD VALUE]"""
    from resnet_jax.training import command

    command.train(arguments)


def evaluate(arguments: Sequence[str]) -> None:
    """Score a run, or imported weights: resnet-jax evaluate RUN_OR_FILE [--data NAME] [--protocol 256/224 ten-crop multi-scale] [--json]"""
    from resnet_jax.evaluation import command

    command.evaluate(arguments)


def study(arguments: Sequence[str]) -> None:
    """Run a comparison of experiments over seeds: resnet-jax study FILE.py:FUNCTION --seeds N --workdir DIR [--data digits] [--steps N]"""
    from resnet_jax.studies import command

    command.study(arguments)


def report(arguments: Sequence[str]) -> None:
    """Print the table of runs and write report.html: resnet-jax report RUN [RUN ...]; beside a paper's: resnet-jax report --paper he2015"""
    from resnet_jax.studies import command

    command.report(arguments)


def summary(arguments: Sequence[str]) -> None:
    """Count a network without building it: resnet-jax summary NETWORK|FILE.py:FUNCTION [--depth N] [--shortcut A] [--json]"""
    from resnet_jax import models
    from resnet_jax.models.catalog import FAMILIES

    name, rest = options_lib.first("summary", arguments, "a network, as cifar_resnet or resnet50, or " + EXPERIMENT)

    @dataclass(frozen=True, kw_only=True)
    class Depth:
        depth: int | None = None

    depth, rest = tyro.cli(Depth, args=rest, return_unknown_args=True, add_help=False)
    if name is None:
        base = models.cifar_architecture(depth.depth or 110)
    elif ":" in name:
        base = options_lib.experiment(name).model
    else:
        base = models.architecture(name, depth.depth)

    @dataclass(frozen=True, kw_only=True)
    class Summary:
        """Parameters, multiply-adds (the papers' FLOPs, for one image), projections, and a table by stage, by shape arithmetic alone."""

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
    from resnet_jax.console import counts_table, out

    title = f"{name}{f' --depth {depth.depth}' if depth.depth else ''}, one image of {'x'.join(map(str, options.model.input_shape))}"
    out.print(counts_table(title, counts))
    units = sum(options.model.stages)
    runs = "one scan a stage" if models.Execution().scans(units) else "an unrolled loop"
    out.print(f"Run on this backend as {runs} over its {units} units.", highlight=False)


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Write a TFDS data set into the data directory, once. Training never downloads."""

    name: Positional[str]
    """digits (embedded, no network), cifar10, imagenet2012, or another image-classification set of TFDS."""
    from_: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    """Folder of ImageNet's two archives, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, which have to be fetched by hand."""
    resize: int | None = None
    """Make a smaller copy of a prepared set, or of a folder: pixels of the shorter side. NAME_256 is a data set of its own."""
    filter: str | None = None
    """Of the copy: bilinear (where not given) or bicubic, both antialiased."""
    quality: int | None = None
    """Of the copy's JPEGs, 1 to 100; 95 where not given. Images that are no larger than the copy stay byte for byte."""
    data_dir: str | None = None
    """Where to; else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


def prepare(arguments: Sequence[str]) -> None:
    """Write a data set into the data directory: resnet-jax prepare digits|cifar10|imagenet2012|NAME [--from DIR] [--resize 256]"""
    options = options_lib.parse("prepare", PrepareOptions, arguments)
    from resnet_jax.data.prepare import prepare as prepare_set

    info = prepare_set(
        options.name,
        options.data_dir,
        archives=options.from_,
        resize=options.resize,
        filter=options.filter,
        quality=options.quality,
    )
    examples = ", ".join(f"{count} {split}" for split, count in info.examples.items())
    print(f"{info.name} {info.version} is in {info.directory}: {examples}")


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Say what is installed, which devices and data sets there are, what is wrong, and what to do."""

    data_dir: str | None = None
    json: bool = False


def doctor(arguments: Sequence[str]) -> None:
    """Say what is installed and found, what is wrong, and what to do: resnet-jax doctor; why weights score badly: doctor weights FILE"""
    if arguments and arguments[0] == "weights":
        from resnet_jax import checkup

        checkup.run(arguments[1:])
        return
    options = options_lib.parse("doctor", DoctorOptions, arguments)
    from resnet_jax import doctor as doctor_lib

    found = doctor_lib.examine(options.data_dir)
    print(json.dumps(found) if options.json else doctor_lib.text(found))
    if found["problems"]:
        raise SystemExit(1)


def weights(arguments: Sequence[str]) -> None:
    """Bring weights in from torch, timm or Caffe, and back out: resnet-jax weights import|export|show FILE"""
    from resnet_jax import weights as weights_lib

    weights_lib.run(arguments)


def data(arguments: Sequence[str]) -> None:
    """See what the network sees: resnet-jax data preview FILE.py:FUNCTION [--to FILE.png]"""
    from resnet_jax.data import command

    command.run(arguments)


def bench(arguments: Sequence[str]) -> None:
    """Measure beside peers, and find out why: resnet-jax bench step|layers|execution|compile|dispatch|seeds|run|flags|program|input"""
    from resnet_jax.bench import command

    command.run(arguments)


def lab(arguments: Sequence[str]) -> None:
    """Look inside trained networks: resnet-jax lab responses RUN [RUN ...] [--to DIR]"""
    from resnet_jax.lab import command

    command.run(arguments)


def plan(arguments: Sequence[str]) -> None:
    """Say what a step needs on machines that are not there: resnet-jax plan FILE.py:FUNCTION --target tpu:v5e:16x16 [--json]"""
    from resnet_jax.plan import command

    command.run(arguments)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__: command for command in (train, evaluate, study, report, summary, weights, data, lab, plan, bench, prepare, doctor)
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a run that failed, 2 bad input, 75 another process was lost, 128 + signal for a run that was
    stopped and saved.
    """
    if arguments is None:
        huge_pages.start_with()
        arguments = sys.argv[1:]
    arguments = list(arguments)
    _quiet_libraries()
    offline.hide_missing_devices()
    compiled_programs.keep()
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = [f"  {name:9} {(command.__doc__ or '').strip()}" for name, command in COMMANDS.items()]
        print("resnet-jax COMMAND [...]; resnet-jax COMMAND --help says more\n\n" + "\n".join(lines))
        raise SystemExit(0 if arguments else 2)
    try:
        if arguments[0] not in COMMANDS:
            raise UserError(f"there is no command {arguments[0]!r}{nearest(arguments[0], COMMANDS)}")
        COMMANDS[arguments[0]](arguments[1:])
    except UserError as error:
        print(f"resnet-jax: {error}", file=sys.stderr)
        processes.leave(2)
    except processes.NeverMet as error:
        print(f"resnet-jax: {error}", file=sys.stderr)
        processes.leave(processes.PEER_LOST)
    except KeyboardInterrupt:
        print("resnet-jax: stopped", file=sys.stderr)
        processes.leave(130)
    except Exception as error:
        # Known only where training was imported; importing it here would cost every other command a second.
        loop = sys.modules.get("resnet_jax.training.loop")
        if loop is not None and isinstance(error, loop.Interrupted | loop.NonFiniteLoss):
            print(f"resnet-jax: {error}", file=sys.stderr)
            processes.leave(getattr(error, "exit_code", 1))
        if not processes.several():
            raise
        traceback.print_exc()
        if processes.lost(error):
            print(f"resnet-jax: {processes.name()}: another process was lost; the same command, in all, continues", file=sys.stderr)
            processes.leave(processes.PEER_LOST)
        processes.leave(1)


def _quiet_libraries() -> None:
    import logging

    # absl's advice to install OpenCV, and Orbax's account of every save.
    logging.getLogger("absl").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
