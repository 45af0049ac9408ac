"""Residual networks in JAX: train them, ablate what makes them work, import their parts."""

import importlib
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resnet_jax.models import Architecture, ResNet, components, model_info, shortcuts
    from resnet_jax.models.layers import Rngs
    from resnet_jax.studies.study import study
    from resnet_jax.training.config import Experiment
    from resnet_jax.training.train import train
    from resnet_jax.weights import Pretrained, load_pretrained

__version__ = "0.1.0"
__all__ = [
    "Experiment",
    "create_model",
    "evaluate",
    "list_models",
    "load_pretrained",
    "model_info",
    "shortcuts",
    "study",
    "train",
]
# Imported at the first use, so that `import resnet_jax` imports no JAX.
_LAZY = {
    "Experiment": "training.config:Experiment",
    "load_pretrained": "weights:load_pretrained",
    "model_info": "models:model_info",
    "shortcuts": "models:shortcuts",
    "study": "studies.study:study",
    "train": "training.train:train",
}


def create_model(
    name: "str | Architecture",
    *,
    pretrained: bool | str | Path = False,
    num_classes: int | None = None,
    in_features: int | None = None,
    shortcut: "components.Part | None" = None,
    order: "components.Part | None" = None,
    output_stride: int | None = None,
    rngs: "Rngs" = 0,
    **fields: Any,
) -> "ResNet":
    """Builds a network: initialized, or with trained weights.

    The module takes images of shape (n, height, width, in_features), uint8 or floating, and returns
    float32 logits of shape (n, num_classes). It is in evaluation mode until ``model.train()``.
    ``load_pretrained`` returns the same weights with their preprocessing.

    Args:
      name: one of ``list_models()``, a family with a depth such as ``cifar_resnet26``, or with
        ``pretrained=True`` one of ``list_models(pretrained=True)``, a file or a Hub repository.
      pretrained: True, or the source of the weights of network ``name``.
      num_classes: number of logits; 0: no classifier, the output is the pooled embedding. With
        ``pretrained`` another number than the weights' draws a new classifier.
      in_features: channels of the images.
      shortcut: class, ``component``, ``functools.partial`` or text, as all components.
      order: of normalization, activation and addition.
      output_stride: 8 or 16: later stages are dilated instead of strided.
      rngs: streams, key or seed of the initial parameters.
      **fields: other fields of ``Architecture``; ``execution``. Those that change or drop weights
        are rejected with ``pretrained``.

    Example:
      >>> import jax
      >>> model = create_model("cifar_resnet8", num_classes=7, in_features=1)
      >>> images = jax.numpy.zeros((2, 28, 28, 1))
      >>> model(images).shape, model.embed(images).shape
      ((2, 7), (2, 64))
      >>> model.features(images)["stage2"].shape
      (2, 14, 14, 32)
    """
    from resnet_jax import errors, weights
    from resnet_jax.models import PLAIN, catalog

    named = {"num_classes": num_classes, "in_features": in_features, "shortcut": shortcut}
    named |= {"order": order, "output_stride": output_stride}
    fields |= {field: value for field, value in named.items() if value is not None}
    if pretrained is False:
        if isinstance(name, str) and name in weights.list_pretrained():
            raise errors.UserError(f"{name} names pretrained weights: give pretrained=True.")
        execution = fields.pop("execution", PLAIN)
        return catalog.variant(name, **fields).build(rngs=rngs, execution=execution)
    if pretrained is not True:
        return weights.load_pretrained(pretrained, network=name).build(rngs=rngs, **fields)
    if not isinstance(name, str):
        raise errors.UserError("an Architecture has no weights: pretrained must be their source.")
    return weights.load_pretrained(name).build(rngs=rngs, **fields)


def list_models(pattern: str = "*", *, pretrained: bool = False) -> list[str]:
    """Returns the names of networks, or of pretrained ones, that match ``pattern``.

    Example:
      >>> list_models("cifar_resnet11*")
      ['cifar_resnet110', 'cifar_resnet110_single']
    """
    import fnmatch

    from resnet_jax.models import NETWORKS
    from resnet_jax.weights import list_pretrained

    return fnmatch.filter(list_pretrained() if pretrained else NETWORKS, pattern)


def evaluate(
    source: "str | PathLike[str] | Pretrained",
    *,
    data: str | None = None,
    split: str | None = None,
    protocol: str | None = None,
    batch_size: int = 500,
    data_dir: str | None = None,
) -> dict[str, Any]:
    """Scores the newest checkpoint of a run, or imported weights, on every example once.

    Args:
      source: run directory, weights that ``resnet-jax weights import`` wrote, or loaded weights.
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
        Path(source) if isinstance(source, str | PathLike) else source,
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
