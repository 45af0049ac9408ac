"""What a training step costs under several executions: measured in turn, so that all see the same noise."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax

from resnet_jax import models
from resnet_jax.bench.workload import Workload
from resnet_jax.models import Architecture, Execution


def measure(architecture: Architecture, executions: Sequence[Execution], *, batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Runs one step of each in turn, ``rounds`` times after two that do not count.

    Returns, for each execution, seconds of a step (median, least and most), images a second, and the median over the rounds of the
    first execution's seconds over its own (``speedup``).
    """
    running = []
    for execution in executions:
        work = Workload(architecture, batch_size, execution)
        running.append([work, work.state(), work.batch(), []])
    for number in range(rounds + 2):
        for entry in running:
            work, state, batch, seconds = entry
            began = time.perf_counter()
            entry[1], metrics = work.step(state, batch)
            jax.block_until_ready(metrics)
            if number >= 2:
                seconds.append(time.perf_counter() - began)
    first = running[0][3]
    return [
        {
            "blocks": execution.blocks,
            "convolution": execution.convolution,
            "remat": execution.remat,
            "batch_size": batch_size,
            "rounds": rounds,
            "seconds": statistics.median(seconds),
            "seconds_least": min(seconds),
            "seconds_most": max(seconds),
            "images_per_second": batch_size / statistics.median(seconds),
            "speedup": statistics.median(a / b for a, b in zip(first, seconds, strict=True)),
        }
        for execution, (_, _, _, seconds) in zip(executions, running, strict=True)
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
