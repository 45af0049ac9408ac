"""Command line options: experiments by reference, their fields, parts of networks by class and arguments."""

import dataclasses
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from resnet_jax.distributed import Joining
from resnet_jax.errors import UserError, nearest
from resnet_jax.models import components
from resnet_jax.models.components import Component, Factory

if TYPE_CHECKING:
    from resnet_jax.training.config import Experiment

Options = TypeVar("Options")
Command = Callable[[Sequence[str]], None]

EXPERIMENT = "FILE.py:FUNCTION, as experiments/he2015_cifar10.py:resnet20"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Directories and devices of a run."""

    workdir: Path
    """Folder of the run, made if missing. A run in it is continued; another experiment or seed is rejected."""
    data_dir: str | None = None
    """Folder of prepared data sets, searched before $TFDS_DATA_DIR and ~/tensorflow_datasets."""
    devices: int | None = None
    """Devices to use, over all processes; default: all."""
    joining: Annotated[Joining, tyro.conf.arg(name="")] = field(default=Joining())


def registry() -> ConstructorRegistry:
    """Reads a part: its name in the papers (A), in the package (ZeroPad), or FILE.py:CLASS; with arguments, as ``Scaled(shortcut=0.5)``."""
    parts_registry = ConstructorRegistry()

    @parts_registry.primitive_rule
    def part_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        arguments = typing.get_args(info.type)
        base = arguments[0] if typing.get_origin(info.type) is type else None
        if Component not in arguments and base is None:
            return None
        from resnet_jax.data import augment_device, augment_host
        from resnet_jax.models import catalog

        others = catalog.parts_of(augment_host, augment_device)
        # `none` is also the name of a shortcut, which is not optional.
        optional = NoneType in arguments

        def read(words: list[str]) -> Factory | None:
            if optional and words[0] == "none":
                return None
            part = catalog.load_part(words[0], others)
            if base is not None and not (isinstance(part, type) and issubclass(part, base)):
                fitting = [
                    name
                    for name, value in catalog.known().items()
                    if isinstance(value, type) and issubclass(value, base)
                ]
                raise UserError(f"{words[0]} is no {base.__name__}{nearest(words[0], fitting)}")
            return part

        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="CLASS|CLASS(ARGUMENT=VALUE)" + "|none" * optional,
            instance_from_str=read,
            is_instance=lambda value: (
                isinstance(value, type | Component) or (optional and value is None)
            ),
            str_from_instance=lambda value: [
                "none" if value is None else catalog.name_of(value, others)
            ],
        )

    return parts_registry


def first(command: str, arguments: Sequence[str], what: str) -> tuple[str | None, list[str]]:
    """Splits off the first argument; None with --help alone. Raises UserError if it is missing."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    if {"-h", "--help"} & set(arguments):
        return None, list(arguments)
    raise UserError(f"{command}: first name {what}")


def later(reference: str, doc: str) -> Command:
    """Returns a command that is imported when called: ``module:name``, or ``module`` for its ``run``. ``doc``: its line in the list."""

    def run(arguments: Sequence[str]) -> None:
        components.load(reference if ":" in reference else f"{reference}:run")(arguments)

    run.__doc__ = doc
    return run


def dispatch(
    group: str,
    commands: Mapping[str, Command],
    arguments: Sequence[str],
    more: str = "",
    before: Callable[[], None] = lambda: None,
) -> None:
    """Runs a command of a group ("": of all) after ``before``, or lists all and exits. Raises UserError for an unknown one."""
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(
            f"  {name:9} {(command.__doc__ or '').strip()}" for name, command in commands.items()
        )
        called = f"resnet-jax {group} COMMAND".replace("  ", " ")
        print(f"{called} [...]; {called} --help says more\n\n{lines}{more}")
        raise SystemExit(0 if arguments else 2)
    if arguments[0] not in commands:
        raise UserError(
            f"there is no command '{f'{group} {arguments[0]}'.strip()}'{nearest(arguments[0], commands)}"
        )
    before()
    commands[arguments[0]](arguments[1:])


def experiment_first(command: str, arguments: Sequence[str]) -> tuple[str, "Experiment", list[str]]:
    """Returns the reference of an experiment, the experiment (an example for ``--help``) and the other arguments."""
    reference, rest = first(command, arguments, f"the experiment, {EXPERIMENT}")
    if reference:
        return reference, experiment(reference), rest
    from resnet_jax.models import cifar_architecture
    from resnet_jax.training.config import Data, Experiment

    return (
        EXPERIMENT,
        Experiment(name="resnet20", model=cifar_architecture(20), data=Data(name="cifar10")),
        rest,
    )


def call(reference: str, what: str) -> Any:
    """Calls a function by its reference."""
    function = components.load(reference)
    if not callable(function):
        raise UserError(f"{reference} is no function; a {what} is a function without arguments")
    return function()


def experiment(reference: str) -> "Experiment":
    """Returns the experiment of FILE.py:FUNCTION."""
    from resnet_jax.training.config import Experiment

    returned = call(reference, "experiment")
    if not isinstance(returned, Experiment):
        raise UserError(
            f"{reference} returned no Experiment; 'resnet-jax study' takes a function that returns several"
        )
    return returned


def rescaled(base: "Experiment", changed: "Experiment") -> "Experiment":
    """``--steps`` alone rescales the schedule; with ``--schedule.decay-steps`` or ``--schedule.cosine-steps`` all are taken as given."""
    before, now = base.schedule, changed.schedule
    if (now.decay_steps, now.cosine_steps) != (before.decay_steps, before.cosine_steps):
        return changed
    return dataclasses.replace(changed, steps=base.steps).shortened(changed.steps)


def parse(program: str, options: type[Options], arguments: Sequence[str]) -> Options:
    return tyro.cli(
        options,
        prog=f"resnet-jax {program}",
        args=list(arguments),
        registry=registry(),
        config=(tyro.conf.AvoidSubcommands,),
    )
