"""A self-contained HTML page about variants, with CSV and JSON beside it; findings of analyses."""

import base64
import datetime
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

from resnet_jax import terminal
from resnet_jax.errors import UserError
from resnet_jax.studies import comparison as comparison_lib
from resnet_jax.studies import figures
from resnet_jax.studies import results as results_lib
from resnet_jax.studies.comparison import Comparison
from resnet_jax.studies.results import VariantRuns
from resnet_jax.terminal import Table
from resnet_jax.training import run_dir
from resnet_jax.training.run_dir import Record, write_text

FINDINGS = "analysis"  # in a run directory
_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("resnet_jax.studies", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one analysis."""

    name: str
    """Stem of its files."""
    title: str
    caption: str
    tables: tuple[Table, ...]
    rows: Sequence[Record]
    """Every measured number in long format."""

    def plain(self, command: str) -> Record:
        head = {"kind": "finding", "date": datetime.date.today().isoformat(), "command": command}
        return terminal.plain(head | run_dir.describe() | asdict(self))

    def write(self, command: str, draw: Callable[[], Figure], folder: Path) -> list[Path]:
        """Writes ``NAME.json``, ``.csv``, ``.svg`` and ``.png``; draws within ``figures.style``."""
        files = [folder / f"{self.name}.{ending}" for ending in ("json", "csv", "svg", "png")]
        with figures.style():
            figure = draw()
            folder.mkdir(parents=True, exist_ok=True)
            write_text(files[0], json.dumps(self.plain(command), allow_nan=False) + "\n")
            write_text(files[1], terminal.csv_text(self.rows))
            figure.savefig(files[2], metadata={"Date": None})
            figure.savefig(files[3], dpi=200)
        return files


def read_findings(runs: Iterable[Path]) -> list[tuple[Finding, str]]:
    """Reads the findings in run directories, with their figures as data URIs of images.

    Browsers neither run scripts nor load files of an SVG in ``<img>``.
    """
    return [_read(file) for run in runs for file in sorted((run / FINDINGS).glob("*.json"))]


def _read(file: Path) -> tuple[Finding, str]:
    try:
        text = json.loads(file.read_text())
        fields = {name: text[name] for name in ("name", "title", "caption", "rows")}
        finding = Finding(tables=tuple(map(table, text["tables"])), **fields)
        figure = base64.b64encode(file.with_suffix(".svg").read_bytes()).decode()
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"{file} is corrupt, or its figure is missing ({error!r})"
        raise UserError(f"{problem}: delete it, or repeat its command") from error
    return finding, f"data:image/svg+xml;base64,{figure}"


def table(text: Record) -> Table:
    return Table(text["title"], tuple(text["columns"]), tuple(map(tuple, text["rows"])))


def write(
    variants: Sequence[VariantRuns],
    page: Path,
    *,
    study: Record,
    comparisons: Sequence[Comparison] = (),
) -> None:
    """Writes ``page`` (HTML), ``.csv`` (one row per run) and ``.json`` (everything).

    Args:
      study: notes of ``results.notes``.
      comparisons: unverified published numbers are counted, not shown.
    """
    verified = [comparison for comparison in comparisons if comparison.entry.verified]
    runs = []
    for variant in variants:
        for run in sorted(variant.runs, key=lambda run: run.seed):
            source = Path(os.path.relpath(run.source.resolve(), page.parent.resolve())).as_posix()
            runs.append((variant, run, source + "/" * run.source.is_dir()))
    present = {figures.without_fingerprint(variant.name) for variant in variants}
    absent = [VariantRuns(name, []) for name in study.get("variants", ()) if name not in present]
    text = _TEMPLATES.get_template("report.html.j2").render(
        title=_title(variants, study),
        study=study,
        variants=variants,
        tables=results_lib.tables([*variants, *absent]),
        papers=comparison_lib.tables(verified),
        comparable=any(c.ours or c.counted is not None or not c.mismatches for c in verified),
        unverified=len(comparisons) - len(verified),
        errors=figures.draw_errors(variants, _published(verified)),
        curves=figures.panels(variants),
        analyses=read_findings(run.source for _, run, _ in runs),
        runs=runs,
        json=json,
        details=[(v, _distinct(result["protocol"] for result in v.results)) for v in variants],
        environment=environment(run.result for _, run, _ in runs if run.result),
    )
    rows: list[Record] = []
    lists: dict[str, list[Record]] = {"results": [], "unfinished": []}
    for variant, run, source in runs:
        place = {"variant": variant.name, "seed": run.seed, "source": source}
        result = run.result or {}
        lists["results" if result else "unfinished"].append(place | result)
        rows.append(results_lib.row(variant, run) | place)
    data = {
        "study": {k: study[k] for k in ("command", "variants", "reduced") if k in study},
        "variants": results_lib.table(variants),
        "comparisons": list(map(comparison_lib.plain, comparisons)),
        **lists,
    }
    page.parent.mkdir(parents=True, exist_ok=True)
    write_text(page, text)
    write_text(page.with_suffix(".csv"), terminal.csv_text(rows))
    text = json.dumps(terminal.plain(data), indent=1, allow_nan=False)
    write_text(page.with_suffix(".json"), text + "\n")


def _title(variants: Sequence[VariantRuns], study: Record) -> str:
    pattern = r"([\w-]+)(?:\.py)?:(\w+)|--paper (\S+)"
    if named := re.search(pattern, study.get("command", "")):
        return ", ".join(filter(None, named.groups()))
    more = f" and {len(variants) - 3} other variants" if len(variants) > 3 else ""
    return (", ".join(variant.name for variant in variants[:3]) or "No runs") + more


def _published(comparisons: Sequence[Comparison]) -> dict[str, list[float]]:
    """Returns published errors of the last step, except bounds, by variant."""
    errors: dict[str, list[float]] = {}
    for comparison in comparisons:
        entry = comparison.entry
        of_last_step = comparison_lib.selection(entry) == "last step"
        if entry.metric == "top1_error" and entry.relation in "=~" and of_last_step:
            for variant, _ in comparison.ours:
                errors.setdefault(variant.name, []).append(entry.value)
    return errors


def _distinct(mappings: Iterable[Record]) -> dict[str, list[str]]:
    values: dict[str, list[str]] = {}
    for name, value in (item for mapping in mappings for item in mapping.items()):
        values.setdefault(name, []).append("–" if value is None else str(value))
    return {name: list(dict.fromkeys(texts)) for name, texts in values.items()}


def environment(results: Iterable[Record]) -> dict[str, list[str]]:
    """Returns commits, devices and versions of results, each value once."""
    return _distinct(
        {
            "commit": result["commit"] or "no checkout",
            "device": "{count} x {kind}, {cores} cores".format(**result["device"]),
            **result["versions"],
        }
        for result in results
    )
