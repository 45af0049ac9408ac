"""Ledger of published numbers, in ``published/PAPER.toml``, with protocol and provenance.

Marks: ``V:S1`` was read in a transcript or the authors' repository, ``C`` was computed and equals a
published count, ``M`` is from memory and never a target.
"""

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources

from resnet_jax.errors import UserError, nearest
from resnet_jax.models import Architecture
from resnet_jax.models.catalog import variant
from resnet_jax.training.run_dir import Record

_PACKAGE = resources.files("resnet_jax.studies")
METRICS: dict[str, str] = tomllib.loads((_PACKAGE / "metrics.toml").read_text())
"""Metric to its heading."""
FAIL_PERCENT = 20.0
"""He et al. 2016, Table 1: "we report 'fail' when the test error is higher than 20%"."""


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
    protocol: Record
    """Stated protocol, in the fields of ``result.json``."""
    network: Record | None = None
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


_FOLDER = _PACKAGE / "published"


def papers() -> list[str]:
    return sorted(f.name[:-5] for f in _FOLDER.iterdir() if f.name.endswith(".toml"))


@functools.cache
def load(key: str) -> Paper:
    """Reads one source. A number wins over its row, a row over its table."""
    if key not in papers():
        raise UserError(f"the ledger has no paper {key!r}{nearest(key, papers())}")
    text = tomllib.loads((_FOLDER / f"{key}.toml").read_text())
    entries = []
    for table in text["table"]:
        rows, table["table"], table["paper"] = table.pop("rows"), table.pop("name"), key
        for fields in (table | row for row in rows):
            name, differing = fields.pop("protocol", None), fields.pop("differs", {})
            fields["protocol"] = (text["protocol"][name] if name else {}) | differing
            if isinstance(fields.get("network"), str):
                fields["network"] = {"name": fields["network"]}
            numbers = {metric: fields.pop(metric) for metric in METRICS if metric in fields}
            if not numbers:
                raise ValueError(f"{key}.toml, {fields['table']}, {fields['row']} has no metric")
            for metric, number in numbers.items():
                number = number if isinstance(number, dict) else {"value": number}
                entries.append(_entry(fields | number | {"metric": metric}))
    return Paper(entries=tuple(entries), **text["paper"])


def _entry(fields: Record) -> Entry:
    value = fields["value"]
    if isinstance(value, str):
        text = value.replace("fail", f"> {FAIL_PERCENT}")
        fields["relation"], _, value = text.partition(" ")
    fields["value"] = float(value)
    return Entry(**fields)
