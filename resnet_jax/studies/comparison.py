"""Published numbers beside ours: put together where the circumstances agree, refused with the reasons where they do not."""

import functools
import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_jax import models, references
from resnet_jax.errors import UserError
from resnet_jax.studies import ledger
from resnet_jax.studies.cells import Cell, Run, Spread
from resnet_jax.studies.ledger import Entry
from resnet_jax.training import resolved
from resnet_jax.training.experiment import Experiment

# What was done to choose the step whose error is told, to the field of our results that was chosen alike.
_SELECTED = {"last step": "value", "validation error": "selected_on_validation", "test error": "best_over_training"}
# Metrics that a run measures.
MEASURED = ("top1_error", "training_error")
# What the publications did where they do not speak of it.
_UNLESS_STATED = {"dtype": "float32", "parameters": "last step", "initial_weights": None}
# Metrics that need no run, to the field of ``models.Counts``.
_COUNTED = {"parameters": "parameters", "multiply_adds": "multiply_adds", "flops": "multiply_adds", "projections": "projections"}
_NOT_STRUCTURE = ("input_shape", "num_classes", "dtype")


@dataclass(frozen=True)
class Refusal:
    """Results of the entry's network under other circumstances."""

    cell: Cell
    differing: dict[str, tuple[Any, Any]]
    """Field to (published, ours)."""

    def __str__(self) -> str:
        fields = "; ".join(f"{name} {theirs} there, {ours} here" for name, (theirs, ours) in self.differing.items())
        return f"{self.cell.name} not comparable: {fields}"


@dataclass(frozen=True)
class Comparison:
    """What we have for one published number."""

    entry: Entry
    counted: int | None = None
    """Our own count, where the entry is one."""
    ours: tuple[tuple[Cell, Spread], ...] = ()
    """Cells whose circumstances agree, with the errors chosen as the paper chose its."""
    refused: tuple[Refusal, ...] = ()
    only: str | None = None
    """The study's cell that is the entry's; None where the experiments are not at hand."""

    @property
    def study_command(self) -> str:
        """What would run the study of an entry; empty where there is none."""
        study = self.entry.study
        if not self.entry.network:
            return ""
        return f"resnet-jax study {study} --seeds 5 --workdir runs/{self.entry.paper}-{study.partition(':')[2]}" if study else ""

    @property
    def command(self) -> str:
        """What would run the entry alone."""
        return self.study_command + (f" --only {self.only}" if self.only and self.study_command else "")


def compare(entry: Entry, cells: Sequence[Cell]) -> Comparison:
    """Looks for what we have beside an entry. Unstated circumstances are not compared."""
    architecture = entry.architecture()
    if architecture is None:
        return Comparison(entry)
    if entry.metric in _COUNTED:
        return Comparison(entry, counted=getattr(_counts(architecture), _COUNTED[entry.metric]))
    if entry.metric not in MEASURED:
        return Comparison(entry)
    wanted = structure(resolved.resolve(architecture))
    ours, refused = [], []
    for cell in cells:
        if not cell.results or structure(cell.results[0]["model"]) != wanted:
            continue
        differing = differences(entry, cell)
        if differing:
            refused.append(Refusal(cell, differing))
        else:
            ours.append((cell, cell.spread("training_error_percent" if entry.metric == "training_error" else _SELECTED[selection(entry)])))
    return Comparison(entry, ours=tuple(ours), refused=tuple(refused), only=_cell_name(entry))


@functools.lru_cache(maxsize=512)
def _counts(architecture: models.Architecture) -> models.Counts:
    return models.count(architecture)


def beside(cells: Sequence[Cell]) -> list[Comparison]:
    """Every published error of the networks that some cells have, compared or refused."""
    found = [compare(entry, cells) for entry in _targets()]
    return [each for each in found if each.ours or each.refused]


def published_beside(result: dict[str, Any]) -> list[Entry]:
    """The published errors that the result of one run may stand beside."""
    cell = Cell(result["experiment"], [Run(result["seed"], result, Path())])
    return [each.entry for each in beside([cell]) if each.ours]


def _targets() -> list[Entry]:
    entries = (entry for key in ledger.papers() for entry in ledger.load(key).entries)
    return [entry for entry in entries if entry.verified and entry.metric == "top1_error" and entry.network]


def plain(comparison: Comparison) -> dict[str, Any]:
    """As JSON can say it."""
    entry = comparison.entry
    return {
        "paper": entry.paper,
        "table": entry.table,
        "row": entry.row,
        "metric": entry.metric,
        "published": entry.value,
        "relation": entry.relation,
        "statistic": entry.statistic,
        "mark": entry.mark,
        "counted": comparison.counted,
        "ours": [
            {"cell": cell.name, "values": list(spread.values), "mean": spread.mean, "median": spread.median, "best": spread.best}
            for cell, spread in comparison.ours
        ],
        "refused": [
            {"cell": refusal.cell.name, "differing": {name: list(pair) for name, pair in refusal.differing.items()}}
            for refusal in comparison.refused
        ],
        "command": comparison.command,
    }


def differences(entry: Entry, cell: Cell) -> dict[str, tuple[Any, Any]]:
    """Fields of the protocol that a publication states otherwise than a cell's results; its length also where it is not stated."""
    protocol = dict(cell.results[0]["protocol"])
    chosen = selection(entry)
    if all(result[_SELECTED[chosen]] is not None for result in cell.results):
        protocol["selection"] = chosen
    stated: dict[str, Any] = _UNLESS_STATED | entry.protocol | {"selection": chosen}
    differing = {name: (value, protocol.get(name)) for name, value in stated.items() if protocol.get(name) != value}
    whole = "all training images, last step"
    if entry.metric == "training_error" and any(result["training_error_of"] != whole for result in cell.results):
        differing["training_error_of"] = (whole, cell.results[0]["training_error_of"])
    # The last epoch's steps are rounded up by some and left out by others.
    if "epochs" in stated and abs(stated["epochs"] - protocol["epochs"]) <= 0.01 * stated["epochs"]:
        differing.pop("epochs", None)
    if not {"steps", "epochs"} & stated.keys():
        # How long a network was trained decides too much to be taken as equal.
        differing["epochs"] = ("not stated", protocol["epochs"])
    return differing


def selection(entry: Entry) -> str:
    """How the step was chosen: as stated, or as the statistic says, else the last."""
    by_statistic = {"val-selected": "validation error", "test-selected": "test error"}
    return entry.protocol.get("selection", by_statistic.get(entry.statistic, "last step"))


def structure(model: dict[str, Any]) -> str:
    """What makes two resolved networks the same one: not the images' size, the classes, the dtype, nor the arguments of the norm."""
    kept = {name: value for name, value in model.items() if name not in _NOT_STRUCTURE}
    return resolved.fingerprint(kept | {"norm": model["norm"].partition("(")[0]})


def _cell_name(entry: Entry) -> str | None:
    """The study's cell that is the entry's; None where the experiments are not at hand, or it has none."""
    architecture = entry.architecture()
    if architecture is None or entry.study is None or not Path(entry.study.partition(":")[0]).is_file():
        return None
    wanted = structure(resolved.resolve(architecture))
    fitting = [
        cell
        for cell in study_cells(entry.study)
        if structure(resolved.resolve(cell.model)) == wanted
        and entry.protocol.get("dataset", cell.data.name) == cell.data.name
        and entry.protocol.get("batch_size", cell.batch_size) == cell.batch_size
    ]
    return fitting[0].name if fitting else None


def study_cells(reference: str, **arguments: Any) -> tuple[Experiment, ...]:
    """Calls a study.

    Raises:
      UserError: where it is no function, takes no such argument, or returns no sequence of experiments of different names.
    """
    function = references.load(reference)
    if not callable(function):
        raise UserError(f"{reference} is no function; a study is a function that returns experiments")
    try:
        inspect.signature(function).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{reference} takes no {', '.join(arguments)}: {error}" if arguments else f"{reference}: {error}") from None
    cells = function(**arguments)
    if not isinstance(cells, tuple | list) or not cells or not all(isinstance(cell, Experiment) for cell in cells):
        raise UserError(f"{reference} returned no sequence of experiments; 'resnet-jax train' takes a function that returns one")
    names = [cell.name for cell in cells]
    unfit = [name for name in names if not re.fullmatch(r"[^./\0][^/\0]{0,99}", name) or name.endswith((".json", ".html", ".csv"))]
    if unfit:
        raise UserError(
            f"{reference}: a cell is called {unfit[0]!r}; its name becomes that of a folder: at most 100 letters, no slash, no dot "
            "in front, none of the study's own files"
        )
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise UserError(f"{reference} has several cells called {', '.join(doubled)}: cells are told apart by their names")
    return tuple(cells)
