"""Components of a network: classes with some literal arguments, equal by value, with one text form.

The text is ``NAME`` or ``NAME(argument=value, ...)``, NAME short, FILE.py:CLASS or module:CLASS.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from resnet_jax.errors import UserError, nearest


def describe(thing: Any) -> str:
    """Returns ``module:qualname``, or ``/PATH/FILE.py:qualname`` if loaded from a file."""
    return f"{thing.__module__.removeprefix(_FILE)}:{thing.__qualname__}"


def load(reference: str) -> Any:
    """Imports ``FILE.py:NAME`` or ``MODULE:NAME``."""
    place, colon, name = reference.rpartition(":")
    path = Path(place if colon else name)
    if not colon or not name:
        names = public_names(load_file(path)) if path.suffix == ".py" and path.is_file() else []
        listed = f"; it has {', '.join(names)}" if names else ""
        raise UserError(f"{reference!r} names no function or class: write FILE.py:NAME{listed}")
    module = load_file(path) if path.suffix == ".py" else load_module(place)
    if not hasattr(module, name):
        raise UserError(f"{place} has no {name!r}{nearest(name, public_names(module))}")
    return getattr(module, name)


def public_names(module: ModuleType) -> list[str]:
    """Returns the names of public functions and classes that a module defines."""
    own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__]
    return [name for name in own if not name.startswith("_")]


# Prefix of the names of modules loaded from files: no installed package has it.
_FILE = "file "


def load_file(path: Path) -> ModuleType:
    """Imports a Python file by its path, once."""
    resolved = path.expanduser().resolve()
    if not resolved.is_file():
        siblings = [str(path.parent / sibling.name) for sibling in resolved.parent.glob("*.py")]
        hint = nearest(str(path), siblings) if siblings else ""
        raise UserError(f"there is no file {path}{hint}")
    name = _FILE + resolved.as_posix()
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, resolved)
        assert spec
        assert spec.loader
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def load_module(name: str) -> ModuleType:
    """Imports a module by its name."""
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{name!r} is neither a module nor a file; write FILE.py or package.module")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that exists and lacks a dependency of its own
        raise UserError(f"there is no module {name!r}; files are written with .py") from error


@dataclass(frozen=True)
class Component:
    """A class with some of its arguments, see ``component``."""

    cls: type[Any]
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.cls(*args, **dict(self.arguments) | kwargs)

    def __str__(self) -> str:
        return text(self)


Factory = type[Any] | Component


def component(factory: Factory, **arguments: Any) -> Component:
    """Returns ``factory`` with literal arguments: ``component(ShortcutOnlyGating, bias=-6.0)``."""
    cls, earlier = parts(factory)
    parameters, open_ended = constructor_parameters(cls)
    for name, value in arguments.items():
        if name not in parameters and not open_ended:
            raise UserError(f"{cls.__name__} takes no argument {name!r}{nearest(name, parameters)}")
        if not _is_literal(value):
            allowed = "a finite number, a string, True, False, None or a tuple of those"
            raise UserError(f"{cls.__name__}({name}={value!r}): {name} must be {allowed}")
        # Runs are compared as text, so 1 for a float is written as 1.0.
        if type(value) is int and parameters.get(name) in (float, "float"):
            arguments[name] = float(value)
    return Component(cls, tuple(sorted((earlier | arguments).items())))


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_literal, value))
    # Exactly these types: `parse` cannot read the repr of NumPy's scalars.
    is_finite = type(value) is float and math.isfinite(value)
    return value is None or type(value) in (bool, int, str) or is_finite


def parts(factory: Factory) -> tuple[type[Any], dict[str, Any]]:
    """Returns the class of a factory, and its arguments."""
    if isinstance(factory, Component):
        return factory.cls, dict(factory.arguments)
    return factory, {}


def make(factory: Factory, *args: Any, **offered: Any) -> Any:
    """Constructs a component from ``args`` and those of ``offered`` that it declares."""
    cls, arguments = parts(factory)
    return cls(*args, **_declared(cls, "__init__", offered) | arguments)


def call(module: Any, *args: Any, **offered: Any) -> Any:
    """Calls a module with ``args`` and those of ``offered`` that its call declares."""
    return module(*args, **_declared(type(module), "__call__", offered))


def takes(module: Any, name: str) -> bool:
    """Returns whether a module's call declares an argument of this name."""
    return name in _parameters(type(module), "__call__")[0]


def constructor_parameters(cls: type[Any]) -> tuple[dict[str, Any], bool]:
    """Returns the constructor's parameters and annotations, and whether it takes any name."""
    return _parameters(cls, "__init__")


def _declared(cls: type[Any], method: str, offered: dict[str, Any]) -> dict[str, Any]:
    parameters, open_ended = _parameters(cls, method)
    return {name: value for name, value in offered.items() if open_ended or name in parameters}


@functools.cache
def _parameters(cls: type[Any], method: str) -> tuple[dict[str, Any], bool]:
    # The metaclass of NNX modules hides the constructor from inspect.signature(cls); **kwargs pass
    # arguments on to a base class.
    names, open_ended = {}, False
    for base in cls.__mro__:
        if method not in vars(base) or base is object or base.__module__.startswith("flax."):
            continue
        parameters = list(inspect.signature(vars(base)[method]).parameters.values())[1:]
        keywords = (p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
        names = {p.name: p.annotation for p in keywords} | names
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not open_ended:
            break
    return names, open_ended


def text(factory: Factory, name: Callable[[type[Any]], str] = describe) -> str:
    """Writes a component, its class as ``name`` does; ``parse`` reads it."""
    cls, arguments = parts(factory)
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return name(cls) + (f"({written})" if isinstance(factory, Component) else "")


def parse(written: str, find: Callable[[str], Any] = load) -> Factory:
    """Reads a component; ``find`` returns that of a name."""
    name, bracket, rest = written.partition("(")
    factory = find(name.strip())
    if not isinstance(factory, type | Component):
        raise UserError(f"{name} is not a class")
    if not bracket:
        return factory
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        arguments = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        if len(arguments) < len(call.keywords) or "None" in arguments:
            raise ValueError
    except (ValueError, SyntaxError):
        message = f"{written!r} cannot be read: write {name}(argument=value, ...)"
        raise UserError(f"{message}, values being numbers, strings or tuples") from None
    return component(factory, **arguments)
