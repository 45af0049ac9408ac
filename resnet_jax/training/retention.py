"""Which checkpoints of a run stay: the newest, the best, every K-th."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN, PreservationPolicy

ErrorOf = Callable[[int], float | None]


@dataclass(frozen=True, kw_only=True)
class Retention:
    """A step stays where any of these wants it."""

    newest: int
    """So many."""
    best: int = 0
    """So many of the lowest error; 0: none."""
    every: int = 0
    """Steps that are multiples of it; 0: none."""

    def policy(self, error_of: ErrorOf) -> AnyPreservationPolicy:
        """For Orbax. ``error_of`` gives the error of a step, None where it was not scored."""
        policies: list[PreservationPolicy] = [LatestN(self.newest)]
        if self.best:
            policies.append(_Best(self.best, error_of))
        if self.every:
            policies.append(EveryNSteps(self.every))
        return AnyPreservationPolicy(policies)


def best_first(errors: Mapping[int, float | None]) -> list[int]:
    """The scored steps by their errors, lowest first; of equal ones the newest. An error that is not finite is none."""
    finite = {step: error for step, error in errors.items() if error is not None and math.isfinite(error)}
    return sorted(finite, key=lambda step: (finite[step], -step))


@dataclass
class _Best(PreservationPolicy):
    """Orbax's own knows no step without a score, and takes NaN for the best."""

    count: int
    error_of: ErrorOf

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """One answer a checkpoint."""
        del context
        chosen = best_first({checkpoint.step: self.error_of(checkpoint.step) for checkpoint in checkpoints})[: self.count]
        return [checkpoint.step in chosen for checkpoint in checkpoints]
