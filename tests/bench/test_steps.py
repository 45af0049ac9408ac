"""Steps are measured in turn, and compared round by round."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from resnet_jax import models
from resnet_jax.bench import rounds, steps
from resnet_jax.bench.workload import Workload
from resnet_jax.models import Execution

TINY = models.cifar_architecture(8, input_shape=(8, 8, 1), features=(4, 4, 4))
LOOP, SCAN = Execution(blocks="loop"), Execution(blocks="scan")


@pytest.mark.slow
def test_rows_hold_the_median_the_range_and_the_rate() -> None:
    rows = steps.measure(TINY, [LOOP, SCAN], batch_size=4, rounds=3)
    assert [row["blocks"] for row in rows] == ["loop", "scan"]
    for row in rows:
        assert 0 < row["seconds_least"] <= row["seconds"] <= row["seconds_most"]
        np.testing.assert_allclose(row["images_per_second"] * row["seconds"], 4)
    assert rows[0]["speedup"] == 1


def test_executions_take_turns_and_the_speedup_is_the_median_of_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clock of our own: 1, 2, 30 s against 2, 1, 10 s, each behind one of 9. Ratios 1/2, 2, 3: the median is 2, the medians' 1."""
    durations = iter([9, 9, 9, 9, 9, 1, 9, 2, 9, 2, 9, 1, 9, 30, 9, 10])
    order: list[str] = []
    now = [0.0]

    class Fake:
        def __init__(self, architecture: Any, batch_size: int, execution: Execution):
            self.name = execution.blocks

        def stepping(self) -> Callable[[], None]:
            def run() -> None:
                order.append(self.name)
                now[0] += next(durations)

            return run

    monkeypatch.setattr(steps, "Workload", Fake)
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])
    rows = steps.measure(TINY, [LOOP, SCAN], batch_size=8, rounds=3)
    assert order == ["loop", "loop", "scan", "scan"] * 4
    assert [row["seconds"] for row in rows] == [2, 2]
    assert rows[1]["speedup"] == 2
    assert (rows[1]["seconds_least"], rows[1]["seconds_most"]) == (1, 10)


def test_the_workload_is_the_real_training_step() -> None:
    work = Workload(dataclasses.replace(TINY, num_classes=3), 4, LOOP)
    state, batch = work.state(), work.batch()
    assert batch.images.shape == (4, 8, 8, 1)
    kernel = np.asarray(state.params["head"]["linear"]["kernel"])
    after, metrics = work.step(state, batch)
    assert int(after.step) == 1
    assert int(metrics.examples) == 4
    assert not np.array_equal(after.params["head"]["linear"]["kernel"], kernel)
    assert {0, 1, 2} >= set(np.asarray(batch.labels).tolist())
