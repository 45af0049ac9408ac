"""What a training step costs under several executions: measured in turn, so that all see the same noise."""

from collections.abc import Sequence
from typing import Any

from resnet_jax import models
from resnet_jax.bench import rounds as turns
from resnet_jax.bench.workload import Workload
from resnet_jax.models import Architecture, Execution


def measure(architecture: Architecture, executions: Sequence[Execution], *, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Runs one step of each in turn, ``rounds`` times after one that does not count.

    Returns, for each execution, seconds of a step (median, least and most), images a second, and the median over the rounds of the
    first execution's seconds over its own (``speedup``).
    """
    steps = [Workload(architecture, batch_size, execution).stepping() for execution in executions]
    measured = turns.interleaved(steps, rounds)
    return [
        {
            "blocks": execution.blocks,
            "convolution": execution.convolution,
            "remat": execution.remat,
            "batch_size": batch_size,
            **(found := turns.spread(seconds)),
            "images_per_second": batch_size / found["seconds"],
            "speedup": turns.ratio(measured[0], seconds),
        }
        for execution, seconds in zip(executions, measured, strict=True)
    ]


def compare(
    name: str, depths: Sequence[int | None], executions: Sequence[Execution], *, batch_size: int, rounds: int
) -> list[dict[str, Any]]:
    """``measure`` for networks of the catalog, one after another."""
    networks = [(depth, models.architecture(name, depth)) for depth in depths]  # all are looked up before the first is measured
    rows = []
    for depth, network in networks:
        rows += [{"network": name, "depth": depth} | row for row in measure(network, executions, batch_size=batch_size, rounds=rounds)]
    return rows
