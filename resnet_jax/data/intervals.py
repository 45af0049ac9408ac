"""Range checks of augmentation parameters."""

import math

from resnet_jax.errors import UserError


def check_pair(name: str, value: tuple[float, float], high: float = math.inf) -> None:
    """Raises UserError unless ``value`` is a pair ``0 < a <= b <= high``."""
    if not isinstance(value, tuple) or len(value) != 2 or not 0 < value[0] <= value[1] <= high:
        bound = "" if high == math.inf else f" <= {high:g}"
        raise UserError(f"{name} must be a pair (a, b) with 0 < a <= b{bound}, got {value!r}.")


def check(config: object, *names: str, low: float = 0, high: float = math.inf) -> None:
    """Raises UserError unless these fields are in ``[low, high]``."""
    for name in names:
        if not low <= getattr(config, name) <= high:
            bound = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise UserError(f"{name} must be {bound}, got {getattr(config, name)!r}.")
