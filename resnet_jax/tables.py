"""Tables with one description for the terminal, Markdown, HTML (``studies/templates``) and CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import rich.table


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    """Texts and numbers; None and NaN are shown as empty."""
    note: str = ""

    def cells(self) -> list[list[str]]:
        """Returns the rows as text, numbers with four digits."""
        return [[_text(value) for value in row] for row in self.rows]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)


def terminal(table: Table, **style: Any) -> "rich.table.Table":
    """Renders a table for ``rich``; texts are not markup."""
    import rich.table
    from rich.text import Text

    rendered = rich.table.Table(title=Text(table.title), caption=Text(table.note), caption_justify="left", **style)
    rows = table.cells()
    for number, heading in enumerate(table.columns):
        words = not number or any(len(row[number]) > 24 for row in rows)
        rendered.add_column(Text(heading), justify="left" if words else "right", overflow="fold")
    for row in rows:
        rendered.add_row(*map(Text, row))
    return rendered


def markdown(table: Table) -> list[str]:
    """Returns the lines of a table in GitHub's Markdown."""
    rows = [[cell.replace("|", "\\|").replace("\n", "<br>") for cell in row] for row in table.cells()]
    heading, *lines = [f"| {' | '.join(row)} |" for row in (table.columns, *rows)]
    return [heading, "|" + "---|" * len(table.columns), *lines]


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Renders rows as CSV with all their keys as columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def plain(value: Any) -> Any:
    """Returns a value for JSON: arrays as lists, non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
