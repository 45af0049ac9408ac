"""Stochastic depth: CIFAR and 1202 layers. Huang et al. 2016, arXiv 1603.09382.

Command: resnet-jax study huang2016_stochastic_depth:cifar10 --seeds 5 --workdir runs/stochastic
Recipe: 110 layers, average pooling and zero padding in the shortcuts; survival 1 - l/L (1 - 0.5).
    SGD, Nesterov, weight decay 1e-4, batch 128, 5,000 validation images; 0.1 divided by 10 at 1/2
    and 3/4 of 500 epochs; 1202 layers: of 300, after 10 of 0.01. "+": pad 4, random crop, flip.
Deviation: the paper reports the test error at the lowest validation error; both are recorded. Our
    choice: momentum 0.9, mean and deviation per channel, BatchNorm over the whole batch.
    Dropped branches are multiplied by 0: no training time is saved.
"""

from dataclasses import replace

from resnet_jax.models.catalog import architecture, variant
from resnet_jax.training.config import Experiment, Optimizer
from resnet_jax.training.recipes import CIFAR10, Study, in_epochs, on_cifar100

EPOCH = -(-45_000 // 128)


def _constant_and_stochastic(depth: int, epochs: int, warmup: int) -> Study:
    constant = in_epochs(
        f"constant-{depth}",
        variant(f"cifar_resnet{depth}", shortcut="PooledZeroPad"),
        replace(CIFAR10, validation_examples=5000),
        batch_size=128,
        epochs=epochs,
        decays=(epochs // 2, epochs * 3 // 4),
        warmup_steps=warmup * EPOCH,
        optimizer=Optimizer(nesterov=True),
        evaluation={"every": EPOCH},
    )
    stochastic = architecture(f"cifar_stochastic{depth}")
    return constant, replace(constant, name=f"stochastic-{depth}", model=stochastic)


def _on_plain_images(one: Experiment) -> Experiment:
    data = replace(one.data, pad=0, flip=False)
    return replace(one, name=f"{one.name}-plain-images", data=data)


def cifar10() -> Study:
    """CIFAR-10+: constant depth 6.41 %, stochastic 5.25 % (5.23 in the first version)."""
    return _constant_and_stochastic(110, epochs=500, warmup=0)


def cifar100() -> Study:
    """CIFAR-100+: constant depth 27.76 % (text: 27.22), stochastic 24.98 % (others cite 24.58)."""
    return tuple(map(on_cifar100, cifar10()))


def cifar10_plain_images() -> Study:
    """Constant depth 13.63 %, stochastic 11.66 %."""
    return tuple(map(_on_plain_images, cifar10()))


def cifar100_plain_images() -> Study:
    """Constant depth 44.74 %, stochastic 37.8 %."""
    return tuple(map(_on_plain_images, cifar100()))


def layers1202() -> Study:
    """CIFAR-10+: constant depth 6.67 %, stochastic 4.91 %."""
    return _constant_and_stochastic(1202, epochs=300, warmup=10)
