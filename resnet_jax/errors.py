"""Errors that end a command with one message, and range checks of configuration fields."""

import dataclasses
import difflib
import functools
import itertools
import math
import signal
import types
import typing
from collections.abc import Iterable, Mapping
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


class Interrupted(CommandError):
    """A run stopped by a signal, with its state saved."""

    def __init__(self, number: int, step: int):
        when = "before its first step was done"
        if step:
            when = f"after step {step}; the state is saved, the same command continues"
        super().__init__(f"stopped by {signal.Signals(number).name} {when}")
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
_hints = functools.cache(functools.partial(typing.get_type_hints, include_extras=True))
_NUMBERS = {int: (int,), float: (float, int)}


def check(name: str, annotation: Any, value: Any) -> None:
    """Raises UserError unless a value has its annotated type and range, and so have its fields."""
    limits, allowed = Range(), ""
    if typing.get_origin(annotation) is Annotated:
        annotation, limits = typing.get_args(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        for field, hint in _hints(annotation).items():
            check(f"{name}.{field}" if name else field, hint, getattr(value, field))
    elif origin in (types.UnionType, typing.Union):
        if value is not None:
            check(name, arguments[0], value)
    elif origin is tuple and isinstance(value, tuple):
        hints = itertools.repeat(arguments[0]) if arguments[-1] is ... else arguments
        for hint, item in zip(hints, value, strict=False):
            check(name, hint, item)
    elif origin is Literal and value not in arguments:
        allowed = f"one of {', '.join(map(repr, arguments))}"
    elif annotation in (bool, str, int, float):
        if type(value) not in _NUMBERS.get(annotation, (annotation,)):
            allowed = f"of type {annotation.__name__}"
        elif annotation in _NUMBERS:
            allowed = limits.allowed(value)
            if annotation is int and not allowed:
                # Steps and examples are counted in 31 bits.
                allowed = Range(limits.low, 2**31).allowed(value)
    require(not allowed, f"{name} must be {allowed}, got {value!r}.")


def at_least(config: object, minimum: float, *names: str, below: float = math.inf) -> None:
    """Raises UserError unless fields of a configuration dataclass are in ``[minimum, below)``."""
    part = type(config).__name__.lower()
    prefix = "" if part in ("options", "joining") else f"{part}."
    check_range({prefix + name: getattr(config, name) for name in names}, minimum, below)


def check_range(
    values: Mapping[str, float | None], minimum: float, below: float = math.inf
) -> None:
    """Raises UserError unless every value is None or in ``[minimum, below)``."""
    for name, value in values.items():
        if value is not None:
            allowed = Range(minimum, below).allowed(value)
            require(not allowed, f"{name} must be {allowed}, got {value}.")
