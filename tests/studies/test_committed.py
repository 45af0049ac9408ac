"""Committed results: exact round trip, one line per result, corrupt files."""

import json
from pathlib import Path
from typing import Any

import pytest
from resnet_jax.errors import UserError
from resnet_jax.studies import results as results_lib
from synthetic_runs import experiment, result


def some() -> list[dict[str, Any]]:
    """Two variants, two seeds; a number without a short decimal, and a diverged run."""
    first, second = experiment("resnet20", 20), experiment("plain20", 20, plain=True)
    return [
        result(first, 0, 0.1 + 0.2),
        result(first, 1, 26 / 3, selected_on_validation=7.5),
        result(second, 0, 9.25),
        result(second, 1, 100.0, diverged_at_step=17),
    ]


def test_results_round_trip_exactly(tmp_path: Path) -> None:
    for results in (some(), some()[:1], [some()[0]] * 2, [{"seed": 0, "value": 1.5}, {"seed": 1, "value": None}]):
        results_lib.write(tmp_path / "new" / "r.json", results, command="x")
        assert results_lib.read(tmp_path / "new" / "r.json") == results
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["r.json"], "no temporary file remains"


def test_write_puts_each_result_on_a_line_and_shared_fields_once(tmp_path: Path) -> None:
    """A diff of two commits then shows the runs that changed."""
    results_lib.write(tmp_path / "r.json", some(), command='resnet-jax study "a b.py:c"', reduced="4 steps.")
    text = (tmp_path / "r.json").read_text()
    written = json.loads(text)
    assert (written["kind"], written["command"], written["reduced"]) == ("study", 'resnet-jax study "a b.py:c"', "4 steps.")
    assert written["common"].keys() >= {"metric", "split", "examples", "versions", "device", "commit", "steps", "protocol"}
    assert text.count("NVIDIA H100 80GB HBM3") == 1
    rows = [json.loads(line.strip().rstrip(",")) for line in text.splitlines() if line.strip().startswith('{"')]
    assert rows == written["results"]
    assert [row["value"] for row in rows] == [0.1 + 0.2, 26 / 3, 9.25, 100.0]


def test_read_rejects_corrupt_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    texts = [b"", b'{"kind": "study", "common": {}, "results": [\n  {"seed": 0},', b"[1, 2]", b"3", b"{}", b"\x80\xff"]
    texts += [b'{"kind": "study", "common": {}}', b'{"kind": "study", "common": {}, "results": [1, 2]}']
    for text in texts:
        path.write_bytes(text)
        with pytest.raises(UserError, match=f"{path}"):
            results_lib.read(path)
    with pytest.raises(UserError, match="missing.json"):
        results_lib.read(tmp_path / "missing.json")
    path.write_text("{")
    for read in (results_lib.is_study, lambda path: results_lib.notes([path])):
        with pytest.raises(UserError, match=f"{path} is corrupt"):
            read(path)


def test_notes_merge_several_studies(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    results_lib.remember_study(folder, command="first", variants=["a", "b"], reduced="Small.")
    for _ in range(2):
        results_lib.remember_study(folder, command="again", variants=["a", "b"], reduced="")
    assert results_lib.notes([folder]) == {"command": "first; again", "variants": ["a", "b"], "reduced": "Small."}
    results_lib.write(tmp_path / "two.json", some(), command="second", reduced="4 steps.")
    results_lib.remember_study(tmp_path / "three", command="third", variants=["b", "c"], reduced="")
    notes = results_lib.notes([tmp_path / "three", folder, tmp_path / "two.json", tmp_path / "missing"])
    assert notes == {"command": "third; first; again; second", "variants": ["b", "c", "a"], "reduced": "Small.; 4 steps."}
    assert results_lib.notes([tmp_path / "missing"]) == {}
