"""Parts that the recipes in ``experiments/`` share: data sets, and lengths in epochs."""

from dataclasses import replace
from typing import Any

from resnet_jax.data.augment_host import RandomResizedCrop
from resnet_jax.models import Architecture
from resnet_jax.training.config import (
    Checkpointing,
    Data,
    Evaluation,
    Experiment,
    Fields,
    Loss,
    Optimizer,
    Schedule,
)

Study = tuple[Experiment, ...]

CIFAR10 = Data(name="cifar10", normalization="channel")
IMAGENET = Data(
    name="imagenet2012",
    test_split="validation",
    normalization="imagenet",
    pad=0,
    crop=RandomResizedCrop,
)


def in_epochs(
    name: str,
    model: Architecture,
    data: Data = IMAGENET,
    *,
    batch_size: int = 256,
    epochs: int = 90,
    decays: tuple[int, ...] = (30, 60),
    warmup: int = 0,
    optimizer: Optimizer = Optimizer(),
    loss: Loss = Loss(),
    evaluation: Fields | None = None,
    **schedule: Any,
) -> Experiment:
    """Returns an experiment on ImageNet or CIFAR-10 whose lengths are given in epochs.

    On ImageNet it evaluates 256/224 and saves once per epoch.

    Args:
      decays: Epochs before each decay. Empty: half a cosine over all epochs.
      warmup: Epochs of linear warm-up.
      evaluation, schedule: Other fields of ``Evaluation`` and ``Schedule``.
    """
    streamed = data.crop is not None
    examples = 1_281_167 if streamed else 50_000 - data.validation_examples
    epoch = -(-examples // batch_size)
    lengths: Fields = {
        "decay_steps": tuple(epoch * decay for decay in decays),
        "cosine_steps": 0 if decays else epoch * epochs,
        "warmup_steps": epoch * warmup,
        "linear_warmup": warmup > 0,
    }
    scores: Fields = {"batch_size": 1000}
    if streamed:
        scores = {"every": epoch, "batch_size": 256, "protocol": "256/224"}
    return Experiment(
        name=name,
        model=model,
        data=data,
        optimizer=optimizer,
        schedule=Schedule(**lengths | schedule),
        loss=loss,
        steps=epoch * epochs,
        batch_size=batch_size,
        evaluation=Evaluation(**scores | (evaluation or {})),
        checkpointing=Checkpointing(every=epoch) if streamed else Checkpointing(),
    )


def on_cifar100(variant: Experiment) -> Experiment:
    """Returns an experiment of CIFAR-10 on CIFAR-100, named ``cifar100-NAME``."""
    return replace(
        variant,
        name=f"cifar100-{variant.name}",
        model=replace(variant.model, num_classes=100),
        data=replace(variant.data, name="cifar100"),
    )
