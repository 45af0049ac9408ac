"""DenseNet on CIFAR and ImageNet. Huang et al. 2017, arXiv 1608.06993.

Command: resnet-jax study experiments/huang2017_densenet.py:cifar10 --seeds 1 --workdir runs/dense
Recipe: SGD, Nesterov, weight decay 1e-4, batch 64, 0.1 divided by 10 at 50 % and 75 % of 300 epochs
    of 782 steps. "+": pad 4, random crop, flip; "plain images": neither, and dropout 0.2.
Deviation: one dropout per block, before its last convolution; paper: after every convolution (from
    memory). Not stated, our choice: momentum 0.9, mean and deviation per channel, BatchNorm over
    the whole batch, 50,000 images; on ImageNet batch 256, BatchNorm over 32 images, 0.1 divided by
    10 at 30 and 60 of 90 epochs, RandomResizedCrop, flip, one 224 crop from 256.
Hardware: one GPU or TPU.
"""

from dataclasses import replace

from resnet_jax.models import component, densenet_architecture
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training.config import (
    IMAGENET,
    Data,
    Evaluation,
    Experiment,
    Optimizer,
    Schedule,
    evaluate_every,
    on_cifar100,
)

EPOCH = -(-50_000 // 64)
IMAGENET_EPOCH = -(-1_281_167 // 256)
# Name, layers, growth rate, bottlenecks and compression.
NETWORKS = (
    ("densenet-40-12", 40, 12, False),
    ("densenet-100-12", 100, 12, False),
    ("densenet-100-24", 100, 24, False),
    ("densenet-bc-100-12", 100, 12, True),
    ("densenet-bc-250-24", 250, 24, True),
    ("densenet-bc-190-40", 190, 40, True),
)


def _on_plain_images(variant: Experiment) -> Experiment:
    return replace(
        variant,
        name=f"{variant.name}-plain-images",
        model=replace(variant.model, branch=component(variant.model.branch, dropout=0.2)),
        data=replace(variant.data, pad=0, flip=False),
    )


def cifar10() -> tuple[Experiment, ...]:
    """CIFAR-10+: 5.24 %, 4.10, 3.74; BC 4.51, 3.62, 3.46."""
    return tuple(
        Experiment(
            name=name,
            model=densenet_architecture(depth, growth, bottleneck=bottleneck),
            data=Data(name="cifar10", normalization="channel"),
            optimizer=Optimizer(nesterov=True),
            schedule=Schedule(learning_rate=0.1, decay_steps=(150 * EPOCH, 225 * EPOCH)),
            steps=300 * EPOCH,
            batch_size=64,
            evaluation=Evaluation(every=EPOCH, batch_size=500),
        )
        for name, depth, growth, bottleneck in NETWORKS
    )


def cifar100() -> tuple[Experiment, ...]:
    """CIFAR-100+: 24.42 %, 20.20, 19.25; BC 22.27, 17.60, 17.18."""
    return tuple(map(on_cifar100, cifar10()))


def cifar10_plain_images() -> tuple[Experiment, ...]:
    """7.00 %, 5.77, 5.83; BC 5.92, 5.19, no number for 190-40."""
    return tuple(map(_on_plain_images, cifar10()))


def cifar100_plain_images() -> tuple[Experiment, ...]:
    """27.55 %, 23.79, 23.42; BC 24.15, 19.64, no number for 190-40."""
    return tuple(map(_on_plain_images, cifar100()))


def imagenet() -> tuple[Experiment, ...]:
    """Top-1 error (authors' repository): 25.0 %, 22.2, 23.6, 22.5."""
    norm = component(BatchNorm, group_size=32)
    return tuple(
        Experiment(
            name=f"densenet{depth}",
            model=densenet_architecture(depth, imagenet=True, norm=norm),
            data=IMAGENET,
            optimizer=Optimizer(nesterov=True),
            schedule=Schedule(
                learning_rate=0.1, decay_steps=(30 * IMAGENET_EPOCH, 60 * IMAGENET_EPOCH)
            ),
            steps=90 * IMAGENET_EPOCH,
            batch_size=256,
            **evaluate_every(IMAGENET_EPOCH),
        )
        for depth in (121, 161, 169, 201)
    )
