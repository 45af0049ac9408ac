"""ResNeXt. Xie et al. 2017, arXiv 1611.05431, Tables 3, 4, 7 and the text on residual connections.

Command: resnet-jax study xie2017_resnext:cifar10 --seeds 10 --workdir runs/resnext
Recipe: ImageNet: batch 256, 0.1 divided by 10 three times, weight decay 1e-4, option B, stride in
    the 3x3, one 224 crop from 256; RandomResizedCrop, color jitter 0.4, lighting 0.1, flip
    (fb.resnet.torch). CIFAR: 29 layers, original bottleneck (authors' README), batch 128, weight
    decay 5e-4. BatchNorm on one of eight GPUs.
Deviation: our choice: momentum 0.9 without Nesterov; decays at 30, 60, 90 of 100 epochs; on CIFAR
    pad 4, random crop, flip, mean and deviation per channel, 50,000 images. From memory: 0.1
    divided by 10 at 150 and 225 of 300 epochs. Table 5: resnet-jax evaluate RUN --protocol 320/320.
"""

from dataclasses import replace

from resnet_jax.data.augment_device import ColorJitter
from resnet_jax.models import component
from resnet_jax.models.catalog import variant
from resnet_jax.training.config import Experiment, Optimizer
from resnet_jax.training.recipes import CIFAR10, IMAGENET, Study, in_epochs, on_cifar100

DATA = replace(IMAGENET, color=component(ColorJitter, lighting=0.1))


def _cifar(width: str) -> Experiment:
    return in_epochs(
        f"resnext29-{width}",
        variant(f"resnext29_{width}", norm="BatchNorm(group_size=16)"),
        CIFAR10,
        batch_size=128,
        epochs=300,
        decays=(150, 225),
        optimizer=Optimizer(weight_decay=5e-4),
    )


def _imagenet(network: str, suffix: str = "", **fields: str) -> Experiment:
    name = network.removesuffix("_v15").replace("_", "-") + suffix
    model = variant(network, norm="BatchNorm(group_size=32)", **fields)
    return in_epochs(name, model, DATA, epochs=100, decays=(30, 60, 90))


def cifar10() -> Study:
    """Table 7, mean of 10 runs: 3.65 %, 3.58 %."""
    return _cifar("8x64d"), _cifar("16x64d")


def cifar100() -> Study:
    """Table 7, mean of 10 runs: 17.77 %, 17.31 %."""
    return tuple(map(on_cifar100, cifar10()))


def table3() -> Study:
    """Cardinality at equal cost: top-1 error, in the order of the table.

    50 layers: 23.9, 23.0, 22.6, 22.3, 22.2 %. 101 layers: 22.0, 21.7, 21.4, 21.3, 21.2 %.
    """
    networks = "resnet{}_v15 resnext{}_2x40d resnext{}_4x24d resnext{}_8x14d resnext{}_32x4d"
    return tuple(_imagenet(n.format(depth)) for depth in (50, 101) for n in networks.split())


def table4() -> Study:
    """Depth, width or cardinality at twice the cost: top-1/top-5 error, in the order of the table.

    22.0/6.0 %, 21.2/5.6; 21.7/5.8, 21.3/5.7, 20.7/5.5, 20.4/5.3.
    """
    return (
        _imagenet("resnet101_v15"),
        _imagenet("resnext101_32x4d"),
        _imagenet("resnet200_v15"),
        _imagenet("resnet101_v15", "-1x100d", branch="BottleneckV15(base_width=100)"),
        _imagenet("resnext101_2x64d"),
        _imagenet("resnext101_64x4d"),
    )


def without_residual() -> Study:
    """Top-1 error with and without shortcuts: ResNet-50 23.9, 31.2 %; ResNeXt-50 22.2, 26.1 %."""
    networks = "resnet50_v15", "resnext50_32x4d"
    plain = {"suffix": "-without-residual", "shortcut": "none"}
    return tuple(_imagenet(network, **fields) for network in networks for fields in ({}, plain))
