"""Options of commands: experiments by reference and their fields, parts of networks."""

import dataclasses
import functools
import importlib
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any

from tyro.conf import Positional, Suppress, arg
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
from resnet_jax.errors import UserError, nearest
from resnet_jax.models import catalog, components
from resnet_jax.models.components import Component, Factory
from resnet_jax.training.config import Data, Experiment

_REFERENCE = "FILE.py:FUNCTION, or a recipe of 'resnet-jax list' such as he2015_cifar10:resnet20"
Reference = Annotated[Positional[str], arg(metavar="FILE.py:FUNCTION", help=f"{_REFERENCE}.")]
Fields = Annotated[Experiment, arg(name="")]
AsJson = Annotated[bool, arg(name="json", help="Print JSON.")]
_DIRS = "Prepared data sets, searched before $TFDS_DATA_DIR and ~/tensorflow_datasets."
DataDir = Annotated[str | None, arg(help=_DIRS)]
Processes = Annotated[Joining, arg(name="")]
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
    "Optimizer": {"weight_decay"},
    "Joining": set(),
}


def bind(reference: str, words: Sequence[str]) -> tuple[Callable[..., None], ConstructorRegistry]:
    """Imports a command, and fills the defaults of its options that depend on its arguments.

    Parameters called ``experiment`` and ``model`` get what the first argument refers to, an
    example for help alone; ``words`` gets the arguments.
    """
    module, _, name = reference.partition(":")
    function = getattr(importlib.import_module(module), name)
    # tyro keeps the line breaks of an argument's description.
    function.__doc__ = re.sub(r"\n {4,}", " ", inspect.getdoc(function) or "")
    parameters = inspect.signature(function).parameters
    first = words[0] if words and not words[0].startswith("-") else None
    registry, defaults = ConstructorRegistry(), {}
    registry.primitive_rule(_part_rule)
    if "words" in parameters:
        defaults["words"] = tuple(words)
    if "experiment" in parameters:
        if {"-h", "--help"} & {*words}:
            registry.struct_rule(_FrequentFields())
        elif first is None and "--help-all" not in words:
            raise UserError(f"{name}: first name the experiment, {_REFERENCE}")
        defaults["experiment"] = experiment(first) if first else _EXAMPLE
    if "model" in parameters:
        depth = re.search(r"--depth[= ](\d+)", " ".join(words))
        model = network(first, int(depth[1]) if depth else None) if first else _EXAMPLE.model
        defaults["model"] = model
    return functools.partial(function, **defaults), registry


def recipes() -> Path:
    """Returns the folder of recipes: in the installed package, or in the checkout."""
    package = Path(__file__).parents[1]
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parent / "experiments"


def resolve(reference: str) -> str:
    """Returns FILE.py:FUNCTION for the name of a recipe, ``he2015_cifar10:resnet20``."""
    place, _, name = reference.partition(":")
    file = recipes() / f"{place}.py"
    return f"{file}:{name}" if place.isidentifier() and file.is_file() else reference


def experiment(reference: str) -> Experiment:
    """Returns the experiment of FILE.py:FUNCTION."""
    return _call(reference, Experiment)


def network(name: str, depth: int | None = None) -> models.Architecture:
    """Returns the network of FILE.py:FUNCTION, or of a name in the catalog."""
    if ":" not in name:
        return models.architecture(name, depth)
    returned = _call(name, Experiment, models.Architecture)
    return returned.model if isinstance(returned, Experiment) else returned


def _call(reference: str, *types: type[Any]) -> Any:
    function = components.load(resolve(reference))
    returned = function() if callable(function) else None
    if not isinstance(returned, types):
        names = " or ".join(cls.__name__ for cls in types)
        hint = "'resnet-jax study' takes a function that returns several experiments"
        raise UserError(f"{reference} returned no {names}; {hint}")
    return returned


class _FrequentFields:
    """Rule of tyro that leaves the fields of ``_FREQUENT``."""

    is_active = True

    def __call__(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        fields = _FREQUENT.get(getattr(info.type, "__name__", ""))
        if fields is None or not self.is_active:
            return None
        self.is_active = False  # For the rules of tyro.
        spec: Any = ConstructorRegistry.get_struct_spec(info)
        self.is_active = True
        kept = tuple(field for field in spec.fields if field.name in fields)
        return dataclasses.replace(spec, fields=kept)


def _part_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Reads a part by its short name (A, ZeroPad) or FILE.py:CLASS, as ``Scaled(shortcut=0.5)``."""
    arguments = typing.get_args(info.type)
    base = arguments[0] if typing.get_origin(info.type) is type else None
    if Component not in arguments and base is None:
        return None
    others = catalog.parts_of(augment_host, augment_device)
    # `none` is also the name of a shortcut, which is not optional.
    optional = NoneType in arguments

    def read(words: list[str]) -> Factory | None:
        (text,) = words
        if optional and text == "none":
            return None
        part = catalog.load_part(text, others)
        if base is None or (isinstance(part, type) and issubclass(part, base)):
            return part
        known = catalog.known().items()
        fitting = [n for n, cls in known if isinstance(cls, type) and issubclass(cls, base)]
        raise UserError(f"{text} is no {base.__name__}{nearest(text, fitting)}")

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="CLASS|CLASS(ARGUMENT=VALUE)" + "|none" * optional,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, type | Component | NoneType),
        str_from_instance=lambda value: [
            "none" if value is None else catalog.name_of(value, others)
        ],
    )
