"""What a run found, with everything needed to compare it: the contents of ``result.json``."""

import math
from dataclasses import dataclass
from typing import Any

from resnet_jax import models
from resnet_jax.configured import parts
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training import environment, resolved
from resnet_jax.training.experiment import Expected, Experiment
from resnet_jax.training.loop import Outcome


@dataclass(frozen=True, kw_only=True)
class Result:
    """One number and its circumstances. Errors in percent, times in seconds."""

    experiment: str
    value: float
    """Error of the last step on ``split``: neither the best over training nor selected."""
    metric: str
    statistic: str
    split: str
    examples: int
    """Images scored for ``value``."""
    training_error_percent: float
    training_error_of: str
    protocol: dict[str, Any]
    """What must agree before two values are compared."""
    seed: int
    steps: int
    parameters: int
    compile_seconds: float | None
    seconds: float
    state_digest: str
    fingerprint: str
    expected: Expected | None
    commit: str | None
    versions: dict[str, str]
    device: dict[str, Any]


def protocol(experiment: Experiment, info: DatasetInfo) -> dict[str, Any]:
    """The circumstances of a score that the literature mixes up; each a named field."""
    data = experiment.data
    augmentation = [f"pad {data.pad}, random crop"] * bool(data.pad) + ["random flip"] * data.flip
    height, width, _ = experiment.model.input_shape
    return {
        "dataset": f"{info.name}:{info.version}",
        "training_images": info.examples["train"] - data.validation_examples,
        "validation_images": data.validation_examples,
        "test_images": info.examples[data.test_split],
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        **_normalisation(experiment),
        "padding": "explicit symmetric",
        "preprocessing": data.normalization,
        "augmentation": ", ".join(augmentation) or "none",
        "view": f"single {height}x{width}",
        "selection": "last step",
        "dtype": experiment.model.dtype,
        "parameters": f"moving average, decay {experiment.optimizer.ema}" if experiment.optimizer.ema else "last step",
    }


def _normalisation(experiment: Experiment) -> dict[str, Any]:
    norm, options = parts(experiment.model.norm)
    batches = experiment.evaluation.statistics_batches
    if norm is not BatchNorm:
        return {"normalisation": norm.__name__, "batch_norm_group": None, "batch_norm_statistics": None}
    moving = f"moving average, momentum {options.get('momentum', 0.9)}"
    return {
        "normalisation": norm.__name__,
        "batch_norm_group": options.get("group_size", 0) or experiment.batch_size,
        "batch_norm_statistics": f"average over {batches} batches of {experiment.batch_size} after training" if batches else moving,
    }


def result(experiment: Experiment, seed: int, info: DatasetInfo, outcome: Outcome) -> Result:
    """Puts together what ``result.json`` holds."""
    score = outcome.scores["test"]
    scored_training = outcome.scores.get("train")
    return Result(
        experiment=experiment.name,
        value=score.error_percent,
        metric="top-1 error, percent",
        statistic="single",
        split=experiment.data.test_split,
        examples=score.examples,
        training_error_percent=scored_training.error_percent if scored_training else outcome.training_error_percent,
        training_error_of="all training images, last step" if scored_training else "the last augmented batches",
        protocol=protocol(experiment, info),
        seed=seed,
        steps=experiment.steps,
        parameters=models.count(experiment.model).parameters,
        compile_seconds=None if math.isnan(outcome.compile_seconds) else round(outcome.compile_seconds, 2),
        seconds=round(outcome.seconds, 2),
        state_digest=outcome.state_digest,
        fingerprint=resolved.fingerprint(resolved.identity(experiment, seed)),
        expected=experiment.expected,
        commit=environment.commit(),
        versions=environment.versions(),
        device=environment.devices(),
    )
