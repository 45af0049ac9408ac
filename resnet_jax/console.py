"""How a run looks in the terminal: a live line where there is one, a line an evaluation where there is none (logs)."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from resnet_jax import processes
from resnet_jax.models import Counts
from resnet_jax.training.workdir import Record

# Results go to stdout, everything about the way there to stderr: `--json` can be piped.
out = Console()
if not out.is_terminal:
    out.width = max(out.width, 140)  # of a file or a pipe nothing is known; 80 would fold the tables
err = Console(stderr=True)


class RunProgress:
    """The ``training.loop.Progress`` of the command line; a context manager. ``title`` names the run."""

    def __init__(self, title: str, console: Console = err):
        self._title, self._console = title, console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not (console.is_terminal and processes.is_first()),
            transient=True,
        )
        self._task = self._progress.add_task(title, total=None, numbers="compiling")
        self._last: Record = {}
        self._steps = 0

    def __enter__(self) -> "RunProgress":
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def start(self, step: int, steps: int) -> None:
        """See ``training.loop.Progress``."""
        self._steps = steps
        self._progress.update(self._task, total=steps, completed=step)

    def advance(self, step: int) -> None:
        """See ``training.loop.Progress``."""
        self._progress.update(self._task, completed=step)

    def update(self, record: Record) -> None:
        """See ``training.loop.Progress``."""
        if record["split"] == "train":
            self._last = record
            self._progress.update(self._task, numbers=numbers(record))
        elif not self._console.is_terminal and record["split"] == "test" and processes.is_first():
            rest = f", {numbers(self._last)}" if self._last else ""
            self._console.print(
                f"{self._title}: step {record['step']}/{self._steps}, test error {record['error_percent']:.2f} %{rest}",
                highlight=False,
                soft_wrap=True,
            )

    def say(self, message: str) -> None:
        """See ``training.loop.Progress``."""
        if processes.is_first():
            self._console.print(f"{self._title}: {message}", highlight=False, soft_wrap=True)


def numbers(record: Record) -> str:
    """A training record in words."""
    return (
        f"loss {record['loss']:.4f}, training error {record['error_percent']:.1f} %, learning rate {record['learning_rate']:g}, "
        f"{record['images_per_second']:,.0f} images/s"
    )


def counts_table(title: str, counts: Counts) -> Table:
    """The table of ``summary``."""
    table = Table(title=title)
    for name, align in [
        ("", "left"),
        ("units", "right"),
        ("output", "left"),
        ("parameters", "right"),
        ("multiply-adds", "right"),
        ("projections", "right"),
    ]:
        table.add_column(name, justify=align)  # pyright: ignore[reportArgumentType]
    for row in counts.stages:
        shape = "x".join(map(str, row.output_shape))
        table.add_row(row.name, f"{row.units or ''}", shape, f"{row.parameters:,}", f"{row.multiply_adds:,}", f"{row.projections or ''}")
    table.add_section()
    units = sum(row.units for row in counts.stages)
    table.add_row("all", str(units), "", f"{counts.parameters:,}", f"{counts.multiply_adds:,}", str(counts.projections))
    return table
