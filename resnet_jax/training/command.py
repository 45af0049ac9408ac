"""``resnet-jax train``: from the words of the command line to a run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from resnet_jax import options as options_lib
from resnet_jax import processes
from resnet_jax.errors import UserError
from resnet_jax.options import EXPERIMENT


def train(arguments: Sequence[str]) -> None:
    """See ``resnet_jax.cli.train``."""
    from resnet_jax.training.experiment import Experiment

    reference, rest = options_lib.experiment_first("train", arguments)
    base = options_lib.experiment(reference) if reference else options_lib.any_experiment()

    @dataclass(frozen=True, kw_only=True)
    class Train(options_lib.RunOptions):
        """Train an experiment, or continue it. --steps shortens or stretches its schedule too; every field can be set."""

        seed: int = 0
        """Of initialisation, data order and augmentation."""
        fsdp: int = 1
        """Devices that share one copy of the parameters and the optimizer's state: less memory, the same results."""
        init_from: Path | None = None
        """Imported weights, or a run, to begin with: fine-tuning. Images are normalised as theirs, or by --data.normalization."""
        new_head: bool = False
        """Draw the classifier anew, for other classes."""
        freeze_trunk: bool = False
        """Train nothing but the classifier; see also --optimizer.frozen and --optimizer.rates (stages 0.1)."""
        profile: int = 0
        """Steps to trace, after the first call: WORKDIR/profile for the usual viewers, with a table of the dearest operations."""
        json: bool = False
        """Print the result as JSON."""
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default=base)

    options = options_lib.parse(f"train {reference or EXPERIMENT}", Train, rest)
    if options.profile < 0 or (options.profile and ":/" in str(options.workdir)):
        raise UserError(f"--profile is {options.profile} and --workdir {options.workdir}; give steps, and a folder of this machine")
    experiment = options_lib.rescaled(base, options.experiment)
    from resnet_jax.data import sources

    # A set that is not there is said before Orbax and the rest take their seconds to import.
    sources.describe(experiment.data.name, options.data_dir)
    processes.connect(options.joining)
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
    from resnet_jax.training.profile import Profile

    with RunProgress(f"{experiment.name}, seed {options.seed}") as progress:
        result = run.run(
            experiment,
            options.seed,
            options.workdir,
            progress=progress,
            data_dir=options.data_dir,
            devices=options.devices,
            fsdp=options.fsdp,
            profile=Profile(options.workdir / "profile", options.profile, progress.say) if options.profile else None,
        )
    if not processes.is_first():
        return
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
