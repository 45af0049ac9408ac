"""Published numbers beside ours: joined where the protocols agree, else the differing fields."""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from resnet_jax import models, terminal
from resnet_jax.studies import ledger
from resnet_jax.studies.ledger import METRICS, Entry
from resnet_jax.studies.results import Run, Spread, VariantRuns
from resnet_jax.training import config
from resnet_jax.training.run_dir import Record

MEASURED = ("top1_error", "training_error")
# Metrics that need no run, to fields of ``models.Counts``.
_COUNTED = {
    "parameters": "parameters",
    "projections": "projections",
    "multiply_adds": "multiply_adds",
    "flops": "multiply_adds",
}
# Selection of the reported step to the field of ``result.json``.
_SELECTED = {
    "last step": "value",
    "validation error": "selected_on_validation",
    "test error": "best_over_training",
}
_IMPLIED = {"val-selected": "validation error", "test-selected": "test error"}
_UNLESS_STATED = {"dtype": "float32", "parameters": "last step"}
_UNLESS_STATED |= dict.fromkeys(("initial_weights", "test_split"))
_WHOLE = "all training images, last step"
_counts = functools.cache(models.count)
Differences = dict[str, tuple[object, object]]
"""Fields of a protocol to (published, ours)."""


@dataclass(frozen=True)
class Comparison:
    """Our results beside a published number."""

    entry: Entry
    counted: int | None = None
    ours: tuple[tuple[VariantRuns, Spread], ...] = ()
    """Variants under the same protocol, and their errors."""
    mismatches: tuple[tuple[VariantRuns, Differences], ...] = ()
    """Variants under another protocol, and its differing fields."""

    @property
    def command(self) -> str:
        """Command of the entry's study; empty without one."""
        if not self.entry.study or not self.entry.network:
            return ""
        workdir = f"runs/{self.entry.paper}-{self.entry.study.partition(':')[2]}"
        return f"resnet-jax study {self.entry.study} --seeds 5 --workdir {workdir}"

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
            f"{error}, median {error.median:.2f}, best {error.best:.2f}, "
            f"n={len(error.values)} ({variant.name})"
            for variant, error in self.ours
        ]
        for variant, differing in self.mismatches:
            fields = (f"{name} {a} there, {b} here" for name, (a, b) in differing.items())
            lines.append(f"{variant.name} not comparable: {'; '.join(fields)}")
        return "\n".join([*lines, *["not run"] * self.missing])


def compare(entry: Entry, variants: Sequence[VariantRuns]) -> Comparison:
    """Compares an entry with the variants of its network."""
    architecture, metric = entry.architecture(), entry.metric
    if architecture and metric in _COUNTED:
        return Comparison(entry, counted=getattr(_counts(architecture), _COUNTED[metric]))
    if architecture is None or metric not in MEASURED:
        return Comparison(entry)
    network = structure(config.resolve(architecture))
    name = "training_error_percent"
    if metric == "top1_error":
        name = _SELECTED[selection(entry)]
    ours, mismatches = [], []
    for variant in variants:
        if not variant.results or structure(variant.results[0]["model"]) != network:
            continue
        if differing := differences(entry, variant):
            mismatches.append((variant, differing))
        else:
            ours.append((variant, variant.spread(name)))
    return Comparison(entry, ours=tuple(ours), mismatches=tuple(mismatches))


def differences(entry: Entry, variant: VariantRuns) -> Differences:
    """Returns the fields of the protocol that differ, also an unstated length."""
    stated, selected = entry.protocol, selection(entry)
    protocol = dict(variant.results[0]["protocol"])
    if all(result[_SELECTED[selected]] is not None for result in variant.results):
        protocol["selection"] = selected
    published = _UNLESS_STATED | stated | {"selection": selected}
    if not {"steps", "epochs"} & stated.keys():
        published["epochs"] = "not stated"
    if entry.metric == "training_error":
        published["training_error_of"] = _WHOLE
        images = {result["training_error_of"] for result in variant.results}
        protocol["training_error_of"] = ", ".join(sorted(images))
    # Papers round the steps of the last epoch up or down.
    if "epochs" in stated and math.isclose(stated["epochs"], protocol["epochs"], rel_tol=0.01):
        del published["epochs"]
    pairs = {name: (value, protocol.get(name)) for name, value in published.items()}
    return {name: (theirs, ours) for name, (theirs, ours) in pairs.items() if theirs != ours}


def selection(entry: Entry) -> str:
    """Returns the selection of the reported step: as stated or implied, else the last step."""
    return entry.protocol.get("selection", _IMPLIED.get(entry.statistic, "last step"))


def structure(model: Record) -> str:
    """Returns a hash of a resolved network, without its data, dtype and arguments of its norm."""
    others = dict.fromkeys(("input_shape", "num_classes", "dtype"))
    return config.fingerprint(model | others | {"norm": model["norm"].partition("(")[0]})


def beside(variants: Sequence[VariantRuns]) -> list[Comparison]:
    """Returns the verified published errors with a result, joined or rejected."""
    comparisons = (compare(entry, variants) for entry in _errors())
    return [comparison for comparison in comparisons if comparison.ours or comparison.mismatches]


def _errors() -> Iterator[Entry]:
    entries = (entry for key in ledger.papers() for entry in ledger.load(key).entries)
    return (e for e in entries if e.verified and e.metric == "top1_error" and e.network)


def published_beside(result: Record) -> list[Entry]:
    """Returns the published errors comparable with the result of one run."""
    variant = VariantRuns(result["experiment"], [Run(result["seed"], result, Path())])
    dataset = result["protocol"]["dataset"]
    entries = (e for e in _errors() if e.protocol.get("dataset", dataset) == dataset)
    return [entry for entry in entries if compare(entry, [variant]).ours]


def plain(comparison: Comparison) -> Record:
    """Returns a comparison as a JSON object."""
    mismatches = ((ours.name, differing) for ours, differing in comparison.mismatches)
    fields = vars(comparison.entry) | {
        "published": comparison.entry.value,
        "counted": comparison.counted,
        "ours": [{"variant": ours.name, **error._asdict()} for ours, error in comparison.ours],
        "mismatches": [{"variant": name, "differing": fields} for name, fields in mismatches],
        "command": comparison.command,
    }
    return terminal.plain(fields)


def tables(comparisons: Sequence[Comparison]) -> list[terminal.Table]:
    """Returns one table per table of a paper."""
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        entry = comparison.entry
        title = f"{entry.paper}, {entry.table}" + (f": {entry.caption}" if entry.caption else "")
        groups.setdefault(title, []).append(comparison)
    columns = ("row", "metric", "published", "mark", "ours")
    rendered = []
    for title, group in groups.items():
        commands = dict.fromkeys(f"to run: {c.command}" for c in group if c.missing and c.command)
        rows, note = tuple(map(_row, group)), "\n".join(commands)
        rendered.append(terminal.Table(title, columns, rows, note))
    return rendered


def _row(comparison: Comparison) -> tuple[str, ...]:
    entry, published = comparison.entry, str(comparison.entry)
    if entry.statistic not in ("single", "exact"):
        published += f" {entry.statistic}" + (f" of {entry.runs}" if entry.runs else "")
    return entry.row, METRICS[entry.metric], published, entry.mark, str(comparison)
