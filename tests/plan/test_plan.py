"""What a plan asks for and what it says, with compilation replaced; and the scaling of ResNet-50, where libtpu is installed."""

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from tiny_experiment import tiny

from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models.norms import BatchNorm, GroupNorm
from resnet_jax.plan import offline, plan, targets
from resnet_jax.plan.compiled import Compiled, Memory, Variant
from resnet_jax.plan.plan import Asked
from resnet_jax.plan.program_text import Collective, Traffic
from resnet_jax.training.experiment import Experiment, Optimizer

GROUPED = dataclasses.replace(
    tiny(), batch_size=512, model=dataclasses.replace(tiny().model, norm=configured(BatchNorm, group_size=8), dtype="bfloat16")
)


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "slow" not in request.keywords:
        monkeypatch.setattr(offline, "installed", lambda platform: True)


@pytest.mark.parametrize(
    ("asked", "changes", "said"),
    [
        ({"targets": ()}, {}, "need at least one value"),
        ({"targets": ("tpu:v5e:4x4",), "layouts": ()}, {}, "need at least one value"),
        ({"targets": ("tpu:v5e:9x9",)}, {}, "comes in the shapes"),
        ({"targets": ("tpu:v5e:4x4",)}, {"batch_size": 100}, "batch_size is 100, which the 16 chips of tpu:v5e:4x4 cannot share"),
        ({"targets": ("tpu:v5e:4x4",), "batch_per_device": 0}, {}, "--batch-per-device is 0"),
        ({"targets": ("tpu:v5e:4x4",), "fsdp": 3}, {}, "--fsdp is 3: .* a divisor of the 16 chips"),
        ({"targets": ("tpu:v5e:2x2",)}, {"optimizer": Optimizer(accumulation=3)}, "optimizer.accumulation is 3: a 3th of 512 images"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_anything_is_compiled(asked: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Asked(**asked).check(dataclasses.replace(GROUPED, **changes))


def test_the_batch_is_shared_or_given_for_each_device() -> None:
    shared = Asked(targets=("tpu:v5e:4x4", "gpu:h100:8")).check(GROUPED)
    assert [(target.name, images) for target, images in shared] == [("tpu:v5e:4x4", 32), ("gpu:h100:8", 64)]
    # 512 images are not shared by 2,048 chips; 3 each are given to them.
    ((target, images),) = Asked(targets=("tpu:v5p:8x16x16",), batch_per_device=3).check(GROUPED)
    assert (target.chips, images) == (2048, 3)


def variants(experiment: Experiment, target: str, images: int, **asked: Any) -> list[tuple[str, int, int | None]]:
    found = Asked(targets=(target,), **asked).variants(experiment, targets.parse(target), images)
    assert all(variant.batch_per_device == images for _, variant in found)
    return [(layout, variant.fsdp, variant.group_size) for layout, variant in found]


def test_layouts_stand_beside_each_other_and_normalisations_too() -> None:
    assert variants(GROUPED, "tpu:v5e:4x4", 32) == [("data", 1, 8), ("data", 1, 0), ("fsdp", 16, 8)]
    # 20 images are not whole groups of 8.
    assert variants(GROUPED, "tpu:v5e:16x16", 20)[0] == ("data", 1, 20)
    assert variants(GROUPED, "tpu:v5e:4x4", 32, layouts=("fsdp",), norms=("global",), fsdp=4) == [("fsdp", 4, 0)]


def test_what_would_be_the_same_program_is_compiled_once() -> None:
    # A GPU alone has nobody to split parameters with; all of its images are the batch.
    assert variants(tiny(), "gpu:h100", 64) == [("data", 1, 64)]
    assert variants(GROUPED, "gpu:h100", 64) == [("data", 1, 8), ("data", 1, 0)]
    assert variants(GROUPED, "gpu:h100", 64, layouts=("fsdp",)) == [("data", 1, 8)]
    model = dataclasses.replace(tiny().model, norm=configured(GroupNorm, num_groups=4))
    assert variants(dataclasses.replace(tiny(), model=model), "tpu:v5e:2x2", 16) == [("data", 1, None), ("fsdp", 4, None)]


def test_rows_and_the_largest_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chip of 15.75 GiB, 1 GiB and 0.1 GiB an image: 147.5 images, 144 in groups of 8."""
    seen = []

    def compile_step(experiment: Experiment, variant: Variant, devices: Any, platform: str, examples: int) -> Compiled:
        seen.append((variant.batch_per_device, variant.fsdp, variant.group_size))
        assert (platform, examples) == ("tpu", 1797)
        needed = 2**30 + variant.batch_per_device * 2**30 // 10
        if needed > targets.DEVICES["tpu:v5e"].usable:
            return Compiled(None, "too much", 0, Traffic(), 0, 1.0)
        traffic = Traffic(7, 819_000 * variant.batch_per_device, Counter({Collective("all-reduce", 1000, 16): 2}))
        return Compiled(Memory(needed, 500, 500, 0, 0), "", needed, traffic, 16 * variant.batch_per_device * 10**6, 2.0)

    monkeypatch.setattr(plan, "compile_step", compile_step)
    monkeypatch.setattr(offline, "devices", lambda target: [None] * target.chips)
    said: list[str] = []
    rows = plan.make(GROUPED, Asked(targets=("tpu:v5e:4x4",), examples=1797), said.append)
    assert seen == [(32, 1, 8), (64, 1, 8), (144, 1, 8), (32, 1, 0), (32, 16, 8)]
    assert rows[0]["largest"]["batch_per_device"] == 144
    assert ["largest" in row for row in rows] == [True, False, False]
    first = rows[0]
    assert (first["fits"], first["batch_size"], first["chips"], first["kernels"]) == (True, 512, 16, 7)
    assert (first["flops_per_image"], first["bytes_per_image"]) == (10**6, 819_000)
    assert first["collectives"] == {"all-reduce": {"count": 2, "bytes": 2000}}
    # 1 us an image at 819 GB/s.
    assert first["bound"]["images_per_second"] == pytest.approx(16 / 1e-6)
    assert said[0] == "tpu:v5e:4x4, data, BatchNorm over groups of 8, 32 images a chip: compiled in 2 s"
    json.dumps(rows)


def test_what_is_refused_is_a_row_too() -> None:
    target = targets.parse("tpu:v5e:4x4")
    done = Compiled(None, "RESOURCE_EXHAUSTED: too much", 0, Traffic(), 16, 1.0)
    found = plan.row(GROUPED, target, "data", Variant(32, 1, 8), done)
    assert (found["fits"], found["refusal"]) == (False, "RESOURCE_EXHAUSTED: too much")
    assert "bound" not in found


COMMITTED = ROOT / "experiments" / "results" / "2026-11-24-plan-scaling.json"


def scaling(rows: list[dict[str, Any]], global_all_reduces: int) -> None:
    """From 16 chips to the most: memory, gradient bytes and exchanges stay; five or fewer are left where groups are a device's."""
    groups = sorted((row for row in rows if row["group_size"]), key=lambda row: row["chips"])
    everything = [row for row in rows if row["group_size"] == 0]
    assert (groups[0]["chips"], groups[-1]["chips"]) == (16, 2048)
    assert groups[-1]["memory_bytes"] == pytest.approx(groups[0]["memory_bytes"], rel=0.02)
    assert len({json.dumps(row["collectives"]) for row in groups}) == 1
    assert groups[0]["collectives"].keys() == {"all-reduce"}
    assert groups[0]["collectives"]["all-reduce"]["count"] <= 5
    assert all(row["collectives"]["all-reduce"]["count"] > global_all_reduces for row in everything)


def test_committed_scaling_of_resnet50() -> None:
    """25.6 million gradients: of convolutions in bfloat16, of all else in float32. With them go averages of the groups' statistics (means
    and variances of 26,560 channels), loss and errors. Where a stage begins, the biases of the branch's last normalisation and of the
    projection's have one and the same gradient.
    """
    found = json.loads(COMMITTED.read_text())
    scaling(found["rows"], 90)
    assert {row["chips"] for row in found["rows"]} == {16, 256, 2048}
    convolutions, channels, classifier, projected = 23_454_912, 26_560, 2048 * 1000 + 1000, 256 + 512 + 1024 + 2048
    assert convolutions + 2 * channels + classifier == 25_557_032
    expected = 2 * convolutions + 4 * (2 * channels - projected + classifier) + 4 * 2 * channels + 2 * 4
    assert [row["collectives"]["all-reduce"]["bytes"] for row in found["rows"] if row["group_size"]] == [expected] * 3
    for row in found["rows"]:
        assert row["bound"]["efficiency_exposed"] <= row["bound"]["efficiency_hidden"] <= 1
        assert row["fits"]


@pytest.mark.slow
def test_scaling_of_resnet50_without_the_machines(tmp_path: Path) -> None:
    """At 64 pixels, which compile in half the time: three programs, of a minute or two each on one core."""
    if not offline.installed("tpu"):
        pytest.skip("libtpu is not installed: pip install 'resnet-jax-lab[plan-tpu]'")
    common = [
        "--batch-per-device",
        "8",
        "--model.dtype",
        "bfloat16",
        "--model.input-shape",
        "64",
        "64",
        "3",
        "--layouts",
        "data",
        "--no-search",
    ]
    rows = command(tmp_path, "tpu:v5p:2x2x4", "--norms", "groups", "global", *common)
    rows += command(tmp_path, "tpu:v5p:8x16x16", "--norms", "groups", *common)
    scaling(rows, 90)


@pytest.mark.slow
def test_parameters_are_split_over_a_small_slice(tmp_path: Path) -> None:
    if not offline.installed("tpu"):
        pytest.skip("libtpu is not installed: pip install 'resnet-jax-lab[plan-tpu]'")
    options = ("--no-search", "--norms", "groups", "--examples", "1437")
    whole, split = command(tmp_path, "tpu:v5e:2x2", *options, reference="tests/tiny_experiment.py:tiny")
    assert whole["fits"]
    assert split["fits"]
    assert (whole["layout"], split["layout"]) == ("data", "fsdp")
    assert whole["collectives"].keys() == {"all-reduce"}
    assert whole["collectives"]["all-reduce"]["count"] <= 5
    assert "all-gather" in split["collectives"]


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gpu:h100:8", "gpu:a100"])
def test_resnet20_is_planned(tmp_path: Path, target: str) -> None:
    if not offline.installed("gpu"):
        pytest.skip(f"{offline.EXTRAS['gpu'][1]} is not installed: pip install 'resnet-jax-lab[{offline.EXTRAS['gpu'][0]}]'")
    rows = command(tmp_path, target, reference="experiments/he2015_cifar10.py:resnet20")
    first = rows[0]
    assert first["fits"]
    assert first["largest"]["batch_per_device"] > 8 * first["batch_per_device"]
    if first["chips"] > 1:
        assert first["collectives"]["all-reduce"]["count"] <= 5
        assert "all-gather" in rows[-1]["collectives"]
        assert rows[-1]["layout"] == "fsdp"
    # 40.6 million multiply-adds, the first layer's 0.44 without an input gradient; less what padding saves.
    assert 0.85 < first["flops_per_image"] / (2 * (3 * 40.6e6 - 0.44e6)) <= 1


def command(folder: Path, target: str, *options: str, reference: str = "experiments/torchvision_imagenet.py:v1") -> list[dict[str, Any]]:
    """Rows that ``resnet-jax plan`` prints, in a process of its own."""
    words = [sys.executable, "-m", "resnet_jax.cli", "plan", str(ROOT / reference), "--target", target, *options, "--json"]
    done = subprocess.run(words, cwd=folder, env=dict(os.environ), capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["rows"]
