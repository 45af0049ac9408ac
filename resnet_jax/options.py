"""From the words of the command line to values: experiments by reference, their fields, the parts of networks by class and arguments."""

import dataclasses
import importlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from resnet_jax import references
from resnet_jax.configured import Configured, Factory
from resnet_jax.errors import UserError, nearest
from resnet_jax.processes import Joining

if TYPE_CHECKING:
    from resnet_jax.training.experiment import Experiment

Options = TypeVar("Options")

EXPERIMENT = "FILE.py:FUNCTION, as experiments/he2015_cifar10.py:resnet20"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where a run reads and writes, and what it runs on."""

    workdir: Path
    """Folder of the run, made if missing. A run found there is continued; another experiment or seed is refused."""
    data_dir: str | None = None
    """Where prepared data sets are looked for, before $TFDS_DATA_DIR and ~/tensorflow_datasets."""
    devices: int | None = None
    """Number of devices to use; all, of all processes, where not given."""
    joining: Annotated[Joining, tyro.conf.arg(name="")] = field(default=Joining())


def registry() -> ConstructorRegistry:
    """A tyro registry that reads a part of a network as its name in the papers (A), its own (ZeroPad), or FILE.py:CLASS, and those with
    arguments: ``Scaled(shortcut=0.5)``.
    """
    found = ConstructorRegistry()

    @found.primitive_rule
    def part_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        arguments = typing.get_args(info.type)
        if Configured in arguments:
            # What need not be there at all is a part of the input; `none` is also the name of a shortcut.
            optional = types.NoneType in arguments
            return PrimitiveConstructorSpec(
                nargs=1,
                metavar="CLASS|CLASS(ARGUMENT=VALUE)" + "|none" * optional,
                instance_from_str=lambda strings: (
                    (None if strings[0] == "none" else load_part(strings[0])) if optional else load_part(strings[0])
                ),
                is_instance=lambda value: isinstance(value, type | Configured) or (optional and value is None),
                str_from_instance=lambda value: ["none" if value is None else _names().name_of(value, _input_parts())],
            )
        if typing.get_origin(info.type) is not type:
            return None
        (base,) = arguments
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="CLASS",
            instance_from_str=lambda strings: _subclass(strings[0], base),
            is_instance=lambda value: isinstance(value, type),
            str_from_instance=lambda value: [_names().name_of(value)],
        )

    return found


def load_part(text: str) -> Factory:
    """Reads ``NAME`` or ``NAME(argument=value)``, NAME a short name or FILE.py:CLASS. Raises ValueError, as tyro expects."""
    return _names().load_part(text, _input_parts())


def _subclass(text: str, base: type) -> type:
    found = load_part(text)
    if not isinstance(found, type) or not issubclass(found, base):
        fitting = [name for name, value in _names().known().items() if isinstance(value, type) and issubclass(value, base)]
        raise UserError(f"{text} is no {base.__name__}{nearest(text, fitting)}")
    return found


def _input_parts() -> dict[str, Factory]:
    from resnet_jax.data import parts

    return parts.known()


def _names() -> types.ModuleType:
    # Imports flax: only where a part is read or shown.
    from resnet_jax.models import names

    return names


def first(command: str, arguments: Sequence[str], what: str) -> tuple[str | None, list[str]]:
    """Splits off the argument that decides which others there are; None where help is asked for without it."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    if any(argument in ("-h", "--help") for argument in arguments):
        return None, list(arguments)
    raise UserError(f"{command}: first name {what}")


def later(module: str, doc: str) -> Callable[[Sequence[str]], None]:
    """A command of a group, the function ``run`` of a module that is imported where it is called; ``doc`` is its line in the list."""

    def run(arguments: Sequence[str]) -> None:
        importlib.import_module(module).run(arguments)

    run.__doc__ = doc
    return run


def dispatch(group: str, commands: Mapping[str, Callable[[Sequence[str]], None]], arguments: Sequence[str], more: str = "") -> None:
    """Runs one of the commands of a group, or lists them.

    Raises:
      UserError: for an unknown one.
      SystemExit: after the list: 0 where it was asked for.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        lines = "\n".join(f"  {name:9} {(command.__doc__ or '').strip()}" for name, command in commands.items())
        print(f"resnet-jax {group} COMMAND [...]; resnet-jax {group} COMMAND --help says more\n\n{lines}{more}")
        raise SystemExit(0 if arguments else 2)
    if arguments[0] not in commands:
        raise UserError(f"there is no command '{group} {arguments[0]}'{nearest(arguments[0], commands)}")
    commands[arguments[0]](arguments[1:])


def experiment_first(command: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    return first(command, arguments, f"the experiment, {EXPERIMENT}")


def call(reference: str, what: str) -> Any:
    function = references.load(reference)
    if not callable(function):
        raise UserError(f"{reference} is no function; a {what} is a function without arguments")
    return function()


def experiment(reference: str) -> "Experiment":
    from resnet_jax.training.experiment import Experiment

    found = call(reference, "experiment")
    if not isinstance(found, Experiment):
        raise UserError(f"{reference} returned no Experiment; 'resnet-jax study' takes a function that returns several")
    return found


def any_experiment() -> "Experiment":
    from resnet_jax.models import cifar_architecture
    from resnet_jax.training.experiment import Data, Experiment

    return Experiment(name="resnet20", model=cifar_architecture(20), data=Data(name="cifar10"))


def rescaled(base: "Experiment", asked: "Experiment") -> "Experiment":
    """``--steps`` alone rescales the schedule; with ``--schedule.decay-steps`` or ``--schedule.cosine-steps`` all are taken as given."""
    before, now = base.schedule, asked.schedule
    if (now.decay_steps, now.cosine_steps) != (before.decay_steps, before.cosine_steps):
        return asked
    return dataclasses.replace(asked, steps=base.steps).shortened(asked.steps)


def parse(program: str, options: type[Options], arguments: Sequence[str]) -> Options:
    return tyro.cli(
        options,
        prog=f"resnet-jax {program}",
        args=list(arguments),
        registry=registry(),
        config=(tyro.conf.AvoidSubcommands,),
    )
