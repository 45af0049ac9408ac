"""Orders of normalisation, activation and addition of He et al. 2016 (arXiv 1603.05027), Tables 2 to 4.

Command:   resnet-jax prepare cifar10        (once; or point TFDS_DATA_DIR at prepared sets)
           resnet-jax study experiments/he2016_orders.py:table2 --seeds 5 --workdir runs/he2016-table2
Data:      CIFAR-10; Tables 3 and 4 CIFAR-100 too (`resnet-jax prepare cifar100`).
Recipe:    SGD, momentum 0.9, weight decay 1e-4, batch 128, 0.01 for the first 400 steps, then 0.1, divided by 10 at 32k and 48k of 64k
           steps; pad 4, random crop, flip; per-pixel mean. BatchNorm sees groups of 64 images, as on the paper's two GPUs.
Deviation: all 50,000 images are trained on; momentum in the form of fb.resnet.torch. All training images are scored after the last step.
           Basic and single-layer networks have option A in every order, so that the order is all that changes; the paper projects where
           the size halves in its pre-activated ones (`--model.shortcut B`). Bottlenecks project in every order. For batch 64 we chose as
           many epochs as for 128, so twice the steps, and BatchNorm groups of 32: the text we read states neither.
Expect:    test error of the last step, percent, median of 5 seeds.
           Table 2 (110, 164 layers): original 6.61, 5.93; BN after addition 8.17, 6.50; ReLU before addition 7.84, 6.14; ReLU-only
           pre-activation 6.71, 5.91; full pre-activation 6.37, 5.46.
           Table 3 (original, pre-activation): CIFAR-10 110 of single layers 9.90, 8.91; 110 6.61, 6.37; 164 5.93, 5.46;
           1001 7.61, 4.92; CIFAR-100 164 25.16, 24.33; 1001 27.82, 22.71.
           Table 4: CIFAR-10 164 5.46; 1001 4.92 (4.89 +- 0.14), with batch 64 4.62 (4.69 +- 0.20); CIFAR-100 164 24.33;
           1001 22.71 (22.68 +- 0.22).
Hardware:  one GPU or TPU. Time: not measured by us; the paper's ResNet-1001 took 27 hours on two GPUs.
"""

from dataclasses import replace

from resnet_jax.models import Architecture, cifar_architecture, configured
from resnet_jax.models.branches import Bottleneck, SingleLayer
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import FullPreactivation, NormAfterAddition, Order, Original, ReluBeforeAddition, ReluOnlyPreactivation
from resnet_jax.models.shortcuts import Projection
from resnet_jax.training.experiment import Data, Evaluation, Experiment, Schedule

# "Batch size 128 on two GPUs": each normalised its own 64 images.
NORM = configured(BatchNorm, group_size=64)

ORDERS: dict[str, type[Order]] = {
    "original": Original,
    "norm-after-addition": NormAfterAddition,
    "relu-before-addition": ReluBeforeAddition,
    "relu-only-pre-activation": ReluOnlyPreactivation,
    "pre-activation": FullPreactivation,
}
BEFORE_AND_AFTER = ("original", "pre-activation")


def _cell(name: str, model: Architecture) -> Experiment:
    return Experiment(
        name=name,
        model=model,
        data=Data(name="cifar10"),
        schedule=Schedule(learning_rate=0.1, decay_steps=(32_000, 48_000), warmup_learning_rate=0.01, warmup_steps=400),
        steps=64_000,
        batch_size=128,
        evaluation=Evaluation(every=1000, batch_size=1000, training_images=True),
    )


def _basic(order: str, depth: int) -> Experiment:
    return _cell(f"{order}-{depth}", cifar_architecture(depth, order=ORDERS[order], norm=NORM))


def _single(order: str, depth: int) -> Experiment:
    return _cell(f"{order}-{depth}-single", cifar_architecture(depth, branch=SingleLayer, order=ORDERS[order], norm=NORM))


def _bottleneck(order: str, depth: int) -> Experiment:
    model = cifar_architecture(depth, branch=Bottleneck, shortcut=Projection, order=ORDERS[order], norm=NORM)
    return _cell(f"{order}-{depth}", model)


def _of_cifar100(cell: Experiment) -> Experiment:
    return replace(cell, name=f"cifar100-{cell.name}", model=replace(cell.model, num_classes=100), data=replace(cell.data, name="cifar100"))


def _with_batch_64(cell: Experiment) -> Experiment:
    return replace(
        cell,
        name=f"{cell.name}-batch-64",
        model=replace(cell.model, norm=configured(BatchNorm, group_size=32)),
        schedule=replace(cell.schedule, decay_steps=tuple(2 * step for step in cell.schedule.decay_steps)),
        steps=2 * cell.steps,
        batch_size=64,
    )


def table2(depth: int = 110) -> tuple[Experiment, ...]:
    """Table 2: five orders of basic branches (6.61, 8.17, 7.84, 6.71, 6.37 %) and of bottlenecks in as many units (5.93, 6.50, 6.14, 5.91,
    5.46 %). The paper has 110 and 164 layers; another depth, 6n+2, is a comparison of one's own, beside 9n+2.
    """
    of_bottlenecks = (depth - 2) // 6 * 9 + 2
    return (*(_basic(order, depth) for order in ORDERS), *(_bottleneck(order, of_bottlenecks) for order in ORDERS))


def table3() -> tuple[Experiment, ...]:
    """Table 3, original and pre-activation. CIFAR-10: 110 of single layers 9.90, 8.91 %; 110 6.61, 6.37; 164 5.93, 5.46; 1001 7.61, 4.92.
    CIFAR-100: 164 25.16, 24.33; 1001 27.82, 22.71.
    """
    bottlenecks = [_bottleneck(order, depth) for depth in (164, 1001) for order in BEFORE_AND_AFTER]
    return (
        *(_single(order, 110) for order in BEFORE_AND_AFTER),
        *(_basic(order, 110) for order in BEFORE_AND_AFTER),
        *bottlenecks,
        *map(_of_cifar100, bottlenecks),
    )


def table4() -> tuple[Experiment, ...]:
    """Table 4, pre-activation. CIFAR-10: 164 5.46 %; 1001 4.92 (4.89 +- 0.14), with batch 64 4.62 (4.69 +- 0.20). CIFAR-100: 164 24.33;
    1001 22.71 (22.68 +- 0.22).
    """
    shallow, deep = (_bottleneck("pre-activation", depth) for depth in (164, 1001))
    return shallow, deep, _with_batch_64(deep), _of_cifar100(shallow), _of_cifar100(deep)
