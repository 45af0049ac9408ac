"""Tables, lines and the progress of a run on the terminal."""

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rich.table
from rich import progress
from rich.console import Console
from rich.text import Text

from resnet_jax import distributed

# Results go to stdout and progress to stderr, so that `--json` can be piped.
out = Console()
if not out.is_terminal:
    out.width = max(out.width, 140)  # The default of 80 for a file or a pipe folds tables.
err = Console(stderr=True)


class RunLines:
    """The ``Callback`` of a log: one line per evaluation."""

    def __init__(self, title: str, console: Console = err):
        self.title, self.console = title, console
        self.steps, self.numbers = 0, ""

    def start(self, run: Any) -> None:
        self.steps = run.experiment.steps
        self.step(run.step, None)

    def step(self, step: int, metrics: object) -> None: ...

    def end(self, result: object) -> None: ...

    def record(self, record: Mapping[str, Any]) -> None:
        if record["split"] == "train":
            self.numbers = (
                ", loss {loss:.4f}, training error {error_percent:.1f} %, "
                "learning rate {learning_rate:g}, {images_per_second:,.0f} images/s"
            ).format(**record)
            self.step(record["step"], None)
        elif record["split"] == "test" and not self.console.is_terminal:
            error = f"test error {record['error_percent']:.2f} %"
            self.message(f"step {record['step']}/{self.steps}, {error}{self.numbers}")

    def message(self, text: str) -> None:
        say(f"{self.title}: {text}", self.console)


class RunProgress(RunLines):
    """Also shows a bar on a terminal; a context manager."""

    def __init__(self, title: str, console: Console = err):
        super().__init__(title, console)
        self._bar = progress.Progress(
            *progress.Progress.get_default_columns(),
            progress.MofNCompleteColumn(),
            "{task.fields[numbers]}",
            console=console,
            disable=not (console.is_terminal and distributed.is_first()),
            redirect_stderr=False,  # See Workdir.
            transient=True,
        )
        self._task = self._bar.add_task(title, total=None, numbers="compiling")

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, step: int, metrics: object) -> None:  # noqa: ARG002
        numbers = self.numbers.removeprefix(", ") or "compiling"
        self._bar.update(self._task, total=self.steps, completed=step, numbers=numbers)


def say(text: str, console: Console = err) -> None:
    """Prints a line, in process 0."""
    if distributed.is_first():
        console.print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[object, ...], ...]
    """Texts and numbers; None and NaN are shown as empty."""
    note: str = ""

    @classmethod
    def from_rows(cls, title: str, rows: Iterable[Mapping[str, object]]) -> "Table":
        """Returns a table of rows with equal keys, which name the columns."""
        rows = list(rows)
        return cls(title, tuple(rows[0]), tuple(tuple(row.values()) for row in rows))

    def cells(self) -> list[list[str]]:
        """Returns the rows as text, numbers with four digits."""
        return [[_text(value) for value in row] for row in self.rows]


def _text(value: object) -> str:
    if value is None or value != value:
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int | np.integer) else str(value)


def show(as_json: bool, value: object, *parts: Table | str) -> None:
    """Prints a value as JSON, or tables and lines instead, to stdout in process 0."""
    if not distributed.is_first():
        return
    if as_json:
        print(json.dumps(value))
        return
    for part in parts:
        if isinstance(part, Table):
            out.print(terminal(part))
        else:
            say(part, out)


def terminal(table: Table, **style: Any) -> rich.table.Table:
    """Renders a table for ``rich``; texts are not markup."""
    title, note = (Text(text) if text else None for text in (table.title, table.note))
    rendered = rich.table.Table(title=title, caption=note, caption_justify="left", **style)
    rows = table.cells()
    for number, heading in enumerate(table.columns):
        is_text = not number or any(len(row[number]) > 24 for row in rows)
        rendered.add_column(Text(heading), justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        rendered.add_row(*map(Text, row))
    return rendered


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    """Returns rows as CSV; the columns are the keys of all rows."""
    text = io.StringIO()
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
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
