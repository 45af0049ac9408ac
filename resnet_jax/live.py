"""A study as it runs: one table where there is a terminal, a line an event where there is none (logs)."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from resnet_jax import models, processes
from resnet_jax.console import err, numbers
from resnet_jax.studies.cells import Spread
from resnet_jax.studies.ledger import FAIL_PERCENT
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.workdir import Record


class StudyTable:
    """The ``studies.study.Watcher`` of the command line; a context manager. One row a cell: seeds done, error so far, what runs now."""

    def __init__(self, cells: Sequence[Experiment], seeds: int, console: Console = err):
        self._rows = {cell.name: _Row(cell, seeds) for cell in cells}
        self._console = console
        self._began = time.monotonic()
        self._done_before: float | None = None  # of the work, when the first run of this session began
        self._live = (
            Live(get_renderable=self._table, console=console, refresh_per_second=2, transient=True)
            if console.is_terminal and processes.is_first()
            else None
        )

    def __enter__(self) -> "StudyTable":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    @contextlib.contextmanager
    def running(self, cell: Experiment, seeds: Sequence[int]) -> Iterator["_Running"]:
        """See ``studies.study.Watcher``."""
        if self._done_before is None:
            self._began, self._done_before = time.monotonic(), sum(row.done for row in self._rows.values())
        row = self._rows[cell.name]
        named = _named(seeds)
        row.now, row.running = f"{named}: compiling", len(seeds)
        try:
            yield _Running(self, row, cell.name, seeds)
        finally:
            row.now, row.running, row.fraction = "", 0, 0.0

    def finished(self, cell: Experiment, results: Sequence[dict[str, Any]]) -> None:
        """See ``studies.study.Watcher``."""
        row = self._rows[cell.name]
        row.errors += [result["value"] for result in results]
        if self._done_before is not None:  # else they were found finished
            row.now, row.running, row.fraction = "", 0, 0.0
            for result in results:
                self.line(f"{cell.name}, seed {result['seed']}: test error {result['value']:.2f} %; {self._summary()}")

    def line(self, text: str) -> None:
        """Prints a line: above the table on a terminal."""
        if not self._live and processes.is_first():
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """Prints a line that matters on a terminal too."""
        if processes.is_first():
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _summary(self) -> str:
        rows = self._rows.values()
        finished, runs = sum(len(row.errors) for row in rows), sum(row.seeds for row in rows)
        done, all_of_it = sum(row.done for row in rows), sum(row.work for row in rows)
        elapsed = time.monotonic() - self._began
        since = 0.0 if self._done_before is None else done - self._done_before
        left = f", about {_duration(elapsed / since * (all_of_it - done))} left" if since and done < all_of_it else ""
        return f"{finished} of {runs} runs, {_duration(elapsed)}{left}"

    def _table(self) -> Group:
        table = Table("cell", "seeds", "test error %", "now", box=None, header_style="bold")
        for name, row in self._rows.items():
            error = Spread(tuple(row.errors))
            failed = " fail" if row.errors and error.median > FAIL_PERCENT else ""
            table.add_row(escape(name), f"{len(row.errors)}/{row.seeds}", f"{error}{failed}", row.now)
        return Group(table, Text(self._summary(), style="dim"))


class _Row:
    def __init__(self, cell: Experiment, seeds: int):
        self.seeds, self.steps = seeds, cell.steps
        # A run's time goes with its multiply-adds, near enough to say what is left.
        self.per_run = float(models.count(cell.model).multiply_adds) * cell.steps * cell.batch_size
        self.errors: list[float] = []
        self.now, self.running, self.fraction = "", 0, 0.0

    @property
    def done(self) -> float:
        return self.per_run * (len(self.errors) + self.running * self.fraction)

    @property
    def work(self) -> float:
        return self.per_run * self.seeds


class _Running:
    """The ``training.loop.Progress`` of what runs now."""

    def __init__(self, table: StudyTable, row: _Row, cell: str, seeds: Sequence[int]):
        self._table, self._row, self._cell, self._seeds = table, row, cell, seeds
        self._last = ""

    def start(self, step: int, steps: int) -> None:
        self._row.steps = steps
        self.advance(step)

    def advance(self, step: int) -> None:
        self._row.fraction = step / self._row.steps
        self._row.now = f"{_named(self._seeds)}: step {step}/{self._row.steps}{self._last}"

    def update(self, record: Record) -> None:
        if record["split"] == "train":
            self._last = f", {numbers(record)}"
        elif record["split"] == "test":
            seed = record.get("seed", self._seeds[0])
            at = f"step {record['step']}/{self._row.steps}, test error {record['error_percent']:.2f} %"
            self._table.line(f"{self._cell}, seed {seed}: {at}{self._last}")

    def say(self, message: str) -> None:
        self._table.say(f"{self._cell}, {_named(self._seeds)}: {message}")


def _named(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
