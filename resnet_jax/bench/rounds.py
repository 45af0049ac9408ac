"""Contestants that take turns, so that all see the same noise."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def interleaved(contestants: Sequence[Callable[[], Any]], rounds: int, warm: int = 1, settling: int = 1) -> list[list[float]]:
    """Seconds of each contestant in each of ``rounds`` rounds, after ``warm`` that do not count. Each waits for what it started.

    Where several take turns, each turn begins with ``settling`` calls that do not count either: a training step follows one of its own
    kind, which has left its memory behind. After another's, the system takes longer to hand memory out again: a fifth of a second for
    ResNet-20 on 2 cores of a virtual machine.
    """
    seconds: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds + warm):
        for run, spent in zip(contestants, seconds, strict=True):
            for _ in range(settling if len(contestants) > 1 else 0):
                run()
            began = time.perf_counter()
            run()
            if number >= warm:
                spent.append(time.perf_counter() - began)
    return seconds


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"seconds": statistics.median(seconds), "seconds_least": min(seconds), "seconds_most": max(seconds), "rounds": len(seconds)}


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median over the rounds of one contestant's seconds over another's."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))
