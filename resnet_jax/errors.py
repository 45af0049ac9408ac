"""Errors that end a command with one message, and range checks of configuration fields."""

import difflib
import math
import signal
from collections.abc import Iterable, Mapping


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


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """Returns ``'; did you mean X?'``, or the valid names if none is similar."""
    names = sorted(set(valid))
    completions = [name for name in names if wrong and name.startswith(wrong)]
    close = completions[:3] or difflib.get_close_matches(wrong, names, n=3, cutoff=0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there is {', '.join(names)}" if names else "; none is available"


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
        if value is not None and not minimum <= value < below:
            allowed = f"in [{minimum}, {below})"
            if below == math.inf:
                allowed = f"at least {minimum}" + ", and finite" * (value > minimum)
            raise UserError(f"{name} must be {allowed}, got {value}.")
