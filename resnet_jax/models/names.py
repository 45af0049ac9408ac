"""Short names of the parts of a network: how the command line, the ledger and the tables of results write them."""

import dataclasses
import typing
from typing import Any

from resnet_jax import configured, references
from resnet_jax.configured import Configured, Factory
from resnet_jax.errors import UserError, nearest
from resnet_jax.models import branches, catalog, norms, orders, shortcuts, stems, transitions
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.orders import Order


def known() -> dict[str, Factory]:
    """Short name to part, of every part that comes with the package."""
    found: dict[str, Factory] = {
        name: value
        for module in (branches, norms, orders, shortcuts, stems, transitions)
        for name, value in vars(module).items()
        if (isinstance(value, Configured) or (isinstance(value, type) and value.__module__ == module.__name__)) and not name.startswith("_")
    }
    return {**found, **shortcuts.OPTIONS}


def load_part(text: str) -> Factory:
    """Reads ``NAME`` or ``NAME(argument=value)``, NAME a short name or FILE.py:CLASS.

    Raises:
      UserError: for an unknown name or argument.
    """
    return configured.parse(text, _load)


def name_of(value: Factory) -> str:
    """The short name of a part of ours, the reference of any other; with its arguments."""
    short = known()
    for name, part in short.items():
        if part == value:
            return name
    return configured.text(value, lambda made: made.__name__ if short.get(made.__name__) is made else references.describe(made))


def variant(name: str, **fields: Any) -> Architecture:
    """A network of the catalog with some fields changed, parts given by their short names: ``variant("cifar_resnet110", shortcut="B")``.

    Raises:
      UserError: for an unknown name, field or part.
    """
    base = catalog.architecture(name)
    hints = typing.get_type_hints(Architecture)
    given = {}
    for field, value in fields.items():
        if field not in hints:
            raise UserError(f"Architecture has no field {field!r}{nearest(field, hints)}")
        is_part = hints[field] == type[Order] or Configured in typing.get_args(hints[field])
        value = tuple(value) if isinstance(value, list) else value
        given[field] = load_part(value) if is_part and isinstance(value, str) else value
    return dataclasses.replace(base, **given)


def _load(name: str) -> Any:
    if ":" in name:
        return references.load(name)
    names = known()
    if name not in names:
        raise UserError(f"{name!r} is no known class{nearest(name, names)}; for your own write FILE.py:CLASS")
    return names[name]
