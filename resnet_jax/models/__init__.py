"""Residual networks as Flax NNX modules: build one by name, from an ``Architecture``, or from its parts."""

from resnet_jax.models.architecture import Apply, Architecture
from resnet_jax.models.catalog import (
    architecture,
    cifar_architecture,
    cifar_resnet,
    imagenet_architecture,
    imagenet_resnet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from resnet_jax.models.counts import Counts, count
from resnet_jax.models.execution import Execution
from resnet_jax.models.resnet import ResNet

__all__ = [
    "Apply",
    "Architecture",
    "Counts",
    "Execution",
    "ResNet",
    "architecture",
    "cifar_architecture",
    "cifar_resnet",
    "count",
    "imagenet_architecture",
    "imagenet_resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]
