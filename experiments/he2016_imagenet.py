"""ImageNet networks of He et al. 2016 (arXiv 1603.05027), Table 5 and the text on ResNet-101.

Command: resnet-jax study he2016_imagenet:table5 --seeds 1 --workdir runs/table5
Recipe: as he2015_imagenet.py, without precise BN. Table 5: one 320 crop from 320; text: 224 from
    256.
Deviation: not stated, our choice: 90 epochs, stride in the first 1x1; mean and deviation per
    channel fit every size. First row with 224 pixels: resnet-jax evaluate RUN --protocol 256/224.
"""

from dataclasses import replace

from resnet_jax.data.augment_device import PcaLighting
from resnet_jax.data.augment_host import RandomResizedCrop, ShorterSideCrop
from resnet_jax.models.catalog import variant
from resnet_jax.training.config import Experiment
from resnet_jax.training.recipes import IMAGENET, Study, in_epochs

DATA = replace(IMAGENET, normalization="channel", crop=ShorterSideCrop, color=PcaLighting)
ORDERS = {
    "original": "Original",
    "pre-activation": "FullPreactivation",
    "norm-after-addition": "NormAfterAddition",
}


def _recipe(order: str, depth: int, protocol: str = "320/320") -> Experiment:
    model = variant(f"resnet{depth}", order=ORDERS[order], norm="BatchNorm(group_size=32)")
    return in_epochs(f"{order}-{depth}", model, DATA, evaluation={"protocol": protocol})


def table5() -> Study:
    """Top-1/top-5 error on 320 pixels, by row.

    152 layers: 21.3/5.5 % (on 224: 23.0/6.7), 21.1/5.5. 200 layers: 21.8/6.0, 20.7/5.3, 20.1/4.8.
    """
    orders = "original", "pre-activation"
    rows = [_recipe(order, depth) for depth in (152, 200) for order in orders]
    last = replace(rows[-1], data=replace(DATA, crop=RandomResizedCrop))
    return (*rows, replace(last, name=f"{last.name}-aspect-ratio"))


def orders101() -> Study:
    """Text: ResNet-101 23.6/7.1 (top-1/top-5), with BN after the addition 24.6/7.5."""
    orders = "original", "norm-after-addition"
    return tuple(_recipe(order, 101, "256/224") for order in orders)
