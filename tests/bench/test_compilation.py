"""What is counted and measured of a compilation, and that a row which takes too long is given up."""

import jax
import jax.numpy as jnp
import pytest

from resnet_jax import models
from resnet_jax.bench import compilation
from resnet_jax.bench.workload import Workload
from resnet_jax.errors import UserError

OPTIONS = {"blocks": ["scan"], "remat": False, "batch_size": 2}


def test_operations_are_the_named_results_of_the_program() -> None:
    """multiply, add: two operations; a constant and its broadcast: two more. `return` is none."""
    text = jax.jit(lambda x: x * x + jnp.float32(3)).lower(jax.ShapeDtypeStruct((4,), jnp.float32)).as_text()
    assert compilation.operations(text) == 4


@pytest.mark.slow
def test_a_row_has_seconds_operations_and_bytes() -> None:
    (row,) = compilation.table("cifar_resnet", [8], **OPTIONS, limit=300)
    assert row.keys() == {
        "network", "depth", "blocks", "remat", "batch_size",
        "trace_seconds", "lower_seconds", "compile_seconds", "cached_seconds", "operations", "temporary_bytes",
    }  # fmt: skip
    assert all(row[f"{stage}_seconds"] > 0 for stage in ("trace", "lower", "compile"))
    # Activations of 2 images: 7 convolutions and as many normalisations of 16 x 32 x 32 values or less, 4 bytes each.
    assert 16 * 32 * 32 * 4 * 2 < row["temporary_bytes"] < 100 * 16 * 32 * 32 * 4 * 2
    assert row["operations"] > 500
    assert 0 < row["cached_seconds"] < row["compile_seconds"]


def test_what_takes_too_long_is_stopped_and_said() -> None:
    (row,) = compilation.table("cifar_resnet", [8], **OPTIONS, limit=0.2)
    assert row["stopped_after_seconds"] == 0.2
    assert "compile_seconds" not in row


def test_what_cannot_be_compiled_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong depth before anything is measured; a process that dies silently by its exit code."""
    with pytest.raises(UserError, match="depth 9.*not 6n\\+2"):
        next(compilation.table("cifar_resnet", [8, 9], **OPTIONS, limit=300))
    monkeypatch.setattr(compilation.sys, "executable", "false")
    with pytest.raises(RuntimeError, match=r"depth 8 \(scan\) did not compile: exit code 1"):
        next(compilation.table("cifar_resnet", [8], **OPTIONS, limit=300))


def test_the_step_of_1202_layers_has_the_operations_of_that_of_20() -> None:
    """What XLA compiles does not grow with depth where the units of a stage are one scan; seconds are in `bench compile`'s tables."""
    execution = models.Execution(blocks="scan")

    def lowered(depth: int) -> int:
        work = Workload(models.architecture("cifar_resnet", depth), 2, execution)
        return compilation.operations(work.step.trace(work.abstract_state, work.abstract_batch()).lower().as_text())

    assert lowered(1202) <= 1.01 * lowered(20)
