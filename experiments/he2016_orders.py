"""Orders of normalization, activation and addition: He et al. 2016 (arXiv 1603.05027), Tables 2 to 4.

Command:   resnet-jax study experiments/he2016_orders.py:table2 --seeds 5 --workdir runs/he2016-table2
Recipe:    SGD, momentum 0.9, weight decay 1e-4, batch 128, 0.01 for 400 steps, then 0.1, divided by 10 at 32k and
           48k of 64k steps; pad 4, random crop, flip; per-pixel mean; BatchNorm over 64 images (two GPUs).
Deviation: 50,000 training images; momentum as in torch. Basic and single-layer networks have option A in every order;
           the paper projects in its pre-activated ones (`--model.shortcut B`). Batch 64 has as many epochs as 128 and
           BatchNorm over 32 images (not stated).
Expect:    median test error of 5 seeds, see the functions.
Hardware:  one GPU or TPU; paper: ResNet-1001 took 27 hours on two GPUs.
"""

from dataclasses import replace

from resnet_jax.models import Architecture, cifar_architecture, component
from resnet_jax.models.blocks import Bottleneck, SingleLayer
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import (
    FullPreactivation,
    NormAfterAddition,
    Order,
    Original,
    ReluBeforeAddition,
    ReluOnlyPreactivation,
)
from resnet_jax.models.shortcuts import Projection
from resnet_jax.training.config import Data, Evaluation, Experiment, Schedule

NORM = component(BatchNorm, group_size=64)

ORDERS: dict[str, type[Order]] = {
    "original": Original,
    "norm-after-addition": NormAfterAddition,
    "relu-before-addition": ReluBeforeAddition,
    "relu-only-pre-activation": ReluOnlyPreactivation,
    "pre-activation": FullPreactivation,
}
BEFORE_AND_AFTER = ("original", "pre-activation")


def _experiment(name: str, model: Architecture) -> Experiment:
    return Experiment(
        name=name,
        model=model,
        data=Data(name="cifar10"),
        schedule=Schedule(
            learning_rate=0.1,
            decay_steps=(32_000, 48_000),
            warmup_learning_rate=0.01,
            warmup_steps=400,
        ),
        steps=64_000,
        batch_size=128,
        evaluation=Evaluation(every=1000, batch_size=1000, training_images=True),
    )


def _basic(order: str, depth: int) -> Experiment:
    return _experiment(
        f"{order}-{depth}", cifar_architecture(depth, order=ORDERS[order], norm=NORM)
    )


def _single(order: str, depth: int) -> Experiment:
    return _experiment(
        f"{order}-{depth}-single",
        cifar_architecture(depth, branch=SingleLayer, order=ORDERS[order], norm=NORM),
    )


def _bottleneck(order: str, depth: int) -> Experiment:
    model = cifar_architecture(
        depth, branch=Bottleneck, shortcut=Projection, order=ORDERS[order], norm=NORM
    )
    return _experiment(f"{order}-{depth}", model)


def _on_cifar100(variant: Experiment) -> Experiment:
    return replace(
        variant,
        name=f"cifar100-{variant.name}",
        model=replace(variant.model, num_classes=100),
        data=replace(variant.data, name="cifar100"),
    )


def _with_batch_64(variant: Experiment) -> Experiment:
    return replace(
        variant,
        name=f"{variant.name}-batch-64",
        model=replace(variant.model, norm=component(BatchNorm, group_size=32)),
        schedule=replace(
            variant.schedule, decay_steps=tuple(2 * step for step in variant.schedule.decay_steps)
        ),
        steps=2 * variant.steps,
        batch_size=64,
    )


def table2(depth: int = 110) -> tuple[Experiment, ...]:
    """Five orders with basic branches (6.61, 8.17, 7.84, 6.71, 6.37 %) and bottlenecks (5.93, 6.50, 6.14, 5.91, 5.46 %).

    ``depth`` is 6n+2; bottlenecks have 9n+2 layers.
    """
    bottleneck_depth = (depth - 2) // 6 * 9 + 2
    return (
        *(_basic(order, depth) for order in ORDERS),
        *(_bottleneck(order, bottleneck_depth) for order in ORDERS),
    )


def table3() -> tuple[Experiment, ...]:
    """Original and pre-activation. CIFAR-10: 110 of single layers 9.90, 8.91 %; 110 6.61, 6.37; 164 5.93, 5.46; 1001 7.61, 4.92.
    CIFAR-100: 164 25.16, 24.33; 1001 27.82, 22.71.
    """
    bottlenecks = [_bottleneck(order, depth) for depth in (164, 1001) for order in BEFORE_AND_AFTER]
    return (
        *(_single(order, 110) for order in BEFORE_AND_AFTER),
        *(_basic(order, 110) for order in BEFORE_AND_AFTER),
        *bottlenecks,
        *map(_on_cifar100, bottlenecks),
    )


def table4() -> tuple[Experiment, ...]:
    """CIFAR-10: 164 5.46 %; 1001 4.92 (4.89 +- 0.14), with batch 64 4.62 (4.69 +- 0.20). CIFAR-100: 24.33; 22.71 (22.68 +- 0.22)."""
    shallow, deep = (_bottleneck("pre-activation", depth) for depth in (164, 1001))
    return shallow, deep, _with_batch_64(deep), _on_cifar100(shallow), _on_cifar100(deep)
