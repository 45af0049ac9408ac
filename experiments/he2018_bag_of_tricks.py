"""Bag of tricks: ResNet-50 and its tweaks B, C, D on ImageNet. He et al. 2018, arXiv 1812.01187.

Command: resnet-jax study experiments/he2018_bag_of_tricks.py:architectures --seeds 1
    --workdir runs/tricks
Recipe: from memory: batch 1024 on 8 GPUs, 0.4 after 5 epochs of linear warm-up, divided by 10 at
    30, 60, 90 of 120 epochs, Nesterov momentum 0.9, weight decay 1e-4 on kernels, last scale of
    branches starts at 0; RandomResizedCrop, color jitter 0.4, lighting 0.1, flip; one 224 crop from
    256. Refinements, cumulative: cosine; label smoothing 0.1; mixup 0.2 with 200 epochs.
Deviation: float32; no distillation; BatchNorm over 128 images.
Expect: mmpretrain's logs, 100 epochs: resnet50 76.55, C 77.01, D 77.54 % top-1 accuracy; else see
    the functions.
Hardware: paper: 8 V100.
"""

from dataclasses import replace

from resnet_jax.data.augment_device import ColorJitter, Mix
from resnet_jax.models import Architecture, architecture, component
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.stems import DeepStem
from resnet_jax.training.config import (
    IMAGENET,
    Experiment,
    Loss,
    Optimizer,
    Schedule,
    evaluate_every,
)

EPOCH = -(-1_281_167 // 1024)


def _experiment(name: str, model: Architecture) -> Experiment:
    branch = component(model.branch, zero_scale=True)
    return Experiment(
        name=name,
        model=replace(model, branch=branch, norm=component(BatchNorm, group_size=128)),
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


def architectures() -> tuple[Experiment, ...]:
    """Top-1 accuracy (from memory): baseline 76.21 %, B 76.66, C 76.87, D 77.16.

    B has the stride in the 3x3, C a deep stem, D pooled shortcuts.
    """
    b = architecture("resnet50_v15")
    return (
        _experiment("efficient", architecture("resnet50")),
        _experiment("resnet50-b", b),
        _experiment("resnet50-c", replace(b, stem=DeepStem)),
        _experiment("resnet50-d", architecture("resnet50_d")),
    )


def refinements() -> tuple[Experiment, ...]:
    """ResNet-50-D, top-1 accuracy (from memory): cosine 77.91 %, smoothing 78.31, mixup 79.15."""
    d = _experiment("cosine", architecture("resnet50_d"))
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
