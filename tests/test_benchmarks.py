"""One small run of every script in ``benchmarks/``."""

import dataclasses
import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro
from resnet_jax.models import Execution, cifar_architecture
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.training.config import Experiment

FOLDER = Path(__file__).parents[1] / "benchmarks"
SMALL = dataclasses.replace(cifar_architecture(8, input_shape=(8, 8, 1), features=(4,), shortcut=ZeroPad), stages=(1,))


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)

    def module(name: str) -> ModuleType:
        return importlib.import_module(name)

    return module


def test_scripts_have_help(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("step", "compile", "input", "run"):
        with pytest.raises(SystemExit) as stopped:
            tyro.cli(load(name).main, args=["--help"])
        assert stopped.value.code == 0
        assert "--output" in capsys.readouterr().out, name


@pytest.mark.slow
def test_step_compares_networks_of_equal_size(load: Any) -> None:
    step = load("step")
    step.find = lambda package: None
    rows = step.measure("small", SMALL, 2, Execution(), peers=True, rounds=2)
    assert [row["what"] for row in rows] == ["resnet-jax", "Flax Linen"]
    # 3x3 convolutions of 1 to 4, 4 to 4 and 4 to 4 features, three norms, a classifier.
    assert {row["parameters"] for row in rows} == {9 * (4 + 16 + 16) + 3 * 8 + 50}
    for row in rows:
        assert row["seconds_least"] <= row["seconds"] <= row["seconds_most"]
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])


@pytest.mark.slow
def test_compile_measures_compilation_and_dispatch(load: Any) -> None:
    module = load("compile")
    row = module.measure_compilation(SMALL, Execution(), 2)
    assert min(row[f"{stage}_seconds"] for stage in ("trace", "lower", "compile")) > 0
    rows = module.measure_dispatch(SMALL, (1, 2), 2, 2)
    assert [row["steps"] for row in rows] == [1, 2]
    assert all(row["host_seconds"] > 0 and row["host_rounds"] == 2 for row in rows)


def test_input_writes_its_stages(load: Any, digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "input.json"
    words = ["--data", "digits", "--data-dir", digits_dir, "--size", "8", "--images", "6", "--batch-size", "4", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/input.py", *words, "--output", str(file)])
    tyro.cli(load("input").main)
    result = json.loads(file.read_text())
    assert [row["what"] for row in result["rows"]] == ["read", "decode", "crop", "whole input", "Pillow"]
    assert result["rows"][-1]["over_pillow"] == 1
    assert result["benchmark"] == "input"
    assert result["command"].startswith("python benchmarks/input.py --data digits")
    assert {"commit", "versions", "devices"} <= result.keys()


@pytest.mark.slow
def test_run_extrapolates_to_the_whole_recipe(load: Any, tiny: Experiment, digits_dir: str) -> None:
    row = load("run").measure(dataclasses.replace(tiny, model=SMALL, steps=24), 8, digits_dir)
    assert (row["steps"], row["recipe_steps"]) == (8, 24)
    assert row["recipe_seconds"] > row["seconds_to_first_score"] > 0
    assert row["seconds"] > 8 * row["step_seconds"]


def test_measure_sh_uses_existing_scripts_and_options(load: Any, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (FOLDER.parent / "launch" / "measure.sh").read_text().splitlines()
    calls = [line.split()[2:] for line in lines if re.match(r"\s*measure [\w\"$-]+ \w", line)]
    assert len(calls) >= 5
    for script, *words in calls:
        with pytest.raises(SystemExit):
            tyro.cli(load(script).main, args=[*words, "--no-such-option"])
        assert "--no-such-option" in capsys.readouterr().err
