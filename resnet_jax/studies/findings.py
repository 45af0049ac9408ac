"""Findings of analyses: tables, data and a figure in a directory, and a section of the report."""

import base64
import datetime
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from matplotlib.figure import Figure

from resnet_jax.errors import UserError
from resnet_jax.studies import figures
from resnet_jax.terminal import Table, csv_text, plain
from resnet_jax.training import run_dir
from resnet_jax.training.run_dir import Record, write_text

FOLDER = "analysis"  # in a run directory
KIND = "finding"


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
        head = {"kind": KIND, "date": datetime.date.today().isoformat(), "command": command}
        return plain(head | run_dir.describe() | asdict(self))


def write(finding: Finding, command: str, draw: Callable[[], Figure], folder: Path) -> list[Path]:
    """Writes ``NAME.json``, ``.csv``, ``.svg`` and ``.png``; draws within ``figures.style``."""
    files = [folder / f"{finding.name}.{ending}" for ending in ("json", "csv", "svg", "png")]
    with figures.style():
        figure = draw()
        folder.mkdir(parents=True, exist_ok=True)
        write_text(files[0], json.dumps(finding.plain(command), allow_nan=False) + "\n")
        write_text(files[1], csv_text(finding.rows))
        figure.savefig(files[2], metadata={"Date": None})
        figure.savefig(files[3], dpi=200)
    return files


def read(folders: Iterable[Path]) -> list[tuple[Finding, str]]:
    """Reads the findings in run directories, with their figures as data URIs of images.

    Browsers neither run scripts nor load files of an SVG in ``<img>``.
    """
    return [_read(file) for run in folders for file in sorted((run / FOLDER).glob("*.json"))]


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
