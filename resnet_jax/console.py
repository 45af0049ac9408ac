"""Terminal output, and the progress of a run: a bar on a terminal, one line per evaluation in a log."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TimeRemainingColumn

from resnet_jax import processes
from resnet_jax.training.workdir import Record

# Results go to stdout and progress to stderr, so that `--json` can be piped.
out = Console()
if not out.is_terminal:
    out.width = max(out.width, 140)  # The default of 80 for a file or a pipe folds tables.
err = Console(stderr=True)


class RunLines:
    """A ``training.train.Progress`` without a bar."""

    def __init__(self, title: str, console: Console = err):
        self.title, self.console = title, console
        self.steps = 0
        self.numbers = ""

    def start(self, step: int, steps: int) -> None:
        self.steps = steps
        self.advance(step)

    def advance(self, step: int) -> None: ...

    def update(self, record: Record) -> None:
        if record["split"] == "train":
            self.numbers = (
                f", loss {record['loss']:.4f}, training error {record['error_percent']:.1f} %, learning rate {record['learning_rate']:g}, "
                f"{record['images_per_second']:,.0f} images/s"
            )
            self.advance(record["step"])
        elif record["split"] == "test" and not self.console.is_terminal:
            self.say(f"step {record['step']}/{self.steps}, test error {record['error_percent']:.2f} %{self.numbers}")

    def say(self, message: str) -> None:
        say(f"{self.title}: {message}", self.console)


class RunProgress(RunLines):
    """The ``training.train.Progress`` of one run, with a bar on a terminal; a context manager."""

    def __init__(self, title: str, console: Console = err):
        super().__init__(title, console)
        columns = ("[bold]{task.description}", BarColumn(), MofNCompleteColumn(), "{task.fields[numbers]}", TimeRemainingColumn())
        hidden = not (console.is_terminal and processes.is_first())
        self._bar = Progress(SpinnerColumn(), *columns, console=console, disable=hidden, transient=True)
        self._task = self._bar.add_task(title, total=None, numbers="compiling")

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        self._bar.update(self._task, total=self.steps, completed=step, numbers=self.numbers.removeprefix(", ") or "compiling")


def say(text: str, console: Console = err) -> None:
    """Prints a line, in process 0."""
    if processes.is_first():
        console.print(text, highlight=False, markup=False, soft_wrap=True)
