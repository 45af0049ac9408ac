"""What every command of the laboratory ends in: tables or JSON on stdout, and files beside the run that was looked at."""

import contextlib
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from resnet_jax.studies.findings import Finding


@dataclass(frozen=True, kw_only=True)
class Output:
    to: Path | None = None
    """Folder for the data (JSON, CSV) and the figure (SVG, PNG). Where not given, 'lab' in the folder of the first run: 'resnet-jax report'
    shows what lies there. Of imported weights nothing is written then."""
    json: bool = False
    """Print everything as JSON instead of the tables."""


@contextlib.contextmanager
def progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A live line in a terminal; yields what is told the number done."""
    from rich.progress import Progress

    from resnet_jax.console import err

    with Progress(console=err, transient=True, disable=not err.is_terminal) as shown:
        task = shown.add_task(name, total=total)
        yield lambda done: shown.update(task, completed=done)


def show(finding: "Finding", draw: Callable[[], "Figure"], options: Output, sources: Sequence[Path], arguments: Sequence[str]) -> None:
    """Prints and writes; neither a folder that cannot be written nor a reader that has gone away loses what was measured."""
    from resnet_jax.studies import findings
    from resnet_jax.training import start

    runs = [source for source in sources if start.is_run(source)]
    folder = options.to or (runs[0] / findings.FOLDER if runs else None)
    command = shlex.join(["resnet-jax", "lab", finding.name, *arguments])
    try:
        files = findings.write(finding, command, draw, folder) if folder else []
    finally:
        if options.json:
            print(json.dumps(finding.plain(command), allow_nan=False))
        else:
            _print(finding)
    if files and not options.json:
        from resnet_jax.console import out

        endings = ", ".join(file.suffix for file in files)
        out.print(f"{finding.caption}\n{files[0].parent / finding.name}{endings}", highlight=False, soft_wrap=True)


def _print(finding: "Finding") -> None:
    from rich.markup import escape
    from rich.table import Table

    from resnet_jax.console import out

    for each in finding.tables:
        table = Table(title=escape(each.title))
        for number, heading in enumerate(each.columns):
            table.add_column(escape(heading), justify="right" if number else "left")
        for row in each.cells():
            table.add_row(*map(escape, row))
        out.print(table)
