"""Comparisons: grouping of runs and the statistics over their seeds."""

import json
import math
from pathlib import Path

import pytest

from resnet_jax.studies import study


def write_run(folder: Path, name: str, seed: int, *, width: int, value: float | None) -> Path:
    folder.mkdir(parents=True)
    text = {
        "fingerprint": f"{width}{seed}",
        "identity": {"model": width, "seed": seed},
        "experiment": {"name": name, "steps": 5},
        "seed": seed,
    }
    (folder / "experiment.json").write_text(json.dumps(text))
    if value is not None:
        device = {"count": 1, "kind": "cpu", "backend": "cpu", "cores": 2}
        result = {
            "value": value,
            "training_error_percent": value / 2,
            "training_error_of": "all training images, last step",
            "parameters": width,
            "seconds": 10.0,
            "expected": None,
            "fingerprint": f"{width}{seed}",
            "state_digest": "d" * 64,
            "examples": 360,
            "protocol": {"batch_size": 8},
            "commit": None,
            "versions": {"jax": "0"},
            "device": device,
        }
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_means_and_sample_deviations_by_hand(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"a{s}", "a", s, width=1, value=v) for s, v in enumerate([4.0, 6.0, 8.0])]
    folders.append(write_run(tmp_path / "b", "b", 0, width=2, value=5.0))
    folders.append(write_run(tmp_path / "unfinished", "b", 1, width=2, value=None))
    first, second = study.summarise(folders)
    assert first["test_error"] == (6.0, 2.0)  # sqrt((4 + 0 + 4) / 2)
    assert first["training_error"] == (3.0, 1.0)
    assert (first["seeds"], second["seeds"]) == (3, 1)
    assert second["test_error"][0] == 5.0
    assert math.isnan(second["test_error"][1]), "one run has no spread"


def test_experiments_of_one_name_that_differ_are_not_averaged(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / f"a{width}", "a", 0, width=width, value=float(width)) for width in (1, 2)]
    rows = study.summarise(folders)
    assert [row["test_error"][0] for row in rows] == [1.0, 2.0]
    assert len({row["name"] for row in rows}) == 2


@pytest.mark.parametrize("depth", ["", "x", "x/y"])
def test_runs_are_found_at_any_depth(tmp_path: Path, depth: str) -> None:
    folder = write_run(tmp_path / "base" / depth / "run", "a", 0, width=1, value=None)
    assert study.find(tmp_path / "base") == [folder]
    assert study.find(folder) == [folder]
    assert study.find(tmp_path / "nowhere") == []
