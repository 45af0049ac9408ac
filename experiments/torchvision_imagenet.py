"""torchvision's ImageNet recipes V1 and V2 for ResNets (arXiv 1512.03385), stride in the 3x3.

Command: resnet-jax train torchvision_imagenet:v1 --workdir runs/v1
Recipe: V1: batch 256, 0.1 divided by 10 every 30 of 90 epochs, RandomResizedCrop, flip; 224 from
    256. V2: batch 1024, 600 epochs, cosine after linear warm-up, label smoothing, mixup, cutmix,
    TrivialAugment, random erasing, EMA, 176 pixels, 224 from 232, each image four times in a row.
    Bilinear, antialiased; BatchNorm over the images of one of 8 GPUs.
Deviation: V2 has no weight decay on the classifier's bias; TrivialAugment samples the nearest
    pixel; the EMA is updated every step and has precise BN over 20 batches.
"""

from dataclasses import replace

from resnet_jax.data.augment_device import Mix, RandomErasing
from resnet_jax.data.augment_host import RandomResizedCrop, TrivialAugment
from resnet_jax.models import component
from resnet_jax.models.catalog import variant
from resnet_jax.training.config import Experiment, Loss, Optimizer
from resnet_jax.training.recipes import IMAGENET, Study, in_epochs

DATA = replace(IMAGENET, crop=component(RandomResizedCrop, filter="bilinear"))


def _v1(network: str) -> Experiment:
    name = network.removesuffix("_v15").replace("_", "-")
    return in_epochs(name, variant(network, norm="BatchNorm(group_size=32)"), DATA)


def v1() -> Experiment:
    """ResNet-50: 76.130 % top-1, 92.862 % top-5 accuracy."""
    return _v1("resnet50_v15")


def networks_v1() -> Study:
    """Top-1 accuracy: 69.758 %, 73.314, 76.130, 77.374, 78.312; wide 78.468; ResNeXt 77.618.

    torchvision trained ResNeXt for 100 epochs.
    """
    resnets = "resnet18", "resnet34", "resnet50_v15", "resnet101_v15", "resnet152_v15"
    return tuple(map(_v1, (*resnets, "wide_resnet50_2", "resnext50_32x4d")))


def v2() -> Experiment:
    """ResNet-50: 80.858 % top-1, 95.434 % top-5 accuracy."""
    # --model-ema-decay 0.99998 --model-ema-steps 32: this share is new every 32 steps.
    new = (1 - 0.99998) * 1024 * 32 / 600
    fields = {"norm": "BatchNorm(group_size=128)", "input_shape": (176, 176, 3)}
    return in_epochs(
        "resnet50-v2",
        variant("resnet50_v15", **fields),
        replace(
            DATA,
            policy=TrivialAugment,
            erasing=component(RandomErasing, probability=0.1),
            mix=component(Mix, mixup=0.2, cutmix=1.0, group=128),
            repeats=4,
        ),
        batch_size=1024,
        epochs=600,
        decays=(),
        warmup=5,
        optimizer=Optimizer(weight_decay=2e-5, decay="kernels", ema=(1 - new) ** (1 / 32)),
        loss=Loss(smoothing=0.1),
        evaluation={"protocol": "232/224", "statistics_batches": 20},
        learning_rate=0.5,
        warmup_learning_rate=0.005,
        cosine_from="warmup",
    )
