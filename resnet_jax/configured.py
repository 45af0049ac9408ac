"""A class with some of its arguments already given, as a value: compared, hashed, written and read back."""

import ast
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from resnet_jax import references
from resnet_jax.errors import UserError, nearest

# Metadata of a field that runs were written without: at its default it is not said, so that they stay the runs that they were.
LATER = "later"


@dataclass(frozen=True)
class Configured:
    """What ``functools.partial`` is for a class, but equal to another with the same class and arguments. Made by ``configured``."""

    made: type[Any]
    arguments: tuple[tuple[str, Any], ...]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Makes an instance; what is given here wins."""
        return self.made(*args, **dict(self.arguments) | kwargs)

    def __str__(self) -> str:
        return text(self)


# How a part of a network is chosen: by its class, or by its class with arguments.
Factory = type[Any] | Configured


def configured(factory: Factory, **arguments: Any) -> Configured:
    """Returns ``factory`` with arguments given by keyword: ``configured(ShortcutOnlyGating, bias=-6.0)``.

    Raises:
      UserError: for a name that the constructor does not take, or a value that is no number, string, or tuple of those.
    """
    made, earlier = parts(factory)
    taken, anything = constructor_parameters(made)
    given = {}
    for name, value in arguments.items():
        if name not in taken and not anything:
            raise UserError(f"{made.__name__} takes no argument {name!r}{nearest(name, taken)}")
        if not _is_literal(value):
            raise UserError(
                f"{made.__name__}({name}={value!r}): an argument is a finite number, a string, True, False, None or a tuple of those"
            )
        # One number, one spelling: runs are told apart by what is written.
        given[name] = float(value) if type(value) is int and taken.get(name) in (float, "float") else value
    return Configured(made, tuple(sorted((earlier | given).items())))


def parts(factory: Factory) -> tuple[type[Any], dict[str, Any]]:
    """The class of a factory, and the arguments given."""
    return (factory.made, dict(factory.arguments)) if isinstance(factory, Configured) else (factory, {})


def text(factory: Factory, name: Callable[[type[Any]], str] = references.describe) -> str:
    """Writes a factory as ``NAME`` or ``NAME(argument=value, ...)``; ``parse`` reads it."""
    made, arguments = parts(factory)
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"{name(made)}({given})" if isinstance(factory, Configured) else name(made)


def parse(written: str, load: Callable[[str], Any] = references.load) -> Factory:
    """Reads ``NAME`` or ``NAME(argument=value, ...)``.

    Raises:
      UserError: for what is neither, and as ``load`` and ``configured`` do.
    """
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
        if len({keyword.arg for keyword in call.keywords}) < len(call.keywords):
            raise ValueError
        arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError):
        raise UserError(f"{written!r} cannot be read: write {name}(argument=value, ...), values being numbers, strings or tuples") from None
    return configured(factory, **arguments)


def constructor_parameters(made: type[Any]) -> tuple[dict[str, Any], bool]:
    """Names that a class's constructor takes, with their annotations, and whether it takes any (``**kwargs`` up to ``object``)."""
    return method_parameters(made, "__init__")


def method_parameters(made: type[Any], method: str) -> tuple[dict[str, Any], bool]:
    """Names that a method takes, with their annotations, and whether it takes any; one with ``**kwargs`` takes what its base class takes.

    Not ``inspect.signature(made)``: the metaclass of NNX modules hides the constructor behind ``(*args, **kwargs)``.
    """
    names: dict[str, Any] = {}
    open_ended = False
    for base in made.__mro__:
        if method not in vars(base) or base is object or base.__module__.startswith("flax."):
            continue
        parameters = inspect.signature(vars(base)[method]).parameters
        own = {n: p.annotation for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and n != "self"}
        names = own | names
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if not open_ended:
            break
    return names, open_ended


def _is_literal(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_literal, value))
    # Exactly these types: what NumPy's scalars write, `parse` could not read.
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
