"""Synthetic run directories in the format of the library; nothing is trained."""

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.models import cifar_architecture
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.shortcuts import NoShortcut
from resnet_jax.studies.ledger import Entry
from resnet_jax.training import config, run_dir
from resnet_jax.training.config import Data, Experiment

INFO = DatasetInfo(
    name="cifar10",
    version="3.0.2",
    directory=Path("/nowhere"),
    examples={"train": 50_000, "test": 10_000},
    image_shape=(32, 32, 3),
    num_classes=10,
)
# Parameters as counted for He et al. 2015, Table 6.
PARAMETERS = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}

# papers.md A1, A12: protocol of Table 6, typed here so that neither the ledger nor `result.protocol` is the judge.
TABLE6 = {
    "dataset": "cifar10",
    "test_images": 10_000,
    "steps": 64_000,
    "batch_size": 128,
    "normalization": "BatchNorm",
    "batch_norm_group": 64,
    "preprocessing": "pixel_mean",
    "augmentation": "pad 4, random crop, random flip",
    "view": "single 32x32",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
}


def experiment(name: str, depth: int, *, plain: bool = False, steps: int = 64_000, **fields: Any) -> Experiment:
    """Returns an experiment with a network of He et al. 2015, Section 4.2."""
    shortcut = {"shortcut": NoShortcut} if plain else {}
    model = cifar_architecture(depth, norm=component(BatchNorm, group_size=64), **shortcut)
    return Experiment(name=name, model=model, data=Data(name="cifar10"), steps=steps, **fields)


def result(variant: Experiment, seed: int, value: float, **fields: Any) -> dict[str, Any]:
    """Returns the contents of ``result.json``."""
    identity = config.identity(variant, seed)
    diverged = fields.get("diverged_at_step") is not None
    defaults: dict[str, Any] = {
        "experiment": variant.name,
        "value": value,
        "metric": "top-1 error, percent",
        "statistic": "single",
        "split": "test",
        "examples": 10_000,
        "top5_error_percent": value / 10,
        "best_over_training": value - 0.25,
        "selected_on_validation": None,
        "training_error_percent": 100.0 if diverged else value / 10,
        "training_error_of": "a network that diverged" if diverged else "the last augmented batches",
        "diverged_at_step": None,
        "protocol": run_dir.protocol(variant, INFO),
        "model": config.resolve(variant.model),
        "seed": seed,
        "steps": variant.steps,
        "parameters": PARAMETERS.get(2 + 6 * variant.model.stages[0], 1),
        "compile_seconds": None if diverged else 12.5,
        "seconds": None if diverged else 600.0 + 10 * seed,
        "state_digest": None if diverged else f"{seed:x}" * 64,
        "fingerprint": config.fingerprint(identity),
        "group": config.fingerprint({k: v for k, v in identity.items() if k != "seed"}),
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "versions": {"jax": "0.10.1", "flax": "0.12.12"},
        "device": {"backend": "gpu", "kind": "NVIDIA H100 80GB HBM3", "count": 1, "cores": 16, "processes": 1},
    }
    return defaults | fields


def write_run(
    folder: Path, variant: Experiment, seed: int, value: float | None = None, *, records: Sequence[dict[str, Any]] = (), **fields: Any
) -> Path:
    """Writes a run directory; without a value the run is unfinished. ``fields`` update its result."""
    folder.mkdir(parents=True)
    identity = config.identity(variant, seed)
    text = {"fingerprint": config.fingerprint(identity), "identity": identity, "experiment": config.resolve(variant), "seed": seed}
    (folder / "experiment.json").write_text(json.dumps(text))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if value is not None:
        (folder / "result.json").write_text(json.dumps(result(variant, seed, value, **fields)))
    return folder


def records(steps: int, train: float, test: float, *, every: int = 100, scored: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Returns noisy metrics that fall from 90 % to errors of ``train`` and ``test``."""
    noise, rows = random.Random(seed), []
    for step in range(every, steps + 1, every):
        fall = 80 * math.exp(-step / steps * 25)
        for split, least in (("train", train), ("test", test)):
            if split == "train" or step % scored == 0 or step == steps:
                error = max(0.0, least + fall + noise.gauss(0, 1))
                rows.append({"step": step, "split": split, "loss": error / 30, "error_percent": error, "learning_rate": 0.1})
    return rows


def entry(**fields: Any) -> Entry:
    """Returns a published number."""
    place: dict[str, Any] = {"paper": "synthetic", "table": "Table 6", "row": "ResNet-20", "metric": "top1_error"}
    number = {"value": 8.75, "statistic": "single", "mark": "V:S1", "protocol": {"dataset": "cifar10"}}
    source = {"network": {"name": "cifar_resnet20"}, "study": "experiments/he2015_cifar10.py:table6"}
    return Entry(**place | number | source | fields)
