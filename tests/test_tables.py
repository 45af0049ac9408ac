"""Tables in the terminal: what a reader sees of fails, divergence, refusals and what is not there."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from rich.console import Console
from rich.table import Table
from studies.made_up_runs import experiment, result

from resnet_jax import cli, tables
from resnet_jax.configured import configured
from resnet_jax.models.shortcuts import Scaled
from resnet_jax.studies import committed, comparison, ledger
from resnet_jax.studies.cells import Cell, Run, Spread
from resnet_jax.studies.comparison import Comparison, compare
from resnet_jax.studies.ledger import Entry
from resnet_jax.training.experiment import Experiment


def shown(*made: Table, width: int = 200) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    for table in made:
        console.print(table)
    return console.export_text()


def rows(text: str) -> dict[str, list[str]]:
    """First cell of a line of a table to the others."""
    lines = [[cell.strip() for cell in line.strip()[1:-1].split("│")] for line in text.splitlines() if "│" in line]
    return {line[0]: line[1:] for line in lines}


def heading(text: str) -> str:
    """Words of the heading, which may take several lines."""
    return " ".join(" ".join(line.replace("┃", " ") for line in text.splitlines() if "┃" in line).split())


def cell(made: Experiment, *values: float | None, **fields: Any) -> Cell:
    """Runs of seeds 0, 1, ...; None has not finished."""
    runs = [Run(seed, None if value is None else result(made, seed, value, **fields), Path()) for seed, value in enumerate(values)]
    return Cell(made.name, runs)


def entry(paper: str, table: str, row: str, metric: str = "top1_error") -> Entry:
    (found,) = (e for e in ledger.load(paper).entries if (e.table, e.row, e.metric) == (table, row, metric))
    return found


# Of cells.


def test_a_row_says_errors_seeds_and_the_difference() -> None:
    """7, 8 and 9: 8.00 ± 1.00; 6, 7.5 and 8.5: mean 7.33, squares 1.78 + 0.03 + 1.36, deviation 1.26; differences -1, -0.5, -0.5: mean
    -0.67, deviation 0.2887, half-width 4.3027 x 0.2887 / sqrt(3) = 0.72. Seconds are 600, 610, 620.
    """
    first = cell(experiment("original", 20), 7.0, 8.0, 9.0)
    second = cell(experiment("other", 32), 6.0, 7.5, 8.5, None)
    headline, rest = map(rows, map(shown, tables.cells_tables([first, second])))
    assert headline["original"] == ["3", "8.00 ± 1.00", "8.00", "7.00", "0.80 ± 0.10", ""]
    assert headline["other"] == ["3/4", "7.33 ± 1.26", "7.50", "6.00", "0.73 ± 0.13", "-0.67 (-1.38 to +0.05): not distinguishable"]
    assert rest["original"] == ["7.75 ± 1.00", "269,722", "610"]
    assert rest["other"] == ["7.08 ± 1.26", "464,154", "610"]


def test_fail_and_diverged_are_said() -> None:
    half = Cell("half", [Run(0, result(experiment("half", 20), 0, 12.0), Path())])
    half.runs.append(Run(1, result(experiment("half", 20), 1, 100.0, diverged_at_step=7), Path()))
    found = rows(shown(tables.cells_tables([cell(experiment("good", 32), 7.0), half])[0]))
    # The median is 56: a fail, of two seeds of which one diverged.
    assert found["half"][0] == "2, 1 diverged"
    assert found["half"][1].endswith(" fail")
    assert found["half"][2] == "56.00"
    assert "fail" not in found["good"][1]
    assert "diverged" not in found["good"][0]


def test_twenty_percent_is_no_fail() -> None:
    assert "fail" not in shown(*tables.cells_tables([cell(experiment("edge", 20), 20.0)]))


def test_what_has_not_run_says_so_and_is_compared_with_nothing() -> None:
    open_, first, second = cell(experiment("open", 44), None, None), cell(experiment("a", 20), 7.0), cell(experiment("b", 32), 8.0)
    found = rows(shown(tables.cells_tables([open_, first, second])[0]))
    assert found["open"][:2] == ["0/2", "not run"]
    assert set(found["open"][2:]) == {""}
    # The first that has run is what others are compared with.
    assert found["a"][-1] == ""
    assert found["b"][-1] == "+1.00, no interval (one seed)"


def test_the_validation_column_is_there_only_where_there_is_one() -> None:
    plain, chosen = cell(experiment("plain", 20), 7.0), cell(experiment("chosen", 32), 8.0, 8.0, selected_on_validation=7.25)
    assert "validation" not in heading(shown(tables.cells_tables([plain])[1]))
    text = shown(tables.cells_tables([plain, chosen])[1])
    assert "selected on validation %" in heading(text)
    assert "7.25 ± 0.00" in rows(text)["chosen"]
    assert rows(text)["plain"][1] == "–"


def test_a_cell_whose_seeds_all_diverged_has_no_time_and_no_nan() -> None:
    headline, rest = map(shown, tables.cells_tables([cell(experiment("gone", 20), 100.0, 100.0, diverged_at_step=3)]))
    assert rows(headline)["gone"][0] == "2, 2 diverged"
    assert rows(rest)["gone"][-1] == "–"
    text = headline + rest
    assert "nan" not in text


def test_names_are_shown_as_they_are() -> None:
    """Brackets are markup to rich; a name is not."""
    text = shown(*tables.cells_tables([cell(experiment("gate[bias]", 20), 7.0), cell(experiment("[red]scaled[/red]", 32), 7.0)]))
    assert "gate[bias]" in text
    assert "[red]scaled[/red]" in text


def test_nothing_has_a_table_too() -> None:
    assert rows(shown(tables.cells_tables([cell(experiment("open", 20), None)])[0]))["open"][:2] == ["0/1", "not run"]
    shown(*tables.cells_tables([]))


# Of a paper.


def paper_table(paper: str, table: str, *cells: Cell) -> str:
    """One table of a paper beside cells, as ``report --paper`` shows it."""
    read = ledger.load(paper)
    compared = [compare(each, cells) for each in read.entries if each.table == table and each.verified]
    assert compared
    return shown(*tables.paper_tables(read, compared))


def test_published_and_ours_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours 8.5 and 9.0: mean 8.75, deviation 0.35."""
    monkeypatch.chdir(ROOT)
    text = paper_table("he2015", "Table 6", cell(experiment("resnet20", 20), 8.5, 9.0))
    found = rows(text)
    assert "he2015, Table 6" in text
    assert found["ResNet-20"] == ["top-1 error %", "8.75", "V:S1", "8.75 ± 0.35, median 8.75, best 8.50, n=2 (resnet20)"]
    assert found["ResNet-32"] == ["top-1 error %", "7.51", "V:S1", "not run: resnet32"]
    assert found["ResNet-110"][1] == "6.43 best of 5"
    assert found["ResNet-110, mean of 5"][1] == "6.61 ± 0.16 mean of 5"
    assert found["Maxout"] == ["top-1 error %", "9.38", "V:S1", "–"]
    words = " ".join(text.split())
    assert "to run: resnet-jax study experiments/he2015_cifar10.py:table6 --seeds 5 --workdir runs/he2015-table6 [--only NAME]" in words
    assert words.count("to run:") == 1


def test_a_refusal_says_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = paper_table("he2015", "Table 6", cell(experiment("short", 20, steps=2000, batch_size=256), 30.0))
    words = " ".join(text.replace("│", " ").split())
    for word in ("short not comparable:", "steps 64000 there, 2000 here", "batch_size 128 there, 256 here", "not run: resnet20"):
        assert word in words, word
    assert "30.00" not in text, "what is refused is not put beside the paper's number"


def test_a_fail_of_the_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = rows(paper_table("he2016", "Table 1"))
    assert found["dropout shortcut"][1] == "fail (> 20) median"
    assert found["original"][1] == "6.61 median of 5"


def test_counts_stand_beside_counts() -> None:
    found = rows(paper_table("he2015", "Projections of ResNet-34"))
    assert found["ResNet-34 (B)"] == ["projections", "3", "C", "3"]
    assert found["ResNet-34 (C)"] == ["projections", "16", "C", "16"]
    assert found["ResNet-34 (C), beyond those of B"][-1] == "–"


def test_brackets_of_a_metric_are_shown() -> None:
    assert rows(paper_table("he2015", "Table 7"))["VGG-16, VOC 2007 test"] == ["mAP %", "73.2", "V:S1", "–"]
    assert "mAP@[.5,.95] %" in paper_table("he2015", "Table 8")


def test_what_is_not_measured_here_says_so() -> None:
    assert rows(paper_table("torchvision", "DenseNet"))["DenseNet-121"] == ["top-1 accuracy %", "74.434", "V:S10", "not measured here"]


def test_a_paper_without_study_has_nothing_to_run() -> None:
    text = paper_table("reruns", "akamaster/pytorch_resnet_cifar10")
    assert rows(text)["ResNet-20"] == ["top-1 error %", "8.27 test-selected", "V:S16", "not run"]
    assert "to run" not in text


def test_each_table_of_a_paper_is_one() -> None:
    read = ledger.load("veit2016")
    made = tables.paper_tables(read, [Comparison(each) for each in read.entries])
    assert [str(table.title).partition(":")[0] for table in made] == [
        "veit2016, Path lengths",
        "veit2016, Training only the effective paths",
    ]
    assert str(made[0].title).endswith("110-layer network of 54 modules: share of all paths")
    assert [table.row_count for table in made] == [2, 2]


@pytest.mark.parametrize(
    ("statistic", "runs", "said"),
    [
        ("single", None, ""),
        ("exact", None, ""),
        ("median", 5, " median of 5"),
        ("mean", None, " mean"),
        ("val-selected", None, " val-selected"),
        ("ensemble", None, " ensemble"),
    ],
)
def test_which_statistic_a_published_number_is(statistic: str, runs: int | None, said: str) -> None:
    given = dataclasses.replace(entry("he2015", "Table 6", "ResNet-20"), statistic=statistic, runs=runs)
    assert tables.how(given) == said


def test_all_that_may_be_compared_is_shown_of_ours() -> None:
    """1, 2 and 6: mean 3, squares 4 + 1 + 9, deviation sqrt(7)."""
    assert tables.spread_of(Spread((1.0, 6.0, 2.0))) == "3.00 ± 2.65, median 2.00, best 1.00, n=3"
    assert tables.spread_of(Spread((8.75,))) == "8.75, median 8.75, best 8.75, n=1"


# `report --paper`.


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    """What ``report --paper`` prints, wide enough for every line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        console = Console(width=250, record=True, file=io.StringIO())
        monkeypatch.setattr("resnet_jax.console.out", console)
        cli.main(["report", *arguments])
        return console.export_text() + capsys.readouterr().out

    return run


@pytest.mark.parametrize(
    ("key", "remembered", "count"),
    [
        # papers.md A10, A8: marked M or M-.
        ("bachlechner2020", ("6.46", "6.24", "5.93", "5.43", "4.8", "ReZero"), 7),
        ("zhang2019", ("6.61", "7.24", "27.6", "31.5"), 12),
        ("de2020", ("0.5",), 1),
        ("hu2018", ("23.29", "21.57", "20.7", "26.88", "6.37"), 28),
    ],
)
def test_unverified_numbers_are_never_shown(report: Any, key: str, remembered: tuple[str, ...], count: int) -> None:
    text = report("--paper", key)
    for number in remembered:
        assert number not in rows_only(text), number
    assert f"{count} more numbers of it are known from memory only" in text
    assert ledger.load(key).title in text
    told = json.loads(report("--paper", key, "--json"))
    assert len(told) == len(ledger.load(key).entries) - count
    assert all(each["mark"] == "C" or each["mark"].startswith("V") for each in told)


def rows_only(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "│" in line)


def test_the_verified_one_of_a_source_of_memories_is_shown(report: Any) -> None:
    assert rows(report("--paper", "bachlechner2020"))["ResNet-56"] == ["top-1 error %", "7.37 ± 0.06 mean", "V:S16", "not run"]


def scaled() -> Experiment:
    """Constant scaling by a half of both: 12.35 in He et al. 2016, Table 1."""
    made = experiment("scaled", 110)
    return dataclasses.replace(made, model=dataclasses.replace(made.model, shortcut=configured(Scaled, shortcut=0.5, branch=0.5)))


def test_committed_results_are_put_beside_the_paper(report: Any, tmp_path: Path) -> None:
    """Those under experiments/results, where no run is named; benchmarks there are left alone."""
    results = [result(scaled(), seed, value) for seed, value in ((0, 12.2), (1, 12.4))]
    committed.write(tmp_path / "experiments" / "results" / "scaled.json", results, command="x")
    (tmp_path / "experiments" / "results" / "bench.json").write_text('{"benchmark": "step", "rows": []}')
    found = rows(report("--paper", "he2016"))
    assert found["constant scaling 0.5, 0.5"][-1] == "12.30 ± 0.14, median 12.30, best 12.20, n=2 (scaled)"
    (told,) = (each for each in json.loads(report("--paper", "he2016", "--json")) if each["ours"])
    assert (told["published"], told["ours"][0]["values"]) == (12.35, [12.2, 12.4])


def test_runs_that_are_named_are_what_is_compared(report: Any, tmp_path: Path) -> None:
    committed.write(tmp_path / "mine.json", [result(scaled(), 0, 12.25)], command="x")
    assert "12.25" in rows(report("--paper", "he2016", str(tmp_path / "mine.json")))["constant scaling 0.5, 0.5"][-1]


def test_an_unknown_paper_is_answered_with_the_nearest(report: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        report("--paper", "veit2015")
    assert caught.value.code == 2
    assert "the ledger has no paper 'veit2015'; did you mean veit2016" in " ".join(capsys.readouterr().err.split())


def test_the_targets_of_a_comparison_are_verified() -> None:
    """The page of a study shows only such too."""
    found = comparison.beside([cell(experiment("resnet56", 56), 7.2)])
    assert {(each.entry.paper, each.entry.value) for each in found} >= {("he2015", 6.97), ("bachlechner2020", 7.37)}
    assert all(each.entry.mark == "C" or each.entry.mark.startswith("V") for each in found)
