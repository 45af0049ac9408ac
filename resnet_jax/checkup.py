"""The command ``doctor weights``: what a file of weights scores, and why it scores worse than it should."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from resnet_jax import options
from resnet_jax.console import out
from resnet_jax.data import sources, views
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation import diagnosis, protocols
from resnet_jax.evaluation.diagnosis import TOLERANCE, Diagnosis
from resnet_jax.models.pretrained import saving
from resnet_jax.studies import score
from resnet_jax.weights import FileOptions, free


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(FileOptions):
    """Score weights; where they score worse than claimed, try the usual misreadings one by one, say which it is, and exit with 1."""

    split: str | None = None
    """Split to score; the test split where not given."""
    examples: int = 2000
    """Images, the first of the split, that misreadings are tried on."""
    batch_size: int = 500
    """Images a call."""
    to: Path | None = None
    """Where to write the weights as they score best; not there already."""
    data_dir: str | None = None
    """Where prepared data sets are looked for, before $TFDS_DATA_DIR and ~/tensorflow_datasets."""
    json: bool = False
    """Print errors and causes as JSON."""


def run(arguments: Sequence[str]) -> None:
    """Score weights, and find what was read wrongly: resnet-jax doctor weights FILE --data cifar10 --claimed-error 8.27 [--as NAMES]"""
    given = options.parse("doctor weights", DoctorOptions, arguments)
    if given.examples < 1:
        raise UserError(f"--examples is {given.examples}; misreadings are tried on at least 1 image")
    if given.to is not None:
        free(given.to)
    weights = given.load()
    whole: dict[str, Any] = {"data": None, "split": given.split, "batch_size": given.batch_size, "data_dir": given.data_dir}
    found = score.score_weights(weights, **whole)
    card = weights.card
    claimed = card.claimed_error
    report = {"error_percent": found["error_percent"], "claimed_error": claimed, "examples": found["examples"], "causes": [], "rounds": []}
    if claimed is None or found["error_percent"] <= claimed + TOLERANCE:
        if given.json:
            print(json.dumps(report))
            return
        verdict = "; no error is claimed (--claimed-error), so there is nothing to hold it against" if claimed is None else _claims(claimed)
        kept = "" if given.to is None else f"; nothing to correct, and nothing written to {given.to}"
        line = f"{given.file}: error {found['error_percent']:.2f} % on {found['examples']} images{verdict}{kept}"
        out.print(line, highlight=False, soft_wrap=True)
        return
    info = sources.describe(card.data, given.data_dir)
    split = found["split"]
    tried_on = min(given.examples, found["examples"])

    def batches(count: int) -> Iterable[Examples]:
        return views.load(info, split, protocols.of(card.view), given.batch_size, count)

    traced = diagnosis.diagnose(
        weights,
        batches,
        error_percent=found["error_percent"],
        images=found["examples"],
        tried_on=tried_on,
        batch_size=given.batch_size,
        claimed=claimed,
    )
    best = diagnosis.applied(traced.reading)
    report |= {
        "causes": list(traced.causes),
        "rounds": [[dataclasses.asdict(trial) for trial in each] for each in traced.rounds],
        "tried_on": tried_on,
        "corrected_error_percent": traced.error_percent,
    }
    if given.to is not None and best is not None and traced.causes:
        saving.save(best, given.to)
    if given.json:
        print(json.dumps(report))
    else:
        _say(given, report, traced)
    raise SystemExit(1)


def _claims(claimed: float) -> str:
    return f", as claimed ({claimed:g} %)"


def _say(given: DoctorOptions, report: dict[str, Any], traced: Diagnosis) -> None:
    for number, trials in enumerate(traced.rounds):
        before = f" besides {', '.join(traced.causes[:number])}" if number else ""
        table = Table("read otherwise" + before, f"error on {report['tried_on']} images, %")
        for trial in sorted(trials, key=lambda trial: trial.error_percent):
            table.add_row(trial.change or "nothing: as it was given", f"{trial.error_percent:.2f}")
        out.print(table)
    lines = [f"{given.file}: error {report['error_percent']:.2f} % on {report['examples']} images, claimed {report['claimed_error']:g} %"]
    if not traced.causes:
        lines.append("None of the usual misreadings is the cause. Is it trained on these images, and are they of its test split?")
    else:
        lines.append(f"Likely cause: {'; '.join(traced.causes)}")
        lines.append(f"Read so: error {traced.error_percent:.2f} % on all {report['examples']} images")
        kept = diagnosis.applied(traced.reading) is not None
        written = f"Written to {given.to}" if given.to else "--to FILE writes the weights so"
        lines.append(written if kept else "No network here pads so: train or convert it again with symmetric padding")
    for line in lines:
        out.print(line, highlight=False, soft_wrap=True)
