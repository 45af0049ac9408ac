"""References to functions and classes, ``FILE.py:NAME`` or ``package.module:NAME``."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from resnet_jax.errors import UserError, nearest


def load(reference: str) -> Any:
    """Imports ``FILE.py:NAME`` or ``MODULE:NAME``. Raises UserError with the nearest name that exists."""
    place, colon, name = reference.rpartition(":")
    if not colon or not name:
        path = Path(reference)
        names = public_names(load_file(path)) if path.suffix == ".py" and path.is_file() else []
        raise UserError(f"{reference!r} names no function or class: write FILE.py:NAME" + (f"; it has {', '.join(names)}" if names else ""))
    module = load_file(Path(place)) if place.endswith(".py") else _module(place)
    if not hasattr(module, name):
        raise UserError(f"{place} has no {name!r}{nearest(name, public_names(module))}")
    return getattr(module, name)


def public_names(module: ModuleType) -> list[str]:
    """Returns the names of public functions and classes that a module defines."""
    return [n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", None) == module.__name__]


def describe(thing: Any) -> str:
    """Returns ``module:qualname``, or ``/PATH/FILE.py:qualname`` if loaded from a file."""
    return f"{_LOADED_FROM.get(thing.__module__, thing.__module__)}:{thing.__qualname__}"


_LOADED_FROM: dict[str, str] = {}


def load_file(path: Path) -> ModuleType:
    """Imports a Python file by its path, once."""
    resolved = path.expanduser().resolve()
    if not resolved.is_file():
        siblings = [str(path.parent / sibling.name) for sibling in resolved.parent.glob("*.py")]
        raise UserError(f"there is no file {path}{nearest(str(path), siblings) if siblings else ''}")
    # A module name that no installed package has.
    name = f"file {resolved.as_posix()}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, resolved)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        _LOADED_FROM[name] = resolved.as_posix()
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def _module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{name!r} is neither a module nor a file; write FILE.py:NAME or package.module:NAME")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that exists and lacks a dependency of its own
        raise UserError(f"there is no module {name!r}; for a file, write its path with .py") from error
