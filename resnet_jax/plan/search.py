"""The largest batch that fits: memory is about affine in it, so two programs give a line, and a third holds it to account."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Largest:
    """What was found; every batch is of one device."""

    batch: int
    """The largest that was compiled and fits; 0: none does."""
    compiled: dict[int, int | None]
    """Batch to bytes on a device, of all that were looked at; None: the compiler refused it."""
    predicted: int
    """The largest that the line lets fit; 0: there was none."""


def largest(needs: Callable[[int], int | None], usable: int, unit: int, first: tuple[int, int | None], programs: int = 4) -> Largest:
    """Finds the largest multiple of ``unit`` images a device whose step fits into ``usable`` bytes, as far as the line tells.

    Args:
      needs: batch to the bytes that its step takes on a device; None where the compiler refuses it. Compiles it: minutes.
      usable: bytes.
      unit: images, a BatchNorm group where there are such.
      first: a batch that was compiled already, and its bytes.
      programs: how many more to compile at most.
    """
    known = dict([first])
    predicted = 0
    while len(known) <= programs:
        fitting, refused = _fitting(known, usable), min((batch for batch, bytes_ in known.items() if _exceeds(bytes_, usable)), default=0)
        line = {batch: bytes_ for batch, bytes_ in known.items() if bytes_ is not None}
        if len(line) > 1:
            wanted = predicted = _meeting(line, usable)
        else:
            # Twice as many images, or between what fits and what does not.
            wanted = (fitting + refused) // 2 if refused else 2 * fitting
        if refused:
            wanted = min(wanted, refused - unit)
        wanted = wanted // unit * unit
        # A line that was held to account once is not worth another program for a fiftieth.
        if wanted < unit or wanted in known or (predicted and wanted < fitting * 1.02):
            break
        known[wanted] = needs(wanted)
    return Largest(_fitting(known, usable), known, predicted)


def _fitting(known: dict[int, int | None], usable: int) -> int:
    return max((batch for batch, bytes_ in known.items() if not _exceeds(bytes_, usable)), default=0)


def _exceeds(bytes_: int | None, usable: int) -> bool:
    return bytes_ is None or bytes_ > usable


def _meeting(line: dict[int, int], usable: int) -> int:
    """Where the line through the two points that lie nearest to what is usable reaches it."""
    (lower, below), (upper, above) = sorted(sorted(line.items(), key=lambda point: abs(point[1] - usable))[:2])
    slope = (above - below) / (upper - lower)
    return int(lower + (usable - below) / slope) if slope > 0 else lower
