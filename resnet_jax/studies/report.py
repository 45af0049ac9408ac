"""One self-contained HTML page over cells of runs, and the same as CSV and JSON beside it."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from resnet_jax.studies import cells as cells_lib
from resnet_jax.studies import comparison as comparison_lib
from resnet_jax.studies import curves, figures, findings, ledger
from resnet_jax.studies.cells import Cell, Run
from resnet_jax.studies.comparison import Comparison
from resnet_jax.training.workdir import Workdir, write_text

_IN_CSV = (
    "value",
    "best_over_training",
    "selected_on_validation",
    "training_error_percent",
    "diverged_at_step",
    "parameters",
    "seconds",
)


def write(cells: Sequence[Cell], page: Path, *, study: Mapping[str, Any], comparisons: Sequence[Comparison] = ()) -> None:
    """Writes ``page``, which needs no network and no script, ``.csv`` (a row a run) and ``.json`` (everything) beside it.

    Args:
      cells: the first that has results is what the others are compared with.
      page: the HTML file.
      study: what ``committed.study`` returns; its ``reduced`` says that the study ran at reduced scale.
      comparisons: published numbers; those that are not verified are counted, not shown.
    """
    finished = [cell for cell in cells if cell.results]
    text = _template().render(
        title=_title(cells, study),
        study=study,
        cells=cells,
        absent=_absent(cells, study),
        baseline=finished[0] if finished else None,
        difference=cells_lib.difference,
        validated=any(cell.spread("selected_on_validation").values for cell in finished),
        fail_percent=ledger.FAIL_PERCENT,
        papers=_papers(comparisons),
        comparable=any(each.ours or each.counted is not None or not each.refused for each in comparisons),
        unverified=sum(not each.entry.verified for each in comparisons),
        metrics=ledger.METRICS,
        errors=figures.error_by_cell(cells, _published(comparisons)),
        curves=curves.panels(cells),
        laboratory=_laboratory(cells),
        details=[_detail(cell, page.parent) for cell in cells],
        environment=_environment(finished),
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, text)
    write_text(page.with_suffix(".csv"), _csv(cells, page.parent))
    write_text(page.with_suffix(".json"), _json(cells, study, comparisons, page.parent))


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resnet_jax.studies", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda value: "–" if value is None or math.isnan(value) else f"{value:.2f}",
        "whole": lambda value: "–" if value is None or math.isnan(value) else f"{value:,.0f}",
        "statistic": _statistic,
    }
    return environment.get_template("report.html.j2")


def _title(cells: Sequence[Cell], study: Mapping[str, Any]) -> str:
    named = re.search(r"([\w-]+)\.py:(\w+)", study.get("command", ""))
    if named:
        return f"{named[1]}, {named[2]}"
    paper = re.search(r"--paper (\S+)", study.get("command", ""))
    if paper:
        return f"{paper[1]} | ours"
    names = [cell.name for cell in cells]
    if not names:
        return "No runs"
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, {names[1]} and {len(names) - 2} other cells"


def _absent(cells: Sequence[Cell], study: Mapping[str, Any]) -> list[str]:
    """Cells of the study that have no run yet. Those of one name that differ go by it and a part of their fingerprints."""
    present = {cell.name for cell in cells} | {re.sub(r" \([\da-f]{6}\)$", "", cell.name) for cell in cells}
    return [name for name in study.get("cells", ()) if name not in present]


def _statistic(entry: ledger.Entry) -> str:
    if entry.digits:
        return f"to {entry.digits} digits"
    words = {"single": "single run", "val-selected": "selected on validation", "test-selected": "selected on test"}
    return words.get(entry.statistic, entry.statistic) + (f" of {entry.runs}" if entry.runs else "")


def _papers(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """What is shown of each paper, table by table."""
    found: dict[str, dict[str, list[Comparison]]] = {}
    for each in comparisons:
        if each.entry.verified:
            found.setdefault(each.entry.paper, {}).setdefault(each.entry.table, []).append(each)
    known = ledger.papers()
    return [{"key": key, "paper": ledger.load(key) if key in known else None, "tables": tables} for key, tables in found.items()]


def _published(comparisons: Sequence[Comparison]) -> dict[str, list[float]]:
    """Name of a cell to published errors that stand beside those of its last step: not those chosen in another way, nor bounds."""
    found: dict[str, list[float]] = {}
    for each in comparisons:
        entry = each.entry
        if entry.verified and entry.metric == "top1_error" and entry.relation in "=~" and comparison_lib.selection(entry) == "last step":
            for cell, _ in each.ours:
                found.setdefault(cell.name, []).append(entry.value)
    return found


def _detail(cell: Cell, base: Path) -> dict[str, Any]:
    """Where a cell's numbers come from: its runs, and once what they share."""
    folders = [run.source for run in cell.runs if run.source.is_dir()]
    shared: dict[str, Any] = {"model": cell.results[0]["model"]} if cell.results else {}
    if folders:
        shared = Workdir(folders[0]).read_experiment_file()["experiment"]
    return {
        "runs": [_run(run, base) for run in sorted(cell.runs, key=lambda run: run.seed)],
        "protocol": _values(result["protocol"] for result in cell.results),
        "whole": bool(folders),
        "experiment": json.dumps(shared, indent=2, ensure_ascii=False),
    }


def _run(run: Run, base: Path) -> dict[str, Any]:
    source = _relative(run.source, base)
    return {
        "seed": run.seed,
        "result": run.result,
        "source": source,
        # Quoted, a folder's name cannot be taken for a scheme.
        "href": quote(source) + ("/" if run.source.is_dir() else ""),
        "fingerprint": run.result["fingerprint"] if run.result else Workdir(run.source).read_experiment_file()["fingerprint"],
    }


def _relative(path: Path, base: Path) -> str:
    return Path(os.path.relpath(path.resolve(), base.resolve())).as_posix()


def _environment(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """What the results were computed by and with; several values where they differ."""
    results = [result for cell in cells for result in cell.results]
    return _values(
        {
            "commit": result["commit"] or "not run from a checkout",
            "device": "{count} × {kind} ({backend}), {cores} host cores".format(**result["device"]),
            **result["versions"],
        }
        for result in results
    )


def _laboratory(cells: Sequence[Cell]) -> list[tuple[findings.Section, Markup]]:
    """What was found inside the runs, and its figures."""
    found = findings.read(run.source for cell in cells for run in cell.runs)
    return [(each, figures.inline(each.svg, each.title, f"lab{number}")) for number, each in enumerate(found)]


def _values(mappings: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Name to its different values, in order of appearance."""
    found: dict[str, list[str]] = {}
    for mapping in mappings:
        for name, value in mapping.items():
            told = "–" if value is None else str(value)
            if told not in found.setdefault(name, []):
                found[name].append(told)
    return found


def _csv(cells: Sequence[Cell], base: Path) -> str:
    rows = []
    for cell in cells:
        for run in sorted(cell.runs, key=lambda run: run.seed):
            result = run.result or {}
            row = (
                {"cell": cell.name, "seed": run.seed}
                | {name: result.get(name) for name in _IN_CSV}
                | {"source": _relative(run.source, base)}
            )
            # A protocol has 'parameters' too: which were scored, not how many there are.
            rows.append(row | {f"protocol.{name}": value for name, value in result.get("protocol", {}).items()})
    text = io.StringIO()
    columns = dict.fromkeys(["cell", "seed", *_IN_CSV, "source", *(name for row in rows for name in row)])
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _json(cells: Sequence[Cell], study: Mapping[str, Any], comparisons: Sequence[Comparison], base: Path) -> str:
    runs = [(cell, run) for cell in cells for run in sorted(cell.runs, key=lambda run: run.seed)]
    where = [{"cell": cell.name, "seed": run.seed, "source": _relative(run.source, base)} for cell, run in runs]
    told = {
        "study": {name: study[name] for name in ("command", "cells", "reduced") if name in study},
        "cells": cells_lib.table(cells),
        "comparisons": [comparison_lib.plain(each) for each in comparisons],
        "results": [place | run.result for place, (_, run) in zip(where, runs, strict=True) if run.result is not None],
        "unfinished": [place for place, (_, run) in zip(where, runs, strict=True) if run.result is None],
    }
    return json.dumps(findings.plain(told), indent=1, allow_nan=False) + "\n"
