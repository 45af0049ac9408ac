"""ResNeXt: Xie et al. 2017 (arXiv 1611.05431), Tables 3, 4 and 7 and the text on residual connections.

Command:   resnet-jax prepare cifar10        (once; or point TFDS_DATA_DIR at prepared sets; `cifar100` for the other study)
           resnet-jax study experiments/xie2017_resnext.py:cifar10 --seeds 10 --workdir runs/resnext
           resnet-jax prepare imagenet2012 --from DIR        (once, for the others)
           resnet-jax study experiments/xie2017_resnext.py:table3 --seeds 1 --workdir runs/resnext-table3
Recipe:    ImageNet: SGD, batch 256, 0.1 divided by 10 three times, weight decay 1e-4; option B, the stride in the 3x3; one 224 crop from
           256; BatchNorm sees groups of 32 images, as on the paper's eight GPUs. The augmentation of fb.resnet.torch: scale and aspect
           ratio, brightness, contrast and saturation by up to 0.4, lighting 0.1, flip; mean and deviation of each channel.
           CIFAR: 29 layers, the original bottleneck (the authors' README: "better than the paper's pre-act + batch 256"), batch 128 on
           eight GPUs, so BatchNorm groups of 16, weight decay 5e-4; pad 4, random crop, flip; mean and deviation of each channel.
Deviation: not stated where we read it, and ours: momentum 0.9 without Nesterov; ImageNet's places of the three decays, 30, 60 and 90 of 100
           epochs of 5,005 steps; CIFAR's augmentation and preprocessing, and all of its 50,000 images. CIFAR's schedule, 0.1 divided by 10
           at 150 and 225 of 300 epochs of 391 steps, is from memory and was not checked.
           Scores of 320-pixel crops (Table 5): resnet-jax evaluate RUN --protocol 320/320.
Expect:    Table 3, top-1 error, percent, of 1x64d, 2x40d, 4x24d, 8x14d, 32x4d: 50 layers 23.9, 23.0, 22.6, 22.3, 22.2;
           101 layers 22.0, 21.7, 21.4, 21.3, 21.2. Table 4, top-1/top-5: resnet101 22.0/6.0, resnext101-32x4d 21.2/5.6,
           resnet200 21.7/5.8, resnet101-1x100d 21.3/5.7, resnext101-2x64d 20.7/5.5, resnext101-64x4d 20.4/5.3.
           Table 7, mean of 10 runs, CIFAR-10 / CIFAR-100: 8x64d 3.65 / 17.77, 16x64d 3.58 / 17.31.
Hardware:  the paper used 8 GPUs. Time: not measured.
"""

from dataclasses import replace

from resnet_jax.data.colour import ColorJitter
from resnet_jax.data.crops import RandomResizedCrop
from resnet_jax.models import architecture, configured, imagenet_architecture
from resnet_jax.models.branches import BottleneckV15
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.shortcuts import NoShortcut
from resnet_jax.training.experiment import Checkpointing, Data, Evaluation, Experiment, Optimizer, Schedule

STEPS_PER_EPOCH = -(-50_000 // 128)
IMAGENET_STEPS_PER_EPOCH = -(-1_281_167 // 256)
# Cardinality x width in the order of Table 3.
CARDINALITIES = ("2x40d", "4x24d", "8x14d", "32x4d")


def _cifar(width: str) -> Experiment:
    return Experiment(
        name=f"resnext29-{width}",
        # "Batch size 128 on eight GPUs": each normalised its own 16 images.
        model=replace(architecture(f"resnext29_{width}"), norm=configured(BatchNorm, group_size=16)),
        data=Data(name="cifar10", normalization="channel"),
        optimizer=Optimizer(momentum=0.9, weight_decay=5e-4),
        schedule=Schedule(learning_rate=0.1, decay_steps=(150 * STEPS_PER_EPOCH, 225 * STEPS_PER_EPOCH)),
        steps=300 * STEPS_PER_EPOCH,
        batch_size=128,
        evaluation=Evaluation(every=1000, batch_size=1000),
    )


def _of_cifar100(cell: Experiment) -> Experiment:
    return replace(cell, name=f"cifar100-{cell.name}", model=replace(cell.model, num_classes=100), data=replace(cell.data, name="cifar100"))


def _imagenet(name: str, network: str = "") -> Experiment:
    """A cell by the network's name in the catalog."""
    return Experiment(
        name=name,
        model=replace(architecture(network or name.replace("-", "_")), norm=configured(BatchNorm, group_size=32)),
        data=Data(
            name="imagenet2012",
            test_split="validation",
            normalization="imagenet",
            pad=0,
            flip=True,
            crop=RandomResizedCrop,
            colour=configured(ColorJitter, lighting=0.1),
        ),
        optimizer=Optimizer(momentum=0.9, weight_decay=1e-4),
        schedule=Schedule(learning_rate=0.1, decay_steps=tuple(epoch * IMAGENET_STEPS_PER_EPOCH for epoch in (30, 60, 90))),
        steps=100 * IMAGENET_STEPS_PER_EPOCH,
        batch_size=256,
        evaluation=Evaluation(every=IMAGENET_STEPS_PER_EPOCH, batch_size=256, protocol="256/224"),
        checkpointing=Checkpointing(every=IMAGENET_STEPS_PER_EPOCH),
    )


def _resnet(depth: int) -> Experiment:
    return _imagenet(f"resnet{depth}", f"resnet{depth}_v15")


def _resnet101_wider() -> Experiment:
    cell = _resnet(101)
    wider = imagenet_architecture(101, branch=configured(BottleneckV15, base_width=100), norm=cell.model.norm)
    return replace(cell, name="resnet101-1x100d", model=wider)


def _without_residual(cell: Experiment) -> Experiment:
    return replace(cell, name=f"{cell.name}-without-residual", model=replace(cell.model, shortcut=NoShortcut))


def cifar10() -> tuple[Experiment, ...]:
    """Table 7, CIFAR-10, mean of 10 runs: 8x64d (34.4M parameters) 3.65 %, 16x64d (68.1M) 3.58 %."""
    return _cifar("8x64d"), _cifar("16x64d")


def cifar100() -> tuple[Experiment, ...]:
    """Table 7, CIFAR-100, mean of 10 runs: 8x64d 17.77 %, 16x64d 17.31 %."""
    return tuple(map(_of_cifar100, cifar10()))


def table3() -> tuple[Experiment, ...]:
    """Table 3: cardinality at equal cost. Top-1 of 1x64d (the ResNet), 2x40d, 4x24d, 8x14d, 32x4d: 50 layers (about 4.1 GFLOPs) 23.9, 23.0,
    22.6, 22.3, 22.2 %; 101 layers (about 7.8) 22.0, 21.7, 21.4, 21.3, 21.2 %.
    """
    return tuple(
        cell for depth in (50, 101) for cell in (_resnet(depth), *(_imagenet(f"resnext{depth}-{width}") for width in CARDINALITIES))
    )


def table4() -> tuple[Experiment, ...]:
    """Table 4: twice the cost spent on depth, width or cardinality. Top-1/top-5: ResNet-101 22.0/6.0, ResNeXt-101 32x4d 21.2/5.6;
    ResNet-200 21.7/5.8, ResNet-101 1x100d 21.3/5.7, ResNeXt-101 2x64d 20.7/5.5, 64x4d 20.4/5.3.
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
    """Text: without shortcuts ResNet-50 goes from 23.9 to 31.2 % top-1, ResNeXt-50 32x4d from 22.2 to 26.1.

    The networks without have no projections either.
    """
    resnet, resnext = _resnet(50), _imagenet("resnext50-32x4d")
    return resnet, _without_residual(resnet), resnext, _without_residual(resnext)
