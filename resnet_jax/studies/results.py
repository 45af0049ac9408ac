"""Variants of a study: runs that differ in their seed alone, their statistics and their differences."""

import datetime
import functools
import json
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from resnet_jax.errors import UserError
from resnet_jax.studies.ledger import FAIL_PERCENT
from resnet_jax.terminal import Table, plain
from resnet_jax.training import config
from resnet_jax.training.run_dir import Record, Workdir, write_json, write_text

_REQUIRED = (
    *(
        "experiment",
        "seed",
        "group",
        "fingerprint",
        "value",
        "best_over_training",
        "selected_on_validation",
        "training_error_percent",
    ),
    *(
        "training_error_of",
        "diverged_at_step",
        "parameters",
        "seconds",
        "protocol",
        "model",
        "commit",
        "versions",
        "device",
    ),
)


@dataclass(frozen=True)
class Run:
    """One seed of a variant."""

    seed: int
    result: dict[str, Any] | None
    """Contents of ``result.json``; None for an unfinished run."""
    source: Path
    """Run directory, or file of committed results."""

    def records(self) -> list[Record]:
        """Returns the metrics; empty for a committed result."""
        return Workdir(self.source).records() if self.source.is_dir() else []


@dataclass(frozen=True)
class Spread:
    """A number over the seeds of a variant; NaN without values."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation; NaN for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else math.nan

    @property
    def best(self) -> float:
        return min(self.values, default=math.nan)

    def __str__(self) -> str:
        if not self.values:
            return "–"
        return (
            f"{self.mean:.2f}"
            if len(self.values) == 1
            else f"{self.mean:.2f} ± {self.deviation:.2f}"
        )


@dataclass(frozen=True)
class Cell:
    """A variant: runs that differ in their seed alone."""

    name: str
    runs: list[Run] = field(default_factory=list)

    @property
    def results(self) -> list[dict[str, Any]]:
        """Results of the finished runs, by seed."""
        return [
            run.result
            for run in sorted(self.runs, key=lambda run: run.seed)
            if run.result is not None
        ]

    def spread(self, name: str) -> Spread:
        """Returns a field of the results over the seeds that have a number there."""
        values = (result[name] for result in self.results if result[name] is not None)
        return Spread(tuple(float(value) for value in values if not math.isnan(value)))

    @property
    def error(self) -> Spread:
        """Test error of the last step in percent."""
        return self.spread("value")

    @property
    def diverged(self) -> int:
        """Number of seeds with a non-finite loss; their error counts as 100 %."""
        return sum(result["diverged_at_step"] is not None for result in self.results)

    @property
    def failed(self) -> bool:
        """True if the median error is above 20 % (He et al. 2016, Table 1)."""
        return self.error.median > FAIL_PERCENT


@dataclass(frozen=True)
class Difference:
    """Error of a variant minus that of a baseline, paired over their common seeds."""

    baseline: str
    seeds: int
    mean: float
    low: float
    """95 % confidence interval of the mean (Student's t); NaN for fewer than two seeds or equal differences."""
    high: float

    @property
    def distinguishable(self) -> bool:
        """True if the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if not self.seeds:
            return "no interval (no common seed)"
        if math.isnan(self.low):
            reason = "one seed" if self.seeds == 1 else f"the same in each of {self.seeds} seeds"
            return f"{_signed(self.mean)}, no interval ({reason})"
        interval = f"{_signed(self.mean)} ({_signed(self.low)} to {_signed(self.high)})"
        return interval if self.distinguishable else f"{interval}: not distinguishable"


def _signed(number: float) -> str:
    return f"{round(number, 2) + 0.0:+.2f}"  # -0.0 + 0.0 is 0.0


def difference(cell: Cell, baseline: Cell) -> Difference:
    """Compares errors of the last step. The interval covers the spread over seeds, not over test images."""
    theirs = {result["seed"]: result["value"] for result in baseline.results}
    pairs = [
        result["value"] - theirs[result["seed"]]
        for result in cell.results
        if result["seed"] in theirs
    ]
    low = high = math.nan
    # Errors are quotients of counts: differences beyond the 9th digit are rounding.
    if len({round(pair, 9) for pair in pairs}) > 1:
        low, high = stats.ttest_1samp(np.asarray(pairs), 0.0).confidence_interval(0.95)
    return Difference(
        baseline.name,
        len(pairs),
        statistics.fmean(pairs) if pairs else math.nan,
        float(low),
        float(high),
    )


def find(path: Path) -> list[Path]:
    """Returns the run directories at or below a path, in the order of the study or of their creation."""
    files = (
        [path / "experiment.json"]
        if (path / "experiment.json").is_file()
        else list(path.glob("**/experiment.json"))
    )
    order = {name: place for place, name in enumerate(study(path).get("cells", ()))}
    files.sort(
        key=lambda file: (order.get(file.parent.parent.name, len(order)), file.stat().st_mtime_ns)
    )
    return [file.parent for file in files]


def collect(paths: Iterable[Path]) -> list[Cell]:
    """Groups the runs in run directories, their parents and files of committed results by variant.

    Different variants with one name get part of their fingerprint as well.

    Raises:
      UserError: for a path without runs, or a result that lacks fields.
    """
    # Variants of a study may compute the same, by scan and by loop for example: names tell them apart.
    groups: dict[tuple[str, str], dict[int, Run]] = {}

    def add(group: str, name: str, run: Run) -> None:
        missing = [
            field for field in _REQUIRED if run.result is not None and field not in run.result
        ]
        if missing:
            raise UserError(
                f"the result in {run.source} lacks {', '.join(missing)}: run it again with this version of resnet_jax"
            )
        runs = groups.setdefault((group, name), {})
        # A run may be in a directory and in a committed file: it counts once, with its result.
        if run.seed not in runs or (runs[run.seed].result is None and run.result is not None):
            runs[run.seed] = run

    for path in paths:
        if path.is_file():
            for result in read(path):
                add(result["group"], result["experiment"], Run(result["seed"], result, path))
            continue
        folders = find(path)
        if not folders:
            raise UserError(
                f"there is no run in {path}: a run is a directory that 'resnet-jax train' wrote"
            )
        for folder in folders:
            workdir = Workdir(folder)
            text = workdir.read_experiment_file()
            add(
                config.group(text["identity"]),
                text["experiment"]["name"],
                Run(text["seed"], workdir.result(), folder),
            )
    names = [name for _, name in groups]
    return [
        Cell(name if names.count(name) == 1 else f"{name} ({key[:6]})", [*runs.values()])
        for (key, name), runs in groups.items()
    ]


def table(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Returns one JSON object per variant with results; the first is the baseline of the differences."""
    finished = [cell for cell in cells if cell.results]
    rows = (
        {
            "name": cell.name,
            "seeds": len(cell.results),
            "unfinished": len(cell.runs) - len(cell.results),
            "diverged": cell.diverged,
            "failed": cell.failed,
            "test_error": _numbers(cell.error),
            "training_error": _numbers(cell.spread("training_error_percent")),
            "best_over_training": _numbers(cell.spread("best_over_training")),
            "selected_on_validation": _numbers(cell.spread("selected_on_validation")),
            "difference": None
            if cell is finished[0]
            else asdict(paired) | {"distinguishable": paired.distinguishable},
            "parameters": cell.results[0]["parameters"],
            "seconds": cell.spread("seconds").mean,
        }
        for cell in finished
        for paired in (difference(cell, finished[0]),)
    )
    return [plain(row) for row in rows]


def _numbers(spread: Spread) -> dict[str, Any]:
    return {
        name: getattr(spread, name) for name in ("mean", "deviation", "median", "best", "values")
    }


def tables(cells: Sequence[Cell], absent: Sequence[str] = ()) -> list[Table]:
    """Returns the headline (errors of the last step), then selected errors and costs.

    Args:
      cells: the first with results is the baseline of the differences.
      absent: names of further variants without runs.
    """
    finished = [cell for cell in cells if cell.results]
    headline: list[tuple[Any, ...]] = []
    for cell in cells:
        seeds = f"{len(cell.results)}" + (
            f"/{len(cell.runs)}" if len(cell.results) < len(cell.runs) else ""
        )
        if not cell.results:
            headline.append((cell.name, seeds, "not finished", *[""] * 4))
            continue
        error = cell.error
        headline.append(
            (
                cell.name,
                seeds + (f", {cell.diverged} diverged" if cell.diverged else ""),
                f"{error}{' fail' if cell.failed else ''}",
                f"{error.median:.2f}",
                f"{error.best:.2f}",
                str(cell.spread("training_error_percent")),
                "" if cell is finished[0] else str(difference(cell, finished[0])),
            )
        )
    headline += [(name, "0", "not run", *[""] * 4) for name in absent]
    validated = any(cell.spread("selected_on_validation").values for cell in finished)
    selected = ("best_over_training", "selected_on_validation")[: 1 + validated]
    columns = ("best over training (selected on test) %", "selected on validation %")[
        : 1 + validated
    ]
    rest = [
        (
            cell.name,
            *(str(cell.spread(name)) for name in selected),
            cell.results[0]["parameters"],
            cell.spread("seconds").mean,
        )
        for cell in finished
    ]
    first = finished[0].name if finished else "the first"
    errors = (
        "variant",
        "seeds",
        "test error %",
        "median",
        "best seed",
        "training error %",
        f"difference to {first}, paired (95 %)",
    )
    fail = (
        f"fail: median above {FAIL_PERCENT:g} % (He et al. 2016)"
        if any(cell.failed for cell in cells)
        else ""
    )
    return [
        Table(
            "error of the last step: mean ± standard deviation over seeds",
            errors,
            tuple(headline),
            fail,
        ),
        Table(
            "selected errors (not comparable) and costs",
            ("variant", *columns, "parameters", "seconds per run"),
            tuple(rest),
        ),
    ]


STUDY_FILE = "study.json"


def write(
    path: Path, results: Sequence[dict[str, Any]], *, command: str, reduced: str = ""
) -> None:
    """Writes the fields that all results share once, then one line per result."""
    common = {
        name: value
        for name, value in results[0].items()
        if all(other[name] == value for other in results)
    }
    head = {
        "kind": "study",
        "date": datetime.date.today().isoformat(),
        "command": command,
        "reduced": reduced,
        "common": common,
    }
    rows = [
        json.dumps({name: value for name, value in result.items() if name not in common})
        for result in results
    ]
    text = (
        json.dumps(head, indent=1)[:-2] + ',\n "results": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def read(path: Path) -> list[dict[str, Any]]:
    """Reads what ``write`` wrote. Raises UserError for any other file."""
    try:
        text = read_object(path)
        return [text["common"] | row for row in text["results"]]
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no results of runs ({error!r}): 'resnet-jax report RUNS --save FILE' writes such a file"
        ) from None


def is_study(path: Path) -> bool:
    """Returns whether a JSON file holds results of runs."""
    return read_object(path).get("kind") == "study"


def remember_study(workdir: Path, *, command: str, cells: Sequence[str], reduced: str) -> None:
    """Adds the command of a study and its reductions to the notes in its directory."""
    before = study(workdir)
    now = {"command": command, "reduced": reduced}
    text = {"cells": list(cells)} | {
        name: _joined(before.get(name, ""), note) for name, note in now.items()
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / STUDY_FILE, text)
    except OSError as error:
        raise UserError(
            f"{workdir} cannot be written ({error.strerror}): use another --workdir"
        ) from error


def _joined(earlier: str, now: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, [*earlier.split("; "), now])))


def notes(paths: Iterable[Path]) -> dict[str, Any]:
    """Merges ``study`` of several directories or files."""
    studies = [text for text in map(study, paths) if text.get("command")]
    if not studies:
        return {}
    merged: dict[str, Any] = {
        name: functools.reduce(_joined, (text.get(name, "") for text in studies))
        for name in ("command", "reduced")
    }
    return merged | {
        "cells": list(dict.fromkeys(name for text in studies for name in text.get("cells", ())))
    }


def study(path: Path) -> dict[str, Any]:
    """Reads the notes of a directory or of a file of results; empty without any."""
    file = path / STUDY_FILE if path.is_dir() else path
    return read_object(file) if file.is_file() else {}


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError for anything else."""
    try:
        text = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is corrupt: {error}") from None
    if not isinstance(text, dict):
        raise UserError(f"{path} is corrupt: it holds no JSON object")
    return text
