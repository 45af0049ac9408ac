"""What a look inside networks found: tables, data and a figure in a folder, and a section of the report page about the runs there."""

import csv
import datetime
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from resnet_jax.errors import UserError
from resnet_jax.studies import figures
from resnet_jax.training import environment
from resnet_jax.training.workdir import write_text

FOLDER = "lab"
"""Of a run's folder: where its findings lie, and are looked for by the report."""
KIND = "finding"
"""Of a file of results."""


@dataclass(frozen=True)
class Table:
    """A short one, for a reader."""

    title: str
    columns: tuple[str, ...]
    """Headings, with units."""
    rows: tuple[tuple[Any, ...], ...]
    """Words and numbers; what is None or not a number is shown as nothing."""

    def cells(self) -> list[list[str]]:
        """The rows as they are shown, numbers to four digits."""
        return [[_shown(value) for value in row] for row in self.rows]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one command found."""

    name: str
    """Of its files."""
    title: str
    caption: str
    """What the figure shows, from what, and whose figure it repeats."""
    tables: tuple[Table, ...]
    rows: Sequence[Mapping[str, Any]]
    """Every number that the figure is drawn from, for a CSV: one value a column."""
    data: Mapping[str, Any]
    """All of it, arrays too, for JSON."""

    def plain(self, command: str) -> dict[str, Any]:
        """For JSON, with the command that found it, the date, and what it was found on."""
        described = {name: getattr(self, name) for name in ("name", "title", "caption")}
        found = {"kind": KIND, **described, "date": datetime.date.today().isoformat(), "command": command, **environment.describe()}
        return plain(found | {"tables": [asdict(table) for table in self.tables], "data": self.data})


@dataclass(frozen=True)
class Section:
    """A finding as it was read back."""

    title: str
    caption: str
    tables: tuple[Table, ...]
    svg: str


def write(finding: Finding, command: str, draw: Callable[[], Figure], folder: Path) -> list[Path]:
    """Writes ``NAME.json``, ``.csv``, ``.svg`` and ``.png``. ``draw`` is called within ``figures.style``.

    Raises:
      UserError: where they cannot be written.
    """
    files = [folder / f"{finding.name}.{ending}" for ending in ("json", "csv", "svg", "png")]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(finding.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(finding.rows)
    with figures.style():
        figure = draw()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(files[0], json.dumps(finding.plain(command), allow_nan=False) + "\n")
            write_text(files[1], text.getvalue())
            figure.savefig(files[2], metadata={"Date": None})
            figure.savefig(files[3], dpi=200)
        except OSError as error:
            raise UserError(f"{folder} cannot be written ({error.strerror}): name another folder, --to DIR") from error
    return files


def read(folders: Iterable[Path]) -> list[Section]:
    """The findings that lie in the folders of runs; there may be none.

    Raises:
      UserError: for one that is damaged.
    """
    found = []
    for file in (file for folder in folders for file in sorted((folder / FOLDER).glob("*.json"))):
        try:
            text = json.loads(file.read_text())
            tables = tuple(map(table, text["tables"]))
            found.append(Section(text["title"], text["caption"], tables, file.with_suffix(".svg").read_text()))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged, or its figure is gone ({error!r}): delete it, or call its command again") from error
    return found


def table(written: Mapping[str, Any]) -> Table:
    """One as it stands in JSON."""
    return Table(written["title"], tuple(written["columns"]), tuple(map(tuple, written["rows"])))


def plain(value: Any) -> Any:
    """The same for JSON, which has neither arrays nor words for what is not finite."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)
