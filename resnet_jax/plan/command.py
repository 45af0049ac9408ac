"""``resnet-jax plan``: checks what is asked, compiles it in a process of its own, prints a table and what it rests on."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from resnet_jax import options as options_lib
from resnet_jax.errors import UserError

if TYPE_CHECKING:
    from resnet_jax.plan.plan import Asked
    from resnet_jax.training.experiment import Experiment


def run(arguments: Sequence[str]) -> None:
    """Plans, and prints."""
    experiment, options, asked = _read(arguments)
    asked.check(experiment)
    from resnet_jax.console import err, out
    from resnet_jax.plan import elsewhere

    rows = elsewhere.ask("resnet_jax.plan.command", arguments, lambda message: err.print(message, highlight=False, soft_wrap=True))
    found = _described(arguments, experiment, rows)
    if options.json:
        print(json.dumps(found))
    else:
        from resnet_jax.plan import printed

        out.print(printed.table(found))
        for line in printed.lines(found, options.images_per_second):
            out.print(line, highlight=False, soft_wrap=True)
    if options.output:
        from resnet_jax.training.workdir import write_output

        write_output(options.output, found)


def _read(arguments: Sequence[str]) -> "tuple[Experiment, Any, Asked]":
    from resnet_jax.plan import plan
    from resnet_jax.training.experiment import Experiment

    reference, rest = options_lib.experiment_first("plan", arguments)
    base = options_lib.experiment(reference) if reference else options_lib.any_experiment()

    @dataclass(frozen=True, kw_only=True)
    class Plan:
        """Compile the training step for machines that are not there: does it fit, what does it move and send, which bound is set on its
        images a second by published rates. Nothing is run; minutes a program. Every field of the experiment can be set.
        """

        target: tuple[str, ...]
        """tpu:v5e:16x16, tpu:v6e:4x4, tpu:v5p:8x16x16, gpu:h100, gpu:a100:8; several give rows for each."""
        batch_per_device: int | None = None
        """Images a device; the experiment's batch_size is shared by them where not given."""
        layouts: tuple[plan.Layout, ...] = ("data", "fsdp")
        """data: parameters whole on every device; fsdp: split, with the first of --norms."""
        norms: tuple[plan.Norm, ...] = ("groups", "global")
        """BatchNorm over groups, those of the experiment or a device's images, and over the whole batch."""
        fsdp: int | None = None
        """Devices that share a copy of the parameters; where not given as many as divide them, up to 16."""
        search: bool = True
        """Look for the largest batch that fits, with the first layout and norm: two to four programs more."""
        images_per_second: float | None = None
        """Say which share of the bound so many, of all devices, would be."""
        examples: int = 50_000
        """Images of a training set that lives on the device (CIFAR-10's)."""
        output: Path | None = None
        """File for everything as JSON."""
        json: bool = False
        """Print that JSON instead of the table."""
        experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default=base)

    options = options_lib.parse(f"plan {reference or options_lib.EXPERIMENT}", Plan, rest)
    if options.examples < 1:
        raise UserError(f"--examples is {options.examples}; give at least 1")
    if options.images_per_second is not None and options.images_per_second <= 0:
        raise UserError(f"--images-per-second is {options.images_per_second}; give more than 0")
    asked = plan.Asked(
        targets=options.target,
        batch_per_device=options.batch_per_device,
        layouts=options.layouts,
        norms=options.norms,
        fsdp=options.fsdp,
        search=options.search,
        examples=options.examples,
    )
    return options.experiment, options, asked


def _compile_here(arguments: Sequence[str]) -> None:
    """What the other process does."""
    from resnet_jax.plan import elsewhere, plan

    def make(say: Callable[[str], None]) -> list[dict[str, Any]]:
        experiment, _, asked = _read(arguments)
        return plan.make(experiment, asked, say)

    elsewhere.answer(make)


def _described(arguments: Sequence[str], experiment: "Experiment", rows: list[dict[str, Any]]) -> dict[str, Any]:
    import datetime

    from resnet_jax.plan import elsewhere

    return {
        "kind": "plan",
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["resnet-jax", "plan", *arguments]),
        "experiment": experiment.name,
        **elsewhere.described(),
        "rows": rows,
    }


if __name__ == "__main__":
    _compile_here(sys.argv[1:])
