"""ResNeXt: Xie et al. 2017 (arXiv 1611.05431), Tables 3, 4 and 7 and the text on residual connections.

Command:   resnet-jax study experiments/xie2017_resnext.py:cifar10 --seeds 10 --workdir runs/resnext
Recipe:    ImageNet: SGD, batch 256, 0.1 divided by 10 three times, weight decay 1e-4, option B, stride in the 3x3, one
           224 crop from 256, BatchNorm over 32 images (eight GPUs); RandomResizedCrop, color jitter 0.4, lighting 0.1,
           flip (fb.resnet.torch). CIFAR: 29 layers, original bottleneck (authors' README), batch 128, BatchNorm over
           16 images (eight GPUs), weight decay 5e-4.
Deviation: not stated, our choice: momentum 0.9 without Nesterov; decays at 30, 60, 90 of 100 epochs; on CIFAR pad 4,
           random crop, flip, mean and deviation per channel, 50,000 images. From memory: 0.1 divided by 10 at 150
           and 225 of 300 epochs. Table 5: resnet-jax evaluate RUN --protocol 320/320.
Hardware:  paper: 8 GPUs.
"""

from dataclasses import replace

from resnet_jax.data.augment_device import ColorJitter
from resnet_jax.data.augment_host import RandomResizedCrop
from resnet_jax.models import architecture, component, imagenet_architecture
from resnet_jax.models.blocks import BottleneckV15
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.shortcuts import NoShortcut
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
# Cardinality x width in the order of Table 3.
CARDINALITIES = ("2x40d", "4x24d", "8x14d", "32x4d")


def _cifar(width: str) -> Experiment:
    return Experiment(
        name=f"resnext29-{width}",
        model=replace(architecture(f"resnext29_{width}"), norm=component(BatchNorm, group_size=16)),
        data=Data(name="cifar10", normalization="channel"),
        optimizer=Optimizer(momentum=0.9, weight_decay=5e-4),
        schedule=Schedule(
            learning_rate=0.1, decay_steps=(150 * STEPS_PER_EPOCH, 225 * STEPS_PER_EPOCH)
        ),
        steps=300 * STEPS_PER_EPOCH,
        batch_size=128,
        evaluation=Evaluation(every=1000, batch_size=1000),
    )


def _on_cifar100(variant: Experiment) -> Experiment:
    return replace(
        variant,
        name=f"cifar100-{variant.name}",
        model=replace(variant.model, num_classes=100),
        data=replace(variant.data, name="cifar100"),
    )


def _imagenet(name: str, network: str = "") -> Experiment:
    return Experiment(
        name=name,
        model=replace(
            architecture(network or name.replace("-", "_")),
            norm=component(BatchNorm, group_size=32),
        ),
        data=Data(
            name="imagenet2012",
            test_split="validation",
            normalization="imagenet",
            pad=0,
            crop=RandomResizedCrop,
            color=component(ColorJitter, lighting=0.1),
        ),
        optimizer=Optimizer(momentum=0.9, weight_decay=1e-4),
        schedule=Schedule(
            learning_rate=0.1,
            decay_steps=tuple(epoch * IMAGENET_STEPS_PER_EPOCH for epoch in (30, 60, 90)),
        ),
        steps=100 * IMAGENET_STEPS_PER_EPOCH,
        batch_size=256,
        evaluation=Evaluation(every=IMAGENET_STEPS_PER_EPOCH, batch_size=256, protocol="256/224"),
        checkpointing=Checkpointing(every=IMAGENET_STEPS_PER_EPOCH),
    )


def _resnet(depth: int) -> Experiment:
    return _imagenet(f"resnet{depth}", f"resnet{depth}_v15")


def _resnet101_wider() -> Experiment:
    variant = _resnet(101)
    wider = imagenet_architecture(
        101, branch=component(BottleneckV15, base_width=100), norm=variant.model.norm
    )
    return replace(variant, name="resnet101-1x100d", model=wider)


def _without_residual(variant: Experiment) -> Experiment:
    return replace(
        variant,
        name=f"{variant.name}-without-residual",
        model=replace(variant.model, shortcut=NoShortcut),
    )


def cifar10() -> tuple[Experiment, ...]:
    """Table 7, mean of 10 runs: 3.65 %, 3.58 %."""
    return _cifar("8x64d"), _cifar("16x64d")


def cifar100() -> tuple[Experiment, ...]:
    """Table 7, mean of 10 runs: 17.77 %, 17.31 %."""
    return tuple(map(_on_cifar100, cifar10()))


def table3() -> tuple[Experiment, ...]:
    """Cardinality at equal cost, top-1 error: 50 layers 23.9, 23.0, 22.6, 22.3, 22.2 %; 101 layers 22.0, 21.7, 21.4, 21.3, 21.2 %."""
    return tuple(
        variant
        for depth in (50, 101)
        for variant in (
            _resnet(depth),
            *(_imagenet(f"resnext{depth}-{width}") for width in CARDINALITIES),
        )
    )


def table4() -> tuple[Experiment, ...]:
    """Depth, width or cardinality at twice the cost, top-1/top-5 error: 22.0/6.0 %, 21.2/5.6; 21.7/5.8, 21.3/5.7, 20.7/5.5, 20.4/5.3."""
    return (
        _resnet(101),
        _imagenet("resnext101-32x4d"),
        _resnet(200),
        _resnet101_wider(),
        _imagenet("resnext101-2x64d"),
        _imagenet("resnext101-64x4d"),
    )


def without_residual() -> tuple[Experiment, ...]:
    """Without shortcuts (and projections) ResNet-50 goes from 23.9 to 31.2 % top-1 error, ResNeXt-50 32x4d from 22.2 to 26.1."""
    resnet, resnext = _resnet(50), _imagenet("resnext50-32x4d")
    return resnet, _without_residual(resnet), resnext, _without_residual(resnext)
