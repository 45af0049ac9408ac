"""The ledger: every number of the papers that this codebase is about, each with its circumstances and its provenance.

``published/PAPER.toml`` holds the numbers. A mark says where one comes from: ``V:S1`` was read in a transcript or in the authors' own
repository, ``C`` computed exactly and found equal to a published count, ``M`` remembered only: carried, and never a target.
"""

import functools
import importlib.resources
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from resnet_jax.errors import UserError, nearest
from resnet_jax.models import Architecture
from resnet_jax.models.names import variant

# Name of a metric in the files to its name in tables.
METRICS = {
    "top1_error": "top-1 error %",
    "top5_error": "top-5 error %",
    "top1_accuracy": "top-1 accuracy %",
    "top5_accuracy": "top-5 accuracy %",
    "top1_error_difference": "top-1 error, points",
    "training_error": "training error %",
    "localisation_error": "localisation error %",
    "parameters": "parameters",
    "multiply_adds": "multiply-adds",
    "flops": "FLOPs as printed",
    "projections": "projections",
    "map": "mAP %",
    "map_coco": "mAP@[.5,.95] %",
    "time_saved_percent": "time saved %",
    "paths_percent": "share of all paths %",
    "petaflop": "10^15 FLOP",
    "hours": "hours",
}
STATISTICS = ("single", "best", "mean", "median", "val-selected", "test-selected", "ensemble", "exact")
PROTOCOL_FIELDS = (
    "dataset",
    "training_images",
    "validation_images",
    "test_images",
    "steps",
    "epochs",
    "batch_size",
    "normalisation",
    "batch_norm_group",
    "batch_norm_statistics",
    "padding",
    "preprocessing",
    "augmentation",
    "view",
    "selection",
    "learning_rate",
    "momentum",
    "nesterov",
    "weight_decay",
    "dtype",
    "parameters",
)
# He et al. 2016 (1603.05027), Table 1: "we report 'fail' when the test error is higher than 20%".
FAIL_PERCENT = 20.0
_TABLE = ("name", "caption", "protocol", "statistic", "mark", "study", "rows")
_CELL = ("value", "spread", "n", "statistic", "mark", "digits", "note")
_ROW = ("row", "network", "study", "note", "mark", "statistic", "protocol", "differs")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published number."""

    paper: str
    table: str
    row: str
    metric: str
    """One of ``METRICS``."""
    value: float
    relation: str = "="
    """How the value is meant: =, >, <, or ~. A ``fail`` of He et al. 2016 is an error > 20."""
    spread: float | None = None
    """Standard deviation over runs, where stated."""
    runs: int | None = None
    digits: int | None = None
    """Significant digits that were printed of a rounded count."""
    statistic: str
    """One of ``STATISTICS``."""
    mark: str
    protocol: dict[str, Any] = field(hash=False)
    """What the source states of the circumstances, in the fields of ``result.json``; what it does not state is absent."""
    network: dict[str, Any] | None = field(default=None, hash=False)
    study: str | None = None
    """FILE.py:FUNCTION of the study that runs it."""
    note: str = ""
    caption: str = ""
    """What the table is about."""

    @property
    def verified(self) -> bool:
        """Whether it may be a target."""
        return self.mark == "C" or self.mark.startswith("V")

    @property
    def failed(self) -> bool:
        """Whether it is a ``fail`` of He et al. 2016."""
        return self.metric == "top1_error" and (self.relation, self.value) == (">", FAIL_PERCENT)

    def architecture(self) -> Architecture | None:
        """The network, where this codebase has it."""
        return variant(**self.network) if self.network else None

    def __str__(self) -> str:
        if self.metric in ("parameters", "multiply_adds", "flops"):
            number = f"{self.value:,.0f}"
        else:
            number = f"{self.value:g}" + (f" ± {self.spread:g}" if self.spread is not None else "")
        if self.failed:
            return f"fail (> {FAIL_PERCENT:g})"
        return f"{'' if self.relation == '=' else self.relation + ' '}{number}"


@dataclass(frozen=True)
class Paper:
    """One source of numbers."""

    key: str
    title: str
    authors: str
    source: str
    entries: tuple[Entry, ...]


def papers() -> list[str]:
    """The keys of all sources."""
    return sorted(file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml"))


@functools.cache
def load(key: str) -> Paper:
    """Reads the entries of one source.

    Raises:
      UserError: for an unknown key, or a file that does not keep to the form.
    """
    if key not in papers():
        raise UserError(f"the ledger has no paper {key!r}{nearest(key, papers())}")
    try:
        text = tomllib.loads((_folder() / f"{key}.toml").read_text())
        protocols = text.get("protocol", {})
        entries = []
        for table in text["table"]:
            _known(f"{key}.toml, {table['name']}", table, _TABLE)
            entries += [entry for row in table["rows"] for entry in _entries(key, table, row, protocols)]
        paper = Paper(entries=tuple(entries), **text["paper"])
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{key}.toml does not keep to the ledger's form: {error!r}") from None
    if len(set(entries)) < len(entries):
        raise UserError(f"{key}.toml states a number twice")
    return paper


def _known(place: str, found: dict[str, Any], names: Iterable[str]) -> None:
    unknown = found.keys() - set(names)
    if unknown:
        raise UserError(f"{place}: unknown {', '.join(sorted(unknown))}{nearest(min(unknown), names)}")


def _entries(paper: str, table: dict[str, Any], row: dict[str, Any], protocols: dict[str, Any]) -> list[Entry]:
    if "row" not in row:
        raise UserError(f"{paper}.toml, {table['name']}: a row without a name ('row')")
    place = f"{paper}.toml, {table['name']}, {row['row']}"
    _known(place, row, [*METRICS, *_ROW])
    named = row.get("protocol", table.get("protocol"))
    if named is not None and named not in protocols:
        raise UserError(f"{place}: there is no protocol {named!r}{nearest(named, protocols)}")
    protocol = (protocols[named] if named else {}) | row.get("differs", {})
    if protocol.keys() - set(PROTOCOL_FIELDS):
        raise UserError(f"{place}: no protocol has {', '.join(sorted(protocol.keys() - set(PROTOCOL_FIELDS)))}")
    network = row.get("network")
    shared = {
        "paper": paper,
        "table": table["name"],
        "caption": table.get("caption", ""),
        "row": row["row"],
        "network": {"name": network} if isinstance(network, str) else network,
        "study": row.get("study", table.get("study")),
    }
    found = []
    for metric in METRICS.keys() & row.keys():
        cell = row[metric] if isinstance(row[metric], dict) else {"value": row[metric]}
        _known(f"{place}, {metric}", cell, _CELL)
        if "value" not in cell:
            raise UserError(f"{place}, {metric}: a cell without a value")
        value, relation = _number(cell["value"], place)
        statistic = cell.get("statistic", row.get("statistic", table.get("statistic")))
        mark = cell.get("mark", row.get("mark", table.get("mark")))
        if statistic not in STATISTICS or not mark or mark[0] not in "VCM":
            raise UserError(
                f"{place}, {metric}: statistic {statistic!r} and mark {mark!r}; give one of {', '.join(STATISTICS)} and V:S1, C or M"
            )
        found.append(
            Entry(
                metric=metric,
                value=value,
                relation=relation,
                spread=cell.get("spread"),
                runs=cell.get("n"),
                digits=cell.get("digits"),
                statistic=statistic,
                mark=mark,
                protocol=protocol,
                note=cell.get("note", row.get("note", "")),
                **shared,
            )
        )
    if not found:
        raise UserError(f"{place} has no number; a metric is one of {', '.join(METRICS)}")
    return sorted(found, key=lambda entry: list(METRICS).index(entry.metric))


def _number(written: Any, place: str) -> tuple[float, str]:
    if written == "fail":
        return FAIL_PERCENT, ">"
    relation, _, digits = written.partition(" ") if isinstance(written, str) else ("=", "", written)
    try:
        value = math.nan if isinstance(digits, bool) else float(digits)
    except (ValueError, TypeError):
        value = math.nan
    if relation not in ("=", ">", "<", "~") or not math.isfinite(value):
        raise UserError(f"{place}: {written!r} is no number; write 8.75, 'fail', '> 60' or '~ 25'")
    return value, relation


def _folder() -> Any:
    return importlib.resources.files("resnet_jax.studies") / "published"
