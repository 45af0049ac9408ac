"""Residual networks as Flax NNX modules: build one by name, from an ``Architecture``, or from its parts."""

from resnet_jax.configured import Configured, configured
from resnet_jax.models.architecture import Apply, Architecture
from resnet_jax.models.catalog import (
    NETWORKS,
    architecture,
    build,
    cifar_resnet,
    imagenet_resnet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnet200,
)
from resnet_jax.models.counts import Counts, count
from resnet_jax.models.execution import Execution
from resnet_jax.models.families import cifar_architecture, densenet_architecture, imagenet_architecture, wide_architecture
from resnet_jax.models.pretrained.card import Card, View
from resnet_jax.models.pretrained.loading import Pretrained, load_pretrained
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.stochastic_depth import StochasticDepth
from resnet_jax.models.unit import Unit

__all__ = [
    "NETWORKS",
    "Apply",
    "Architecture",
    "Card",
    "Configured",
    "Counts",
    "Execution",
    "Pretrained",
    "ResNet",
    "StochasticDepth",
    "Unit",
    "View",
    "architecture",
    "build",
    "cifar_architecture",
    "cifar_resnet",
    "configured",
    "count",
    "densenet_architecture",
    "imagenet_architecture",
    "imagenet_resnet",
    "load_pretrained",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet200",
    "wide_architecture",
]
