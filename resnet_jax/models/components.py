"""References to functions and classes, ``FILE.py:NAME`` or ``package.module:NAME``."""

import ast
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

from flax import nnx

from resnet_jax.errors import UserError, nearest


def load(reference: str) -> Any:
    """Imports ``FILE.py:NAME`` or ``MODULE:NAME``. Raises UserError with the nearest name that exists."""
    place, colon, name = reference.rpartition(":")
    if not colon or not name:
        path = Path(reference)
        names = public_names(load_file(path)) if path.suffix == ".py" and path.is_file() else []
        raise UserError(
            f"{reference!r} names no function or class: write FILE.py:NAME"
            + (f"; it has {', '.join(names)}" if names else "")
        )
    module = load_file(Path(place)) if place.endswith(".py") else load_module(place)
    if not hasattr(module, name):
        raise UserError(f"{place} has no {name!r}{nearest(name, public_names(module))}")
    return getattr(module, name)


def public_names(module: ModuleType) -> list[str]:
    """Returns the names of public functions and classes that a module defines."""
    return [
        n
        for n, v in vars(module).items()
        if not n.startswith("_") and getattr(v, "__module__", None) == module.__name__
    ]


def describe(thing: Any) -> str:
    """Returns ``module:qualname``, or ``/PATH/FILE.py:qualname`` if loaded from a file."""
    return f"{_LOADED_FROM.get(thing.__module__, thing.__module__)}:{thing.__qualname__}"


_LOADED_FROM: dict[str, str] = {}


def load_file(path: Path) -> ModuleType:
    """Imports a Python file by its path, once."""
    resolved = path.expanduser().resolve()
    if not resolved.is_file():
        siblings = [str(path.parent / sibling.name) for sibling in resolved.parent.glob("*.py")]
        raise UserError(
            f"there is no file {path}{nearest(str(path), siblings) if siblings else ''}"
        )
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


def load_module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(
            f"{name!r} is neither a module nor a file; write FILE.py:NAME or package.module:NAME"
        )
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # a module that exists and lacks a dependency of its own
        raise UserError(
            f"there is no module {name!r}; for a file, write its path with .py"
        ) from error


@dataclass(frozen=True)
class Component:
    """A comparable ``functools.partial`` of a class, see ``component``."""

    made: type[Any]
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.made(*args, **dict(self.arguments) | kwargs)

    def __str__(self) -> str:
        return text(self)


Factory = type[Any] | Component


def component(factory: Factory, **arguments: Any) -> Component:
    """Returns ``factory`` with literal arguments: ``component(ShortcutOnlyGating, bias=-6.0)``."""
    cls, earlier = parts(factory)
    parameters, open_ended = constructor_parameters(cls)
    literals = {}
    for name, value in arguments.items():
        if name not in parameters and not open_ended:
            raise UserError(f"{cls.__name__} takes no argument {name!r}{nearest(name, parameters)}")
        if not _is_literal(value):
            raise UserError(
                f"{cls.__name__}({name}={value!r}): {name} must be a finite number, a string, True, False, None or a tuple of those"
            )
        # Runs are compared as text, so 1 for a float is written as 1.0.
        literals[name] = (
            float(value)
            if type(value) is int and parameters.get(name) in (float, "float")
            else value
        )
    return Component(cls, tuple(sorted((earlier | literals).items())))


def parts(factory: Factory) -> tuple[type[Any], dict[str, Any]]:
    """Returns the class of a factory, and its arguments."""
    return (
        (factory.made, dict(factory.arguments)) if isinstance(factory, Component) else (factory, {})
    )


def text(factory: Factory, name: Callable[[type[Any]], str] = describe) -> str:
    """Writes a factory as ``NAME`` or ``NAME(argument=value, ...)``; ``parse`` reads it."""
    cls, arguments = parts(factory)
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return name(cls) + (f"({written})" if isinstance(factory, Component) else "")


def parse(written: str, find: Callable[[str], Any] = load) -> Factory:
    """Reads ``NAME`` or ``NAME(argument=value, ...)``."""
    name, bracket, rest = written.partition("(")
    factory = find(name.strip())
    if not isinstance(factory, type | Component):
        raise UserError(f"{name} is not a class")
    if not bracket:
        return factory
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if (
            not isinstance(call, ast.Call)
            or call.args
            or any(keyword.arg is None for keyword in call.keywords)
        ):
            raise ValueError
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        if len(arguments) < len(call.keywords):
            raise ValueError
    except (ValueError, SyntaxError):
        raise UserError(
            f"{written!r} cannot be read: write {name}(argument=value, ...), values being numbers, strings or tuples"
        ) from None
    return component(factory, **arguments)


def constructor_parameters(cls: type[Any]) -> tuple[dict[str, Any], bool]:
    return method_parameters(cls, "__init__")


def method_parameters(cls: type[Any], method: str) -> tuple[dict[str, Any], bool]:
    """Returns the names that a method and, through ``**kwargs``, its bases take, with annotations; and whether it takes any name."""
    # The metaclass of NNX modules hides the constructor from inspect.signature(cls).
    names: dict[str, Any] = {}
    open_ended = False
    for base in cls.__mro__:
        if method not in vars(base) or base is object or base.__module__.startswith("flax."):
            continue
        parameters = inspect.signature(vars(base)[method]).parameters.values()
        named = (
            p
            for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"
        )
        names = {p.name: p.annotation for p in named} | names
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not open_ended:
            break
    return names, open_ended


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_literal, value))
    # Exactly these types: `parse` cannot read the repr of NumPy's scalars.
    return (
        value is None
        or type(value) in (bool, int, str)
        or (type(value) is float and math.isfinite(value))
    )


def make(factory: Factory, *args: Any, **offered: Any) -> Any:
    """Constructs a part from ``args`` and those of ``offered`` that its constructor names; with ``**kwargs`` it receives all."""
    return bound(factory, **offered)(*args)


def bound(factory: Factory, **offered: Any) -> Component:
    """Returns a factory with those of ``offered`` that its constructor names and that it lacks. Equal arguments make equal factories."""
    cls, arguments = parts(factory)
    return Component(cls, tuple(sorted((_named(cls, "__init__", offered) | arguments).items())))


def call(module: nnx.Module, *args: Any, **offered: Any) -> Any:
    """Calls a part with ``args`` and those of ``offered`` that its call names."""
    return module(*args, **_named(type(module), "__call__", offered))  # pyright: ignore[reportCallIssue]


def names(factory: Factory, argument: str) -> bool:
    """Returns whether the constructor takes an argument of this name."""
    return bool(_named(parts(factory)[0], "__init__", {argument: None}))


def _named(cls: type[Any], method: str, offered: dict[str, Any]) -> dict[str, Any]:
    parameters, open_ended = method_parameters(cls, method)
    return (
        offered
        if open_ended
        else {name: value for name, value in offered.items() if name in parameters}
    )
