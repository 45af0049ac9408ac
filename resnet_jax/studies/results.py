"""Runs of a study grouped by variant: statistics, paired differences, tables and committed JSON."""

import datetime
import functools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from scipy import special

from resnet_jax.errors import UserError, require
from resnet_jax.studies.ledger import FAIL_PERCENT
from resnet_jax.terminal import Table, plain
from resnet_jax.training import config
from resnet_jax.training.run_dir import Record, Workdir, write_json, write_text

# Errors of selected steps to their headings.
_SELECTED = {
    "best_over_training": "best over training (selected on test) %",
    "selected_on_validation": "selected on validation %",
}
# Fields of a result that tables, figures and comparisons read.
_RESULT = (
    "best_over_training commit device diverged_at_step experiment fingerprint group model "
    "parameters protocol seconds seed selected_on_validation training_error_of "
    "training_error_percent value versions"
)
T = TypeVar("T")


class Run(NamedTuple):
    """One seed of a variant."""

    seed: int
    result: Record | None
    """Contents of ``result.json``; None for an unfinished run."""
    source: Path
    """Run directory, or file of committed results."""


class Spread(NamedTuple):
    """Statistics of a number over seeds; NaN without values."""

    mean: float
    deviation: float
    """Sample standard deviation; NaN for one value."""
    median: float
    best: float
    values: tuple[float, ...]

    def __str__(self) -> str:
        deviation = f" ± {self.deviation:.2f}" * (len(self.values) > 1)
        return f"{self.mean:.2f}{deviation}" if self.values else "–"


def spread(values: Iterable[float]) -> Spread:
    values = tuple(values)
    if not values:
        return Spread(math.nan, math.nan, math.nan, math.nan, values)
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    median = statistics.median(values)
    return Spread(statistics.fmean(values), deviation, median, min(values), values)


@dataclass(frozen=True)
class VariantRuns:
    """A variant: runs that differ in their seed alone."""

    name: str
    runs: list[Run]

    @property
    def results(self) -> list[Record]:
        """Results of the finished runs, by seed."""
        runs = sorted(self.runs, key=lambda run: run.seed)
        return [run.result for run in runs if run.result is not None]

    @functools.cached_property
    def experiment(self) -> Record:
        """The experiment, or for committed results its network."""
        for run in self.runs:
            if run.source.is_dir():
                return Workdir(run.source).read_experiment_file()["experiment"]
        return {"model": self.results[0]["model"]}

    def spread(self, name: str) -> Spread:
        """Returns a field of the results over the seeds that have a number there."""
        values = (result[name] for result in self.results if result[name] is not None)
        return spread(float(value) for value in values if not math.isnan(value))

    @property
    def error(self) -> Spread:
        """Test error of the last step in percent."""
        return self.spread("value")

    @property
    def training_error(self) -> Spread:
        return self.spread("training_error_percent")

    @property
    def diverged(self) -> int:
        """Number of seeds with a non-finite loss; their error counts as 100 %."""
        return sum(result["diverged_at_step"] is not None for result in self.results)

    @property
    def failed(self) -> bool:
        """True if the median error is above 20 % (He et al. 2016, Table 1)."""
        return self.error.median > FAIL_PERCENT


class Difference(NamedTuple):
    """Error of a variant minus that of a baseline, paired over their common seeds."""

    baseline: str
    seeds: int
    mean: float
    low: float
    """95 % confidence interval of the mean (Student's t); NaN for one seed or equal differences."""
    high: float

    @property
    def distinguishable(self) -> bool:
        """True if the interval excludes 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if not self.seeds:
            return "no interval (no common seed)"
        mean, low, high = (f"{x:+z.2f}" for x in (self.mean, self.low, self.high))
        if math.isnan(self.low):
            reason = "one seed" if self.seeds == 1 else f"the same in each of {self.seeds} seeds"
            return f"{mean}, no interval ({reason})"
        return f"{mean} ({low} to {high})" + ": not distinguishable" * (not self.distinguishable)


def difference(variant: VariantRuns, baseline: VariantRuns) -> Difference:
    """Compares errors of the last step; the interval covers the seeds, not the test images."""
    ours, theirs = (
        {result["seed"]: result["value"] for result in runs.results} for runs in (variant, baseline)
    )
    paired = spread(ours[seed] - theirs[seed] for seed in ours if seed in theirs)
    seeds, half = len(paired.values), math.nan
    # Errors are quotients of counts: differences beyond the 9th digit are rounding.
    if len({round(value, 9) for value in paired.values}) > 1:
        half = float(special.stdtrit(seeds - 1, 0.975)) * paired.deviation / math.sqrt(seeds)
    return Difference(baseline.name, seeds, paired.mean, paired.mean - half, paired.mean + half)


def find(path: Path) -> list[Path]:
    """Returns the run directories at or below a path, in order of the study or of creation."""
    if (path / "experiment.json").is_file():
        return [path]
    study = notes([path], [])
    order = {name: place for place, name in enumerate(study.get("variants", ()))}

    def place(file: Path) -> tuple[int, int]:
        return order.get(file.parent.parent.name, len(order)), file.stat().st_mtime_ns

    return [file.parent for file in sorted(path.glob("**/experiment.json"), key=place)]


def collect(paths: Iterable[Path], damaged: list[str] | None = None) -> list[VariantRuns]:
    """Groups the runs in run directories, their parents and files of results by variant.

    Variants of one name get part of their fingerprint. Messages of runs with corrupt files are
    added to ``damaged``, if it is a list; without any other run, UserError is raised.
    """
    # Variants of a study may compute the same, by scan and by loop: their names differ.
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    for variant, run in (item for path in paths for item in _runs(path, damaged)):
        runs = groups.setdefault(variant, {})
        # A run in a directory and in a committed file counts once, with its result.
        if runs.setdefault(run.seed, run).result is None:
            runs[run.seed] = run
    require(bool(groups) or not damaged, "; ".join(damaged or ()))
    names = [name for _, name in groups]
    return [
        VariantRuns(name if names.count(name) == 1 else f"{name} ({key[:6]})", [*runs.values()])
        for (key, name), runs in groups.items()
    ]


def _runs(path: Path, damaged: list[str] | None) -> Iterator[tuple[tuple[str, str], Run]]:
    """Yields runs with fingerprint and name of their variant."""
    if path.is_file():
        for result in read(path):
            _check(result, path, _RESULT)
            yield (result["group"], result["experiment"]), Run(result["seed"], result, path)
        return
    folders = find(path)
    if not folders:
        raise UserError(f"there is no run in {path}: 'resnet-jax train' writes run directories")
    for workdir in map(Workdir, folders):
        try:
            text, result = workdir.read_experiment_file(), workdir.result()
            _check(text, workdir.experiment_file, "identity experiment seed")
            if result is not None:
                _check(result, workdir.path, _RESULT)
            workdir.records()
        except UserError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
            continue
        variant = config.group(text["identity"]), text["experiment"]["name"]
        yield variant, Run(text["seed"], result, workdir.path)


def _check(text: Record, source: Path, fields: str) -> None:
    if missing := ", ".join(sorted({*fields.split()} - {*text})):
        raise UserError(f"{source} lacks {missing}: run it again with this version of resnet_jax")


def families(networks: Iterable[tuple[Record, int, T]]) -> list[list[T]]:
    """Groups (fields, depth, item) by fields other than ``stages``, one per depth, by depth."""
    groups: defaultdict[tuple[str, int], dict[int, T]] = defaultdict(dict)
    for fields, depth, item in networks:
        kind, number = config.fingerprint(fields | {"stages": None}), 0
        # Networks of one depth were trained differently.
        while depth in groups[kind, number]:
            number += 1
        groups[kind, number][depth] = item
    return [[group[depth] for depth in sorted(group)] for group in groups.values()]


def table(variants: Sequence[VariantRuns]) -> list[Record]:
    """Returns one JSON object per variant with results; the first is the baseline."""
    finished = [variant for variant in variants if variant.results]
    rows = []
    for variant in finished:
        paired = difference(variant, finished[0])
        compared = paired._asdict() | {"distinguishable": paired.distinguishable}
        row = {
            "name": variant.name,
            "seeds": len(variant.results),
            "unfinished": len(variant.runs) - len(variant.results),
            "diverged": variant.diverged,
            "failed": variant.failed,
            "test_error": variant.error._asdict(),
            "training_error": variant.training_error._asdict(),
            **{name: variant.spread(name)._asdict() for name in _SELECTED},
            "difference": compared if rows else None,
            "parameters": variant.results[0]["parameters"],
            "seconds": variant.spread("seconds").mean,
        }
        rows.append(plain(row))
    return rows


def row(variant: VariantRuns, run: Run) -> Record:
    """Returns a run as one flat row: nested fields are left out, except those of the protocol."""
    result = run.result or {}
    fields = {name: value for name, value in result.items() if not isinstance(value, dict)}
    protocol = {f"protocol.{k}": value for k, value in result.get("protocol", {}).items()}
    place = {"variant": variant.name, "seed": run.seed, "source": str(run.source)}
    return place | fields | protocol


def tables(variants: Sequence[VariantRuns]) -> list[Table]:
    """Returns the errors of the last step, then selected errors and costs.

    The first variant with results is the baseline.
    """
    finished = [variant for variant in variants if variant.results]
    # Omitted without numbers.
    selected = [s for s in _SELECTED if any(variant.spread(s).values for variant in finished)]
    rows, costs = [], []
    for variant in variants:
        done, begun, error = len(variant.results), len(variant.runs), variant.error
        seeds = f"{done}" + f"/{begun}" * (done < begun)
        seeds += f", {variant.diverged} diverged" * bool(variant.diverged)
        if not done:
            rows.append((variant.name, seeds, "not finished" if begun else "not run", *[""] * 4))
            continue
        errors = f"{error}{' fail' * variant.failed}", f"{error.median:.2f}", f"{error.best:.2f}"
        compared = str(difference(variant, finished[0])) if costs else ""
        rows.append((variant.name, seeds, *errors, str(variant.training_error), compared))
        errors = (str(variant.spread(name)) for name in selected)
        parameters, seconds = variant.results[0]["parameters"], variant.spread("seconds").mean
        costs.append((variant.name, *errors, parameters, seconds))
    failed = any(variant.failed for variant in variants)
    note = f"fail: median above {FAIL_PERCENT:g} % (He et al. 2016)" * failed
    baseline = f"difference to {finished[0].name if finished else 'the first'}, paired (95 %)"
    errors = "test error %", "median", "best seed", "training error %"
    title = "error of the last step: mean ± standard deviation over seeds"
    last = Table(title, ("variant", "seeds", *errors, baseline), tuple(rows), note)
    columns = ("variant", *(_SELECTED[name] for name in selected), "parameters", "seconds per run")
    return [last, Table("selected errors (not comparable) and costs", columns, tuple(costs))]


def write(path: Path, results: Sequence[Record], *, command: str, reduced: str = "") -> None:
    """Writes the fields that all results share once, then one line per result."""
    shared = {k: v for k, v in results[0].items() if all(r[k] == v for r in results[1:])}
    head = {"kind": "study", "date": datetime.date.today().isoformat()}
    head |= {"command": command, "reduced": reduced, "common": shared}
    own = ({k: v for k, v in result.items() if k not in shared} for result in results)
    rows = ",\n  ".join(map(json.dumps, own))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f'{json.dumps(head, indent=1)[:-2]},\n "results": [\n  {rows}\n ]\n}}\n')


def read(path: Path) -> list[Record]:
    """Reads what ``write`` wrote. Raises UserError for any other file."""
    text = read_object(path)
    try:
        return [text["common"] | row for row in text["results"]]
    except (KeyError, TypeError) as error:
        remedy = "'resnet-jax report RUNS --save FILE' writes such a file"
        raise UserError(f"{path} holds no results of runs ({error!r}): {remedy}") from None


def is_study(path: Path) -> bool:
    return read_object(path).get("kind") == "study"


def remember_study(workdir: Path, *, command: str, variants: Sequence[str], reduced: str) -> None:
    """Adds a command and its reductions to ``study.json``."""
    text = _merged(notes([workdir]), {"command": command, "reduced": reduced})
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "study.json", text | {"variants": list(variants)})


def notes(paths: Iterable[Path], damaged: list[str] | None = None) -> Record:
    """Merges the notes of studies, by directory or file of results; empty without any.

    Corrupt files: as in ``collect``.
    """
    studies = list[Record]()
    for file in (path / "study.json" if path.is_dir() else path for path in paths):
        try:
            text = read_object(file) if file.is_file() else {}
            studies += [text] if "command" in text else []
        except UserError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
    return _merged(*studies) if studies else {}


def _merged(*studies: Record) -> Record:
    def joined(name: str) -> str:
        parts = (part for study in studies for part in study.get(name, "").split("; ") if part)
        return "; ".join(dict.fromkeys(parts))

    variants = dict.fromkeys(name for study in studies for name in study.get("variants", ()))
    return {"command": joined("command"), "variants": [*variants], "reduced": joined("reduced")}


def read_object(path: Path) -> Record:
    """Reads a JSON object. Raises UserError for anything else."""
    try:
        return {**json.loads(path.read_text())}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is corrupt: {error}") from None
