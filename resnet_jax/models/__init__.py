"""Residual networks as Flax NNX modules, by name, from an ``Architecture``, or from their parts."""

from resnet_jax.models.blocks import ResidualBlock
from resnet_jax.models.catalog import (
    NETWORKS,
    architecture,
    cifar_architecture,
    densenet_architecture,
    imagenet_architecture,
    model_info,
    wide_architecture,
)
from resnet_jax.models.components import Component, component
from resnet_jax.models.counts import Counts, count
from resnet_jax.models.resnet import PLAIN, Apply, Architecture, Execution, ResNet
from resnet_jax.models.stochastic_depth import StochasticDepth

__all__ = [
    "NETWORKS",
    "PLAIN",
    "Apply",
    "Architecture",
    "Component",
    "Counts",
    "Execution",
    "ResNet",
    "ResidualBlock",
    "StochasticDepth",
    "architecture",
    "cifar_architecture",
    "component",
    "count",
    "densenet_architecture",
    "imagenet_architecture",
    "model_info",
    "wide_architecture",
]
