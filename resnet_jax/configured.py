"""Classes with arguments, as values that can be compared, hashed, written and read."""

import ast
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from resnet_jax import references
from resnet_jax.errors import UserError, nearest


@dataclass(frozen=True)
class Configured:
    """A comparable ``functools.partial`` of a class, see ``configured``."""

    made: type[Any]
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.made(*args, **dict(self.arguments) | kwargs)

    def __str__(self) -> str:
        return text(self)


Factory = type[Any] | Configured


def configured(factory: Factory, **arguments: Any) -> Configured:
    """Returns ``factory`` with literal arguments: ``configured(ShortcutOnlyGating, bias=-6.0)``."""
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
        literals[name] = float(value) if type(value) is int and parameters.get(name) in (float, "float") else value
    return Configured(cls, tuple(sorted((earlier | literals).items())))


def parts(factory: Factory) -> tuple[type[Any], dict[str, Any]]:
    """Returns the class of a factory, and its arguments."""
    return (factory.made, dict(factory.arguments)) if isinstance(factory, Configured) else (factory, {})


def text(factory: Factory, name: Callable[[type[Any]], str] = references.describe) -> str:
    """Writes a factory as ``NAME`` or ``NAME(argument=value, ...)``; ``parse`` reads it."""
    cls, arguments = parts(factory)
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return name(cls) + (f"({written})" if isinstance(factory, Configured) else "")


def parse(written: str, load: Callable[[str], Any] = references.load) -> Factory:
    """Reads ``NAME`` or ``NAME(argument=value, ...)``."""
    name, bracket, rest = written.partition("(")
    factory = load(name.strip())
    if not isinstance(factory, type | Configured):
        raise UserError(f"{name} is not a class")
    if not bracket:
        return factory
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        if len(arguments) < len(call.keywords):
            raise ValueError
    except (ValueError, SyntaxError):
        raise UserError(f"{written!r} cannot be read: write {name}(argument=value, ...), values being numbers, strings or tuples") from None
    return configured(factory, **arguments)


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
        named = (p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self")
        names = {p.name: p.annotation for p in named} | names
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        if not open_ended:
            break
    return names, open_ended


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_literal, value))
    # Exactly these types: `parse` cannot read the repr of NumPy's scalars.
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
