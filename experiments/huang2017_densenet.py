"""DenseNet on CIFAR and ImageNet. Huang et al. 2017, arXiv 1608.06993.

Command: resnet-jax study huang2017_densenet:cifar10 --seeds 1 --workdir runs/dense
Recipe: SGD, Nesterov, weight decay 1e-4, batch 64, 0.1 divided by 10 at 50 % and 75 % of 300 epochs
    of 782 steps. "+": pad 4, random crop, flip; "plain images": neither, and dropout 0.2.
Deviation: one dropout per block, before its last convolution; paper: after every convolution (from
    memory). Our choice: momentum 0.9, mean and deviation per channel, BatchNorm over the whole
    batch, 50,000 images; the recipe of ImageNet.
"""

from dataclasses import replace

from resnet_jax.models import component
from resnet_jax.models.catalog import architecture, variant
from resnet_jax.training.config import Experiment, Optimizer
from resnet_jax.training.recipes import CIFAR10, Study, in_epochs, on_cifar100

# Layers and growth rate. BC: bottlenecks and compression.
NETWORKS = "40-12", "100-12", "100-24", "bc-100-12", "bc-250-24", "bc-190-40"


def _cifar10(network: str) -> Experiment:
    *bc, depth, growth = network.split("-")
    return in_epochs(
        f"densenet-{network}",
        architecture(f"cifar_densenet{'_bc' * len(bc)}{depth}_{growth}"),
        CIFAR10,
        batch_size=64,
        epochs=300,
        decays=(150, 225),
        optimizer=Optimizer(nesterov=True),
        evaluation={"every": 782, "batch_size": 500},
    )


def _on_plain_images(one: Experiment) -> Experiment:
    return replace(
        one,
        name=f"{one.name}-plain-images",
        model=replace(one.model, branch=component(one.model.branch, dropout=0.2)),
        data=replace(one.data, pad=0, flip=False),
    )


def cifar10() -> Study:
    """CIFAR-10+: 5.24 %, 4.10, 3.74; BC 4.51, 3.62, 3.46."""
    return tuple(map(_cifar10, NETWORKS))


def cifar100() -> Study:
    """CIFAR-100+: 24.42 %, 20.20, 19.25; BC 22.27, 17.60, 17.18."""
    return tuple(map(on_cifar100, cifar10()))


def cifar10_plain_images() -> Study:
    """7.00 %, 5.77, 5.83; BC 5.92, 5.19, no number for 190-40."""
    return tuple(map(_on_plain_images, cifar10()))


def cifar100_plain_images() -> Study:
    """27.55 %, 23.79, 23.42; BC 24.15, 19.64, no number for 190-40."""
    return tuple(map(_on_plain_images, cifar100()))


def _imagenet(network: str) -> Experiment:
    model = variant(network, norm="BatchNorm(group_size=32)")
    return in_epochs(network, model, optimizer=Optimizer(nesterov=True))


def imagenet() -> Study:
    """Top-1 error (authors' repository): 25.0 %, 22.2, 23.6, 22.5."""
    return tuple(map(_imagenet, ("densenet121", "densenet161", "densenet169", "densenet201")))
