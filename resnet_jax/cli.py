"""The command line: ``resnet-jax COMMAND``. Arguments come from dataclasses through tyro; heavy imports wait until a command needs them."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from resnet_jax import options as options_lib
from resnet_jax.errors import UserError, nearest
from resnet_jax.options import EXPERIMENT


def train(arguments: Sequence[str]) -> None:
    """Train an experiment, or continue it: resnet-jax train FILE.py:FUNCTION --workdir DIR [--seed N] [--steps N] [--FIELD VALUE]"""
    from resnet_jax.training.experiment import Experiment

    reference, rest = options_lib.experiment_first("train", arguments)
    base = options_lib.experiment(reference) if reference else options_lib.any_experiment()

    @dataclass(frozen=True, kw_only=True)
    class Train(options_lib.RunOptions):
        """Train an experiment, or continue it. --steps shortens or stretches its schedule too; every field can be set."""

        seed: int = 0
        """Of initialisation, data order and augmentation."""
        init_from: Path | None = None
        """Imported weights, or a run, to begin with: fine-tuning. Images are normalised as theirs, or by --data.normalization."""
        new_head: bool = False
        """Draw the classifier anew, for other classes."""
        freeze_trunk: bool = False
        """Train nothing but the classifier; see also --optimizer.frozen and --optimizer.rates (stages 0.1)."""
        json: bool = False
        """Print the result as JSON."""
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default=base)

    options = options_lib.parse(f"train {reference or EXPERIMENT}", Train, rest)
    experiment = options_lib.rescaled(base, options.experiment)
    from resnet_jax.data import sources

    # A set that is not there is said before Orbax and the rest take their seconds to import.
    sources.describe(experiment.data.name, options.data_dir)
    if options.init_from is not None:
        from resnet_jax.training import start

        asked = any(argument.partition("=")[0] == "--data.normalization" for argument in rest)
        experiment = start.start_from(
            experiment,
            options.init_from,
            new_head=options.new_head,
            freeze_trunk=options.freeze_trunk,
            normalization=experiment.data.normalization if asked else "weights",
        )
    elif options.new_head or options.freeze_trunk:
        raise UserError("--new-head and --freeze-trunk belong to --init-from FILE: there is nothing to begin with")
    from resnet_jax.console import RunProgress, out
    from resnet_jax.studies import run

    with RunProgress(f"{experiment.name}, seed {options.seed}") as progress:
        result = run.run(experiment, options.seed, options.workdir, progress=progress, data_dir=options.data_dir, devices=options.devices)
    if options.json:
        print(json.dumps(result))
        return
    from resnet_jax.studies import comparison

    beside = "".join(f" (published: {entry}, {entry.paper}, {entry.table})" for entry in comparison.published_beside(result))
    out.print(
        f"{experiment.name}, seed {options.seed}: test error {result['value']:.2f} %{beside} on {result['examples']} images, "
        f"training error {result['training_error_percent']:.2f} % ({result['training_error_of']}), {result['seconds']:.0f} s; "
        f"{options.workdir / 'result.json'}",
        highlight=False,
        soft_wrap=True,
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Score the newest checkpoint of a run, or imported weights, every example exactly once."""

    run: Positional[Path]
    """Folder that 'resnet-jax train' wrote, or what 'resnet-jax weights import' wrote."""
    data: str | None = None
    """Data set to score; the one that it was trained on where not given."""
    split: str | None = None
    """Split to score; the test split where not given."""
    batch_size: int = 500
    data_dir: str | None = None
    """Where prepared data sets are looked for, before $TFDS_DATA_DIR and ~/tensorflow_datasets."""
    json: bool = False
    """Print error_percent, examples and protocol as JSON."""


def evaluate(arguments: Sequence[str]) -> None:
    """Score a run, or imported weights: resnet-jax evaluate RUN_OR_FILE [--data NAME] [--split NAME] [--json]"""
    options = options_lib.parse("evaluate", EvaluateOptions, arguments)
    from resnet_jax.studies import score

    found = score.score(options.run, data=options.data, split=options.split, batch_size=options.batch_size, data_dir=options.data_dir)
    if options.json:
        print(json.dumps(found))
    else:
        what = options.run if found["step"] is None else f"{options.run}, step {found['step']}"
        print(f"{what}: error {found['error_percent']:.2f} % on {found['examples']} images of {found['split']}")


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
    """digits (embedded, no network), cifar10, or another image-classification set of TFDS."""
    data_dir: str | None = None
    """Where to; else $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


def prepare(arguments: Sequence[str]) -> None:
    """Write a data set into the data directory: resnet-jax prepare digits|cifar10|NAME [--data-dir DIR]"""
    options = options_lib.parse("prepare", PrepareOptions, arguments)
    from resnet_jax.data.prepare import prepare as prepare_set

    info = prepare_set(options.name, options.data_dir)
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


def bench(arguments: Sequence[str]) -> None:
    """Measure what compilation, a training step or several seeds cost: resnet-jax bench compile|step|seeds [--output FILE]"""
    from resnet_jax.bench import command

    command.run(arguments)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__: command for command in (train, evaluate, study, report, summary, weights, bench, prepare, doctor)
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a run that failed, 2 bad input, 128 + signal for a run that was stopped and saved."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _quiet_libraries()
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
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("resnet-jax: stopped", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        # Known only where training was imported; importing it here would cost every other command a second.
        loop = sys.modules.get("resnet_jax.training.loop")
        if loop is not None and isinstance(error, loop.Interrupted | loop.NonFiniteLoss):
            print(f"resnet-jax: {error}", file=sys.stderr)
            raise SystemExit(getattr(error, "exit_code", 1)) from None
        raise


def _quiet_libraries() -> None:
    import logging

    # absl's advice to install OpenCV, and Orbax's account of every save.
    logging.getLogger("absl").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
