"""Orders of normalization, activation and addition. He et al. 2016, arXiv 1603.05027, Tables 2-4.

Command: resnet-jax study he2016_orders:table2 --seeds 5 --workdir runs/he2016-table2
Recipe: as he2015_cifar10.py, after 400 steps of 0.01.
Deviation: 50,000 training images; momentum as in torch. Basic and single-layer networks have option
    A in every order; the paper projects in its pre-activated ones (`--model.shortcut B`). Batch 64
    has as many epochs as 128 and BatchNorm over 32 images (not stated).
Expect: median test error of 5 seeds, see the functions.
Hardware: one GPU or TPU; paper: ResNet-1001 took 27 hours on two GPUs.
"""

from dataclasses import replace

from resnet_jax.models import cifar_architecture, component, orders
from resnet_jax.models.blocks import Basic, Bottleneck, SingleLayer
from resnet_jax.models.components import Factory
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.shortcuts import Projection, ZeroPad
from resnet_jax.training.config import Data, Evaluation, Experiment, Schedule, Study, on_cifar100

ORDERS = {
    "original": orders.Original,
    "norm-after-addition": orders.NormAfterAddition,
    "relu-before-addition": orders.ReluBeforeAddition,
    "relu-only-pre-activation": orders.ReluOnlyPreactivation,
    "pre-activation": orders.FullPreactivation,
}


def _recipe(order: str, depth: int, branch: Factory = Basic) -> Experiment:
    return Experiment(
        name=f"{order}-{depth}" + "-single" * (branch is SingleLayer),
        model=cifar_architecture(
            depth,
            branch=branch,
            shortcut=Projection if branch is Bottleneck else ZeroPad,
            order=ORDERS[order],
            norm=component(BatchNorm, group_size=64),
        ),
        data=Data(name="cifar10"),
        schedule=Schedule(warmup_steps=400),
        evaluation=Evaluation(batch_size=1000, training_images=True),
    )


def table2(depth: int = 110) -> Study:
    """Five orders, of basic branches and of bottlenecks.

    Basic: 6.61, 8.17, 7.84, 6.71, 6.37 %. Bottlenecks: 5.93, 6.50, 6.14, 5.91, 5.46 %.
    ``depth`` is 6n+2; bottlenecks have 9n+2 layers.
    """
    rows = (depth, Basic), ((depth - 2) // 6 * 9 + 2, Bottleneck)
    return tuple(_recipe(order, layers, branch) for layers, branch in rows for order in ORDERS)


def table3() -> Study:
    """Original order and pre-activation.

    CIFAR-10: 110 of single layers 9.90, 8.91 %; 110 6.61, 6.37; 164 5.93, 5.46; 1001 7.61, 4.92.
    CIFAR-100: 164 25.16, 24.33; 1001 27.82, 22.71.
    """
    rows = (110, SingleLayer), (110, Basic), (164, Bottleneck), (1001, Bottleneck)
    pair = "original", "pre-activation"
    cifar10 = [_recipe(order, depth, branch) for depth, branch in rows for order in pair]
    return (*cifar10, *map(on_cifar100, cifar10[4:]))


def table4() -> Study:
    """Pre-activation with bottlenecks.

    CIFAR-10: 164 5.46 %; 1001 4.92 (4.89 +- 0.14), with batch 64 4.62 (4.69 +- 0.20).
    CIFAR-100: 24.33; 22.71 (22.68 +- 0.22).
    """
    shallow, deep = (_recipe("pre-activation", depth, Bottleneck) for depth in (164, 1001))
    batch64 = replace(
        deep,
        name=f"{deep.name}-batch-64",
        model=replace(deep.model, norm=component(BatchNorm, group_size=32)),
        schedule=replace(deep.schedule, decay_steps=(64_000, 96_000)),
        steps=128_000,
        batch_size=64,
    )
    return shallow, deep, batch64, on_cifar100(shallow), on_cifar100(deep)
