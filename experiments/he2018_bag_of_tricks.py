"""Bag of tricks: ResNet-50 and its tweaks B, C, D on ImageNet. He et al. 2018, arXiv 1812.01187.

Command: resnet-jax study he2018_bag_of_tricks:architectures --seeds 1 --workdir runs/tricks
Recipe: from memory: batch 1024 on 8 GPUs, linear warm-up, 0.4 divided by 10 at 30, 60, 90 of 120
    epochs, Nesterov momentum, weight decay on kernels, last scale of branches starts at 0;
    RandomResizedCrop, color jitter 0.4, lighting 0.1, flip; one 224 crop from 256. Refinements
    are cumulative.
Deviation: float32; no distillation; BatchNorm over 128 images.
Expect: mmpretrain's logs, 100 epochs: resnet50 76.55, C 77.01, D 77.54 % top-1 accuracy.
"""

from dataclasses import replace

from resnet_jax.data.augment_device import ColorJitter, Mix
from resnet_jax.models import component
from resnet_jax.models.catalog import variant
from resnet_jax.training.config import (
    IMAGENET,
    Experiment,
    Loss,
    Optimizer,
    Schedule,
    Study,
    evaluate_every,
)

EPOCH = -(-1_281_167 // 1024)


def _recipe(name: str, network: str, **fields: str) -> Experiment:
    model = variant(network, norm="BatchNorm(group_size=128)", **fields)
    return Experiment(
        name=name,
        model=replace(model, branch=component(model.branch, zero_scale=True)),
        data=replace(IMAGENET, color=component(ColorJitter, lighting=0.1)),
        optimizer=Optimizer(nesterov=True, decay="kernels"),
        schedule=Schedule(
            learning_rate=0.4,
            decay_steps=(30 * EPOCH, 60 * EPOCH, 90 * EPOCH),
            warmup_learning_rate=0.0,
            warmup_steps=5 * EPOCH,
            linear_warmup=True,
        ),
        steps=120 * EPOCH,
        batch_size=1024,
        **evaluate_every(EPOCH),
    )


def architectures() -> Study:
    """Top-1 accuracy (from memory): baseline 76.21 %, B 76.66, C 76.87, D 77.16.

    B has the stride in the 3x3, C a deep stem, D pooled shortcuts.
    """
    return (
        _recipe("efficient", "resnet50"),
        _recipe("resnet50-b", "resnet50_v15"),
        _recipe("resnet50-c", "resnet50_v15", stem="DeepStem"),
        _recipe("resnet50-d", "resnet50_d"),
    )


def refinements() -> Study:
    """ResNet-50-D, top-1 accuracy (from memory): cosine 77.91 %, smoothing 78.31, mixup 79.15."""
    d = _recipe("cosine", "resnet50_d")
    schedule = replace(d.schedule, decay_steps=(), cosine_steps=d.steps, cosine_from="warmup")
    cosine = replace(d, schedule=schedule)
    smoothed = replace(cosine, name="label-smoothing", loss=Loss(smoothing=0.1))
    mixed = replace(
        smoothed,
        name="mixup",
        data=replace(d.data, mix=component(Mix, mixup=0.2, cutmix=0.0, group=128)),
        schedule=replace(schedule, cosine_steps=200 * EPOCH),
        steps=200 * EPOCH,
    )
    return cosine, smoothed, mixed
