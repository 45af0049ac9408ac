"""Options of commands: experiments by reference and their fields, parts of networks."""

import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any

from tyro.conf import Positional, Suppress, UseAppendAction, arg
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructTypeInfo,
)

from resnet_jax import models
from resnet_jax.data import augment_device, augment_host
from resnet_jax.distributed import Joining
from resnet_jax.errors import CommandError, UserError, check, nearest
from resnet_jax.models import Architecture, catalog, components
from resnet_jax.models.components import Component, Factory
from resnet_jax.training.config import Data, Experiment

_REFERENCE = "FILE.py:FUNCTION, or a recipe of 'resnet-jax list' such as he2015_cifar10:resnet20."
Reference = Annotated[Positional[str], arg(metavar="FILE.py:FUNCTION", help=_REFERENCE)]
Fields = Annotated[Experiment, arg(name="")]
AsJson = Annotated[bool, arg(name="json", help="Print JSON.")]
_DIRS = "Prepared data sets, searched before $TFDS_DATA_DIR and ~/tensorflow_datasets."
DataDir = Annotated[str | None, arg(help=_DIRS)]
Processes = Annotated[Joining, arg(name="")]
Loggers = Annotated[tuple[str, ...], UseAppendAction]
# The arguments of the command, for records and for options that are set explicitly.
Words = Annotated[tuple[str, ...], Suppress]

# For help without an experiment.
_EXAMPLE = Experiment(
    name="resnet20", model=models.cifar_architecture(20), data=Data(name="cifar10")
)
# Fields of an experiment under --help; --help-all lists all. Joining belongs to launchers.
_FREQUENT = {
    "Experiment": {"model", "data", "schedule", "optimizer", "steps", "batch_size"},
    "Architecture": {"shortcut"},
    "Data": {"name"},
    "Schedule": {"learning_rate"},
    "Optimizer": {"weight_decay", "rule"},
    "Joining": set(),
}
# Aliases, and fields that a run sets itself, which are no options.
_MARKERS: dict[tuple[str, str], Any] = {
    ("Optimizer", "rule"): arg(aliases=["--optimizer"]),
    ("Schedule", "rule"): arg(aliases=["--schedule"]),
    ("Data", "digest"): Suppress,
    ("Data", "classes"): Suppress,
    ("Start", "digest"): Suppress,
    ("Distillation", "digest"): Suppress,
}


def bind(
    command: str, reference: str, words: Sequence[str]
) -> tuple[Callable[..., Callable[[], None]], ConstructorRegistry]:
    """Returns the function of a command, MODULE:FUNCTION, and the rules that read its options.

    Called with the options, it checks them and returns the call to make.
    The defaults of ``experiment`` and ``model`` are what the first argument refers to.
    """
    module, _, name = reference.partition(":")
    function = getattr(importlib.import_module(f"resnet_jax.cli.{module}"), name)
    # tyro keeps the line breaks of an argument's description.
    function.__doc__ = re.sub(r"\n {4,}", " ", inspect.getdoc(function) or "")
    parameters = inspect.signature(function).parameters
    defaults: dict[str, object] = {"experiment": _EXAMPLE, "model": _EXAMPLE.model}
    is_short = bool({"-h", "--help"} & {*words})
    if words and not words[0].startswith("-"):
        if "experiment" in parameters:
            defaults["experiment"] = experiment(words[0])
        if "model" in parameters:
            depth = re.search(r"--depth[= ](-?\d+)", " ".join(words))
            defaults["model"] = network(words[0], int(depth[1]) if depth else None)
    elif defaults.keys() & parameters.keys() and not is_short and "--help-all" not in words:
        raise UserError(f"the first argument is missing, see resnet-jax {command} --help")
    defaults["words"] = tuple(words)
    registry = ConstructorRegistry()
    registry.primitive_rule(_part_rule)
    registry.struct_rule(_Fields(is_short and "experiment" in parameters))
    bound = {name: value for name, value in defaults.items() if name in parameters}
    hints = typing.get_type_hints(function, include_extras=True)

    @functools.wraps(function)
    def checked(**values: object) -> Callable[[], None]:
        for name, value in values.items():
            check(f"--{name.strip('_').replace('_', '-')}", hints[name], value)
        return functools.partial(function, **values)

    return functools.partial(checked, **bound), registry


def check_suffix(option: str, path: Path, *allowed: str) -> None:
    if path.suffix not in allowed:
        raise UserError(f"{option} is {path}; give a name that ends in {' or '.join(allowed)}")


def recipes() -> dict[str, Path]:
    """Returns the files of recipes by name, of the installed package or of the checkout."""
    package = Path(__file__).parents[1]
    folders = package / "experiments", package.parent / "experiments"
    files = next(filter(Path.is_dir, folders), package).glob("*.py")
    return {file.stem: file for file in sorted(files)}


def resolve(reference: str) -> str:
    """Returns FILE.py:FUNCTION for the name of a recipe, ``he2015_cifar10:resnet20``."""
    place, _, name = reference.partition(":")
    files = recipes()
    if place in files:
        return f"{files[place]}:{name}"
    if place.isidentifier() and importlib.util.find_spec(place) is None:
        raise UserError(f"no recipe or module is called {place!r}{nearest(place, files)}")
    return reference


def experiment(reference: str) -> Experiment:
    """Returns the experiment of FILE.py:FUNCTION."""
    return _call(reference, Experiment)


def network(name: str, depth: int | None = None) -> Architecture:
    """Returns the network of FILE.py:FUNCTION, or of a name in the catalog."""
    if ":" not in name:
        return models.architecture(name, depth)
    returned = _call(name, Experiment, Architecture)
    return returned.model if isinstance(returned, Experiment) else returned


def _call(reference: str, *types: type[Any]) -> Any:
    function = components.load(resolve(reference))
    try:
        inspect.signature(function).bind()
    except (TypeError, ValueError) as error:
        raise UserError(f"{reference} cannot be called without arguments: {error}") from None
    if isinstance(returned := function(), types):
        return returned
    names = " or ".join(cls.__name__ for cls in types)
    hint = "'resnet-jax study' takes a function that returns several experiments"
    raise UserError(f"{reference} returned no {names}; {hint}")


class _InvalidField(CommandError):
    """A UserError that is no ValueError, which tyro would report under an internal name."""

    exit_code = UserError.exit_code


@dataclasses.dataclass
class _Fields:
    """Rule of tyro: short help has the fields of ``_FREQUENT``; UserErrors end the command.

    Fields that a run sets itself are no options.
    """

    is_short: bool
    is_active: bool = True

    def __call__(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        if not self.is_active or not dataclasses.is_dataclass(info.type):
            return None
        self.is_active = False  # For the rules of tyro.
        spec = ConstructorRegistry.get_struct_spec(info)
        self.is_active = True
        assert isinstance(spec, StructConstructorSpec)
        name = info.type.__name__
        fields = tuple(
            dataclasses.replace(field, type=Annotated[field.type, _MARKERS[name, field.name]])
            if (name, field.name) in _MARKERS
            else field
            for field in spec.fields
        )
        if self.is_short and (frequent := _FREQUENT.get(name)) is not None:
            fields = tuple(field for field in fields if field.name in frequent)

        def construct(**values: object) -> object:
            try:
                return spec.instantiate(**values)
            except UserError as error:
                raise _InvalidField(str(error)) from error

        return StructConstructorSpec(construct, fields)


def _part_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Factory | None] | None:
    """Reads a part by its short name (A, ZeroPad) or FILE.py:CLASS, as ``Scaled(shortcut=0.5)``."""
    arguments = typing.get_args(info.type)
    if Component not in arguments:
        return None
    others = catalog.parts_of(augment_host, augment_device)
    # `none` is also the name of a shortcut, which is not optional.
    optional = NoneType in arguments

    def read(words: list[str]) -> Factory | None:
        (text,) = words
        if optional and text == "none":
            return None
        return components.parse(text, functools.partial(components.find, others=others))

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="CLASS|CLASS(ARGUMENT=VALUE)" + "|none" * optional,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, type | Component | NoneType),
        str_from_instance=lambda value: [
            "none" if value is None else catalog.name_of(value, others)
        ],
    )
