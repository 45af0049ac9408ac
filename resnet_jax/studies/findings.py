"""Findings of analyses: tables, data and a figure in a directory, and a section of the report."""

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from resnet_jax.errors import UserError
from resnet_jax.studies import figures
from resnet_jax.terminal import Table, csv_text, plain
from resnet_jax.training import run_dir
from resnet_jax.training.run_dir import write_text

FOLDER = "lab"  # in a run directory
KIND = "finding"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one analysis."""

    name: str
    """Stem of its files."""
    title: str
    caption: str
    tables: tuple[Table, ...]
    rows: Sequence[Mapping[str, Any]]
    """Every measured number in long format."""

    def plain(self, command: str) -> dict[str, Any]:
        """Returns a JSON object with the command, the date and the environment."""
        head = {"kind": KIND, "name": self.name, "title": self.title, "caption": self.caption}
        head |= {"date": datetime.date.today().isoformat(), "command": command}
        tables = [asdict(table) for table in self.tables]
        return plain(head | run_dir.describe() | {"tables": tables, "rows": self.rows})


def write(finding: Finding, command: str, draw: Callable[[], Figure], folder: Path) -> list[Path]:
    """Writes ``NAME.json``, ``.csv``, ``.svg`` and ``.png``; draws within ``figures.style``."""
    files = [folder / f"{finding.name}.{ending}" for ending in ("json", "csv", "svg", "png")]
    with figures.style():
        figure = draw()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(files[0], json.dumps(finding.plain(command), allow_nan=False) + "\n")
            write_text(files[1], csv_text(finding.rows))
            figure.savefig(files[2], metadata={"Date": None})
            figure.savefig(files[3], dpi=200)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written ({error.strerror}): give another with --to DIR"
            ) from error
    return files


def read(folders: Iterable[Path]) -> list[tuple[Finding, str]]:
    """Reads the findings in run directories, with their figures as SVG."""
    return [_read(file) for run in folders for file in sorted((run / FOLDER).glob("*.json"))]


def _read(file: Path) -> tuple[Finding, str]:
    try:
        text = json.loads(file.read_text())
        tables = tuple(map(table, text["tables"]))
        svg = file.with_suffix(".svg").read_text()
        names = ("name", "title", "caption", "rows")
        return Finding(tables=tables, **{name: text[name] for name in names}), svg
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is corrupt, or its figure is missing ({error!r}): "
            "delete it, or repeat its command"
        ) from error


def table(text: Mapping[str, Any]) -> Table:
    """Returns the table of a JSON object."""
    return Table(text["title"], tuple(text["columns"]), tuple(map(tuple, text["rows"])))
