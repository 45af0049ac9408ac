"""Bag of tricks: ResNet-50 and its tweaks B, C, D on ImageNet. He et al. 2018, arXiv 1812.01187.

Command: resnet-jax study he2018_bag_of_tricks:architectures --seeds 1 --workdir runs/tricks
Recipe: from memory: batch 1024 on 8 GPUs, linear warm-up, 0.4 divided by 10 at 30, 60, 90 of 120
    epochs, Nesterov momentum, weight decay on kernels, last scale of branches starts at 0;
    RandomResizedCrop, color jitter 0.4, lighting 0.1, flip; one 224 crop from 256. Refinements
    are cumulative.
Deviation: float32; no distillation; BatchNorm over 128 images.
Expect: mmpretrain's logs, 100 epochs: resnet50 76.55, C 77.01, D 77.54 % top-1 accuracy.
"""

from dataclasses import replace
from typing import Any

from resnet_jax.data.augment_device import ColorJitter, Mix
from resnet_jax.models import Architecture, component
from resnet_jax.models.catalog import variant
from resnet_jax.training.config import Experiment, Loss, Optimizer
from resnet_jax.training.recipes import IMAGENET, Study, in_epochs

DATA = replace(IMAGENET, color=component(ColorJitter, lighting=0.1))
MIX = component(Mix, mixup=0.2, cutmix=0.0, group=128)


def _recipe(name: str, model: Architecture, **changes: Any) -> Experiment:
    branch = component(model.branch, zero_scale=True)
    fields = {"data": DATA, "epochs": 120, "decays": (30, 60, 90)} | changes
    return in_epochs(
        name,
        replace(model, branch=branch, norm=component(model.norm, group_size=128)),
        batch_size=1024,
        warmup=5,
        optimizer=Optimizer(nesterov=True, decay="kernels"),
        learning_rate=0.4,
        warmup_learning_rate=0.0,
        **fields,
    )


def architectures() -> Study:
    """Top-1 accuracy (from memory): baseline 76.21 %, B 76.66, C 76.87, D 77.16.

    B has the stride in the 3x3, C a deep stem, D pooled shortcuts.
    """
    return (
        _recipe("efficient", variant("resnet50")),
        _recipe("resnet50-b", variant("resnet50_v15")),
        _recipe("resnet50-c", variant("resnet50_v15", stem="DeepStem")),
        _recipe("resnet50-d", variant("resnet50_d")),
    )


def refinements() -> Study:
    """ResNet-50-D, top-1 accuracy (from memory): cosine 77.91 %, smoothing 78.31, mixup 79.15."""
    cosine = {"decays": (), "cosine_from": "warmup"}
    smoothed = cosine | {"loss": Loss(smoothing=0.1)}
    mixed = smoothed | {"epochs": 200, "data": replace(DATA, mix=MIX)}
    variants = {"cosine": cosine, "label-smoothing": smoothed, "mixup": mixed}
    network = variant("resnet50_d")
    return tuple(_recipe(name, network, **fields) for name, fields in variants.items())
