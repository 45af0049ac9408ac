"""Residual networks in JAX: train them, ablate what makes them work, import their parts."""

import importlib
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.models import build as create_model
    from resnet_jax.models import shortcuts
    from resnet_jax.training.config import Experiment
    from resnet_jax.training.train import train
    from resnet_jax.weights import load_pretrained

__version__ = "0.1.0"
__all__ = [
    "Experiment",
    "create_model",
    "evaluate",
    "list_models",
    "load_pretrained",
    "shortcuts",
    "train",
]
# Imported at the first use, so that `import resnet_jax` imports no JAX.
_LAZY = {
    "Experiment": "training.config:Experiment",
    "create_model": "models:build",
    "load_pretrained": "weights:load_pretrained",
    "shortcuts": "models:shortcuts",
    "train": "training.train:train",
}


def list_models(pattern: str = "*") -> list[str]:
    """Returns the names of networks that match ``pattern``, such as ``cifar_*``."""
    import fnmatch

    from resnet_jax.models import NETWORKS

    return fnmatch.filter(NETWORKS, pattern)


def evaluate(
    source: str | PathLike[str],
    *,
    data: str | None = None,
    split: str | None = None,
    protocol: str | None = None,
    batch_size: int = 500,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Scores the newest checkpoint of a run, or imported weights, on every example once.

    Args:
      source: run directory, or weights that ``resnet-jax weights import`` wrote.
      data: data set, and ``split``; by default the test split of the training's.
      protocol: crops of an image, such as ``256/224``; by default those of the run or the weights.
      batch_size: images per call.
      data_dir: prepared data sets, searched before $TFDS_DATA_DIR and ~/tensorflow_datasets.

    Returns:
      ``error_percent``, ``top5_error_percent``, ``examples`` and ``protocol``, among others.
    """
    from resnet_jax.evaluation import protocols
    from resnet_jax.studies.score import score

    (result,) = score(
        Path(source),
        data=data,
        split=split,
        batch_size=batch_size,
        data_dir=data_dir,
        requested=[protocols.parse(protocol) if protocol else None],
    )
    return result


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name].split(":")
    return getattr(importlib.import_module(f"resnet_jax.{module}"), attribute)


def __dir__() -> list[str]:
    return [*globals(), *_LAZY]
