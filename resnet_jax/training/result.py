"""Contents of ``result.json`` and ``diverged.json``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from resnet_jax import configured, models
from resnet_jax.configured import Factory, parts
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.evaluation import exact, protocols
from resnet_jax.evaluation.exact import Score
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training import environment, resolved
from resnet_jax.training.experiment import Data, Experiment
from resnet_jax.training.workdir import Record


def contents(
    experiment: Experiment,
    seed: int,
    info: DatasetInfo,
    records: Sequence[Record],
    scores: Mapping[str, Score] | None = None,
    training_error_percent: float = 100.0,
    **values: Any,
) -> dict[str, Any]:
    """Returns the contents of ``result.json``, or of ``diverged.json`` without scores. Errors in percent, times in seconds.

    Args:
      records: contents of ``metrics.jsonl``.
      scores: of the last step by split; ``train`` where the experiment asks for it.
      training_error_percent: of the last record of augmented batches.
      **values: further fields.
    """
    count, top5 = info.examples[experiment.data.test_split], info.num_classes > exact.TOP
    # A diverged network has an error of 100 %.
    test = Score(count, math.nan, count, count) if scores is None else scores["test"]
    training = scores.get("train") if scores else None
    test_errors, validation = (
        {record["step"]: record["error_percent"] for record in records if record["split"] == split} for split in ("test", "validation")
    )
    # The earliest of equal errors, as early stopping would choose.
    selected = min((step for step in validation if step in test_errors), key=lambda step: (validation[step], step), default=None)
    measured = "all training images, last step" if training else "the last augmented batches"
    identity = resolved.identity(experiment, seed)
    return {
        "experiment": experiment.name,
        # Of the last step: neither the best over training nor selected.
        "value": test.error_percent,
        "metric": "top-1 error, percent",
        "statistic": "single",
        "split": experiment.data.test_split,
        "examples": test.examples,
        "top5_error_percent": test.top5_error_percent if top5 else None,
        # Selected on the images that it is an error of.
        "best_over_training": min(test_errors.values(), default=100.0),
        # At the step of the lowest validation error.
        "selected_on_validation": None if selected is None else test_errors[selected],
        "training_error_percent": training.error_percent if training else training_error_percent,
        "training_error_of": "a network that diverged" if scores is None else measured,
        "diverged_at_step": None,
        "protocol": protocol(experiment, info),
        "model": resolved.resolve(experiment.model),
        "seed": seed,
        "steps": experiment.steps,
        "parameters": models.count(experiment.model).parameters,
        # Training and evaluation over all sessions.
        **dict.fromkeys(("compile_seconds", "seconds", "state_digest")),
        "fingerprint": resolved.fingerprint(identity),
        "group": resolved.group(identity),
        "commit": environment.commit(),
        "versions": environment.versions(),
        "device": environment.devices(),
        **values,
    }


def protocol(experiment: Experiment, info: DatasetInfo) -> dict[str, Any]:
    """Returns the circumstances of a score as named fields."""
    data, optimizer, schedule, loss = experiment.data, experiment.optimizer, experiment.schedule, experiment.loss
    height, width, _ = experiment.model.input_shape
    view = protocols.parse(experiment.evaluation.protocol) if experiment.evaluation.protocol else protocols.Protocol()
    training_images = info.examples["train"] - data.validation_examples
    smoothing = f"label smoothing {loss.smoothing:g}" if loss.smoothing else ""
    # Beyond the recipes of the residual papers; omitted where empty.
    others = {
        "optimizer": optimizer.rule if optimizer.rule != "sgd" else "",
        "clip": optimizer.clip,
        "schedule": "cosine" if schedule.cosine_steps else "",
        "loss": f"{loss.kind if loss.kind != 'softmax' else ''} {smoothing}".strip(),
        "initial_weights": experiment.start.digest if experiment.start.file else "",
    }
    return {
        "dataset": info.name,
        "dataset_version": info.version,
        "training_images": training_images,
        "validation_images": data.validation_examples,
        "test_images": info.examples[data.test_split],
        "steps": experiment.steps,
        "epochs": round(experiment.steps * experiment.batch_size / training_images, 2),
        "batch_size": experiment.batch_size,
        **_normalization(experiment),
        "padding": "explicit symmetric",
        "preprocessing": data.normalization,
        "augmentation": _augmentation(data),
        "view": view.view(height, width),
        "selection": "last step",
        "learning_rate": schedule.learning_rate,
        "momentum": optimizer.momentum,
        "nesterov": optimizer.nesterov,
        "weight_decay": optimizer.weight_decay,
        "dtype": experiment.model.dtype,
        **{name: value for name, value in others.items() if value},
        "parameters": f"moving average, decay {optimizer.ema}" if optimizer.ema else "last step",
    }


def _augmentation(data: Data) -> str:
    def text(part: Factory | None) -> str:
        return "" if part is None else getattr(part(), "described", "") or configured.text(part, lambda cls: cls.__name__)

    pad = f"pad {data.pad}, random crop" if data.pad else ""
    flip = "random flip" if data.flip else ""
    repeats = f"{data.repeats} of each image" if data.repeats > 1 else ""
    operations = (pad, text(data.crop), text(data.policy), flip, text(data.colour), text(data.erasing), text(data.mix), repeats)
    return ", ".join(filter(None, operations)) or "none"


def _normalization(experiment: Experiment) -> dict[str, Any]:
    norm, options = parts(experiment.model.norm)
    if norm is not BatchNorm:
        return {"normalisation": norm.__name__, "batch_norm_group": None, "batch_norm_statistics": None}
    batches = experiment.evaluation.statistics_batches
    averaged = f"over {batches} batches of {experiment.batch_size} after training"
    return {
        "normalisation": norm.__name__,
        "batch_norm_group": options.get("group_size", 0) or experiment.batch_size // experiment.optimizer.accumulation,
        "batch_norm_statistics": "true average" if batches else "moving average",
        "batch_norm_averaged": averaged if batches else f"momentum {options.get('momentum', 0.9)}",
    }
