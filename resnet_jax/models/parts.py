"""Short names of the parts of a network, as the command line, the ledger and tables write them."""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, Literal

from resnet_jax.errors import UserError, nearest
from resnet_jax.models import blocks, catalog, components, norms, orders, shortcuts, stems
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.components import Component, Factory

# Bounds on an untrusted description: stages, sizes, and the text of a part.
_STAGES, _SIZE, _TEXT = 100, 2**31, 300
_NONE: Mapping[str, Factory] = MappingProxyType({})


def parts_of(*modules: ModuleType) -> dict[str, Factory]:
    """Returns the public classes that modules define, and the component classes in them, by name."""
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if (
            isinstance(value, Component)
            or (isinstance(value, type) and value.__module__ == module.__name__)
        )
        and not name.startswith("_")
    }


def known() -> dict[str, Factory]:
    """Returns every part of a network in the package by its short name."""
    return {**parts_of(blocks, norms, orders, shortcuts, stems), **shortcuts.OPTIONS}


def load_part(text: str, others: Mapping[str, Factory] = _NONE) -> Factory:
    """Reads ``NAME`` or ``NAME(argument=value)``, NAME a short name or FILE.py:CLASS."""
    return components.parse(
        text, lambda name: components.load(name) if ":" in name else _own(name, others)
    )


def name_of(value: Factory, others: Mapping[str, Factory] = _NONE) -> str:
    """Returns the short name or the reference of a part, with its arguments."""
    short = {**known(), **others}
    for name, part in short.items():
        if part == value:
            return name
    return components.text(
        value,
        lambda cls: cls.__name__ if short.get(cls.__name__) is cls else components.describe(cls),
    )


def variant(name: str, **fields: Any) -> Architecture:
    """Returns a network of the catalog with some fields changed: ``variant("cifar_resnet110", shortcut="B")``."""
    return dataclasses.replace(catalog.architecture(name), **_fields(fields, load_part))


def write(architecture: Architecture) -> dict[str, Any]:
    """Returns a network as plain JSON, parts by their short names."""
    fields = {
        field.name: getattr(architecture, field.name) for field in dataclasses.fields(architecture)
    }
    named = {
        name: name_of(value)
        for name, value in fields.items()
        if isinstance(value, Component | type)
    }
    return fields | named | {"stochastic_depth": dataclasses.asdict(architecture.stochastic_depth)}


def read(written: dict[str, Any]) -> Architecture:
    """Undoes ``write`` of an untrusted description; imports nothing.

    Raises:
      UserError: for a missing, unknown or invalid field, or a part that is not the package's.
    """
    try:
        architecture = Architecture(**_fields(written, _parse_own))
    except (TypeError, AttributeError) as error:
        raise UserError(f"this describes no network: {error!s:.200}") from error
    invalid = [
        name
        for name, hint in typing.get_type_hints(Architecture).items()
        if not _is_valid(getattr(architecture, name), hint)
    ]
    if invalid:
        raise UserError(f"this describes no network; invalid fields: {', '.join(invalid)}")
    return architecture


def _is_valid(value: Any, hint: Any) -> bool:
    """Returns whether a value is of the annotated type, within bounds."""
    arguments = typing.get_args(hint)
    if _is_part(hint):
        return isinstance(value, type | Component)
    if typing.get_origin(hint) is Literal:
        return value in arguments
    if typing.get_origin(hint) is tuple:
        fits = len(value) <= _STAGES if arguments[-1] is ... else len(value) == len(arguments)
        return isinstance(value, tuple) and fits and all(_is_valid(size, int) for size in value)
    if dataclasses.is_dataclass(hint):
        fields = typing.get_type_hints(hint).items()
        return isinstance(value, typing.cast(type, hint)) and all(
            _is_valid(getattr(value, name), inner) for name, inner in fields
        )
    return type(value) is int and 0 <= value < _SIZE if hint is int else type(value) in (int, float)


def _is_part(hint: Any) -> bool:
    return typing.get_origin(hint) is type or Component in typing.get_args(hint)


def _fields(fields: Mapping[str, Any], load: Callable[[str], Factory]) -> dict[str, Any]:
    hints, values = typing.get_type_hints(Architecture), {}
    for field, value in fields.items():
        if field not in hints:
            raise UserError(f"Architecture has no field {field!r}{nearest(field, hints)}")
        if _is_part(hints[field]) and isinstance(value, str):
            value = load(value)
        elif isinstance(value, list):
            value = tuple(value)
        elif isinstance(value, dict) and dataclasses.is_dataclass(hints[field]):
            value = typing.cast(type, hints[field])(**value)
        values[field] = value
    return values


def _parse_own(text: str) -> Factory:
    # Python's parser needs memory and time for long texts.
    if len(text) > _TEXT:
        raise UserError(
            f"{text[:60]}... is {len(text)} characters long; a part of the package needs at most {_TEXT}"
        )
    return components.parse(text, _own)


def _own(name: str, others: Mapping[str, Factory] = _NONE) -> Factory:
    if ":" in name:
        raise UserError(
            f"the network has a part that is not the package's, {name}: a file cannot bring code along, so give the network itself"
        )
    names = {**known(), **others}
    if name not in names:
        raise UserError(
            f"{name!r} is no known class{nearest(name, names)}; for your own write FILE.py:CLASS"
        )
    return names[name]
