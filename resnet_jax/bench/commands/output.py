"""What every benchmark ends in: a table or JSON on stdout, a file where asked, each with date, command, device and versions."""

import datetime
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Heading to what of a row stands below it.
Columns = dict[str, Callable[[dict[str, Any]], str]]
SPEED: Columns = {
    "ms a step": lambda row: f"{1e3 * row['seconds']:,.0f}",
    "least to most": lambda row: f"{1e3 * row['seconds_least']:,.0f} to {1e3 * row['seconds_most']:,.0f}",
    "images/s": lambda row: f"{row['images_per_second']:,.0f}",
}


@dataclass(frozen=True, kw_only=True)
class Output:
    output: Path | None = None
    """File for the table as JSON, with date, commit, versions and devices."""
    json: bool = False
    """Print that JSON instead of the table."""


def show(
    name: str,
    title: str,
    rows: list[dict[str, Any]],
    columns: Columns,
    options: Output,
    arguments: Sequence[str],
    described: dict[str, Any] | None = None,
) -> None:
    """Prints and writes. ``described``: commit, versions and devices, where they are not those of this process."""
    if described is None:
        from resnet_jax.training import environment

        described = environment.describe()

    command = shlex.join(["resnet-jax", "bench", name, *arguments])
    found = {"benchmark": name, "date": datetime.date.today().isoformat(), "command": command, **described, "rows": rows}
    if options.json:
        print(json.dumps(found))
    else:
        _print(title, rows, columns, found)
    # Last: a file that cannot be written loses no measurement.
    if options.output:
        from resnet_jax.training.workdir import write_output

        write_output(options.output, found)


def _print(title: str, rows: list[dict[str, Any]], columns: Columns, found: dict[str, Any]) -> None:
    from rich.table import Table

    from resnet_jax.console import out

    table = Table(title=title)
    # What every row of a benchmark has beside what it measured.
    names = [name for name in ("depth", "blocks") if rows[0].get(name) is not None]
    for heading in (*names, *columns):
        table.add_column(heading, justify="right")
    for row in rows:
        stopped = row.get("stopped_after_seconds")
        cells = [f"> {stopped:.0f} s in all"] + [""] * (len(columns) - 1) if stopped else [cell(row) for cell in columns.values()]
        table.add_row(*(str(row[name]) for name in names), *cells)
    out.print(table)
    device = found["devices"]
    out.print(f"{device['count']} x {device['kind']}, {device['cores']} cores, jax {found['versions']['jax']}", highlight=False)
