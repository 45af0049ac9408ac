"""The report page, the files beside it, its figures, and tables in Markdown and in the terminal."""

import csv
import dataclasses
import html
import io
import itertools
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
from resnet_jax.studies import figures, findings, report
from resnet_jax.studies import results as results_lib
from resnet_jax.studies.comparison import Comparison, Mismatch
from resnet_jax.studies.figures import Curve
from resnet_jax.studies.findings import Finding
from resnet_jax.studies.results import Run, VariantRuns, collect
from resnet_jax.terminal import Table
from rich.console import Console
from synthetic_runs import entry, experiment, records, result, write_run

STUDY = {
    "command": "resnet-jax study experiments/he2015_cifar10.py:figure6 --seeds 2 --workdir figure6",
    "variants": ["plain-20", "resnet-20", "resnet-110"],
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
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain-20 twice, resnet-20 twice and one unfinished, plain-56 with a seed that diverged."""
    base = tmp_path_factory.mktemp("study") / "runs"
    values = {("plain-20", 20): (12.5, 13.5), ("resnet-20", 20): (9.5, 10.1, None), ("plain-56", 56): (30.0, 100.0)}
    for (name, depth), errors in values.items():
        recipe = experiment(name, depth, plain=name.startswith("plain"), steps=400)
        for seed, value in enumerate(errors):
            diverged = {"diverged_at_step": 37} if value == 100 else {}
            measured = records(400, 4.0, value or 10.0, every=20, scored=50, seed=seed)
            write_run(base / name / f"seed-{seed}", recipe, seed, value, records=measured, **diverged)
    results_lib.remember_study(base, **STUDY)
    return base


@pytest.fixture(scope="module")
def variants(runs: Path) -> list[VariantRuns]:
    order = ["plain-20", "resnet-20", "plain-56"]
    return sorted(collect([runs]), key=lambda variant: order.index(variant.name))


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
    for lines, bar in ((terminal.markdown(headline)[2:], "|"), (printed(headline).splitlines(), "│")):
        assert [[cell.strip() for cell in line.split(bar)[1:-1]] for line in lines if bar in line] == HEADLINE


def test_tables_show_names_as_they_are() -> None:
    """Brackets are markup to rich, bars end a cell in Markdown."""
    table = Table("[b]", ("name", "n|m"), (("[red]a|b[/red]", 12_345), (None, float("nan")), ("c", 12.34567)), note="[i]")
    assert all(text in printed(table) for text in ("[b]", "[red]a|b[/red]", "12,345", "12.35", "[i]"))
    assert terminal.markdown(table) == ["| name | n\\|m |", "|---|---|", "| [red]a\\|b[/red] | 12,345 |", "|  |  |", "| c | 12.35 |"]


def test_variants_without_results_and_validation_errors_have_their_place(variants: list[VariantRuns], tmp_path: Path) -> None:
    write_run(tmp_path / "v", experiment("v", 32), 0, 8.0, selected_on_validation=8.3)
    write_run(tmp_path / "open", experiment("open", 44), 0)
    (selected, open_) = sorted(collect([tmp_path]), key=lambda variant: variant.name, reverse=True)
    page = page_of([open_, *variants, selected], tmp_path / "report.html", STUDY)
    assert ["open", "0/1", "not finished", "", "", "", ""] in page.rows
    assert ["resnet-110", "0", "not run", "", "", "", ""] in page.rows
    assert any("difference to plain-20, paired (95 %)" in row for row in page.rows), "the first with results is the baseline"
    for text in (STUDY["command"], STUDY["reduced"], "he2015_cifar10, figure6", "selected on validation %"):
        assert text in page.words
    short = STUDY | {"command": STUDY["command"].replace("experiments/he2015_cifar10.py", "he2015_cifar10")}
    page = page_of(variants, tmp_path / "report.html", short)
    assert "he2015_cifar10, figure6" in page.words
    assert "selected on validation %" not in page.words


def test_published_numbers_are_beside_ours(variants: list[VariantRuns], tmp_path: Path) -> None:
    """Diamonds are published errors of the last step: neither selected ones nor bounds, counts or unverified numbers."""
    plain, resnet, _ = variants
    ours = ((resnet, resnet.error),)
    compared = (
        Comparison(entry(), ours=ours),
        Comparison(entry(row="mean", value=6.61, statistic="mean", runs=5, spread=0.16), ours=ours),
        Comparison(entry(row="selected", statistic="val-selected"), ours=ours),
        Comparison(entry(row="plain"), mismatches=(Mismatch(plain, {"training_images": (45_000, 50_000)}),)),
        Comparison(entry(row="open", value=20.0, relation=">"), ours=ours),
        Comparison(entry(row="other", network=None, study=None)),
        Comparison(entry(row="size", metric="parameters", value=270_000.0, statistic="exact"), counted=269_722),
        Comparison(entry(row="remembered", mark="M", value=1.23), ours=ours),
    )
    page = page_of(variants, tmp_path / "report.html", comparisons=compared)
    rows = {row[0]: row[1:] for row in page.rows if row}
    assert rows["ResNet-20"] == ["top-1 error %", "8.75", "V:S1", "9.80 ± 0.42, median 9.80, best 9.50, n=2 (resnet-20)"]
    assert rows["mean"][1] == "6.61 ± 0.16 mean of 5"
    assert rows["plain"][-1] == "plain-20 not comparable: training_images 45000 there, 50000 here not run"
    assert rows["open"][1] == "fail (> 20)"
    assert rows["other"][-1] == "no network of this codebase"
    assert rows["size"] == ["parameters", "270,000", "V:S1", "269,722"]
    assert "remembered" not in page.words
    assert "1 unverified published numbers are not shown" in page.words
    assert "to run: resnet-jax study experiments/he2015_cifar10.py:table6" in page.words
    figure = (tmp_path / "report.html").read_text().partition('<figure class="errors">')[2].partition("</figure>")[0]
    assert figure.count("fill-opacity: 0; stroke: var(--c1") == 2
    assert "Paper | ours" not in page_of(variants, tmp_path / "report.html").words


def test_every_run_is_traceable(variants: list[VariantRuns], runs: Path, tmp_path: Path) -> None:
    page = page_of(variants, tmp_path / "pages" / "report.html")
    assert len(page.links) == 7
    assert all((tmp_path / "pages" / unquote(link) / "experiment.json").is_file() for link in page.links)
    text = json.loads((runs / "plain-20" / "seed-1" / "result.json").read_text())
    listed = [row for row in page.rows if len(row) == 8]
    assert listed[2][:5] == ["plain-20", "1", "13.50", "1.35", "the last augmented batches"]
    assert listed[2][6:] == [text["fingerprint"], "1" * 64]
    assert ["resnet-20", "2", "unfinished"] in [row[:3] for row in listed]
    assert page.words.count('"warmup_until_error"') == 3, "one experiment per variant"
    for text in ("a network that diverged at step 37", "pad 4, random crop, random flip", "1 x NVIDIA H100 80GB HBM3, 16 cores"):
        assert text in page.words


def test_csv_and_json_equal_the_results(variants: list[VariantRuns], runs: Path, tmp_path: Path) -> None:
    compared = (Comparison(entry(), mismatches=(Mismatch(variants[0], {"view": ("ten", "one")}),)), Comparison(entry(row="none")))
    page_of(variants, runs / "report.html", STUDY, compared)
    with (runs / "report.csv").open(newline="") as file:
        rows = {row["source"]: row for row in csv.DictReader(file)}
    text = json.loads((runs / "report.json").read_text())
    assert (len(rows), len(text["results"])) == (7, 6)
    for ours in text["results"]:
        place = {name: ours.pop(name) for name in ("variant", "source")}
        assert ours == json.loads((runs / place["source"] / "result.json").read_text())
        row = rows[place["source"]]
        assert (row["variant"], float(row["value"]), row["protocol.dataset"]) == (ours["experiment"], ours["value"], "cifar10")
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
    compared = (
        Comparison(hostile, ours=((variants[0], variants[0].error),)),
        Comparison(dataclasses.replace(hostile, row="x"), mismatches=(Mismatch(variants[0], {"<s>": ("<a>", "<p>")}),)),
    )
    study = {"command": "<tt>", "reduced": "<strike>", "variants": ["<center>"]}
    page = page_of(variants, tmp_path / "report.html", study, compared)
    tags = {"script", "link", "iframe", "img", "object", "i", "u", "em", "hr", "nav", "q", "s", "tt", "strike", "center"}
    assert not tags & set(page.tags)
    assert page.words.count(name) >= 4
    assert not re.search(r"@import|url\(http|\s(src|srcset|data|action|on\w+)=", (tmp_path / "report.html").read_text())
    assert [link[:13] for link in page.links] == ["javascript%3A"], "a directory is no scheme"


def test_page_is_deterministic_and_small(tmp_path: Path) -> None:
    for family, depth, seed in itertools.product(range(2), (20, 56, 110), range(2)):
        recipe = experiment(f"family{family}-{depth}", depth, batch_size=64 * (family + 1))
        measured = records(64_000, 1.0, 5.0 + family, every=200, seed=seed)
        write_run(tmp_path / recipe.name / f"seed-{seed}", recipe, seed, 5.0 + family, records=measured)
    assert page_of(collect([tmp_path]), tmp_path / "report.html").tags.count("svg") == 1 + 2
    first = (tmp_path / "report.html").read_bytes()
    assert len(first) < 200_000
    report.write(collect([tmp_path]), tmp_path / "report.html", study={})
    assert (tmp_path / "report.html").read_bytes() == first
    empty = page_of([], tmp_path / "e.html", {"command": "resnet-jax report --paper he2015"}, (Comparison(entry()),))
    assert "he2015" in empty.words


def variant(name: str, *values: float, diverged: int | None = None) -> VariantRuns:
    recipe = experiment("synthetic", 20)
    results = [result(recipe, s, v, diverged_at_step=7 if s == diverged else None) for s, v in enumerate(values)]
    return VariantRuns(name, [Run(each["seed"], each, Path()) for each in results] or [Run(0, None, Path())])


SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> set[str]:
    return {element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")}


def dots(svg: str) -> list[tuple[float, float]]:
    marks = re.findall(r'<use [^>]*?x="([\d.]+)" y="([\d.]+)" style="([^"]*)"', svg)
    return [(float(x), float(y)) for x, y, style in marks if "--c0" in style]


def test_every_seed_is_a_dot_in_the_figure_of_errors() -> None:
    svg = figures.draw_errors([variant("first", 6.0, 8.0), variant("same", 7.0, 7.0), variant("not run")], {})
    assert len(set(dots(svg))) == 4
    assert {"first", "7.00 ± 1.41", "same"} < texts(svg)
    assert not any("fail" in text for text in texts(svg))
    lines = [float(element.attrib["y"]) for element in ET.fromstring(svg).iter(f"{SVG}text") if element.text in ("first", "same")]
    # A dot has a radius of 2.25 points, letters of 8.5 points descend by 2.
    assert min(abs(y - line) for _, y in dots(svg) for line in lines) > 2.25 + 2 + 5
    failing = figures.draw_errors([variant("a", 7.0), variant("b", 60.0, 100.0, diverged=1)], {})
    assert len(dots(failing)) == 2, "a diverged seed is a cross"
    assert any("fail: above 20 %" in text for text in texts(failing))
    assert "20" in texts(figures.draw_errors([variant("b", 60.0, 100.0)], {})), "the axis includes the dashed line"
    assert figures.draw_errors([variant("not run")], {}) == ""


def test_figure_of_errors_has_room_for_every_range() -> None:
    """Equal factors are equal distances beyond a factor of 10; 0 has a place on the left."""
    for values, rel in (((2.0, 4.0, 6.0), 0.01), ((0.1, 1.0, 10.0, 100.0), 0.1)):
        places = [x for x, _ in dots(figures.draw_errors([variant(str(value), value) for value in values], {}))]
        assert places[-1] - places[-2] == pytest.approx(places[-2] - places[-3], abs=rel)
    for values in ((0.0, 0.2, 50.0), (0.0,), (0.0, 0.0), (5.0,), (100.0,), (99.9, 100.0), (0.01, 0.02)):
        svg = figures.draw_errors([variant("a", *values)], {})
        places = [x for x, _ in dots(svg)]
        assert len(places) == len(values)
        assert all(0 < x < float(ET.fromstring(svg).attrib["viewBox"].split()[2]) for x in places)
        assert places == sorted(places)


def test_svg_is_text_without_styles_or_shared_identifiers() -> None:
    svg = figures.draw_errors([variant(name, 5.0) for name in ("$x^2$ & <b>", "日本語", "x" * 200)], {})
    assert {"$x^2$ & <b>", "日本語"} < texts(svg)
    assert max(len(text) for text in texts(svg) if "xx" in text) <= figures.LONGEST_NAME
    assert not [text for text in ("<style", "<metadata", figures.INK) if text in svg]
    identifiers = re.findall(r' id="([^"]*)"', svg)
    assert identifiers
    assert all(identifier.startswith("errors-") for identifier in identifiers)
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', svg)) <= set(identifiers)


def split_of(split: str, errors: dict[int, float]) -> list[dict[str, Any]]:
    return [{"step": step, "split": split, "error_percent": error} for step, error in errors.items()]


def test_curve_is_mean_least_and_most_over_seeds() -> None:
    """Seeds count as far as they came; 1,000 steps are 200 windows of 5 with means 3, 8, ..."""
    runs = [split_of("test", {10: 4.0, 20: 2.0, 30: 5.0}), split_of("test", {10: 8.0, 20: 3.0}), split_of("train", {10: 99.0})]
    curve = figures.curve(runs, "test")
    assert curve is not None
    np.testing.assert_allclose([curve.steps, curve.mean, curve.low, curve.high], [[10, 20, 30], [6, 2.5, 5], [4, 2, 5], [8, 3, 5]])
    windows = figures.curve([split_of("train", {step: float(step) for step in range(1, 1001)})], "train")
    assert windows is not None
    np.testing.assert_allclose(windows.steps, np.arange(3, 1001, 5))
    np.testing.assert_allclose(windows.mean, windows.steps)
    assert figures.curve([split_of("train", {1: 4.0})], "test") is None


def test_common_name_does_not_cut_numbers() -> None:
    cases = {
        ("plain-20", "plain-56"): "plain",
        ("resnet110", "resnet1202"): "resnet",
        ("resnet-20-wide", "resnet-50-wide"): "resnet-…-wide",
        ("plain20 (3fa9c1)", "plain56 (77ab01)"): "plain",
        ("a-20", "b-56"): "a-20, b-56",
        ("alone-20",): "alone-20",
    }
    for names, expected in cases.items():
        assert figures.common_name(names) == expected


def test_panels_are_families_on_shared_axes(tmp_path: Path) -> None:
    """One color per depth; one depth trained in two ways takes two panels."""
    cases = [("plain-20", 20, True, 128), ("plain-56", 56, True, 128), ("resnet-56", 56, False, 128), ("resnet-56-b", 56, False, 64)]
    for name, depth, plain, batch_size in cases:
        measured = records(64_000, 1.0, 30.0, every=3200, scored=8000)
        write_run(tmp_path / name, experiment(name, depth, plain=plain, batch_size=batch_size), 0, records=measured)
    panels = dict(figures.panels(collect([tmp_path])))
    assert set(panels) == {"plain", "resnet-56", "resnet-56-b"}
    assert {"plain-20", "plain-56", "step", "60k", "error (%)"} <= texts(panels["plain"])
    assert texts(panels["plain"]) - {"plain-20", "plain-56"} == texts(panels["resnet-56"]) - {"resnet-56"}
    assert "--c1" in panels["resnet-56"]
    assert "--c0" not in panels["resnet-56"]
    write_run(tmp_path / "x" / "y", experiment("no records", 20), 0, 8.0)
    assert figures.panels(collect([tmp_path / "x"])) == []


def test_error_axis_ends_above_late_errors_and_best_test_errors() -> None:
    def curves(train: list[float], test: list[float]) -> figures.Curves:
        splits = {"train": train, "test": test}
        return {name: Curve(np.linspace(1, 100, len(errors)), *(np.array(errors),) * 3) for name, errors in splits.items()}

    early = [90.0] * 10 + [8.0] * 90
    assert figures.axis_limits([curves(early, early)]) == pytest.approx((100, 1.1 * 8))
    ordinary = curves([5.0] * 100, [5.0] * 100)
    assert figures.axis_limits([ordinary] * 29 + [curves([5.0] * 100, [60.0] * 100)])[1] >= 66
    assert figures.axis_limits([curves([100.0] * 9, [100.0] * 9)])[1] == 100
    assert figures.axis_limits([curves([0.0] * 9, [0.0] * 9)])[1] > 0


FINDING = Finding(
    name="synthetic",
    title="A <title>",
    caption="The caption.",
    tables=(Table("first", ("network", "error %"), (("a", 12.34567), ("b", float("nan")))), Table("second", ("unit", "n"), ((0, 12_345),))),
    rows=[{"network": "a", "error": np.float64(12.34567)}, {"network": "b", "error": float("nan")}],
)


def drawn() -> Figure:
    figure = Figure(figsize=(4, 3))
    figure.add_subplot().set_xlabel("a length (m)")
    return figure


def test_findings_are_written_read_back_and_shown_in_the_report(tmp_path: Path) -> None:
    write_run(tmp_path / "run", experiment("resnet-20", 20), 0, 8.5)
    assert "Analyses" not in page_of(collect([tmp_path]), tmp_path / "report.html").words
    files = findings.write(FINDING, "resnet-jax analyze synthetic", drawn, tmp_path / "run" / findings.FOLDER)
    assert [file.name for file in files] == ["synthetic.json", "synthetic.csv", "synthetic.svg", "synthetic.png"]
    written = json.loads(files[0].read_text())
    assert (written["kind"], written["command"]) == ("finding", "resnet-jax analyze synthetic")
    assert written["rows"] == [{"network": "a", "error": 12.34567}, {"network": "b", "error": None}]
    assert next(csv.DictReader(files[1].read_text().splitlines())) == {"network": "a", "error": "12.34567"}
    ((finding, _),) = findings.read([tmp_path / "run"])
    assert [table.cells() for table in finding.tables] == [[["a", "12.35"], ["b", ""]], [["0", "12,345"]]]
    page = page_of(collect([tmp_path]), tmp_path / "report.html")
    assert ["a", "12.35"] in page.rows
    assert all(text in page.words for text in ("Analyses", "A <title>", "a length (m)"))
    for file in (files[2], files[0]):
        text = file.read_text()
        file.write_text("{")
        with pytest.raises(UserError, match=r"synthetic\.json is corrupt, or its figure is missing"):
            findings.read([tmp_path / "run"])
        file.write_text(text)
    with pytest.raises(UserError, match="cannot be written"):
        findings.write(FINDING, "x", drawn, tmp_path / "report.html" / "analysis")


def block(path: Path) -> str:
    """Content of a filled block of a file of results."""
    readme = path.with_suffix(".md")
    readme.write_text(f"<!-- results {path.name} -->\n<!-- end -->\n")
    report.fill(readme)
    return readme.read_text()


def test_markdown_blocks_are_filled_and_nothing_else_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    results = [result(experiment("original", 20), 0, 7.0), result(experiment("half", 20, plain=True), 0, 25.0)]
    results_lib.write(tmp_path / "docs" / "results" / "s.json", results, command="resnet-jax study x", reduced="Small.")
    before, middle, after = "# Title\n\\1 $1 tail  \n", "\nbetween <!-- a comment -->\n", "| a table | of mine |\n<!-- end -->\nno newline"
    begin = "<!-- results results/s.json -->\n"
    readme = tmp_path / "docs" / "README.md"
    readme.write_text(f"{before}{begin}old\n<!-- end -->{middle}{begin}<!-- end -->{after}")
    monkeypatch.chdir(tmp_path)
    assert report.fill(Path("docs/README.md")) == 2
    text = readme.read_text()
    assert text.startswith(f"{before}{begin}| variant |")
    assert f"<!-- end -->{middle}{begin}| variant |" in text
    assert text.endswith(f"<!-- end -->{after}")
    assert "\nold\n" not in text
    assert "[data](results/s.json). Small." in text
    assert report.fill(readme) == 0, "filling is idempotent"
    # A block without its end would swallow the next one.
    readme.write_text(f"{begin}\nprecious words\n{begin}<!-- end -->\n")
    with pytest.raises(UserError, match=r"s\.json.*is not closed"):
        report.fill(readme)
    assert "precious words" in readme.read_text()


def test_markdown_names_environments_of_every_result(tmp_path: Path) -> None:
    first, second = experiment("original", 20), experiment("half", 20, plain=True)
    other = {
        "device": {"backend": "gpu", "kind": "NVIDIA H200", "count": 1, "cores": 32, "processes": 1},
        "versions": {"jax": "0.11.2"},
        "commit": "fedcba9876543210-dirty",
    }
    results_lib.write(tmp_path / "s.json", [result(first, 0, 7.0), result(second, 0, 7.5, **other)], command="x")
    text = block(tmp_path / "s.json")
    assert "1 x NVIDIA H100 80GB HBM3, 16 cores and 1 x NVIDIA H200, 32 cores" in text
    assert "jax 0.10.1 and jax 0.11.2; commit 0123456 and commit fedcba9-dirty;" in text
    assert "+0.50, no interval (one seed)" in text
    results_lib.write(tmp_path / "s.json", [result(first, 0, 7.0, commit=None)], command="x")
    assert "; no checkout;" in block(tmp_path / "s.json")


def test_markdown_rejects_missing_and_other_files(tmp_path: Path) -> None:
    (tmp_path / "readme.md").write_text("<!-- results steps.json -->\n<!-- end -->\n")
    (tmp_path / "step.json").write_text("{}")
    with pytest.raises(UserError, match=r"there is no file .*steps.json; did you mean .*step.json"):
        report.fill(tmp_path / "readme.md")
    empty = '{"kind": "study", "common": {}, "results": []}'
    for text in ('{"kind": "other"}', '{"kind": "finding", "tables": []}', '{"kind": "finding"}', empty, '{"kind": "stu', "[]"):
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(UserError, match="r.json"):
            block(tmp_path / "r.json")
