"""Numbers that say between which bounds a part draws, and their own bounds."""

import math
from typing import Any

from resnet_jax.errors import UserError


def check(what: str, value: Any, *, most: float = math.inf, whole: bool = False) -> None:
    """Lets pairs of numbers ``0 < low <= high <= most`` pass.

    Args:
      what: name of the argument, for the message.
      value: what was given.
      most: bound on ``high``.
      whole: whether they have to be integers.

    Raises:
      UserError: for anything else.
    """
    if isinstance(value, tuple) and len(value) == 2 and all(_is_number(end, whole) for end in value) and 0 < value[0] <= value[1] <= most:
        return
    bound = "" if most == math.inf else f" <= {most:g}"
    raise UserError(f"{what} is {value!r}; it is a pair of {_numbers(whole)} (low, high) with 0 < low <= high{bound}")


def check_at_least(what: str, value: Any, least: float, most: float = math.inf, *, whole: bool = False) -> None:
    """Lets numbers ``least <= value <= most`` pass.

    Raises:
      UserError: for anything else.
    """
    if not (_is_number(value, whole) and least <= value <= most):
        bound = f"from {least:g} on" if most == math.inf else f"from {least:g} to {most:g}"
        raise UserError(f"{what} is {value!r}; it is one of the {_numbers(whole)} {bound}")


def _is_number(value: Any, whole: bool) -> bool:
    return type(value) is int or (not whole and type(value) is float)


def _numbers(whole: bool) -> str:
    return "integers" if whole else "numbers"
