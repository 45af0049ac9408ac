"""One small run of every script in ``benchmarks/``, and ``launch/measure.py``, which calls them."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import jax
import pytest
from resnet_jax.kernels import quick_to_run
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
    # Variants start from the same state, on the same images. One that fails is not measured.
    variants = "xla_cpu_enable_fast_math=True;kernels=plain", "xla_no_such_option=1"
    rows = list(step.measure("small", SMALL, 2, step.Options(steps=2, rounds=1, peers=(), variants=variants)))
    assert [row["what"] for row in rows] == ["resnet-jax", f"resnet-jax {variants[0]}"]
    assert len(rows[0]["losses"]) == len(rows[1]["losses"]) == 12


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


def test_every_stage_of_measure_has_valid_options(load: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scripts parse the options that an accelerator gets, find networks and recipes, and XLA knows its own."""
    monkeypatch.syspath_prepend(ROOT / "launch")
    measure, measured = load("measure"), {}
    for stage in measure.STAGES:
        script, *words = stage.command.format(copy=0).split()
        if script == "study":
            continue
        calls = measured[stage.name] = []
        monkeypatch.setattr(load(script), "measure", lambda *args, calls=calls: calls.append(args) or [])
        monkeypatch.setattr(load(script).datasets if script == "input" else load(script), "describe", Mock(), raising=False)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *words, "--output", f"{tmp_path}/{stage.name}.json"])
        load("harness").cli(load(script).main)
        assert calls
    variants = {text for *_, options in measured["resnet20-variants"] + measured["resnet50-variants"] for text in options.variants}
    assert len(variants) == 4
    for option, _, value in (text.partition("=") for text in variants - {"kernels=plain"}):
        if option == "xla_gpu_enable_command_buffer" and not quick_to_run("gpu"):
            continue  # this jaxlib knows fewer commands
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    (recipe,) = measured["recipe-resnet110"]
    assert (recipe[0].name, recipe[0].model.dtype, recipe[1]) == ("resnet110", "bfloat16", 64_000)


@pytest.mark.slow
def test_measure_runs_every_script_on_a_small_network(digits_dir: str, tmp_path: Path) -> None:
    """The scripts write what they state."""
    names = "resnet20", "resnet50-variants", "recipe-resnet20-seeds", "table1-resnet20", "input"
    command = [sys.executable, f"{ROOT}/launch/measure.py", str(tmp_path), "--tiny", "--only", *names]
    variables = os.environ | {"TFDS_DATA_DIR": digits_dir, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(names)
    results = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert results.keys() == set(names)
    assert results["resnet20"]["rows"][-1]["what"] == "trace"
    assert [row["what"] for row in results["resnet50-variants"]["rows"]][:2] == ["resnet-jax", "resnet-jax kernels=plain"]
    assert {"date", "commit", "versions", "devices"} <= results["input"].keys()
    assert [row["what"] for row in results["input"]["rows"]] == ["whole input", "read", "decode", "crop", "Pillow"]
    (row,) = results["recipe-resnet20-seeds"]["rows"]
    assert (row["steps"], row["recipe_steps"], row["seed"]) == (8, 160, 0)
    assert row["recipe_seconds"] > row["seconds_to_first_score"] > row["step_seconds"]
    assert results["table1-resnet20"]["kind"] == "study"
