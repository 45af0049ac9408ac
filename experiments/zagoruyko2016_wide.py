"""Wide residual networks, CIFAR and ImageNet. Zagoruyko and Komodakis 2016, arXiv 1605.07146.

Command: resnet-jax study experiments/zagoruyko2016_wide.py:cifar10 --seeds 5 --workdir runs/wide
Recipe: full pre-activation, 6n+4 layers; SGD, Nesterov momentum 0.9, weight decay 5e-4, batch 128,
    0.1 times 0.2 at 60, 120, 160 of 200 epochs of 391 steps; pad 4, random crop, flip; mean and
    deviation per channel; dropout 0.3 between the convolutions where named.
Deviation: no ZCA whitening (0.2 to 0.5 points); BatchNorm over the whole batch (not stated); no
    SVHN, only B(3,3). ImageNet, our choice: Nesterov momentum 0.9, weight decay 1e-4, batch 256,
    BatchNorm over 32 images, 0.1 divided by 10 at 30 and 60 of 90 epochs, RandomResizedCrop, flip,
    one 224 crop from 256.
Expect: median test error of 5 seeds, see the functions.
Hardware: one GPU or TPU.
"""

from dataclasses import replace

from resnet_jax.models import Architecture, architecture, component, wide_architecture
from resnet_jax.models.blocks import Basic, Branch
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

EPOCH = -(-50_000 // 128)
IMAGENET_EPOCH = -(-1_281_167 // 256)

# Depth, widening factor and dropout.
NETWORKS = (
    "40-1",
    "40-2",
    "40-4",
    "40-8",
    "28-10",
    "28-10-dropout",
    "28-12",
    "22-8",
    "22-10",
    "16-8",
    "16-10",
    "16-4",
    "16-4-dropout",
    "52-1",
    "52-1-dropout",
    "40-10-dropout",
)


def _experiment(name: str, model: Architecture) -> Experiment:
    return Experiment(
        name=name,
        model=model,
        data=Data(name="cifar10", normalization="channel"),
        optimizer=Optimizer(nesterov=True, weight_decay=5e-4),
        schedule=Schedule(
            learning_rate=0.1,
            decay_steps=(60 * EPOCH, 120 * EPOCH, 160 * EPOCH),
            decay_factor=0.2,
        ),
        steps=200 * EPOCH,
        batch_size=128,
        evaluation=Evaluation(every=1000, batch_size=1000),
    )


def _wide(name: str) -> Experiment:
    depth, widen, *dropout = name.split("-")
    branch = component(Basic, dropout=0.3) if dropout else Basic
    return _experiment(f"wrn{name}", wide_architecture(int(depth), int(widen), branch=branch))


def cifar10() -> tuple[Experiment, ...]:
    """Sixteen networks; those without a number here only with ZCA.

    40-4 4.53 %, 28-10 4.00 (dropout 3.89), 16-8 4.27, 16-4 5.02 (dropout 5.24),
    52-1 6.43 (dropout 6.28), 40-10 with dropout 3.8 (one run).
    """
    return tuple(map(_wide, NETWORKS))


def cifar100() -> tuple[Experiment, ...]:
    """Those of CIFAR-10 without 40-8; those without a number here only with ZCA.

    40-4 21.18 %, 28-10 19.25 (dropout 18.85), 16-8 20.43, 16-4 24.03 (dropout 23.91),
    52-1 29.89 (dropout 29.78), 40-10 with dropout 18.3 (one run).
    """
    return tuple(on_cifar100(_wide(name)) for name in NETWORKS if name != "40-8")


def deepening() -> tuple[Experiment, ...]:
    """1 to 4 convolutions per block, as deep as WRN-40-2: 6.69, 5.43, 5.65, 5.93 % (CIFAR-10)."""
    return tuple(
        _experiment(
            f"wrn40-2-l{n}",
            wide_architecture(
                40, 2, stages=(12 // n,) * 3, branch=component(Branch, kernels=(3,) * n)
            ),
        )
        for n in (1, 2, 3, 4)
    )


def imagenet() -> tuple[Experiment, ...]:
    """WRN-50-2: 21.9 % top-1, 5.79 % top-5 error (authors' README)."""
    variant = Experiment(
        name="wrn50-2",
        model=replace(architecture("wide_resnet50_2"), norm=component(BatchNorm, group_size=32)),
        data=IMAGENET,
        optimizer=Optimizer(nesterov=True),
        schedule=Schedule(
            learning_rate=0.1, decay_steps=(30 * IMAGENET_EPOCH, 60 * IMAGENET_EPOCH)
        ),
        steps=90 * IMAGENET_EPOCH,
        batch_size=256,
        **evaluate_every(IMAGENET_EPOCH),
    )
    return (variant,)
