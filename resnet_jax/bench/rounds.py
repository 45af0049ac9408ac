"""Contestants that take turns, so that all see the same noise."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def interleaved(contestants: Sequence[Callable[[], Any]], rounds: int, warm: int = 2) -> list[list[float]]:
    """Seconds of each contestant in each of ``rounds`` rounds, after ``warm`` that do not count. Each waits for what it started."""
    seconds: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds + warm):
        for run, spent in zip(contestants, seconds, strict=True):
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
