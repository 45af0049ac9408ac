"""ResNeXt. Xie et al. 2017, arXiv 1611.05431, Tables 3, 4, 7 and the text on residual connections.

Command: resnet-jax study experiments/xie2017_resnext.py:cifar10 --seeds 10 --workdir runs/resnext
Recipe: ImageNet: SGD, batch 256, 0.1 divided by 10 three times, weight decay 1e-4, option B, stride
    in the 3x3, one 224 crop from 256, BatchNorm over 32 images (eight GPUs); RandomResizedCrop,
    color jitter 0.4, lighting 0.1, flip (fb.resnet.torch). CIFAR: 29 layers, original bottleneck
    (authors' README), batch 128, BatchNorm over 16 images (eight GPUs), weight decay 5e-4.
Deviation: not stated, our choice: momentum 0.9 without Nesterov; decays at 30, 60, 90 of 100
    epochs; on CIFAR pad 4, random crop, flip, mean and deviation per channel, 50,000 images. From
    memory: 0.1 divided by 10 at 150 and 225 of 300 epochs. Table 5: resnet-jax evaluate RUN
    --protocol 320/320.
Hardware: paper: 8 GPUs.
"""

from dataclasses import replace

from resnet_jax.data.augment_device import ColorJitter
from resnet_jax.models import architecture, component
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.shortcuts import NoShortcut
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


def _cifar(width: str) -> Experiment:
    return Experiment(
        name=f"resnext29-{width}",
        model=replace(architecture(f"resnext29_{width}"), norm=component(BatchNorm, group_size=16)),
        data=Data(name="cifar10", normalization="channel"),
        optimizer=Optimizer(weight_decay=5e-4),
        schedule=Schedule(learning_rate=0.1, decay_steps=(150 * EPOCH, 225 * EPOCH)),
        steps=300 * EPOCH,
        batch_size=128,
        evaluation=Evaluation(every=1000, batch_size=1000),
    )


def _imagenet(name: str, network: str = "") -> Experiment:
    model = architecture(network or name.replace("-", "_"))
    return Experiment(
        name=name,
        model=replace(model, norm=component(BatchNorm, group_size=32)),
        data=replace(IMAGENET, color=component(ColorJitter, lighting=0.1)),
        schedule=Schedule(
            learning_rate=0.1,
            decay_steps=(30 * IMAGENET_EPOCH, 60 * IMAGENET_EPOCH, 90 * IMAGENET_EPOCH),
        ),
        steps=100 * IMAGENET_EPOCH,
        batch_size=256,
        **evaluate_every(IMAGENET_EPOCH),
    )


def _resnet(depth: int) -> Experiment:
    return _imagenet(f"resnet{depth}", f"resnet{depth}_v15")


def _resnet101_wider() -> Experiment:
    model = _resnet(101).model
    branch = component(model.branch, base_width=100)
    return replace(_resnet(101), name="resnet101-1x100d", model=replace(model, branch=branch))


def _without_residual(variant: Experiment) -> Experiment:
    model = replace(variant.model, shortcut=NoShortcut)
    return replace(variant, name=f"{variant.name}-without-residual", model=model)


def cifar10() -> tuple[Experiment, ...]:
    """Table 7, mean of 10 runs: 3.65 %, 3.58 %."""
    return _cifar("8x64d"), _cifar("16x64d")


def cifar100() -> tuple[Experiment, ...]:
    """Table 7, mean of 10 runs: 17.77 %, 17.31 %."""
    return tuple(map(on_cifar100, cifar10()))


def table3() -> tuple[Experiment, ...]:
    """Cardinality at equal cost: top-1 error, in the order of the table.

    50 layers: 23.9, 23.0, 22.6, 22.3, 22.2 %. 101 layers: 22.0, 21.7, 21.4, 21.3, 21.2 %.
    """
    widths = "2x40d", "4x24d", "8x14d", "32x4d"
    return tuple(
        variant
        for depth in (50, 101)
        for variant in (_resnet(depth), *(_imagenet(f"resnext{depth}-{w}") for w in widths))
    )


def table4() -> tuple[Experiment, ...]:
    """Depth, width or cardinality at twice the cost: top-1/top-5 error, in the order of the table.

    22.0/6.0 %, 21.2/5.6; 21.7/5.8, 21.3/5.7, 20.7/5.5, 20.4/5.3.
    """
    return (
        _resnet(101),
        _imagenet("resnext101-32x4d"),
        _resnet(200),
        _resnet101_wider(),
        _imagenet("resnext101-2x64d"),
        _imagenet("resnext101-64x4d"),
    )


def without_residual() -> tuple[Experiment, ...]:
    """Top-1 error with and without shortcuts: ResNet-50 23.9, 31.2 %; ResNeXt-50 22.2, 26.1 %."""
    resnet, resnext = _resnet(50), _imagenet("resnext50-32x4d")
    return resnet, _without_residual(resnet), resnext, _without_residual(resnext)
