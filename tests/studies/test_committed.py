"""Results as data: what is written is read back, in files that can be read and compared line by line."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import experiment, result

from resnet_jax.errors import UserError
from resnet_jax.studies import committed


def some() -> list[dict[str, Any]]:
    """Two cells, two seeds; a number that no decimal writes shortly, and what a network that diverged has."""
    first, second = experiment("resnet20", 20), experiment("plain20", 20, plain=True)
    return [
        result(first, 0, 0.1 + 0.2),
        result(first, 1, 26 / 3, selected_on_validation=7.5),
        result(second, 0, 9.25),
        result(second, 1, 100.0, diverged_at_step=17),
    ]


def test_what_is_written_is_read_back_exactly(tmp_path: Path) -> None:
    committed.write(tmp_path / "r.json", some(), command="resnet-jax study x", reduced="At reduced scale.")
    assert committed.read(tmp_path / "r.json") == some()


def test_reading_what_was_read_and_written_changes_nothing(tmp_path: Path) -> None:
    committed.write(tmp_path / "one.json", some(), command="x")
    committed.write(tmp_path / "two.json", committed.read(tmp_path / "one.json"), command="x")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_results_and_results_that_differ_in_one_field_only(tmp_path: Path, count: int) -> None:
    """A single result has everything in common with all others; equal ones too."""
    one = some()[0]
    results = [one | {"seed": seed} for seed in range(count)]
    committed.write(tmp_path / "r.json", results, command="x")
    assert committed.read(tmp_path / "r.json") == results
    committed.write(tmp_path / "same.json", [one] * count, command="x")
    assert committed.read(tmp_path / "same.json") == [one] * count


def test_results_without_a_common_field(tmp_path: Path) -> None:
    results = [{"seed": 0, "value": 1.5}, {"seed": 1, "value": None}]
    committed.write(tmp_path / "r.json", results, command="x")
    assert committed.read(tmp_path / "r.json") == results


def test_a_result_is_a_line_and_what_all_share_is_written_once(tmp_path: Path) -> None:
    """So that a diff of two commits shows the runs that changed."""
    committed.write(tmp_path / "r.json", some(), command="x")
    text = (tmp_path / "r.json").read_text()
    found = json.loads(text)
    assert found["common"].keys() >= {"metric", "split", "examples", "versions", "device", "commit", "steps", "protocol"}
    assert found["common"].keys().isdisjoint({"value", "seed", "experiment", "model", "selected_on_validation", "diverged_at_step"})
    assert text.count("NVIDIA H100 80GB HBM3") == 1
    assert text.count("0123456789abcdef0123456789abcdef01234567") == 1
    assert all(row.keys().isdisjoint(found["common"]) for row in found["results"])
    rows = [json.loads(line.strip().rstrip(",")) for line in text.splitlines() if line.strip().startswith('{"')]
    assert rows == found["results"]
    assert [row["value"] for row in rows] == [0.1 + 0.2, 26 / 3, 9.25, 100.0]
    assert text.endswith("}\n")


def test_a_file_says_what_made_it_and_when(tmp_path: Path) -> None:
    before = datetime.date.today().isoformat()
    committed.write(tmp_path / "new" / "folder" / "r.json", some(), command='resnet-jax study "a b.py:c"', reduced="4 steps.")
    found = json.loads((tmp_path / "new" / "folder" / "r.json").read_text())
    assert (found["kind"], found["command"], found["reduced"]) == ("study", 'resnet-jax study "a b.py:c"', "4 steps.")
    assert before <= found["date"] <= datetime.date.today().isoformat()
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["r.json"], "nothing is left beside it"


FOREIGN = {
    "missing": None,
    "empty": "",
    "cut off": '{"kind": "study", "common": {}, "results": [\n  {"seed": 0},',
    "no JSON": "resnet20 8.75\n",
    "a list": "[1, 2]",
    "a number": "3",
    "nothing in it": "{}",
    "no results": '{"kind": "study", "common": {}}',
    "no common": '{"kind": "study", "results": [{"seed": 0}]}',
    "a benchmark": '{"benchmark": "step", "date": "2026-11-23", "rows": [{"seconds": 1.0}]}',
    "results of another kind": '{"kind": "study", "common": {}, "results": [1, 2]}',
    "results that are no list": '{"kind": "study", "common": {}, "results": 3}',
    "results that are a dictionary": '{"kind": "study", "common": {}, "results": {"a": 1}}',
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path, text: str | None) -> None:
    """With its name, and the command that writes one."""
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=rf"{path} holds no results of runs .*'resnet-jax report RUNS --save FILE'"):
        committed.read(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_bytes(b"\x80\xff\x00")
    with pytest.raises(UserError, match="holds no results of runs"):
        committed.read(tmp_path / "r.json")


def test_is_study(tmp_path: Path) -> None:
    """Benchmarks are committed in the same folder."""
    committed.write(tmp_path / "study.json", some(), command="x")
    (tmp_path / "bench.json").write_text('{"benchmark": "step", "rows": []}')
    (tmp_path / "other.json").write_text('{"kind": "lesion"}')
    assert [committed.is_study(tmp_path / f"{name}.json") for name in ("study", "bench", "other")] == [True, False, False]


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_file_among_the_committed_ones_is_refused_with_its_name(tmp_path: Path, text: str) -> None:
    """`report --paper` looks at all of them: one that a merge broke must be named, and not end in a traceback."""
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(UserError, match=f"{tmp_path}/r.json"):
        committed.is_study(tmp_path / "r.json")


# Notes of a study.


def test_a_study_is_remembered_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "new"
    committed.remember_study(folder, command="resnet-jax study x", cells=["c", "a", "b"], reduced="4 steps.")
    assert committed.study(folder) == {"command": "resnet-jax study x", "cells": ["c", "a", "b"], "reduced": "4 steps."}
    assert committed.study_order(folder) == {"c": 0, "a": 1, "b": 2}
    # Run on by another command: what came before stays noted, once.
    for _ in range(2):
        committed.remember_study(folder, command="again", cells=("a",), reduced="")
    assert committed.study(folder) == {"command": "resnet-jax study x; again", "cells": ["a"], "reduced": "4 steps."}


def test_the_notes_of_several_studies_are_put_together(tmp_path: Path) -> None:
    committed.remember_study(tmp_path / "one", command="first", cells=["a", "b"], reduced="Small.")
    committed.remember_study(tmp_path / "two", command="second", cells=["b", "c"], reduced="")
    found = committed.notes([tmp_path / "two", tmp_path / "one", tmp_path / "nothing"])
    assert found == {"command": "second; first", "cells": ["b", "c", "a"], "reduced": "Small."}
    assert committed.notes([tmp_path / "nothing"]) == {}


@pytest.mark.parametrize("cells", [7, ["a", 1], "abc"])
def test_damaged_names_of_cells_are_refused(cells: object, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(json.dumps({"command": "x", "cells": cells}))
    with pytest.raises(UserError, match="study.json is damaged: its cells"):
        committed.study_order(tmp_path)


def test_a_folder_without_notes_has_none(tmp_path: Path) -> None:
    assert committed.study(tmp_path) == {}
    assert committed.study_order(tmp_path) == {}
    assert committed.study(tmp_path / "missing") == {}


def test_a_file_of_results_says_command_and_scale_as_a_folder_does(tmp_path: Path) -> None:
    """What is saved once more keeps them."""
    committed.write(tmp_path / "r.json", some(), command="resnet-jax study x", reduced="4 steps.")
    found = committed.study(tmp_path / "r.json")
    assert (found["command"], found["reduced"]) == ("resnet-jax study x", "4 steps.")


def test_a_damaged_note_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / committed.STUDY_FILE).write_text('{"command": ')
    with pytest.raises(UserError, match=f"{tmp_path}/{committed.STUDY_FILE}"):
        committed.study(tmp_path)
