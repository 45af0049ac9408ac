"""ImageNet networks of He et al. 2016 (arXiv 1603.05027), Table 5 and the text on ResNet-101.

Command: resnet-jax study experiments/he2016_imagenet.py:table5 --seeds 1 --workdir runs/table5
Recipe: SGD, momentum 0.9, weight decay 1e-4, batch 256, 0.1 divided by 10 at 30 and 60 epochs of
    5,005 steps; augmentation of He et al. 2015; BatchNorm over 32 images (eight GPUs). Table 5: one
    320 crop from 320; text: 224 from 256.
Deviation: not stated, our choice: 90 epochs, stride in the first 1x1; mean and deviation per
    channel fit every size. First row with 224 pixels: resnet-jax evaluate RUN --protocol 256/224.
Hardware: paper: 8 GPUs.
"""

from dataclasses import replace

from resnet_jax.data.augment_device import PcaLighting
from resnet_jax.data.augment_host import RandomResizedCrop, ShorterSideCrop
from resnet_jax.models import component, imagenet_architecture
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import FullPreactivation, NormAfterAddition, Order, Original
from resnet_jax.training.config import IMAGENET, Experiment, Schedule, evaluate_every

NORM = component(BatchNorm, group_size=32)
DATA = replace(IMAGENET, normalization="channel", crop=ShorterSideCrop, color=PcaLighting)
EPOCH = 5005


def _experiment(name: str, depth: int, order: type[Order], protocol: str = "320/320") -> Experiment:
    return Experiment(
        name=f"{name}-{depth}",
        model=imagenet_architecture(depth, order=order, norm=NORM),
        data=DATA,
        schedule=Schedule(learning_rate=0.1, decay_steps=(30 * EPOCH, 60 * EPOCH)),
        steps=90 * EPOCH,
        batch_size=256,
        **evaluate_every(EPOCH, protocol=protocol),
    )


def table5() -> tuple[Experiment, ...]:
    """Top-1/top-5 error on 320 pixels, by row.

    152 layers: 21.3/5.5 % (on 224: 23.0/6.7), 21.1/5.5. 200 layers: 21.8/6.0, 20.7/5.3, 20.1/4.8.
    """
    last = _experiment("pre-activation", 200, FullPreactivation)
    return (
        _experiment("original", 152, Original),
        _experiment("pre-activation", 152, FullPreactivation),
        _experiment("original", 200, Original),
        last,
        replace(last, name=f"{last.name}-aspect-ratio", data=replace(DATA, crop=RandomResizedCrop)),
    )


def orders101() -> tuple[Experiment, ...]:
    """Text: ResNet-101 23.6/7.1 (top-1/top-5), with BN after the addition 24.6/7.5."""
    return (
        _experiment("original", 101, Original, "256/224"),
        _experiment("norm-after-addition", 101, NormAfterAddition, "256/224"),
    )
