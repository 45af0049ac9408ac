"""Cells: runs of one experiment that differ in nothing but their seed, and what can be said of them and of two of them."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from resnet_jax.errors import UserError
from resnet_jax.studies import committed
from resnet_jax.studies.ledger import FAIL_PERCENT
from resnet_jax.studies.result import Result
from resnet_jax.training import resolved
from resnet_jax.training.workdir import Record, Workdir

_FIELDS = {field.name for field in fields(Result)}
_DEFAULTS = {each.name: each.default for each in fields(Result) if each.default is not MISSING}


@dataclass(frozen=True)
class Run:
    """One seed of a cell."""

    seed: int
    result: dict[str, Any] | None
    """Contents of its ``result.json``; None where it has not finished."""
    source: Path
    """Its folder, or the file of committed results that it stands in."""

    def records(self) -> list[Record]:
        """What it measured on its way; none of a committed result."""
        return Workdir(self.source).records() if self.source.is_dir() else []


@dataclass(frozen=True)
class Spread:
    """A number over the seeds of a cell."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """NaN of no values."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation; NaN of fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def median(self) -> float:
        return statistics.median(self.values) if self.values else math.nan

    @property
    def best(self) -> float:
        return min(self.values, default=math.nan)

    def __str__(self) -> str:
        """``mean ± standard deviation``; the mean alone of a single value, a dash of none."""
        if not self.values:
            return "–"
        return f"{self.mean:.2f}" if len(self.values) == 1 else f"{self.mean:.2f} ± {self.deviation:.2f}"


@dataclass(frozen=True)
class Cell:
    """Runs that differ in nothing but their seed."""

    name: str
    runs: list[Run] = field(default_factory=list)

    @property
    def results(self) -> list[dict[str, Any]]:
        """Of the runs that finished, in the order of their seeds."""
        return [run.result for run in sorted(self.runs, key=lambda run: run.seed) if run.result is not None]

    def spread(self, name: str) -> Spread:
        """A field of the results over the seeds; seeds that lack it, or have no number there, are left out."""
        values = (result[name] for result in self.results if result[name] is not None)
        return Spread(tuple(float(value) for value in values if not math.isnan(value)))

    @property
    def error(self) -> Spread:
        """The headline: test error of the last step."""
        return self.spread("value")

    @property
    def seconds(self) -> Spread:
        """Of a run, where several were trained together its share."""
        took = [result["seconds"] / result["seeds_together"] for result in self.results if result["seconds"] is not None]
        return Spread(tuple(took))

    @property
    def diverged(self) -> int:
        """Seeds whose loss stopped being finite; their error counts as 100 %."""
        return sum(result["diverged_at_step"] is not None for result in self.results)

    @property
    def failed(self) -> bool:
        """He et al. 2016: error above 20 %, of the median."""
        return self.error.median > FAIL_PERCENT


@dataclass(frozen=True)
class Difference:
    """Error of a cell minus that of a baseline, paired over the seeds that both have."""

    baseline: str
    seeds: int
    mean: float
    low: float
    """Of the 95 % confidence interval of the mean (Student's t); NaN of fewer than two seeds, or of equal differences."""
    high: float

    @property
    def distinguishable(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if math.isnan(self.low):
            reason = "one seed" if self.seeds == 1 else "no common seed" if not self.seeds else f"the same in each of {self.seeds} seeds"
            number = "" if not self.seeds else f"{_signed(self.mean)}, "
            return f"{number}no interval ({reason})"
        words = "" if self.distinguishable else ": not distinguishable"
        return f"{_signed(self.mean)} ({_signed(self.low)} to {_signed(self.high)}){words}"


def _signed(number: float) -> str:
    return f"{round(number, 2) + 0.0:+.2f}"  # -0.0 + 0.0 is 0.0: nothing is not negative


def difference(cell: Cell, baseline: Cell) -> Difference:
    """Compares the last-step errors of two cells. The interval knows the spread over seeds, not that over test images."""
    theirs = {result["seed"]: result["value"] for result in baseline.results}
    differences = [result["value"] - theirs[result["seed"]] for result in cell.results if result["seed"] in theirs]
    low = high = math.nan
    # Errors are quotients of counts: what differs in the 10th digit is equal.
    if len({round(each, 9) for each in differences}) > 1:
        low, high = stats.ttest_1samp(np.asarray(differences), 0.0).confidence_interval(0.95)
    mean = statistics.fmean(differences) if differences else math.nan
    return Difference(baseline.name, len(differences), mean, float(low), float(high))


def find(path: Path) -> list[Path]:
    """The run folders at or below a path; those of a study in its order, others in the order they were begun."""
    if (path / "experiment.json").is_file():
        return [path]
    found = [file.parent for file in path.glob("**/experiment.json")]
    begun = sorted(found, key=lambda folder: (folder / "experiment.json").stat().st_mtime_ns)
    order = committed.study_order(path)
    return sorted(begun, key=lambda folder: order.get(folder.parent.name, len(order)))


def collect(paths: Iterable[Path]) -> list[Cell]:
    """Groups what lies in run folders, folders that hold them, and files of committed results.

    Cells of one name that differ get part of their fingerprint as well.

    Raises:
      UserError: for a path that holds none of them.
    """
    # Two cells of a study may compute the same, by scan and by loop, say: they are told apart by their names.
    found: dict[tuple[str, str], Cell] = {}

    def add(key: tuple[str, str], run: Run) -> None:
        cell = found.setdefault(key, Cell(key[1]))
        # A run may lie in a folder and in a file of committed results: it counts once, with its result.
        same = [other for other in cell.runs if other.seed == run.seed]
        if not same or (same[0].result is None and run.result is not None):
            cell.runs[:] = [other for other in cell.runs if other.seed != run.seed] + [run]

    for path in paths:
        if path.is_file():
            for result in committed.read(path):
                _check(result, path)
                add((result["group"], result["experiment"]), Run(result["seed"], result, path))
            continue
        folders = find(path)
        if not folders:
            raise UserError(f"there is no run in {path}: a run is a folder that 'resnet-jax train' wrote")
        for folder in folders:
            workdir = Workdir(folder)
            text = workdir.read_experiment_file()
            key = resolved.group(text["identity"])
            result = workdir.result()
            if result is not None:
                _check(result, workdir.result_file)
            add((key, text["experiment"]["name"]), Run(text["seed"], result, folder))
    names = [cell.name for cell in found.values()]
    return [cell if names.count(cell.name) == 1 else Cell(f"{cell.name} ({key[0][:6]})", cell.runs) for key, cell in found.items()]


def _check(result: dict[str, Any], file: Path) -> None:
    # What has a default came later than some results.
    for name, value in _DEFAULTS.items():
        result.setdefault(name, value)
    if result.keys() != _FIELDS:
        differing = ", ".join(sorted(result.keys() ^ _FIELDS))
        raise UserError(f"{file} is of another version of resnet_jax (fields that differ: {differing}): run it anew")


def table(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """One row a cell that has results, as JSON can say it; the first cell is what the others are compared with."""
    finished = [cell for cell in cells if cell.results]
    rows = []
    for cell in finished:
        error = cell.error
        against = difference(cell, finished[0])
        rows.append(
            {
                "name": cell.name,
                "seeds": len(error.values),
                "unfinished": len(cell.runs) - len(cell.results),
                "diverged": cell.diverged,
                "failed": cell.failed,
                "test_error": _numbers(error),
                "training_error": _numbers(cell.spread("training_error_percent")),
                "best_over_training": _numbers(cell.spread("best_over_training")),
                "selected_on_validation": _numbers(cell.spread("selected_on_validation")),
                "difference": None
                if cell is finished[0]
                else {
                    "baseline": against.baseline,
                    "seeds": against.seeds,
                    "mean": _finite(against.mean),
                    "low": _finite(against.low),
                    "high": _finite(against.high),
                    "distinguishable": against.distinguishable,
                },
                "parameters": cell.results[0]["parameters"],
                "seconds": _finite(cell.seconds.mean),
            }
        )
    return rows


def _numbers(spread: Spread) -> dict[str, Any]:
    numbers = {"mean": spread.mean, "deviation": spread.deviation, "median": spread.median, "best": spread.best}
    return {name: _finite(value) for name, value in numbers.items()} | {"values": list(spread.values)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
