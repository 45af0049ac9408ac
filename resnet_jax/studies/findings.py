"""Findings of ``lab``: tables, data and a figure in a directory, and a section of the report."""

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
        described = {name: getattr(self, name) for name in ("name", "title", "caption")}
        head = {
            "kind": KIND,
            **described,
            "date": datetime.date.today().isoformat(),
            "command": command,
            **run_dir.describe(),
        }
        return plain(head | {"tables": [asdict(table) for table in self.tables], "rows": self.rows})


@dataclass(frozen=True)
class Section:
    """A finding that was read back."""

    title: str
    caption: str
    tables: tuple[Table, ...]
    svg: str


def write(finding: Finding, command: str, draw: Callable[[], Figure], folder: Path) -> list[Path]:
    """Writes ``NAME.json``, ``.csv``, ``.svg`` and ``.png``; calls ``draw`` within ``figures.style``."""
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
                f"{folder} cannot be written ({error.strerror}): give another directory, --to DIR"
            ) from error
    return files


def read(folders: Iterable[Path]) -> list[Section]:
    """Reads the findings in run directories."""
    sections = []
    for file in (file for folder in folders for file in sorted((folder / FOLDER).glob("*.json"))):
        try:
            text = json.loads(file.read_text())
            tables = tuple(map(table, text["tables"]))
            sections.append(
                Section(
                    text["title"], text["caption"], tables, file.with_suffix(".svg").read_text()
                )
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{file} is corrupt, or its figure is missing ({error!r}): delete it, or repeat its command"
            ) from error
    return sections


def table(written: Mapping[str, Any]) -> Table:
    """Returns the table of a JSON object."""
    return Table(written["title"], tuple(written["columns"]), tuple(map(tuple, written["rows"])))
