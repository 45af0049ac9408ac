"""What stands beside the report page, as CSV and JSON: the same numbers as in the runs' own files."""

import csv
import json
import math
from pathlib import Path

import pytest
from made_up_page import STUDY, entry, page_of, three_cells, write_three_cells
from made_up_runs import experiment, write_run

from resnet_jax.studies.cells import Cell, collect, table
from resnet_jax.studies.comparison import Comparison, Refusal


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_three_cells(tmp_path / "runs")


@pytest.fixture
def cells(runs: Path) -> list[Cell]:
    return three_cells(runs)


def test_csv_has_a_row_a_run_equal_to_its_result(cells: list[Cell], runs: Path) -> None:
    page_of(cells, runs / "report.html")
    with (runs / "report.csv").open(newline="") as file:
        found = {(row["cell"], row["seed"]): row for row in csv.DictReader(file)}
    assert len(found) == 7
    row = found["plain-56", "1"]
    assert list(row)[:10] == [
        "cell", "seed", "value", "best_over_training", "selected_on_validation", "training_error_percent", "diverged_at_step",
        "parameters", "seconds", "source",
    ]  # fmt: skip
    assert (row["value"], row["diverged_at_step"], row["seconds"], row["source"]) == ("100.0", "37", "", "plain-56/seed-1")
    for (name, seed), row in found.items():
        file = runs / name / f"seed-{seed}" / "result.json"
        if file.exists():
            text = json.loads(file.read_text())
            assert float(row["value"]) == text["value"]
            assert int(row["parameters"]) == text["parameters"]
            protocol = {key: "" if value is None else str(value) for key, value in text["protocol"].items()}
            assert {key.removeprefix("protocol."): value for key, value in row.items() if key.startswith("protocol.")} == protocol
        else:
            assert row["value"] == row["protocol.dataset"] == ""


def test_json_holds_everything(cells: list[Cell], runs: Path) -> None:
    compared = (Comparison(entry(), refused=(Refusal(cells[0], {"view": ("ten", "one")}),)), Comparison(entry(row="none")))
    page_of(cells, runs / "report.html", study=STUDY, comparisons=compared)
    text = json.loads((runs / "report.json").read_text())
    assert text["study"] == STUDY
    assert text["cells"] == table(cells)
    assert text["comparisons"][0]["refused"] == [{"cell": "plain-20", "differing": {"view": ["ten", "one"]}}]
    assert len(text["results"]) == 6
    for found in text["results"]:
        told = {name: found.pop(name) for name in ("cell", "source")}
        assert found == json.loads((runs / told["source"] / "result.json").read_text())
        assert told["cell"] == found["experiment"]
    assert text["unfinished"] == [{"cell": "resnet-20", "seed": 2, "source": "resnet-20/seed-2"}]


def test_json_is_json_where_a_number_is_none(tmp_path: Path) -> None:
    write_run(tmp_path / "a", experiment("a", 20), 0, 8.0, training_error_percent=math.nan)
    page_of(collect([tmp_path]), tmp_path / "report.html")
    text = (tmp_path / "report.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["results"][0]["training_error_percent"] is None
