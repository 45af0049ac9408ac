"""What a look inside networks found: written, read back, and a section of the page about the runs that it lies beside."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from made_up_page import Page
from made_up_runs import experiment, write_run
from matplotlib.figure import Figure

from resnet_jax.errors import UserError
from resnet_jax.studies import findings, report
from resnet_jax.studies.cells import collect
from resnet_jax.studies.findings import Finding, Table

FINDING = Finding(
    name="made_up",
    title="A <title>",
    caption="What it shows.",
    tables=(
        Table("first", ("network", "error %"), (("a", 12.34567), ("b", float("nan")))),
        Table("second", ("unit", "count"), ((0, 12_345),)),
    ),
    rows=[{"network": "a", "error": 12.34567}, {"network": "b", "error": float("nan")}],
    data={"a": {"values": np.array([1.5, np.nan]), "count": np.int64(3), "order": (1, 0)}},
)


def drawn() -> Figure:
    figure = Figure(figsize=(4, 3))
    figure.add_subplot().set_xlabel("a length (m)")
    return figure


def test_four_files_are_written_and_read_back(tmp_path: Path) -> None:
    files = findings.write(FINDING, "resnet-jax lab made_up", drawn, tmp_path / findings.FOLDER)
    assert [file.name for file in files] == ["made_up.json", "made_up.csv", "made_up.svg", "made_up.png"]
    written = json.loads(files[0].read_text())
    assert (written["kind"], written["command"]) == ("finding", "resnet-jax lab made_up")
    assert written["data"] == {"a": {"values": [1.5, None], "count": 3, "order": [1, 0]}}
    assert list(csv.DictReader(files[1].read_text().splitlines())) == [
        {"network": "a", "error": "12.34567"},
        {"network": "b", "error": "nan"},
    ]
    (found,) = findings.read([tmp_path])
    assert (found.title, found.caption) == ("A <title>", "What it shows.")
    assert [table.cells() for table in found.tables] == [[["a", "12.35"], ["b", ""]], [["0", "12,345"]]]
    assert "a length (m)" in found.svg


def test_what_lies_beside_a_run_stands_in_its_report(tmp_path: Path) -> None:
    write_run(tmp_path / "run", experiment("resnet-20", 20), 0, 8.5)
    report.write(collect([tmp_path]), tmp_path / "report.html", study={})
    assert "Laboratory" not in (tmp_path / "report.html").read_text()
    findings.write(FINDING, "resnet-jax lab made_up", drawn, tmp_path / "run" / findings.FOLDER)
    report.write(collect([tmp_path]), tmp_path / "report.html", study={})
    text = (tmp_path / "report.html").read_text()
    page = Page(text)
    assert "A <title>" in page.text
    assert [["network", "error %"], ["a", "12.35"], ["b", ""]] in page.tables.values()
    assert "a length (m)" in "".join(page.text)
    assert "<title>" not in text[text.index('id="laboratory"') :], "what a finding says is text"


@pytest.mark.parametrize("damage", ["made_up.json", "made_up.svg"])
def test_a_finding_that_is_damaged_is_said(tmp_path: Path, damage: str) -> None:
    findings.write(FINDING, "resnet-jax lab made_up", drawn, tmp_path / findings.FOLDER)
    (tmp_path / findings.FOLDER / damage).unlink() if damage.endswith("svg") else (tmp_path / findings.FOLDER / damage).write_text("{")
    with pytest.raises(UserError, match=r"made_up\.json is damaged, or its figure is gone .* call its command again"):
        findings.read([tmp_path])


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written .* name another folder, --to DIR"):
        findings.write(FINDING, "resnet-jax lab made_up", drawn, tmp_path / "file" / "lab")
