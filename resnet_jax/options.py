"""From the words of the command line to values: experiments by reference, their fields, classes of blocks, shortcuts and stems."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from resnet_jax import references
from resnet_jax.errors import UserError, nearest

if TYPE_CHECKING:
    from resnet_jax.training.experiment import Experiment

Options = TypeVar("Options")

EXPERIMENT = "FILE.py:FUNCTION, as experiments/he2015_cifar10.py:resnet20"


def registry() -> ConstructorRegistry:
    """A tyro registry that reads a class as its name in the papers (A), its own (ZeroPad), or FILE.py:CLASS."""
    found = ConstructorRegistry()

    @found.primitive_rule
    def class_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
        if typing.get_origin(info.type) is not type:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="CLASS",
            instance_from_str=lambda strings: load_class(strings[0]),
            is_instance=lambda value: isinstance(value, type),
            str_from_instance=lambda value: [name_of(value)],
        )

    return found


def load_class(text: str) -> type:
    """Reads a class by a short name, or by FILE.py:CLASS. Raises ValueError, as tyro expects."""
    if ":" in text:
        found = references.load(text)
        if not isinstance(found, type):
            raise UserError(f"{text} is not a class")
        return found
    names = known()
    if text not in names:
        raise UserError(f"{text!r} is no known class{nearest(text, names)}; for your own write FILE.py:CLASS")
    return names[text]


def name_of(value: type) -> str:
    """The short name of a class of ours, the reference of any other."""
    return value.__name__ if known().get(value.__name__) is value else references.describe(value)


def known() -> dict[str, type]:
    """Short names of the classes that come with the package."""
    from resnet_jax.models import blocks, shortcuts, stems

    classes = {
        name: value
        for module in (blocks, shortcuts, stems)
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    }
    return classes | shortcuts.OPTIONS


def first(command: str, arguments: Sequence[str], what: str) -> tuple[str | None, list[str]]:
    """Splits off the argument that decides which others there are; None where help is asked for without it."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    if any(argument in ("-h", "--help") for argument in arguments):
        return None, list(arguments)
    raise UserError(f"{command}: first name {what}")


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
    """``--steps`` alone rescales the schedule; with ``--schedule.decay-steps`` both are taken as they are."""
    if asked.schedule.decay_steps != base.schedule.decay_steps:
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
