"""Published numbers beside ours: joined where the protocols agree, else rejected with the differing fields."""

import functools
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models import components
from resnet_jax.studies import ledger
from resnet_jax.studies.ledger import METRICS, Entry
from resnet_jax.studies.results import Cell, Run, Spread
from resnet_jax.terminal import Table
from resnet_jax.training import config
from resnet_jax.training.config import Experiment

MEASURED = ("top1_error", "training_error")
"""Metrics that runs measure."""
# Selection of the reported step to the field of our results.
_SELECTED = {
    "last step": "value",
    "validation error": "selected_on_validation",
    "test error": "best_over_training",
}
_IMPLIED = {"val-selected": "validation error", "test-selected": "test error"}
_UNLESS_STATED = {"dtype": "float32", "parameters": "last step", "initial_weights": None}
# Metrics that need no run, to the field of ``models.Counts``.
_COUNTED = {
    "parameters": "parameters",
    "multiply_adds": "multiply_adds",
    "flops": "multiply_adds",
    "projections": "projections",
}
_NOT_STRUCTURE = ("input_shape", "num_classes", "dtype")
_WHOLE = "all training images, last step"


@dataclass(frozen=True)
class Refusal:
    """Results under another protocol."""

    cell: Cell
    differing: dict[str, tuple[Any, Any]]
    """Field to (published, ours)."""

    def __str__(self) -> str:
        fields = "; ".join(
            f"{name} {theirs} there, {ours} here" for name, (theirs, ours) in self.differing.items()
        )
        return f"{self.cell.name} not comparable: {fields}"


@dataclass(frozen=True)
class Comparison:
    """Our results for one published number."""

    entry: Entry
    counted: int | None = None
    """Our count."""
    ours: tuple[tuple[Cell, Spread], ...] = ()
    """Variants under the same protocol, and their errors."""
    refused: tuple[Refusal, ...] = ()

    @property
    def command(self) -> str:
        """Command of the entry's study; empty without one."""
        study = self.entry.study
        if not study or not self.entry.network:
            return ""
        return f"resnet-jax study {study} --seeds 5 --workdir runs/{self.entry.paper}-{study.partition(':')[2]}"

    @property
    def missing(self) -> bool:
        """True if a run would measure the number."""
        return bool(self.entry.network) and self.entry.metric in MEASURED and not self.ours

    def __str__(self) -> str:
        if self.counted is not None:
            return f"{self.counted:,}"
        if not self.entry.network:
            return "no network of this codebase"
        if self.entry.metric not in MEASURED:
            return "not measured here"
        lines = [
            f"{error}, median {error.median:.2f}, best {error.best:.2f}, n={len(error.values)} ({cell.name})"
            for cell, error in self.ours
        ]
        lines += map(str, self.refused)
        return "\n".join([*lines, *(["not run"] if self.missing else [])])


def compare(entry: Entry, cells: Sequence[Cell]) -> Comparison:
    """Compares an entry with the variants of its network; protocols without a length are rejected."""
    architecture = entry.architecture()
    if architecture is None:
        return Comparison(entry)
    if entry.metric in _COUNTED:
        return Comparison(entry, counted=getattr(_counts(architecture), _COUNTED[entry.metric]))
    if entry.metric not in MEASURED:
        return Comparison(entry)
    wanted = structure(config.resolve(architecture))
    field = (
        "training_error_percent"
        if entry.metric == "training_error"
        else _SELECTED[selection(entry)]
    )
    ours, refused = [], []
    for cell in cells:
        if cell.results and structure(cell.results[0]["model"]) == wanted:
            if differing := differences(entry, cell):
                refused.append(Refusal(cell, differing))
            else:
                ours.append((cell, cell.spread(field)))
    return Comparison(entry, ours=tuple(ours), refused=tuple(refused))


@functools.lru_cache(maxsize=512)
def _counts(architecture: models.Architecture) -> models.Counts:
    return models.count(architecture)


def beside(cells: Sequence[Cell]) -> list[Comparison]:
    """Returns the verified published errors with a result, joined or rejected."""
    entries = (entry for key in ledger.papers() for entry in ledger.load(key).entries)
    errors = (
        entry
        for entry in entries
        if entry.verified and entry.metric == "top1_error" and entry.network
    )
    comparisons = (compare(entry, cells) for entry in errors)
    return [comparison for comparison in comparisons if comparison.ours or comparison.refused]


def published_beside(result: dict[str, Any]) -> list[Entry]:
    """Returns the published errors comparable with the result of one run."""
    cell = Cell(result["experiment"], [Run(result["seed"], result, Path())])
    return [comparison.entry for comparison in beside([cell]) if comparison.ours]


def plain(comparison: Comparison) -> dict[str, Any]:
    """Returns a comparison as a JSON object."""
    entry = comparison.entry
    return {
        **{
            name: getattr(entry, name)
            for name in ("paper", "table", "row", "metric", "relation", "statistic", "mark")
        },
        "published": entry.value,
        "counted": comparison.counted,
        "ours": [
            {
                "variant": cell.name,
                "values": list(error.values),
                "mean": error.mean,
                "median": error.median,
                "best": error.best,
            }
            for cell, error in comparison.ours
        ],
        "refused": [
            {"variant": refusal.cell.name, "differing": refusal.differing}
            for refusal in comparison.refused
        ],
        "command": comparison.command,
    }


def tables(comparisons: Sequence[Comparison]) -> list[Table]:
    """Returns one table per table of a paper."""
    grouped: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in comparisons:
        grouped.setdefault((comparison.entry.paper, comparison.entry.table), []).append(comparison)
    rendered = []
    for (paper, name), group in grouped.items():
        caption = f": {group[0].entry.caption}" if group[0].entry.caption else ""
        rows = tuple(map(_row, group))
        commands = dict.fromkeys(
            f"to run: {comparison.command}"
            for comparison in group
            if comparison.missing and comparison.command
        )
        rendered.append(
            Table(
                f"{paper}, {name}{caption}",
                ("row", "metric", "published", "mark", "ours"),
                rows,
                "\n".join(commands),
            )
        )
    return rendered


def _row(comparison: Comparison) -> tuple[str, ...]:
    entry = comparison.entry
    return entry.row, METRICS[entry.metric], _published(entry), entry.mark, str(comparison)


def _published(entry: Entry) -> str:
    if entry.statistic in ("single", "exact"):
        return str(entry)
    return f"{entry} {entry.statistic}" + (f" of {entry.runs}" if entry.runs else "")


def differences(entry: Entry, cell: Cell) -> dict[str, tuple[Any, Any]]:
    """Returns the protocol fields that differ as (published, ours), also a length that is not stated."""
    protocol = dict(cell.results[0]["protocol"])
    chosen = selection(entry)
    if all(result[_SELECTED[chosen]] is not None for result in cell.results):
        protocol["selection"] = chosen
    stated: dict[str, Any] = _UNLESS_STATED | entry.protocol | {"selection": chosen}
    differing = {
        name: (value, protocol.get(name))
        for name, value in stated.items()
        if protocol.get(name) != value
    }
    if entry.metric == "training_error" and any(
        result["training_error_of"] != _WHOLE for result in cell.results
    ):
        differing["training_error_of"] = (_WHOLE, cell.results[0]["training_error_of"])
    # Papers round the steps of the last epoch up or down.
    if "epochs" in stated and abs(stated["epochs"] - protocol["epochs"]) <= 0.01 * stated["epochs"]:
        differing.pop("epochs", None)
    if not {"steps", "epochs"} & stated.keys():
        differing["epochs"] = ("not stated", protocol["epochs"])
    return differing


def selection(entry: Entry) -> str:
    """Returns how the reported step was selected: as stated, as the statistic implies, else the last."""
    return entry.protocol.get("selection", _IMPLIED.get(entry.statistic, "last step"))


def structure(model: dict[str, Any]) -> str:
    """Returns a hash of a resolved network, without image size, classes, dtype and arguments of the normalization."""
    kept = {name: value for name, value in model.items() if name not in _NOT_STRUCTURE}
    return config.fingerprint(kept | {"norm": model["norm"].partition("(")[0]})


def study_cells(reference: str, **arguments: Any) -> tuple[Experiment, ...]:
    """Calls the function of a study. Raises UserError unless it returns experiments with distinct names."""
    function = components.load(reference)
    if not callable(function):
        raise UserError(
            f"{reference} is no function; a study is a function that returns experiments"
        )
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(
            f"{reference} cannot be called with {arguments or 'no arguments'}: {error}"
        ) from None
    variants = function(**arguments)
    if (
        not isinstance(variants, tuple | list)
        or not variants
        or not all(isinstance(variant, Experiment) for variant in variants)
    ):
        raise UserError(
            f"{reference} returned no sequence of experiments; 'resnet-jax train' takes a function that returns one"
        )
    names = [variant.name for variant in variants]
    for name in names:
        if not re.fullmatch(r"[^./\0][^/\0]{0,99}", name) or name.endswith(
            (".json", ".html", ".csv")
        ):
            raise UserError(
                f"{reference}: {name!r} names a variant and its directory; give at most 100 letters, no slash, no leading dot, "
                "no .json, .html or .csv"
            )
    if len(set(names)) < len(names):
        doubled = sorted({name for name in names if names.count(name) > 1})
        raise UserError(
            f"{reference} has several variants called {', '.join(doubled)}; give each its own name"
        )
    return tuple(variants)
