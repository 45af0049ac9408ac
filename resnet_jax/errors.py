"""Errors that end a command with one message, and range checks of configuration fields."""

import dataclasses
import difflib
import functools
import inspect
import math
import os
import signal
import sys
import traceback
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal


class CommandError(Exception):
    """Ends a command with its message; launch/README.md lists the exit codes."""

    exit_code = 1


class UserError(CommandError, ValueError):
    """Invalid input."""

    exit_code = 2


class NeverMet(CommandError):
    """The other processes of a run did not connect in time."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the same command, in all processes, continues.


CALLBACK = 1
"""The number of a callback's request to stop, in place of a signal's; below those."""


class Interrupted(CommandError):
    """A run stopped by a signal or a callback, with its state saved."""

    def __init__(self, number: int, step: int):
        when = "before its first step was done"
        if step:
            when = f"after step {step}; the state is saved, the same command continues"
        source = "a callback" if number == CALLBACK else signal.Signals(number).name
        super().__init__(f"stopped by {source} {when}")
        self.exit_code = 128 + number


class NonFiniteLoss(CommandError):
    """Training diverged at ``step``; ``checkpoint`` is the newest saved step."""

    def __init__(self, step: int, checkpoint: int | None, what: str = "the loss"):
        saved = "no checkpoint was written before"
        if checkpoint is not None:
            saved = f"the last good checkpoint is that of step {checkpoint}"
        super().__init__(
            f"{what} of step {step} is non-finite: {saved}. Lower schedule.learning_rate, "
            "or warm up (schedule.warmup_steps), in another --workdir"
        )
        self.step = step


def require(holds: bool, message: str) -> None:
    """Raises UserError unless a condition holds."""
    if not holds:
        raise UserError(message)


def printable(text: str) -> str:
    """Returns a name from a file in at most 80 printable characters."""
    text = text if len(text) <= 80 else text[:77] + "..."
    return text if text.isprintable() else ascii(text)


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """Returns ``'; did you mean X?'``, or up to 50 valid names if none is similar."""
    names = sorted(set(valid))
    completions = [name for name in names if wrong and name.startswith(wrong)]
    close = completions[:3] or difflib.get_close_matches(wrong, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    more = f" and {len(names) - 50} more" if len(names) > 50 else ""
    return f"; there is {', '.join(names[:50])}{more}" if names else "; none is available"


def users_line(error: BaseException) -> str:
    """Returns ``'FILE, line N: '``, the innermost outside of this and of installed packages."""
    installed = (os.path.dirname(__file__), sys.prefix, sys.base_prefix, "<")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(installed):
            return f"{frame.filename}, line {frame.lineno}: "
    return ""


@dataclasses.dataclass(frozen=True)
class Range:
    """Interval of a number, as the annotation of a field. Default: finite and at least 0."""

    low: float = 0
    high: float = math.inf
    ends: str = "[)"
    """Square brackets include the end."""

    def allowed(self, value: float) -> str:
        """Describes the interval if it lacks the value; otherwise empty."""
        low, high, (left, right) = self.low, self.high, self.ends
        above = value >= low if left == "[" else value > low
        if above and (value <= high if right == "]" else value < high):
            return ""
        if high < math.inf:
            return f"in {left}{low}, {high}{right}"
        number = "" if isinstance(value, int) else "a finite number of "
        return f"{number}at least {low}" if left == "[" else "a positive finite number"


Positive = Annotated[int, Range(1)]
Fraction = Annotated[float, Range(high=1)]
Seed = Annotated[int, Range(high=2**32)]
"""JAX ignores higher bits."""
_hints = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))
_UNIONS = typing.Union, types.UnionType


def check(name: str, annotation: Any, value: Any) -> None:
    """Raises UserError unless a value has its annotated type and range, and so have its fields."""
    limits, allowed = Range(), ""
    if typing.get_origin(annotation) is Annotated:
        annotation, *others = typing.get_args(annotation)
        limits = next((one for one in others if isinstance(one, Range)), limits)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if not fits(value, annotation):
        allowed = f"of type {inspect.formatannotation(annotation)}"
        if origin is Literal:
            allowed = f"one of {', '.join(map(repr, arguments))}"
    elif origin in _UNIONS:
        check(name, next(one for one in arguments if fits(value, one)), value)
    elif dataclasses.is_dataclass(annotation):
        for field, hint in _hints(annotation).items():
            check(f"{name}.{field}" if name else field, hint, getattr(value, field))
    elif origin is tuple:
        for hint, item in zip(_items(arguments, value), value, strict=True):
            check(name, hint, item)
    elif annotation in (int, float):
        allowed = limits.allowed(value)
        if annotation is int and limits.high == math.inf and not allowed:
            # Steps and examples are counted in 31 bits.
            allowed = Range(limits.low, 2**31).allowed(value)
    require(not allowed, f"{name} must be {allowed}, got {value!r:.80}.")


def fits(value: object, annotation: Any) -> bool:
    """Returns whether a value is of an annotated type, if that can be decided."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return fits(value, arguments[0])
    if origin is Literal:
        return value in arguments
    if origin in _UNIONS:
        return any(fits(value, argument) for argument in arguments)
    if origin is type:
        return isinstance(value, type) and issubclass(value, arguments[0])
    if origin is tuple:
        hints = _items(arguments, value) if isinstance(value, tuple) else ()
        return (
            isinstance(value, tuple) and len(value) == len(hints) and all(map(fits, value, hints))
        )
    if annotation in (int, float):
        return type(value) in (int, annotation)
    try:
        return isinstance(value, origin or annotation)
    except TypeError:  # Any, a string, a protocol
        return True


def _items(arguments: tuple[object, ...], value: tuple[object, ...]) -> tuple[object, ...]:
    return arguments[:1] * len(value) if arguments[-1] is ... else arguments
