"""What a run found, with everything needed to compare it: the contents of ``result.json`` and of ``diverged.json``."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resnet_jax import configured, models
from resnet_jax.configured import Factory, parts
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.evaluation import exact, protocols
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training import environment, resolved
from resnet_jax.training.experiment import Data, Experiment
from resnet_jax.training.loop import NonFiniteLoss, rollbacks
from resnet_jax.training.seeds import Outcome
from resnet_jax.training.workdir import Record


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number and its circumstances. Errors in percent, times in seconds.

    A network that diverged answers nothing: its errors are 100, as in ``evaluation.exact``.
    """

    experiment: str
    value: float
    """Error of the last step on ``split``: neither the best over training nor selected."""
    metric: str
    statistic: str
    split: str
    examples: int
    """Images scored for ``value``."""
    top5_error_percent: float | None = None
    """Of the same; None of at most five classes, and in results written before there was this."""
    best_over_training: float
    """Least error on ``split`` that was scored at any step: selected on the images that it is an error of."""
    selected_on_validation: float | None
    """Error on ``split`` at the step of the least validation error; None without validation images."""
    training_error_percent: float
    training_error_of: str
    diverged_at_step: int | None
    protocol: dict[str, Any]
    """What must agree before two values are compared."""
    model: dict[str, Any]
    """The network, see ``models.Architecture``."""
    seed: int
    steps: int
    parameters: int
    compile_seconds: float | None
    seconds: float | None
    """Of training and scoring; None where it diverged."""
    seeds_together: int
    """Seeds that the program of the run trained in ``seconds``."""
    state_digest: str | None
    fingerprint: str
    group: str
    """Fingerprint without the seed: runs of one group differ in nothing but their seed."""
    commit: str | None
    versions: dict[str, str]
    device: dict[str, Any]


def protocol(experiment: Experiment, info: DatasetInfo) -> dict[str, Any]:
    """The circumstances of a score that the literature mixes up; each a named field."""
    data = experiment.data
    height, width, _ = experiment.model.input_shape
    shown = protocols.parse(experiment.evaluation.protocol) if experiment.evaluation.protocol else protocols.Protocol()
    training_images = info.examples["train"] - data.validation_examples
    return {
        "dataset": info.name,
        "dataset_version": info.version,
        "training_images": training_images,
        "validation_images": data.validation_examples,
        "test_images": info.examples[data.test_split],
        "steps": experiment.steps,
        "epochs": round(experiment.steps * experiment.batch_size / training_images, 2),
        "batch_size": experiment.batch_size,
        **_normalisation(experiment),
        "padding": "explicit symmetric",
        "preprocessing": data.normalization,
        "augmentation": _augmentation(data),
        "view": shown.view(height, width),
        "selection": "last step",
        "learning_rate": experiment.schedule.learning_rate,
        "momentum": experiment.optimizer.momentum,
        "nesterov": experiment.optimizer.nesterov,
        "weight_decay": experiment.optimizer.weight_decay,
        "dtype": experiment.model.dtype,
        **_beyond_the_papers(experiment),
        **({"initial_weights": experiment.start.digest} if experiment.start.file else {}),
        "parameters": f"moving average, decay {experiment.optimizer.ema}" if experiment.optimizer.ema else "last step",
    }


def _augmentation(data: Data) -> str:
    found = [f"pad {data.pad}, random crop"] * bool(data.pad) + [_said(data.crop), _said(data.policy)] + ["random flip"] * data.flip
    found += [_said(data.colour), _said(data.erasing), _said(data.mix)] + [f"{data.repeats} of each image"] * (data.repeats > 1)
    return ", ".join(filter(None, found)) or "none"


def _said(part: Factory | None) -> str:
    return "" if part is None else getattr(part(), "described", "") or configured.text(part, lambda made: made.__name__)


def _beyond_the_papers(experiment: Experiment) -> dict[str, Any]:
    """What the residual papers' recipes do not have, where an experiment has it."""
    optimizer, schedule, loss = experiment.optimizer, experiment.schedule, experiment.loss
    said = {
        "optimizer": optimizer.rule if optimizer.rule != "sgd" else "",
        "clip": optimizer.clip,
        "schedule": "cosine" if schedule.cosine_steps else "",
        "loss": ("" if loss.kind == "softmax" else loss.kind) + (f" label smoothing {loss.smoothing:g}" if loss.smoothing else ""),
    }
    return {name: value.strip() if isinstance(value, str) else value for name, value in said.items() if value}


def _normalisation(experiment: Experiment) -> dict[str, Any]:
    norm, options = parts(experiment.model.norm)
    batches = experiment.evaluation.statistics_batches
    said: dict[str, Any] = {"normalisation": norm.__name__, "batch_norm_group": None, "batch_norm_statistics": None}
    if norm is BatchNorm:
        said["batch_norm_group"] = options.get("group_size", 0) or experiment.batch_size // experiment.optimizer.accumulation
        said["batch_norm_statistics"] = "true average" if batches else "moving average"
        averaged = f"over {batches} batches of {experiment.batch_size} after training"
        said["batch_norm_averaged"] = averaged if batches else f"momentum {options.get('momentum', 0.9)}"
    return said


def result(experiment: Experiment, seed: int, info: DatasetInfo, outcome: Outcome | NonFiniteLoss, records: Sequence[Record]) -> Result:
    """Puts together what ``result.json`` holds; ``records`` are those of the run."""
    identity = resolved.identity(experiment, seed)
    return Result(
        experiment=experiment.name,
        metric="top-1 error, percent",
        statistic="single",
        split=experiment.data.test_split,
        **(_diverged(outcome, experiment, info) if isinstance(outcome, NonFiniteLoss) else _finished(outcome, info)),
        **_selected(records, diverged=isinstance(outcome, NonFiniteLoss)),
        protocol=protocol(experiment, info) | _rollbacks(records),
        model=resolved.resolve(experiment.model),
        seed=seed,
        steps=experiment.steps,
        parameters=models.count(experiment.model).parameters,
        fingerprint=resolved.fingerprint(identity),
        group=resolved.group(identity),
        commit=environment.commit(),
        versions=environment.versions(),
        device=environment.devices(),
    )


def _rollbacks(records: Sequence[Record]) -> dict[str, int]:
    # A run that changed its batches on the way was not trained as others are.
    count = rollbacks(records)
    return {"rollbacks": count} if count else {}


def _finished(outcome: Outcome, info: DatasetInfo) -> dict[str, Any]:
    score, training = outcome.scores["test"], outcome.scores.get("train")
    return {
        "value": score.error_percent,
        "top5_error_percent": score.top5_error_percent if info.num_classes > exact.TOP else None,
        "examples": score.examples,
        "training_error_percent": training.error_percent if training else outcome.training_error_percent,
        "training_error_of": "all training images, last step" if training else "the last augmented batches",
        "diverged_at_step": None,
        "compile_seconds": None if math.isnan(outcome.compile_seconds) else round(outcome.compile_seconds, 2),
        "seconds": round(outcome.seconds, 2),
        "seeds_together": outcome.seeds_together,
        "state_digest": outcome.state_digest,
    }


def _diverged(outcome: NonFiniteLoss, experiment: Experiment, info: DatasetInfo) -> dict[str, Any]:
    return {
        "value": 100.0,
        "top5_error_percent": 100.0 if info.num_classes > exact.TOP else None,
        "examples": info.examples[experiment.data.test_split],
        "training_error_percent": 100.0,
        "training_error_of": "a network that diverged",
        "diverged_at_step": outcome.step,
        "compile_seconds": None,
        "seconds": None,
        "seeds_together": 1,
        "state_digest": None,
    }


def _selected(records: Sequence[Record], *, diverged: bool) -> dict[str, Any]:
    test = {record["step"]: record["error_percent"] for record in records if record["split"] == "test"}
    validation = {record["step"]: record["error_percent"] for record in records if record["split"] == "validation"}
    chosen = [step for step in validation if step in test]
    return {
        "best_over_training": 100.0 if diverged and not test else min(test.values()),
        # The earliest of equals, as one who stops looking would choose.
        "selected_on_validation": test[min(chosen, key=lambda step: (validation[step], step))] if chosen else None,
    }
