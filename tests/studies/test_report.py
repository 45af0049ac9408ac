"""The report page, the files beside it, its figures, and tables in the terminal."""

import base64
import csv
import dataclasses
import html
import io
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from matplotlib.figure import Figure
from resnet_jax import terminal
from resnet_jax.errors import UserError
from resnet_jax.studies import figures, report
from resnet_jax.studies import results as results_lib
from resnet_jax.studies.comparison import Comparison
from resnet_jax.studies.report import Finding
from resnet_jax.studies.results import Run, VariantRuns, collect
from resnet_jax.terminal import Table
from rich.console import Console
from synthetic_runs import entry, experiment, records, result, write_run

STUDY = {
    "command": "resnet-jax study experiments/he2015_cifar10.py:figure6 --seeds 2 --workdir figure6",
    "variants": ["plain-20", "resnet-20", "plain-56", "resnet-110"],
    "reduced": "At reduced scale: 400 steps in place of 64,000. Not comparable with the paper's numbers.",
}


def plain(markup: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", markup)).split())


class Page:
    """Tags, links to files, words and table rows of a page."""

    def __init__(self, text: str) -> None:
        self.tags = re.findall(r"<(\w+)", text)
        self.links = re.findall(r'<a href="([^"]*)"', text)
        self.words = plain(text)
        rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
        self.rows = [list(map(plain, re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", row, re.DOTALL))) for row in rows]


def page_of(variants: list[VariantRuns], path: Path, study: Any = None, comparisons: Any = ()) -> Page:
    report.write(variants, path, study=study or {}, comparisons=comparisons)
    return Page(path.read_text())


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> list[VariantRuns]:
    """plain-20 twice, resnet-20 twice and one unfinished, plain-56 with a seed that diverged."""
    base = tmp_path_factory.mktemp("study") / "runs"
    values = {("plain-20", 20): (12.5, 13.5), ("resnet-20", 20): (9.5, 10.1, None), ("plain-56", 56): (30.0, 100.0)}
    for (name, depth), errors in values.items():
        recipe = experiment(name, depth, plain=name.startswith("plain"), steps=400)
        for seed, value in enumerate(errors):
            measured = records(400, 4.0, value or 10.0, every=20, scored=50, seed=seed)
            diverged_at_step = 37 if value == 100 else None
            write_run(base / name / f"seed-{seed}", recipe, seed, value, records=measured, diverged_at_step=diverged_at_step)
    results_lib.remember_study(base, **STUDY)
    return collect([base])


# Errors by hand. 12.5, 13.5: mean 13, deviation sqrt(2 x 0.25). Paired -3.0, -3.4: mean -3.2, t(0.975, 1) = 12.7062, ± 12.7062 x 0.2.
# Median (30 + 100) / 2 above 20 is a fail; paired 17.5, 86.5: mean 52, ± 12.7062 x 34.5.
WIDE = "+52.00 (-386.36 to +490.36): not distinguishable"
HEADLINE = [
    ["plain-20", "2", "13.00 ± 0.71", "13.00", "12.50", "1.30 ± 0.07", ""],
    ["resnet-20", "2/3", "9.80 ± 0.42", "9.80", "9.50", "0.98 ± 0.04", "-3.20 (-5.74 to -0.66)"],
    ["plain-56", "2, 1 diverged", "65.00 ± 49.50 fail", "65.00", "30.00", "51.50 ± 68.59", WIDE],
]


def printed(table: Table) -> str:
    console = Console(width=250, record=True, file=io.StringIO())
    console.print(terminal.terminal(table))
    return console.export_text()


def test_headline_is_the_same_in_every_renderer(variants: list[VariantRuns], tmp_path: Path) -> None:
    headline, costs = results_lib.tables(variants)
    assert headline.cells() == HEADLINE
    # Best over training is 0.25 below; the diverged seed has no time.
    assert [row[1:] for row in costs.cells()][::2] == [["12.75 ± 0.71", "269,722", "605"], ["64.75 ± 49.50", "853,018", "600"]]
    assert all(row in page_of(variants, tmp_path / "report.html").rows for row in HEADLINE)
    lines = printed(headline).splitlines()
    assert [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line] == HEADLINE
    # Brackets are markup to rich.
    table = Table("[b]", ("name", "n"), (("[red]a[/red]", 12_345), (None, float("nan")), ("c", 12.34567)), note="[i]")
    assert all(text in printed(table) for text in ("[b]", "[red]a[/red]", "12,345", "12.35", "[i]"))


def test_variants_without_results_and_validation_errors_have_their_place(variants: list[VariantRuns], tmp_path: Path) -> None:
    write_run(tmp_path / "open", experiment("open", 44), 0)
    write_run(tmp_path / "selected", experiment("selected", 32), 0, 8.0, selected_on_validation=8.3)
    unfinished, selected = collect([tmp_path / "open"]) + collect([tmp_path / "selected"])
    page = page_of([unfinished, *variants, selected], tmp_path / "report.html", STUDY)
    assert ["open", "0/1", "not finished", "", "", "", ""] in page.rows
    assert ["resnet-110", "0", "not run", "", "", "", ""] in page.rows
    assert any("difference to plain-20, paired (95 %)" in row for row in page.rows), "the first with results is the baseline"
    for text in (STUDY["command"], STUDY["reduced"], "he2015_cifar10, figure6", "selected on validation %"):
        assert text in page.words
    assert "selected on validation %" not in page_of(variants, tmp_path / "report.html").words
    assert "he2015" in page_of([], tmp_path / "e.html", {"command": "resnet-jax report --paper he2015"}, (Comparison(entry()),)).words


def test_published_numbers_are_beside_ours(variants: list[VariantRuns], tmp_path: Path) -> None:
    """Diamonds are published errors of the last step: neither selected ones nor bounds, counts or unverified numbers."""
    ours = ((variants[1], variants[1].error),)
    compared = (
        Comparison(entry(), ours=ours),
        Comparison(entry(row="mean", statistic="mean", runs=5), ours=ours),
        Comparison(entry(row="selected", statistic="val-selected"), ours=ours),
        Comparison(entry(row="plain"), mismatches=((variants[0], {"training_images": (45_000, 50_000)}),)),
        Comparison(entry(row="open", value=20.0, relation=">"), ours=ours),
        Comparison(entry(row="size", metric="parameters", value=270_000.0, statistic="exact"), counted=269_722),
        Comparison(entry(row="remembered", mark="M", value=1.23), ours=ours),
    )
    page = page_of(variants, tmp_path / "report.html", comparisons=compared)
    rows = {row[0]: row[1:] for row in page.rows if row}
    assert rows["ResNet-20"] == ["top-1 error %", "8.75", "V:S1", "9.80 ± 0.42, median 9.80, best 9.50, n=2 (resnet-20)"]
    assert rows["plain"][-1] == "plain-20 not comparable: training_images 45000 there, 50000 here not run"
    assert rows["open"][1] == "fail (> 20)"
    assert rows["size"] == ["parameters", "270,000", "V:S1", "269,722"]
    assert "remembered" not in page.words
    for text in ("1 unverified published numbers are not shown", "to run: resnet-jax study experiments/he2015_cifar10.py:table6"):
        assert text in page.words
    figure = (tmp_path / "report.html").read_text().partition('<figure class="errors">')[2].partition("</figure>")[0]
    assert figure.count("fill-opacity: 0; stroke: var(--c1") == 2
    assert "Comparison with published numbers" not in page_of(variants, tmp_path / "report.html").words


def test_every_run_is_traceable(variants: list[VariantRuns], tmp_path: Path) -> None:
    page = page_of(variants, tmp_path / "pages" / "report.html")
    assert len(page.links) == 7
    assert all((tmp_path / "pages" / unquote(link) / "experiment.json").is_file() for link in page.links)
    listed = [row for row in page.rows if len(row) == 8]
    assert listed[2][:5] == ["plain-20", "1", "13.50", "1.35", "the last augmented batches"]
    assert listed[2][6:] == [variants[0].results[1]["fingerprint"], "1" * 64]
    assert ["resnet-20", "2", "unfinished"] in [row[:3] for row in listed]
    for text in ("a network that diverged at step 37", "pad 4, random crop, random flip", "1 x NVIDIA H100 80GB HBM3, 16 cores"):
        assert text in page.words
    first = (tmp_path / "pages" / "report.html").read_bytes()
    page_of(variants, tmp_path / "pages" / "report.html")
    assert (tmp_path / "pages" / "report.html").read_bytes() == first, "deterministic"
    assert len(first) < 200_000


def test_csv_and_json_equal_the_results(variants: list[VariantRuns], tmp_path: Path) -> None:
    runs = variants[0].runs[0].source.parents[1]
    compared = (Comparison(entry(), mismatches=((variants[0], {"view": ("ten", "one")}),)),)
    page_of(variants, runs / "report.html", STUDY, compared)
    rows = {row["source"]: row for row in csv.DictReader((runs / "report.csv").read_text().splitlines())}
    text = json.loads((runs / "report.json").read_text())
    assert (len(rows), len(text["results"])) == (7, 6)
    for ours in text["results"]:
        written = json.loads((runs / ours["source"] / "result.json").read_text())
        assert ours == {**written, "variant": written["experiment"], "source": ours["source"]}
        assert float(rows[ours["source"]]["value"]) == ours["value"]
    assert rows["resnet-20/seed-2/"]["value"] == ""
    assert text["unfinished"] == [{"variant": "resnet-20", "seed": 2, "source": "resnet-20/seed-2/"}]
    assert (text["study"], text["variants"]) == (STUDY, results_lib.table(variants))
    assert text["comparisons"][0]["mismatches"] == [{"variant": "plain-20", "differing": {"view": ["ten", "one"]}}]
    write_run(tmp_path / "a", experiment("a", 20), 0, 8.0, training_error_percent=math.nan)
    page_of(collect([tmp_path]), tmp_path / "report.html")
    assert json.loads((tmp_path / "report.json").read_text())["results"][0]["training_error_percent"] is None


def test_page_loads_nothing_and_escapes_everything(tmp_path: Path) -> None:
    name = '<script>alert("1")</script>&'
    recipe = dataclasses.replace(experiment("a", 20, steps=100), name=name)
    measured = records(100, 1.0, 8.0, every=10, scored=50)
    write_run(tmp_path / "javascript:alert(1) <b>" / "s", recipe, 0, 8.0, records=measured, training_error_of="<i>", commit="<u>")
    variants = collect([tmp_path])
    hostile = entry(row="<em>row</em>", paper="<main>", table="<nav>", mark="V:<q>", caption="<hr>")
    mismatch = (variants[0], {"<s>": ("<a>", "<p>")})
    compared = (Comparison(hostile, ours=((variants[0], variants[0].error),)), Comparison(hostile, mismatches=(mismatch,)))
    study = {"command": "<tt>", "reduced": "<strike>", "variants": ["<center>"]}
    page = page_of(variants, tmp_path / "report.html", study, compared)
    tags = {"script", "link", "iframe", "img", "object", "i", "u", "em", "hr", "nav", "q", "s", "tt", "strike", "center"}
    assert not tags & set(page.tags)
    assert page.words.count(name) >= 4
    assert not re.search(r"@import|url\(http|\s(src|srcset|data|action|on\w+)=", (tmp_path / "report.html").read_text())
    assert [link[:13] for link in page.links] == ["javascript%3A"], "a directory is no scheme"


def variant(name: str, *values: float) -> VariantRuns:
    """Runs of seeds 0, 1, ...; an error of 100 % is that of a diverged run."""
    results = [result(experiment("x", 20), s, v, diverged_at_step=7 if v == 100 else None) for s, v in enumerate(values)]
    return VariantRuns(name, [Run(seed, contents, Path()) for seed, contents in enumerate(results or [None])])


def texts(svg: str) -> set[str]:
    return {element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")}


def dots(svg: str) -> list[tuple[float, float]]:
    marks = re.findall(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)" style="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y, style in marks if "--c0" in style]


def test_every_seed_is_a_dot_in_the_figure_of_errors() -> None:
    svg = figures.draw_errors([variant("first", 6.0, 8.0), variant("same", 7.0, 7.0), variant("not run")], {})
    assert len(set(dots(svg))) == 4
    assert {"first", "7.00 ± 1.41", "same"} < texts(svg)
    assert not any("fail" in text for text in texts(svg))
    failing = figures.draw_errors([variant("a", 7.0), variant("b", 60.0, 100.0)], {})
    assert len(dots(failing)) == 2, "a diverged seed is a cross"
    assert any("fail: above 20 %" in text for text in texts(failing))
    assert figures.draw_errors([variant("not run")], {}) == ""
    # Beyond a factor of 10 equal factors are equal distances; 0 has a place on the left.
    for values in ((2.0, 4.0, 6.0), (0.1, 1.0, 10.0, 99.0)):
        places = [x for x, _ in dots(figures.draw_errors([variant(str(value), value) for value in values], {}))]
        assert places[-1] - places[-2] == pytest.approx(places[-2] - places[-3], abs=0.5)
    for values in ((0.0, 0.2, 50.0), (0.0, 0.0), (5.0,), (0.01, 0.02)):
        svg = figures.draw_errors([variant("a", *values)], {})
        places = [x for x, _ in dots(svg)]
        assert len(places) == len(values)
        assert 0 < min(places) <= max(places) < float(ET.fromstring(svg).attrib["viewBox"].split()[2])


def test_svg_is_text_without_styles_or_shared_identifiers() -> None:
    svg = figures.draw_errors([variant(name, 5.0) for name in ("$x^2$ & <b>", "日本語", "x" * 200)], {})
    assert {"$x^2$ & <b>", "日本語"} < texts(svg)
    assert not [text for text in ("<style", "<metadata", figures.INK) if text in svg]
    identifiers = re.findall(r' id="([^"]*)"', svg)
    assert {identifier.partition("-")[0] for identifier in identifiers} == {"errors"}
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', svg)) <= set(identifiers)


def test_curve_is_mean_least_and_most_over_seeds() -> None:
    """Seeds count as far as they came; 1,000 steps are 200 windows of 5."""

    def records_of(split: str, errors: dict[int, float]) -> list[dict[str, Any]]:
        return [{"step": step, "split": split, "error_percent": error} for step, error in errors.items()]

    runs = [records_of("test", {10: 4.0, 20: 2.0, 30: 5.0}), records_of("test", {10: 8.0, 20: 3.0}), records_of("train", {10: 99.0})]
    curve = figures.curve(runs, "test")
    assert curve is not None
    np.testing.assert_allclose([curve.steps, curve.mean, curve.low, curve.high], [[10, 20, 30], [6, 2.5, 5], [4, 2, 5], [8, 3, 5]])
    windows = figures.curve([records_of("test", {step: 90.0 if step < 100 else 8.0 for step in range(1, 1001)})], "test")
    assert windows is not None
    np.testing.assert_allclose(windows.steps, np.arange(3, 1001, 5))
    assert figures.axis_limits([{"test": windows}])["ylim"] == (0, pytest.approx(1.1 * 8)), "early errors do not set the axis"


def test_panels_are_families_on_shared_axes(tmp_path: Path) -> None:
    """One color per depth; one depth trained in two ways takes two panels."""
    measured = records(64_000, 1.0, 30.0, every=3200, scored=8000)
    for name, batch_size in (("plain-20", 128), ("plain-56", 128), ("resnet-56", 128), ("resnet-56-b", 64)):
        recipe = experiment(name, int(name.split("-")[1]), plain=name.startswith("plain"), batch_size=batch_size)
        write_run(tmp_path / name, recipe, 0, records=measured)
    panels = dict(figures.panels(collect([tmp_path])))
    assert set(panels) == {"plain", "resnet-56", "resnet-56-b"}
    assert {"plain-20", "plain-56", "step", "60k", "error (%)"} <= texts(panels["plain"])
    assert texts(panels["plain"]) - {"plain-20", "plain-56"} == texts(panels["resnet-56"]) - {"resnet-56"}
    assert "--c1" in panels["resnet-56"]
    assert "--c0" not in panels["resnet-56"]


def test_findings_are_written_read_back_and_shown_in_the_report(tmp_path: Path) -> None:
    write_run(tmp_path / "run", experiment("resnet-20", 20), 0, 8.5)
    figure = Figure(figsize=(4, 3))
    figure.add_subplot(xlabel="a length (m)")
    table = Table("first", ("network", "error %"), (("a", 12.34567), ("b", float("nan"))))
    rows = [{"network": "a", "error": np.float64(12.34567)}, {"network": "b", "error": float("nan")}]
    finding = Finding(name="synthetic", title="A <title>", caption="The caption.", tables=(table,), rows=rows)
    files = finding.write("resnet-jax analyze synthetic", lambda: figure, tmp_path / "run" / report.FINDINGS)
    assert [file.name for file in files] == ["synthetic.json", "synthetic.csv", "synthetic.svg", "synthetic.png"]
    written = json.loads(files[0].read_text())
    assert written["command"] == "resnet-jax analyze synthetic"
    assert written["rows"] == [{"network": "a", "error": 12.34567}, {"network": "b", "error": None}]
    assert next(csv.DictReader(files[1].read_text().splitlines())) == {"network": "a", "error": "12.34567"}
    ((finding, image),) = report.read_findings([tmp_path / "run"])
    assert [table.cells() for table in finding.tables] == [[["a", "12.35"], ["b", ""]]]
    page = page_of(collect([tmp_path]), tmp_path / "report.html")
    assert ["a", "12.35"] in page.rows
    assert all(text in page.words for text in ("Analyses", "A <title>"))
    # In an image no script of an SVG runs.
    assert f'<img src="{image}"' in (tmp_path / "report.html").read_text()
    assert b"a length (m)" in base64.b64decode(image.partition("base64,")[2]) == files[2].read_bytes()
    files[0].write_text("{")
    with pytest.raises(UserError, match=r"synthetic\.json is corrupt, or its figure is missing"):
        report.read_findings([tmp_path / "run"])
