"""The report page and the files beside it: complete, traceable, self-contained, escaped."""

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from made_up_page import STUDY, entry, page_of, rows, three_cells, write_three_cells
from made_up_runs import experiment, records, result, write_run

from resnet_jax.studies import committed, report
from resnet_jax.studies.cells import Cell, Spread, collect
from resnet_jax.studies.comparison import Comparison, Refusal
from resnet_jax.studies.ledger import Entry


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return write_three_cells(tmp_path / "runs")


@pytest.fixture
def cells(runs: Path) -> list[Cell]:
    return three_cells(runs)


def test_the_headline_by_hand(cells: list[Cell], runs: Path) -> None:
    found = rows(page_of(cells, runs / "report.html"))
    # 12.5 and 13.5: mean 13, deviation sqrt(2 x 0.25); made up: best over training 0.25 below, a tenth as training error.
    assert found["plain-20"] == [
        "plain-20", "2", "13.00 ± 0.71", "13.00", "12.50", "12.75 ± 0.71", "1.30 ± 0.07", "–", "269,722", "605",
    ]  # fmt: skip
    # Paired: -3.0 and -3.4, mean -3.2, deviation 0.2 sqrt(2); t(0.975, 1) = 12.7062: -3.2 ± 12.7062 x 0.2.
    assert found["resnet-20"] == [
        "resnet-20", "2 1 unfinished", "9.80 ± 0.42", "9.80", "9.50", "9.55 ± 0.42", "0.98 ± 0.04",
        "-3.20 (-5.74 to -0.66)", "269,722", "605",
    ]  # fmt: skip
    # Median (30 + 100) / 2 above 20: fail. Paired 17.5 and 86.5: mean 52, ± 12.7062 x 34.5.
    assert found["plain-56"][:4] == ["plain-56", "2 1 diverged", "65.00 ± 49.50 fail", "65.00"]
    assert found["plain-56"][7] == "+52.00 (-386.36 to +490.36): not distinguishable"
    assert found["plain-56"][9] == "600", "the seed that diverged took no time worth telling"


def test_what_the_headline_is_and_what_it_is_not(cells: list[Cell], runs: Path) -> None:
    page = page_of(cells, runs / "report.html", study=STUDY)
    assert "error of the last step, neither the best over training nor selected" in page.words
    assert "selected on test" in page.words
    assert STUDY["command"] in page.words
    assert STUDY["reduced"] in page.words
    assert "he2015_cifar10, figure6" in page.words
    assert "reduced" not in page_of(cells, runs / "report.html", study=STUDY | {"reduced": ""}).words


def test_cells_that_did_not_run_are_there(runs: Path, cells: list[Cell]) -> None:
    write_run(runs / "resnet-32" / "seed-0", experiment("resnet-32", 32), 0)
    begun = [cell for cell in collect([runs]) if cell.name == "resnet-32"]
    found = rows(page_of([*begun, *cells], runs / "report.html", study=STUDY))
    assert found["resnet-110"] == ["resnet-110", "0", "not run"]
    assert found["resnet-32"] == ["resnet-32", "0 1 unfinished", "not run to its end"]
    # The first cell that has results is what the others are compared with.
    assert "difference to plain-20" in " ".join(page_of([*begun, *cells], runs / "report.html").tables["results"][0])


def test_errors_selected_on_validation_have_their_column_where_there_are_any(runs: Path, cells: list[Cell]) -> None:
    assert "selected on validation" not in page_of(cells, runs / "report.html").words
    write_run(runs / "v" / "seed-0", experiment("v", 32), 0, 8.0, selected_on_validation=8.3)
    page = page_of(collect([runs]), runs / "report.html")
    assert "selected on validation" in page.words
    assert rows(page)["v"][6] == "8.30"
    assert rows(page)["plain-20"][6] == "–"


def test_published_numbers_beside_ours(cells: list[Cell], runs: Path) -> None:
    plain, resnet, _ = cells
    page = page_of(
        cells,
        runs / "report.html",
        comparisons=(
            Comparison(entry(), ours=((resnet, resnet.error),)),
            Comparison(entry(row="best", value=6.43, statistic="best", runs=5), ours=((resnet, Spread((9.5,))),)),
            Comparison(entry(row="plain"), refused=(Refusal(plain, {"training_images": (45_000, 50_000), "view": ("ten", "one")}),)),
            Comparison(entry(row="open", value=20.0, relation=">", note="a footnote"), only="resnet20"),
            Comparison(entry(row="other", network=None, study=None)),
            Comparison(entry(row="top 5", metric="top5_error")),
            Comparison(entry(table="counts", row="size", metric="parameters", value=270_000.0, statistic="exact"), counted=269_722),
            Comparison(entry(table="counts", row="printed", metric="parameters", value=270_000.0, digits=2), counted=269_722),
            Comparison(entry(row="remembered", mark="M", value=1.23)),
        ),
    )
    first, second = (rows(page, name) for name in page.tables if name not in ("results", "runs"))
    assert first["ResNet-20"] == [
        "ResNet-20", "8.75 single run, top-1 error %", "V:S1", "9.80 ± 0.42 , median 9.80, best 9.50, n = 2 (resnet-20)",
    ]  # fmt: skip
    assert first["best"][1] == "6.43 best of 5, top-1 error %"
    assert first["best"][3] == "9.50 , median 9.50, best 9.50, n = 1 (resnet-20)"
    assert first["plain"][3] == "plain-20 not comparable: training images 45000 there, 50000 here; view ten there, one here"
    assert first["open a footnote"][1].startswith("fail (> 20)")
    assert first["open a footnote"][3].startswith("not run: resnet-jax study experiments/he2015_cifar10.py:table6 --seeds 5")
    assert first["other"][3] == "no network of this codebase"
    assert first["top 5"][3] == "not measured"
    assert second["printed"][1] == "270,000 to 2 digits, parameters"
    assert second["size"][1:] == ["270,000 exact, parameters", "V:S1", "269,722"]
    assert "remembered" not in page.words
    assert "1.23" not in page.words
    assert "1 published number not verified: not shown" in page.words


def test_no_published_numbers_no_section(cells: list[Cell], runs: Path) -> None:
    page = page_of(cells, runs / "report.html")
    assert "Paper | ours" not in page.words
    assert page.tables.keys() == {"results", "runs"}


def test_diamonds_stand_only_beside_errors_of_the_last_step(cells: list[Cell], runs: Path) -> None:
    ours = ((cells[1], cells[1].error),)

    def diamonds(*entries: Entry) -> int:
        report.write(cells, runs / "report.html", study={}, comparisons=[Comparison(each, ours=ours) for each in entries])
        text = (runs / "report.html").read_text()
        figure = text[text.index('<figure class="errors">') :]
        return figure[: figure.index("</figure>")].count("fill-opacity: 0; stroke: var(--c1")

    assert diamonds() == 0
    assert diamonds(entry()) == 1
    assert diamonds(entry(), entry(row="again", value=9.1)) == 2
    assert diamonds(entry(statistic="val-selected")) == 0
    assert diamonds(entry(relation=">", value=20.0)) == 0
    assert diamonds(entry(mark="M")) == 0


def test_every_run_is_traceable(cells: list[Cell], runs: Path, tmp_path: Path) -> None:
    page = page_of(cells, tmp_path / "elsewhere" / "pages" / "report.html")
    listed = page.tables["runs"][1:]
    assert len(listed) == 7
    folders = [link for link in page.links if not link.startswith("#")]
    assert folders[0] == "../../runs/plain-20/seed-0/"
    assert all((tmp_path / "elsewhere" / "pages" / unquote(link) / "experiment.json").is_file() for link in folders)
    text = json.loads((runs / "plain-20" / "seed-1" / "result.json").read_text())
    assert listed[1] == [
        "plain-20", "1", "13.50", "1.35", "the last augmented batches", "../../runs/plain-20/seed-1", text["fingerprint"], "1" * 64,
    ]  # fmt: skip
    assert ["resnet-20", "2", "unfinished"] in [row[:3] for row in listed]
    assert any("a network that diverged at step 37" in row for row in listed)
    # Protocol and experiment once a cell, and every link within the page goes somewhere.
    assert page.tags.count("details") == 3
    assert page.words.count('"warmup_until_error"') == 3
    assert "pad 4, random crop, random flip" in page.words
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.identifiers)


def test_committed_results_have_no_curves_and_link_to_their_file(tmp_path: Path) -> None:
    made = experiment("resnet-20", 20)
    file = tmp_path / "results" / "table6.json"
    committed.write(file, [result(made, seed, 8.0 + seed) for seed in (0, 1)], command="resnet-jax study", reduced="")
    page = page_of(collect([file]), tmp_path / "report.html", study=committed.study(file))
    assert "Training and test curves" not in page.words
    assert page.tags.count("svg") == 1
    assert [link for link in page.links if not link.startswith("#")] == ["results/table6.json"] * 2
    assert '"branch": "resnet_jax.models.branches:Branch(kernels=(3, 3))"' in page.words
    assert json.loads((tmp_path / "report.json").read_text())["study"] == {"command": "resnet-jax study", "reduced": ""}


def test_where_it_ran_with_what_differs(tmp_path: Path) -> None:
    made = experiment("a", 20)
    write_run(tmp_path / "a0", made, 0, 8.0)
    write_run(tmp_path / "a1", made, 1, 8.0, commit=None, versions={"python": "3.11.9", "jax": "0.11.0", "flax": "0.12.12"})
    words = page_of(collect([tmp_path]), tmp_path / "report.html").words
    assert "jax 0.10.1; 0.11.0" in words
    assert "python 3.11.9 jax" in words
    assert "0123456789abcdef0123456789abcdef01234567; not run from a checkout" in words
    assert "1 × NVIDIA H100 80GB HBM3 (gpu), 16 host cores" in words


def test_seconds_of_several_seeds_at_once_say_so(tmp_path: Path) -> None:
    made = experiment("a", 20)
    for seed in (0, 1):
        write_run(tmp_path / f"a{seed}", made, seed, 8.0, seeds_together=2, seconds=900.0)
    assert rows(page_of(collect([tmp_path]), tmp_path / "report.html"))["a"][-1] == "450 2 seeds at once"


def test_nothing_is_loaded_and_everything_is_escaped(tmp_path: Path) -> None:
    name = '<script>alert("1")</script>&'
    made = dataclasses.replace(experiment("a", 20, steps=100), name=name)
    folder = tmp_path / "javascript:alert(1) <b>" / "seed-0"
    write_run(folder, made, 0, 8.0, records=records(100, 1.0, 8.0, every=10, scored=50), training_error_of="<i>batches</i>", commit="<u>")
    found = collect([tmp_path])
    hostile = entry(row="<em>row</em>", note="<hr>", paper="<main>", table="<nav>", mark="V:<q>")
    compared = (
        Comparison(hostile, ours=((found[0], found[0].error),)),
        Comparison(dataclasses.replace(hostile, row="x"), refused=(Refusal(found[0], {"<s>": ("<a>", "<p>")}),)),
    )
    study = {"command": "<tt>", "reduced": "<strike>", "cells": ["<center>"]}
    page = page_of(found, tmp_path / "report.html", study=study, comparisons=compared)
    assert page.sources == []
    assert not {"script", "link", "iframe", "img", "object", "i", "u", "em", "hr", "main", "nav", "q", "s", "tt", "strike", "center"} & set(
        page.tags
    )
    assert page.words.count(name) >= 4
    text = (tmp_path / "report.html").read_text()
    assert "@import" not in text
    assert "url(http" not in text
    assert all(link.startswith("#") or "://" not in link for link in page.links)
    (link,) = {link for link in page.links if not link.startswith("#")}
    assert link.startswith("javascript%3A"), "a folder is no scheme"
    assert (tmp_path / unquote(link)).is_dir()


def test_written_twice_it_is_the_same(cells: list[Cell], runs: Path, tmp_path: Path) -> None:
    compared = (Comparison(entry(), ours=((cells[1], cells[1].error),)),)
    written = []
    for _ in range(2):
        page_of(cells, runs / "report.html", study=STUDY, comparisons=compared)
        written.append([(runs / f"report.{kind}").read_bytes() for kind in ("html", "csv", "json")])
    assert written[0] == written[1]


def test_no_runs_are_a_page_too(tmp_path: Path) -> None:
    page = page_of([], tmp_path / "report.html", study={"command": "resnet-jax report --paper he2015"}, comparisons=(Comparison(entry()),))
    assert "he2015 | ours" in page.words
    assert "no runs" in page.words
    assert page.tags.count("svg") == 0


def _many(base: Path) -> Iterator[Path]:
    for family in range(4):
        for depth in (20, 32, 44, 56, 110):
            made = experiment(f"family{family}-{depth}", depth, batch_size=64 * (family + 1))
            luck = random.Random(made.name)
            for seed in range(5):
                found = records(64_000, 1.0, 5.0 + family, seed=seed)
                yield write_run(base / made.name / f"seed-{seed}", made, seed, luck.gauss(5.0 + family, 0.2), records=found)


def test_a_hundred_full_runs_are_a_page_of_a_megabyte(tmp_path: Path) -> None:
    folders = list(_many(tmp_path))
    page = page_of(collect([tmp_path]), tmp_path / "report.html")
    assert len(page.tables["runs"]) == 1 + len(folders) == 101
    assert page.tags.count("svg") == 1 + 4
    assert (tmp_path / "report.html").stat().st_size < 1_000_000
