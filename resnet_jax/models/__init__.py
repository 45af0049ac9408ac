"""Residual networks as Flax NNX modules: build one by name, from an ``Architecture``, or from its parts."""

from resnet_jax.models.architecture import Apply, Architecture
from resnet_jax.models.blocks import ResidualBlock
from resnet_jax.models.catalog import (
    NETWORKS,
    architecture,
    build,
    cifar_architecture,
    cifar_resnet,
    densenet_architecture,
    imagenet_architecture,
    imagenet_resnet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnet200,
    wide_architecture,
)
from resnet_jax.models.components import Component, component
from resnet_jax.models.counts import Counts, count
from resnet_jax.models.execution import Execution
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stochastic_depth import StochasticDepth

__all__ = [
    "NETWORKS",
    "Apply",
    "Architecture",
    "Component",
    "Counts",
    "Execution",
    "ResNet",
    "ResidualBlock",
    "StochasticDepth",
    "architecture",
    "build",
    "cifar_architecture",
    "cifar_resnet",
    "component",
    "count",
    "densenet_architecture",
    "imagenet_architecture",
    "imagenet_resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet200",
    "wide_architecture",
]
