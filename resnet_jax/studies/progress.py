"""Progress of a study: one table on a terminal, one line per event in a log."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from resnet_jax import distributed, models
from resnet_jax.studies.ledger import FAIL_PERCENT
from resnet_jax.studies.results import Spread
from resnet_jax.terminal import RunLines, Table, err, say, terminal
from resnet_jax.training.config import Experiment


class StudyTable:
    """The ``studies.study.Watcher`` of the command line; a context manager."""

    def __init__(self, cells: Sequence[Experiment], seeds: int, console: Console = err):
        self._rows = {cell.name: _Row(cell, seeds) for cell in cells}
        self._console = console
        self._began = time.monotonic()
        self._done_before: float | None = None  # Work done when the first run began.
        self._live = Live(
            get_renderable=self.render, console=console, refresh_per_second=2, transient=True
        )

    def __enter__(self) -> "StudyTable":
        if self._console.is_terminal and distributed.is_first():
            self._live.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._live.stop()

    @contextlib.contextmanager
    def running(self, variant: Experiment, seed: int) -> Iterator["_Running"]:
        if self._done_before is None:
            self._began, self._done_before = time.monotonic(), self._done()
        row = self._rows[variant.name]
        run = _Running(variant.name, seed, self._console)
        row.current.append(run)
        try:
            yield run
        finally:
            row.current.remove(run)

    def finished(self, variant: Experiment, result: dict[str, Any]) -> None:
        self._rows[variant.name].errors.append(result["value"])
        # Earlier runs appear in the table only.
        if self._done_before is not None and not self._console.is_terminal:
            say(
                f"{variant.name}, seed {result['seed']}: test error {result['value']:.2f} %; {self._summary()}",
                self._console,
            )

    def _done(self) -> float:
        return sum(
            row.cost * (len(row.errors) + sum(run.done for run in row.current))
            for row in self._rows.values()
        )

    def _summary(self) -> str:
        rows, done = self._rows.values(), self._done()
        left, since = (
            sum(row.cost * row.seeds for row in rows) - done,
            done - (self._done_before or 0.0),
        )
        elapsed = time.monotonic() - self._began
        remaining = (
            f", about {_duration(elapsed / since * left)} left"
            if self._done_before is not None and since and left > 0
            else ""
        )
        return f"{sum(len(row.errors) for row in rows)} of {sum(row.seeds for row in rows)} runs, {_duration(elapsed)}{remaining}"

    def render(self) -> Group:
        """The table, and a line with the number of runs and the remaining time."""
        rows = []
        for name, row in self._rows.items():
            error = Spread(tuple(row.errors))
            failed = " fail" if row.errors and error.median > FAIL_PERCENT else ""
            rows.append(
                (
                    name,
                    f"{len(row.errors)}/{row.seeds}",
                    f"{error}{failed}",
                    "\n".join(run.now for run in row.current),
                )
            )
        table = Table("", ("variant", "seeds", "test error %", "now"), tuple(rows))
        return Group(
            terminal(table, box=None, header_style="bold"), Text(self._summary(), style="dim")
        )


class _Row:
    def __init__(self, cell: Experiment, seeds: int):
        self.seeds = seeds
        # The time of a run is about proportional to its multiply-adds.
        self.cost = float(models.count(cell.model).multiply_adds) * cell.steps * cell.batch_size
        self.errors: list[float] = []
        self.current: list[_Running] = []


class _Running(RunLines):
    """The ``training.train.Progress`` of one run."""

    def __init__(self, variant: str, seed: int, console: Console):
        self._seed = f"seed {seed}"
        super().__init__(f"{variant}, {self._seed}", console)
        self.now, self.done = f"{self._seed}: compiling", 0.0

    def advance(self, step: int) -> None:
        self.done = step / self.steps
        self.now = f"{self._seed}: step {step}/{self.steps}{self.numbers}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
