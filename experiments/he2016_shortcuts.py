"""Shortcuts of He et al. 2016 (arXiv 1603.05027), Section 3 and Table 1.

Command: resnet-jax study experiments/he2016_shortcuts.py:table1 --seeds 5
    --workdir runs/he2016-table1
Recipe: ResNet-110, the shortcut on all 54 blocks, ReLU after the addition, option A where the width
    changes; SGD, momentum 0.9, weight decay 1e-4, batch 128, 0.01 for 400 steps, then 0.1, divided
    by 10 at 32k and 48k of 64k steps; pad 4, random crop, flip; per-pixel mean; BatchNorm over 64
    images (two GPUs).
Deviation: 50,000 training images; momentum as in torch. Bias 0 represents the row "0 to -5" of
    exclusive gating.
Expect: median test error of 5 seeds, see the functions; "fail" is an error above 20 %.
Hardware: one GPU or TPU.
"""

from resnet_jax.models import cifar_architecture, component
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.shortcuts import (
    DropoutShortcut,
    ExclusiveGating,
    ProjectionEverywhere,
    Scaled,
    ShortcutOnlyGating,
    ZeroPad,
)
from resnet_jax.training.config import Data, Evaluation, Experiment, Schedule

ROWS = {
    "original": ZeroPad,
    "scaled-0-1": component(Scaled, shortcut=0.0, branch=1.0),
    "scaled-0.5-1": component(Scaled, shortcut=0.5, branch=1.0),
    "scaled-0.5-0.5": component(Scaled, shortcut=0.5, branch=0.5),
    "exclusive-gating-bias-0": component(ExclusiveGating, bias=0.0),
    "exclusive-gating-bias-minus-6": component(ExclusiveGating, bias=-6.0),
    "exclusive-gating-bias-minus-7": component(ExclusiveGating, bias=-7.0),
    "shortcut-only-gating-bias-0": component(ShortcutOnlyGating, bias=0.0),
    "shortcut-only-gating-bias-minus-6": component(ShortcutOnlyGating, bias=-6.0),
    "1x1-convolution": ProjectionEverywhere,
    "dropout-0.5": component(DropoutShortcut, rate=0.5),
}


def _experiment(row: str, depth: int = 110) -> Experiment:
    norm = component(BatchNorm, group_size=64)
    return Experiment(
        name=row,
        model=cifar_architecture(depth, shortcut=ROWS[row], norm=norm),
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


def table1(depth: int = 110) -> tuple[Experiment, ...]:
    """Eleven shortcuts; ``depth`` is 6n+2."""
    return tuple(_experiment(row, depth) for row in ROWS)


def original() -> Experiment:
    """Identity: 6.61 %."""
    return _experiment("original")


def scaled_0_1() -> Experiment:
    """Constant scaling 0 and 1, the plain network: fail."""
    return _experiment("scaled-0-1")


def scaled_half_1() -> Experiment:
    """Constant scaling 0.5 and 1: fail."""
    return _experiment("scaled-0.5-1")


def scaled_half_half() -> Experiment:
    """Constant scaling 0.5 and 0.5: 12.35 %."""
    return _experiment("scaled-0.5-0.5")


def exclusive_gating_0() -> Experiment:
    """(1 - g(x)) x + g(x) F, bias 0: fail."""
    return _experiment("exclusive-gating-bias-0")


def exclusive_gating_minus_6() -> Experiment:
    """(1 - g(x)) x + g(x) F, bias -6: 8.70 %."""
    return _experiment("exclusive-gating-bias-minus-6")


def exclusive_gating_minus_7() -> Experiment:
    """(1 - g(x)) x + g(x) F, bias -7: 9.81 %."""
    return _experiment("exclusive-gating-bias-minus-7")


def shortcut_only_gating_0() -> Experiment:
    """(1 - g(x)) x + F, bias 0: 12.86 %."""
    return _experiment("shortcut-only-gating-bias-0")


def shortcut_only_gating_minus_6() -> Experiment:
    """(1 - g(x)) x + F, bias -6: 6.91 %."""
    return _experiment("shortcut-only-gating-bias-minus-6")


def convolution_1x1() -> Experiment:
    """Option C: 12.22 %."""
    return _experiment("1x1-convolution")


def dropout_half() -> Experiment:
    """Dropout 0.5 of x: fail."""
    return _experiment("dropout-0.5")
