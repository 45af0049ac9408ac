"""``resnet-jax plan`` on virtual CPU devices, and for absent TPUs and GPUs."""

import dataclasses
import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import jax
import pytest
from resnet_jax import plan
from resnet_jax.errors import UserError
from resnet_jax.models import Architecture
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm, GroupNorm
from resnet_jax.training.config import Data, Experiment

from test_cli import fails, prints_json

# 3x3 convolutions of 1 to 4, 4 to 4 and 4 to 4 features; three norms of 4; a classifier of 10.
KERNELS, CHANNELS, CLASSIFIER = 9 * (4 + 16 + 16), 3 * 4, 4 * 10 + 10


def small() -> Experiment:
    model = Architecture(stages=(1,), features=(4,), input_shape=(8, 8, 1))
    return Experiment(name="small", model=model, data=Data(name="digits"), batch_size=32)


def check(rows: list[dict[str, Any]]) -> None:
    """Compares the rows of ``small`` with counts by hand."""
    groups, whole, split = rows
    assert [row["fits"] for row in rows] == [True] * 3
    assert [row["group_size"] for row in rows] == [32 // groups["chips"], 0, 32 // groups["chips"]]
    assert (groups["fsdp"], whole["fsdp"], split["fsdp"]) == (1, 1, groups["chips"])
    # Gradients, running means and variances, loss and errors are averaged, and nothing else.
    assert groups["collectives"].keys() == {"all-reduce"}
    assert groups["collectives"]["all-reduce"]["bytes"] == 4 * (KERNELS + 2 * CHANNELS + CLASSIFIER + 2 * CHANNELS + 2)
    # Statistics over the batch are exchanged layer by layer, forward and backward.
    assert whole["collectives"]["all-reduce"]["count"] >= groups["collectives"]["all-reduce"]["count"] + 3
    assert split["collectives"]["all-gather"]["bytes"] > 0
    # A row of 8 pixels has 22 products with 3 taps. The first convolution has no input gradient.
    products = 2 * 22**2 * 4 + 3 * (22**2 * 2 * 16 + 4 * 10)
    for row in rows:
        # Cost analysis also counts elementwise operations.
        assert 2 * products < row["flops_per_image"] < 2.6 * products
        # At least the forward pass writes and reads the results of three convolutions.
        assert row["bytes_per_image"] > 3 * 2 * 8 * 8 * 4 * 4
        assert 50_000 * 64 < row["memory_bytes"] < row["usable_bytes"]


@pytest.fixture
def cpu_target(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replaces target hardware by four virtual devices with 8 MB each."""
    cached = jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(plan, "target", lambda name: plan.Target(name, "cpu", 8_000_000, tuple(jax.devices()[:4])))
    yield
    jax.config.update("jax_enable_compilation_cache", cached)


@pytest.mark.slow
def test_plan_counts_memory_flops_and_collectives(cpu_target: None, capsys: pytest.CaptureFixture[str]) -> None:
    rows = prints_json(capsys, "plan", f"{__file__}:small", "--target", "cpu:4")["rows"]
    check(rows)
    # The data set takes 3.4 MB.
    assert 8 <= rows[0]["largest_batch_per_device"] <= 8_000_000 / (8 * 8 * 4 * 4)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "module"), [("tpu:v5e:2x2", "libtpu"), ("gpu:h200:4", "jax_cuda13_plugin")])
def test_plan_compiles_for_absent_hardware(target: str, module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed: pip install 'resnet-jax-lab[plan-{target[:3]}]'")
    words = [sys.executable, "-m", "resnet_jax.cli", "plan", f"{__file__}:small", "--target", target, "--json", "--no-search"]
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout)["rows"]
    assert [row["chips"] for row in rows] == [4] * 3
    check(rows)


def test_plan_rejects_invalid_input_before_compiling(
    cpu_target: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, message in (
        (["--target", "x", "--batch-size", "30", "--evaluation.batch-size", "30"], "batch_size must be a multiple of the 4 devices of x"),
        (["--target", "x", "--fsdp", "3"], "fsdp must divide the 4 devices"),
    ):
        assert message in fails(capsys, "plan", f"{__file__}:small", "--variants", "fsdp", *words)
    monkeypatch.undo()
    monkeypatch.setattr(plan.topologies, "get_topology_desc", Mock(side_effect=NotImplementedError("no plugin")))
    for name, message in (
        ("tpu:v9:4x4", "did you mean"),
        ("tpu:v5e", "tpu:v5e:4x4"),
        ("h100", "gpu:h100:8"),
        ("tpu:v5e:4x4", "no plugin.*plan-tpu"),
        ("gpu:h200", "no plugin.*plan-gpu"),
    ):
        with pytest.raises(UserError, match=message):
            plan.target(name)


def test_variants_keep_groups_on_their_devices() -> None:
    for norm, chips, fsdp, expected in (
        (BatchNorm, 4, None, [(1, 16), (1, 0), (4, 16)]),
        (component(BatchNorm, group_size=8), 4, None, [(1, 8), (1, 0), (4, 8)]),
        (BatchNorm, 1, None, [(1, 0)]),
        (component(GroupNorm, num_groups=2), 4, None, [(1, None), (4, None)]),
        (BatchNorm, 48, 3, [(1, 16), (1, 0), (3, 16)]),
    ):
        experiment = dataclasses.replace(small(), model=dataclasses.replace(small().model, norm=norm))
        assert plan.variants(experiment, chips, 16, ("data", "global", "fsdp"), fsdp) == expected


def test_largest_batch_compiles_few_programs() -> None:
    def search(base: int, per_image: int, rejected_above: int, start: int) -> int:
        @functools.cache
        def memory(images: int) -> float:
            return base + per_image * images if images <= rejected_above else math.inf

        largest = plan.largest_batch(memory, 1000, start)
        assert memory.cache_info().currsize <= 5
        return largest

    assert search(100, 10, 999, start=8) == search(100, 10, 999, start=512) == 64
    assert search(100, 10, 40, start=8) == 32
    assert search(2000, 10, 999, start=8) == 0
    assert search(100, 10, 999, start=6) == 48


def test_collectives_count_pairs_and_channels_once() -> None:
    hlo = """
fused {
  %all-gather.1 = f32[4,64]{1,0:T(2,128)} all-gather(%p.1), channel_id=31, dimensions={0}
}
again {
  ROOT %all-gather.2 = f32[4,64]{1,0:T(2,128)S(1)} all-gather(%p.2), channel_id=31, dimensions={0}
}
ENTRY %main (p: u8[100,3], q: f32[4,64]) -> f32[] {
  %p = u8[100,3]{1,0} parameter(0)
  %q = f32[4,64]{1,0} parameter(1)
  %all-reduce-start = (f32[8]{0}, bf16[2,3]{1,0}, /*index=2*/pred[]) all-reduce-start(%q, %q), channel_id=1, to_apply=%sum
  %all-reduce-done = (f32[8]{0}, bf16[2,3]{1,0}, /*index=2*/pred[]) all-reduce-done(%all-reduce-start)
  %gather = f32[4,64]{1,0} fusion(%p, %q), kind=kLoop, calls=%fused
  ROOT %reduce-scatter.7 = f32[1,64]{1,0} reduce-scatter(%gather), channel_id=2, dimensions={0}
}
"""
    assert plan.collectives(hlo) == {
        "all-gather": {"count": 1, "bytes": 1024},
        "all-reduce": {"count": 1, "bytes": 32 + 12 + 1},
        "reduce-scatter": {"count": 1, "bytes": 256},
    }
    # Operands and results; the uint8 parameter does not count.
    assert plan.bytes_accessed(hlo) == (2 * 1024 + 45) + 2 * 45 + 2 * 1024 + (1024 + 256)


def test_launches_are_graphs_and_kernels_outside_of_them() -> None:
    """As XLA 0.12 writes the program of a loop over steps: a graph per step, or one of the whole loop."""
    body = """
000: kCommandBuffer [source | next=003 (1)]
    001: kCopy         [source | sink] kCopy
    002: kCustomKernel [source | sink] sort grid: [1, 1, 1]
003: kWhile [prev=000 (1) | sink]
condition:
    004: kCustomKernel [source | sink] compare grid: [1, 1, 1]
  body:
    000: kCommandBuffer [source | next=007 (1)]
        005: kConvolution  [source | sink] kConvolution
        006: kCustomKernel [source | sink] add grid: [1, 1, 1]
    007: kAsyncStart [prev=000 (1) | sink]
        008: kDynamicSliceFusion [source | sink]
            009: kCopy [source | sink] kCopy
    010: kAsyncDone [source | sink]
011: kCustomKernel [source | sink] end grid: [1, 1, 1]
"""
    whole = "000: kCommandBuffer [source | sink]" + body.replace("000: kCommandBuffer", "001: kCopy").replace("\n", "\n    ")
    expected = {"steps_per_call": 50, "launches_per_call": 2 + 50 * 3, "cuda_graphs": 2, "kernels_per_step": 4}
    assert plan.launches(body, 50) == expected
    assert plan.launches(whole, 50) == expected | {"launches_per_call": 1, "cuda_graphs": 1, "kernels_per_step": 5}
    flat = {"steps_per_call": 1, "launches_per_call": 5, "cuda_graphs": 2, "kernels_per_step": 7}
    assert plan.launches(body, 1) == flat
