"""A made-up study of three cells, published numbers beside it, and what a reader finds in the page about it."""

import html.parser
from pathlib import Path
from typing import Any

from made_up_runs import experiment, records, write_run

from resnet_jax.studies import report
from resnet_jax.studies.cells import Cell, collect
from resnet_jax.studies.comparison import Comparison
from resnet_jax.studies.ledger import Entry

STUDY = {
    "command": "resnet-jax study experiments/he2015_cifar10.py:figure6 --seeds 2 --workdir figure6",
    "cells": ["plain-20", "resnet-20", "resnet-110"],
    "reduced": "At reduced scale: 400 steps in place of 64,000. Not comparable with the paper's numbers.",
}


class Page(html.parser.HTMLParser):
    """Tags, what they point to, words, and the cells of the tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.identifiers: list[str] = []
        self.text: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._table: list[list[str]] = []
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.identifiers += [given["id"]] if "id" in given else []
        self.sources += [value for name, value in given.items() if name in ("src", "srcset", "data", "action") or name.startswith("on")]
        self.links += [given[name] for name in ("href", "xlink:href") if name in given]
        if tag == "table":
            self._table = self.tables.setdefault(given.get("id", f"table {len(self.tables)}"), [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")
        self._in_style = tag == "style"

    def handle_data(self, data: str) -> None:
        if self._in_style:
            return
        self.text.append(data)
        if self._table and self._table[-1]:
            self._table[-1][-1] += f" {data}"

    def handle_endtag(self, tag: str) -> None:
        self._in_style = False
        if tag == "table":
            self._table[:] = [[" ".join(cell.split()) for cell in row] for row in self._table]
            self._table = []

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(cells: list[Cell], path: Path, *, study: dict[str, Any] | None = None, comparisons: tuple[Comparison, ...] = ()) -> Page:
    report.write(cells, path, study=study or {}, comparisons=comparisons)
    return Page(path.read_text())


def rows(page: Page, name: str = "results") -> dict[str, list[str]]:
    return {row[0]: row for row in page.tables[name] if row}


def write_three_cells(base: Path) -> Path:
    """plain-20 twice, resnet-20 twice and one unfinished, plain-56 with a seed that diverged."""
    for seed, value in ((0, 12.5), (1, 13.5)):
        write_run(base / "plain-20" / f"seed-{seed}", experiment("plain-20", 20, plain=True, steps=400), seed, value,
                  records=records(400, 9.0, value, every=20, scored=50, seed=seed))  # fmt: skip
    resnet = experiment("resnet-20", 20, steps=400)
    for seed, value in ((0, 9.5), (1, 10.1), (2, None)):
        write_run(base / "resnet-20" / f"seed-{seed}", resnet, seed, value, records=records(400, 4.0, 10.0, every=20, scored=50, seed=seed))
    deep = experiment("plain-56", 56, plain=True, steps=400)
    write_run(base / "plain-56" / "seed-0", deep, 0, 30.0)
    write_run(base / "plain-56" / "seed-1", deep, 1, 100.0, diverged_at_step=37)
    return base


def three_cells(runs: Path) -> list[Cell]:
    """What ``write_three_cells`` wrote; plain-20 is what the others are compared with."""
    order = ["plain-20", "resnet-20", "plain-56"]
    return sorted(collect([runs]), key=lambda cell: order.index(cell.name))


def entry(**fields: Any) -> Entry:
    given: dict[str, Any] = {
        "paper": "made up",
        "table": "Table 6",
        "row": "ResNet-20",
        "metric": "top1_error",
        "value": 8.75,
        "statistic": "single",
        "mark": "V:S1",
        "protocol": {"dataset": "cifar10"},
        "network": {"name": "cifar_resnet20"},
        "study": "experiments/he2015_cifar10.py:table6",
    }
    return Entry(**(given | fields))
