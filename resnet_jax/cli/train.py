"""``resnet-jax train``."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from resnet_jax import distributed
from resnet_jax.cli import options as options_lib
from resnet_jax.errors import UserError


def train(arguments: Sequence[str]) -> None:
    """See ``resnet_jax.cli.train``."""
    from resnet_jax.training.config import Experiment

    reference, base, rest = options_lib.experiment_first("train", arguments)

    @dataclass(frozen=True, kw_only=True)
    class Train(options_lib.RunOptions):
        """Train an experiment, or continue it. --steps also rescales its schedule; every field can be set."""

        seed: int = 0
        """Seed of initialization, data order and augmentation."""
        fsdp: int = 1
        """Devices that share one copy of the parameters and the optimizer's state."""
        init_from: Path | None = None
        """Imported weights, or a run, to fine-tune, with their normalization of images, or --data.normalization."""
        new_head: bool = False
        """Initialize the classifier at random, for other classes."""
        freeze_trunk: bool = False
        """Train only the classifier; see also --optimizer.frozen and --optimizer.rates (stages 0.1)."""
        profile: int = 0
        """Steps to trace into WORKDIR/profile."""
        json: bool = False
        """Print the result as JSON."""
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default=base)

    options = options_lib.parse(f"train {reference}", Train, rest)
    if options.profile < 0:
        raise UserError(f"--profile must be a number of steps, got {options.profile}")
    experiment = options_lib.rescaled(base, options.experiment)
    from resnet_jax.data import datasets

    # Reported before the slow imports.
    datasets.describe(experiment.data.name, options.data_dir)
    distributed.connect(options.joining)
    if options.init_from is not None:
        from resnet_jax.training import fine_tune

        is_set = any(argument.partition("=")[0] == "--data.normalization" for argument in rest)
        experiment = fine_tune.start_from(
            experiment,
            options.init_from,
            new_head=options.new_head,
            freeze_trunk=options.freeze_trunk,
            normalization=experiment.data.normalization if is_set else "weights",
        )
    elif options.new_head or options.freeze_trunk:
        raise UserError(
            "--new-head and --freeze-trunk belong to --init-from FILE: the run starts from no weights"
        )
    from resnet_jax.studies import comparison
    from resnet_jax.terminal import RunProgress, out
    from resnet_jax.training.train import train

    title = f"{experiment.name}, seed {options.seed}"
    with RunProgress(title) as progress:
        result = train(
            experiment,
            options.seed,
            options.workdir,
            progress=progress,
            data_dir=options.data_dir,
            devices=options.devices,
            fsdp=options.fsdp,
            profile_steps=options.profile,
        )
    if not distributed.is_first():
        return
    if options.json:
        print(json.dumps(result))
        return
    beside = "".join(
        f" (published: {entry}, {entry.paper}, {entry.table})"
        for entry in comparison.published_beside(result)
    )
    training = (
        f"training error {result['training_error_percent']:.2f} % ({result['training_error_of']})"
    )
    tested = f"test error {result['value']:.2f} %{beside} on {result['examples']} images"
    line = f"{title}: {tested}, {training}, {result['seconds']:.0f} s; {options.workdir / 'result.json'}"
    out.print(line, highlight=False, soft_wrap=True)
