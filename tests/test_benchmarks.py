"""One small run of every script in ``benchmarks/``, and ``launch/measure.py``, which calls them."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from resnet_jax.models import Architecture
from resnet_jax.models.shortcuts import ZeroPad

from conftest import ROOT

SMALL = Architecture(stages=(1,), input_shape=(8, 8, 1), features=(4,), shortcut=ZeroPad)


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.mark.slow
def test_step_compares_networks_of_equal_size(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    step = load("step")
    monkeypatch.setattr(step, "find", lambda package: None)
    *rows, trace = step.measure("small", SMALL, 2, step.Options(steps=2, calls=2, rounds=2, trace=True))
    assert [row["what"] for row in rows] == ["resnet-jax", "flax"]
    # 3x3 convolutions of 1 to 4, 4 to 4 and 4 to 4 features, three norms, a classifier.
    assert {row["parameters"] for row in rows} == {9 * (4 + 16 + 16) + 3 * 8 + 50}
    assert all(row["seconds_least"] <= row["seconds"] <= row["seconds_most"] for row in rows)
    assert min(rows[0][f"{name}_seconds"] for name in ("trace", "lower", "compile", "host")) > 0
    milliseconds = [time for _, time, _ in trace["kernels"]]
    assert milliseconds == sorted(milliseconds, reverse=True)
    # Variants of XLA's options start from the same state, on the same images; no peer is measured beside them.
    variant = step.Options(steps=2, rounds=1, peers=(), xla={"xla_cpu_enable_fast_math": "True"})
    (row,) = step.measure("small", SMALL, 2, variant)
    assert len(row["losses"]) == len(rows[0]["losses"]) == 12


def test_bad_input_ends_in_one_sentence(
    load: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, digits_dir: str, tmp_path: Path
) -> None:
    """Before anything is measured."""
    (tmp_path / "file").touch()
    for script, words, message in (
        ("step", "--networks resnet_50", "no network is called 'resnet_50'"),
        ("step", "--rounds 0", "--rounds must be at least 1, got 0."),
        ("run", "--experiment he2015_cifar10:table6", "returned no Experiment"),
        ("input", f"--data digits --data-dir {digits_dir} --output {tmp_path}/file/x", "cannot be written: File exists"),
    ):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *words.split()])
        with pytest.raises(SystemExit, match="2"):
            load("harness").cli(load(script).main)
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), err.startswith(f"{script}.py: ")) == ("", 1, True)
        assert message in err


# In place of a benchmark.
SCRIPT = """
import sys, time
from pathlib import Path
if "fail" in sys.argv: raise SystemExit(3)
if "sleep" in sys.argv: time.sleep(600)
Path(sys.argv[-1]).write_text("{}")
"""


def test_measure_continues_with_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "launch")
    measure = importlib.import_module("measure")
    monkeypatch.setattr(measure, "BENCHMARKS", tmp_path)
    (tmp_path / "script.py").write_text(SCRIPT)

    def call(*commands: str, seconds: int = 50) -> tuple[bool, list[str]]:
        stages = [measure.Stage(f"stage{i}", seconds, f"script {command}", 1 + (i == 3)) for i, command in enumerate(commands)]
        monkeypatch.setattr(measure, "STAGES", stages)
        monkeypatch.setattr(sys, "argv", ["measure.py", f"{tmp_path}/results of/a b", "--seconds", "100"])
        with pytest.raises(SystemExit) as stopped:
            measure.main()
        return bool(stopped.value.code), [line.partition(" in ")[0] for line in capsys.readouterr().out.splitlines()]

    assert call("sleep", seconds=1) == (True, ["stage0: exceeded 1 s"])
    assert call("", "fail", "", "", seconds=60) == (True, ["stage1: exit code 3", *(f"stage{i}: done" for i in (2, 3, 0))])
    assert call("", "", seconds=101) == (True, ["stage1: takes up to 101 s, which are not left"])
    assert call("", "", "", "") == (False, ["stage1: done"])
    results = sorted(path.name for path in (tmp_path / "results of/a b").glob("*.json"))
    assert results == ["stage0.json", "stage1.json", "stage2.json", "stage3-0.json", "stage3-1.json"]


@pytest.mark.slow
def test_every_stage_of_measure_runs_on_a_small_network(digits_dir: str, tmp_path: Path) -> None:
    """All options that an accelerator gets are parsed, and XLA knows its own. The scripts write what they state."""
    command = [sys.executable, f"{ROOT}/launch/measure.py", str(tmp_path), "--tiny"]
    variables = os.environ | {"TFDS_DATA_DIR": digits_dir, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 13
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert ",WHILE" in results["resnet20-graph-per-call"]["command"]
    assert {"date", "commit", "versions", "devices"} <= results["input"].keys()
    assert [row["what"] for row in results["input"]["rows"]] == ["whole input", "read", "decode", "crop", "Pillow"]
    (row,) = results["recipe-resnet20"]["rows"]
    assert (row["steps"], row["recipe_steps"]) == (8, 160)
    assert row["recipe_seconds"] > row["seconds_to_first_score"] > row["step_seconds"]
