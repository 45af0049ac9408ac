"""Orders of normalization, activation and addition. He et al. 2016, arXiv 1603.05027, Tables 2-4.

Command: resnet-jax study he2016_orders:table2 --seeds 5 --workdir runs/he2016-table2
Recipe: as he2015_cifar10.py, but 0.01 for the first 400 steps.
Deviation: basic and single-layer networks have option A in every order; the paper projects in its
    pre-activated ones (`--model.shortcut B`). Batch 64 has as many epochs as 128 and BatchNorm over
    32 images (not stated).
Expect: median test error of 5 seeds.
Hardware: paper: ResNet-1001 took 27 hours on two GPUs.
"""

from dataclasses import replace
from typing import Any

from resnet_jax.models.catalog import cifar_architecture, variant
from resnet_jax.training.config import Data, Evaluation, Experiment, Schedule
from resnet_jax.training.recipes import Study, on_cifar100

ORDERS = {
    "original": "Original",
    "norm-after-addition": "NormAfterAddition",
    "relu-before-addition": "ReluBeforeAddition",
    "relu-only-pre-activation": "ReluOnlyPreactivation",
    "pre-activation": "FullPreactivation",
}


def _recipe(order: str, network: str, **fields: Any) -> Experiment:
    fields = {"order": ORDERS[order], "norm": "BatchNorm(group_size=64)"} | fields
    return Experiment(
        name=f"{order}-{network}",
        model=variant(f"cifar_resnet{network}".replace("-", "_"), **fields),
        data=Data(name="cifar10"),
        schedule=Schedule(warmup_steps=400),
        evaluation=Evaluation(batch_size=1000, training_images=True),
    )


def table2(depth: int = 110) -> Study:
    """Five orders, of basic branches and of bottlenecks.

    Basic: 6.61, 8.17, 7.84, 6.71, 6.37 %. Bottlenecks: 5.93, 6.50, 6.14, 5.91, 5.46 %.
    ``depth`` is 6n+2; bottlenecks have 9n+2 layers.
    """
    stages = cifar_architecture(depth).stages
    layers = {"110": depth, "164": (depth - 2) // 6 * 9 + 2}
    return tuple(
        replace(_recipe(order, network, stages=stages), name=f"{order}-{layers[network]}")
        for network in layers
        for order in ORDERS
    )


def table3() -> Study:
    """Original order and pre-activation.

    CIFAR-10: 110 of single layers 9.90, 8.91 %; 110 6.61, 6.37; 164 5.93, 5.46; 1001 7.61, 4.92.
    CIFAR-100: 164 25.16, 24.33; 1001 27.82, 22.71.
    """
    networks, pair = ("110-single", "110", "164", "1001"), ("original", "pre-activation")
    cifar10 = [_recipe(order, network) for network in networks for order in pair]
    return (*cifar10, *map(on_cifar100, cifar10[4:]))


def table4() -> Study:
    """Pre-activation with bottlenecks.

    CIFAR-10: 164 5.46 %; 1001 4.92 (4.89 +- 0.14), with batch 64 4.62 (4.69 +- 0.20).
    CIFAR-100: 24.33; 22.71 (22.68 +- 0.22).
    """
    shallow, deep = _recipe("pre-activation", "164"), _recipe("pre-activation", "1001")
    batch64 = replace(
        _recipe("pre-activation", "1001", norm="BatchNorm(group_size=32)"),
        name=f"{deep.name}-batch-64",
        schedule=replace(deep.schedule, decay_steps=(64_000, 96_000)),
        steps=128_000,
        batch_size=64,
    )
    return shallow, deep, batch64, on_cifar100(shallow), on_cifar100(deep)
