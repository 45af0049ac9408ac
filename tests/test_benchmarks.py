"""One small run of every script in ``benchmarks/``, and ``launch/measure.sh``, which calls them."""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tyro
from resnet_jax.models import Architecture, Execution
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.training.config import Experiment

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
    rows = list(step.measure("small", SMALL, 2, Execution(), peers=True, rounds=2))
    assert [row["what"] for row in rows] == ["resnet-jax", "Flax Linen"]
    # 3x3 convolutions of 1 to 4, 4 to 4 and 4 to 4 features, three norms, a classifier.
    assert {row["parameters"] for row in rows} == {9 * (4 + 16 + 16) + 3 * 8 + 50}
    for row in rows:
        assert row["seconds_least"] <= row["seconds"] <= row["seconds_most"]
        assert row["images_per_second"] == pytest.approx(2 / row["seconds"])


@pytest.mark.slow
def test_compile_and_run_measure_every_stage(load: Any, tiny: Experiment, digits_dir: str) -> None:
    row = load("compile").measure_compilation(SMALL, Execution(), 2)
    assert min(row[f"{stage}_seconds"] for stage in ("trace", "lower", "compile")) > 0
    rows = list(load("compile").measure_dispatch(SMALL, (1, 2), 2, 2))
    assert [(row["steps"], row["host_rounds"], row["host_seconds"] > 0) for row in rows] == [(1, 2, True), (2, 2, True)]
    (row,) = load("run").measure(dataclasses.replace(tiny, model=SMALL, steps=24), 8, digits_dir)
    assert (row["steps"], row["recipe_steps"]) == (8, 24)
    assert row["recipe_seconds"] > row["seconds_to_first_score"] > 0
    assert row["seconds"] > 8 * row["step_seconds"]


def test_input_writes_its_stages(load: Any, digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "input.json"
    words = ["--data", "digits", "--data-dir", digits_dir, "--size", "8", "--images", "6", "--batch-size", "4", "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["benchmarks/input.py", *words, "--output", str(file)])
    tyro.cli(load("input").main)
    result = json.loads(file.read_text())
    assert [row["what"] for row in result["rows"]] == ["read", "decode", "crop", "whole input", "Pillow"]
    assert {"command", "commit", "versions", "devices"} <= result.keys()


def test_bad_input_ends_in_one_sentence(
    load: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, digits_dir: str, tmp_path: Path
) -> None:
    """Before anything is measured."""
    (tmp_path / "file").touch()
    for script, words, message in (
        ("step", ["--networks", "resnet_50"], "no network is called 'resnet_50'"),
        ("compile", ["--rounds", "0"], "--rounds must be at least 1, got 0."),
        ("run", ["--experiment", "he2015_cifar10:table6"], "returned no Experiment"),
        ("input", ["--data", "digits", "--data-dir", digits_dir, "--output", f"{tmp_path}/file/x"], "cannot be written: File exists"),
    ):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
        with pytest.raises(SystemExit) as stopped:
            load("harness").cli(load(script).main)
        assert stopped.value.code == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"{script}.py: ")
        assert message in err


# In place of Python: writes the file; with FAILS set, fails for run.py and sleeps for input.py.
PROGRAM = f"""#!{sys.executable}
import json, os, sys, time
from pathlib import Path
script, *words = sys.argv[1:]
with Path("calls").open("a") as calls:
    calls.write(json.dumps([script, *words]) + "\\n")
if "FAILS" in os.environ and script.endswith("/run.py"):
    raise SystemExit(1)
if "FAILS" in os.environ and script.endswith("/input.py"):
    time.sleep(600)
Path(words[words.index("--output") + 1]).write_text("{{}}")
"""


def test_measure_sh_continues_with_what_is_missing(load: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "program").write_text(PROGRAM)
    (tmp_path / "program").chmod(0o755)

    def call(*words: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
        (tmp_path / "calls").write_text("")
        command = ["bash", f"{ROOT}/launch/measure.sh", *words]
        environment = {"PATH": os.environ["PATH"], "PYTHON": f"{tmp_path}/program"} | variables
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        return done, [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]

    done, calls = call("results of/a b", FAILS="1", LIMIT="1s")
    assert done.returncode == 1
    failed = [call for call in calls if Path(call[0]).stem in ("run", "input")]
    assert done.stderr.count("FAILED or exceeded 1s: ") == len(failed)
    done, again = call("results of/a b")
    assert (done.returncode, again) == (0, failed)
    assert len(list((tmp_path / "results of/a b").glob("*.json"))) == len(calls)
    assert {Path(script).stem for script, *_ in calls} == {"step", "run", "compile", "input"}
    for script, *words in calls:
        with pytest.raises(SystemExit):
            tyro.cli(load(Path(script).stem).main, args=[*words, "--no-such-option"])
        assert "--no-such-option" in capsys.readouterr().err
    done, calls = call("one", "two")
    assert (done.returncode, calls, "usage:" in done.stderr) == (2, [], True)
