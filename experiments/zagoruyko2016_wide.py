"""Wide residual networks: Zagoruyko and Komodakis 2016 (arXiv 1605.07146) on CIFAR and ImageNet.

Command:   resnet-jax study experiments/zagoruyko2016_wide.py:cifar10 --seeds 5 --workdir runs/wide
Recipe:    full pre-activation, 6n+4 layers; SGD, Nesterov momentum 0.9, weight decay 5e-4, batch 128, 0.1 times 0.2 at
           60, 120, 160 of 200 epochs of 391 steps; pad 4, random crop, flip; mean and deviation per channel; dropout
           0.3 between the convolutions where named.
Deviation: no ZCA whitening (0.2 to 0.5 points); BatchNorm over the whole batch (not stated); no SVHN, only B(3,3).
           ImageNet, our choice: Nesterov momentum 0.9, weight decay 1e-4, batch 256, BatchNorm over 32 images, 0.1
           divided by 10 at 30 and 60 of 90 epochs, RandomResizedCrop, flip, one 224 crop from 256.
Expect:    median test error of 5 seeds, see the functions.
Hardware:  one GPU or TPU.
"""

from dataclasses import replace

from resnet_jax.data.augment_host import RandomResizedCrop
from resnet_jax.models import Architecture, architecture, component, wide_architecture
from resnet_jax.models.blocks import Basic, Branch
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training.config import (
    Checkpointing,
    Data,
    Evaluation,
    Experiment,
    Optimizer,
    Schedule,
)

STEPS_PER_EPOCH = -(-50_000 // 128)
IMAGENET_STEPS_PER_EPOCH = -(-1_281_167 // 256)

# Depth, widening factor, dropout.
CIFAR100_ROWS = (
    (40, 1, False),
    (40, 2, False),
    (40, 4, False),
    (28, 10, False),
    (28, 10, True),
    (28, 12, False),
    (22, 8, False),
    (22, 10, False),
    (16, 8, False),
    (16, 10, False),
    (16, 4, False),
    (16, 4, True),
    (52, 1, False),
    (52, 1, True),
    (40, 10, True),
)
CIFAR10_ROWS = (*CIFAR100_ROWS[:3], (40, 8, False), *CIFAR100_ROWS[3:])


def _experiment(name: str, model: Architecture) -> Experiment:
    return Experiment(
        name=name,
        model=model,
        data=Data(name="cifar10", normalization="channel"),
        optimizer=Optimizer(momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=Schedule(
            learning_rate=0.1,
            decay_steps=(60 * STEPS_PER_EPOCH, 120 * STEPS_PER_EPOCH, 160 * STEPS_PER_EPOCH),
            decay_factor=0.2,
        ),
        steps=200 * STEPS_PER_EPOCH,
        batch_size=128,
        evaluation=Evaluation(every=1000, batch_size=1000),
    )


def _wide(depth: int, widen: int, dropout: bool) -> Experiment:
    branch = component(Basic, dropout=0.3) if dropout else Basic
    return _experiment(
        f"wrn{depth}-{widen}" + "-dropout" * dropout, wide_architecture(depth, widen, branch=branch)
    )


def _on_cifar100(variant: Experiment) -> Experiment:
    return replace(
        variant,
        name=f"cifar100-{variant.name}",
        model=replace(variant.model, num_classes=100),
        data=replace(variant.data, name="cifar100"),
    )


def cifar10() -> tuple[Experiment, ...]:
    """40-4 4.53 %, 28-10 4.00 (dropout 3.89), 16-8 4.27, 16-4 5.02 (dropout 5.24), 52-1 6.43 (dropout 6.28), 40-10 with dropout 3.8 (one
    run); the others only with ZCA.
    """
    return tuple(_wide(*row) for row in CIFAR10_ROWS)


def cifar100() -> tuple[Experiment, ...]:
    """40-4 21.18 %, 28-10 19.25 (dropout 18.85), 16-8 20.43, 16-4 24.03 (dropout 23.91), 52-1 29.89 (dropout 29.78), 40-10 with dropout
    18.3 (one run); the others only with ZCA.
    """
    return tuple(_on_cifar100(_wide(*row)) for row in CIFAR100_ROWS)


def deepening() -> tuple[Experiment, ...]:
    """1, 2, 3, 4 convolutions per block at the depth of WRN-40-2: 6.69, 5.43, 5.65, 5.93 % (CIFAR-10)."""
    return tuple(
        _experiment(
            f"wrn40-2-l{convolutions}",
            wide_architecture(
                40,
                2,
                stages=(12 // convolutions,) * 3,
                branch=component(Branch, kernels=(3,) * convolutions),
            ),
        )
        for convolutions in (1, 2, 3, 4)
    )


def imagenet() -> tuple[Experiment, ...]:
    """WRN-50-2: 21.9 % top-1, 5.79 % top-5 error (authors' README)."""
    variant = Experiment(
        name="wrn50-2",
        model=replace(architecture("wide_resnet50_2"), norm=component(BatchNorm, group_size=32)),
        data=Data(
            name="imagenet2012",
            test_split="validation",
            normalization="imagenet",
            pad=0,
            crop=RandomResizedCrop,
        ),
        optimizer=Optimizer(momentum=0.9, nesterov=True, weight_decay=1e-4),
        schedule=Schedule(
            learning_rate=0.1,
            decay_steps=(30 * IMAGENET_STEPS_PER_EPOCH, 60 * IMAGENET_STEPS_PER_EPOCH),
        ),
        steps=90 * IMAGENET_STEPS_PER_EPOCH,
        batch_size=256,
        evaluation=Evaluation(every=IMAGENET_STEPS_PER_EPOCH, batch_size=256, protocol="256/224"),
        checkpointing=Checkpointing(every=IMAGENET_STEPS_PER_EPOCH),
    )
    return (variant,)
