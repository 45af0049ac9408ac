"""Ledger of published numbers, in ``published/PAPER.toml``, with protocol and provenance.

Marks: ``V:S1`` was read in a transcript or the authors' repository, ``C`` was computed and equals a
published count, ``M`` is from memory and never a target.
"""

import functools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any

from resnet_jax.errors import UserError, nearest
from resnet_jax.models import Architecture
from resnet_jax.models.catalog import variant

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
"""Metric to its heading."""
FAIL_PERCENT = 20.0
"""He et al. 2016, Table 1: "we report 'fail' when the test error is higher than 20%"."""

_PROTOCOL = (
    "dataset training_images validation_images test_images steps epochs batch_size normalization "
    "batch_norm_group batch_norm_statistics padding preprocessing augmentation view selection "
    "learning_rate momentum nesterov weight_decay dtype parameters"
)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published number."""

    paper: str
    table: str
    row: str
    metric: str
    value: float
    relation: str = "="
    """=, >, < or ~. A ``fail`` of He et al. 2016 is an error > 20."""
    spread: float | None = None
    """Standard deviation over runs."""
    runs: int | None = None
    digits: int | None = None
    """Significant digits of a rounded count."""
    statistic: str
    mark: str
    protocol: dict[str, Any] = field(hash=False)
    """Stated protocol, in the fields of ``result.json``."""
    network: dict[str, Any] | None = field(default=None, hash=False)
    study: str | None = None
    """FILE.py:FUNCTION."""
    note: str = ""
    caption: str = ""
    """Subject of the table."""

    @property
    def verified(self) -> bool:
        """True if the number may be a target."""
        return self.mark[0] in "VC"

    @property
    def failed(self) -> bool:
        """True for a ``fail`` of He et al. 2016."""
        return self.metric == "top1_error" and (self.relation, self.value) == (">", FAIL_PERCENT)

    def architecture(self) -> Architecture | None:
        """Returns the network, or None if this codebase does not have it."""
        return variant(**self.network) if self.network else None

    def __str__(self) -> str:
        if self.failed:
            return f"fail (> {FAIL_PERCENT:g})"
        if self.metric in ("parameters", "multiply_adds", "flops"):
            number = f"{self.value:,.0f}"
        else:
            number = f"{self.value:g}" + (f" ± {self.spread:g}" if self.spread is not None else "")
        return number if self.relation == "=" else f"{self.relation} {number}"


@dataclass(frozen=True)
class Paper:
    key: str
    title: str
    authors: str
    source: str
    entries: tuple[Entry, ...]


_FOLDER = resources.files("resnet_jax.studies") / "published"
_TABLE = ["name", "caption", "protocol", "statistic", "mark", "study", "rows"]
_ROW = ["row", "network", "study", "note", "mark", "statistic", "protocol", "differs", *METRICS]
_NUMBER = ["value", "spread", "n", "statistic", "mark", "digits", "note"]


def papers() -> list[str]:
    return sorted(f.name[:-5] for f in _FOLDER.iterdir() if f.name.endswith(".toml"))


@functools.cache
def load(key: str) -> Paper:
    """Reads one source; raises UserError for unknown names and invalid numbers."""
    if key not in papers():
        raise UserError(f"the ledger has no paper {key!r}{nearest(key, papers())}")
    text = tomllib.loads((_FOLDER / f"{key}.toml").read_text())
    entries = []
    for table in text["table"]:
        _check(f"{key}.toml, {table['name']}", table, _TABLE)
        for row in table["rows"]:
            place = f"{key}.toml, {table['name']}, {row['row']}"
            _check(place, row, _ROW)
            name = row.get("protocol", table.get("protocol"))
            protocol = (text["protocol"][name] if name else {}) | row.get("differs", {})
            _check(place, protocol, _PROTOCOL.split())
            head = {"paper": key, "table": table["name"], "protocol": protocol}
            if isinstance(row.get("network"), str):
                head["network"] = {"name": row["network"]}
            entries += [
                _entry(place, table | row | head, metric) for metric in METRICS if metric in row
            ]
    return Paper(entries=tuple(entries), **text["paper"])


def _check(place: str, text: dict[str, Any], allowed: Sequence[str]) -> None:
    # A misspelled field would be ignored.
    if unknown := sorted(text.keys() - set(allowed)):
        raise UserError(f"{place}: unknown {', '.join(unknown)}{nearest(unknown[0], allowed)}")


def _entry(place: str, row: dict[str, Any], metric: str) -> Entry:
    number = row[metric] if isinstance(row[metric], dict) else {"value": row[metric]}
    _check(f"{place}, {metric}", number, _NUMBER)
    relation, value = "=", number["value"]
    if value == "fail":
        relation, value = ">", FAIL_PERCENT
    elif isinstance(value, str):
        relation, _, value = value.partition(" ")
    if relation not in ("=", ">", "<", "~"):
        remedy = "write 8.75, 'fail', '> 60' or '~ 25'"
        raise UserError(f"{place}: {number['value']!r} is no number; {remedy}")
    facts = row | number | {"metric": metric, "relation": relation, "value": float(value)}
    facts["runs"] = number.get("n")
    return Entry(**{f.name: facts[f.name] for f in fields(Entry) if f.name in facts})
