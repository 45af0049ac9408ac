"""Shortcuts of He et al. 2016 (arXiv 1603.05027), Section 3 and Table 1.

Command: resnet-jax study he2016_shortcuts:table1 --seeds 5 --workdir runs/he2016-table1
Recipe: as he2016_orders.py; the shortcut on all 54 blocks, ReLU after the addition, option A where
    the width changes.
Deviation: bias 0 represents the row "0 to -5" of exclusive gating.
Expect: median test error of 5 seeds; "fail" is an error above 20 %.
"""

from resnet_jax.models.catalog import cifar_architecture, variant
from resnet_jax.training.config import Data, Evaluation, Experiment, Schedule
from resnet_jax.training.recipes import Study

ROWS = {
    "original": "A",
    "scaled-0-1": "Scaled(shortcut=0, branch=1)",
    "scaled-0.5-1": "Scaled(shortcut=0.5, branch=1)",
    "scaled-0.5-0.5": "Scaled(shortcut=0.5, branch=0.5)",
    "exclusive-gating-bias-0": "ExclusiveGating(bias=0)",
    "exclusive-gating-bias-minus-6": "ExclusiveGating(bias=-6)",
    "exclusive-gating-bias-minus-7": "ExclusiveGating(bias=-7)",
    "shortcut-only-gating-bias-0": "ShortcutOnlyGating(bias=0)",
    "shortcut-only-gating-bias-minus-6": "ShortcutOnlyGating(bias=-6)",
    "1x1-convolution": "C",
    "dropout-0.5": "DropoutShortcut(rate=0.5)",
}


def _recipe(row: str, depth: int = 110) -> Experiment:
    stages, norm = cifar_architecture(depth).stages, "BatchNorm(group_size=64)"
    return Experiment(
        name=row,
        model=variant("cifar_resnet110", stages=stages, shortcut=ROWS[row], norm=norm),
        data=Data(name="cifar10"),
        schedule=Schedule(warmup_steps=400),
        evaluation=Evaluation(batch_size=1000, training_images=True),
    )


def table1(depth: int = 110) -> Study:
    """Eleven shortcuts; ``depth`` is 6n+2."""
    return tuple(_recipe(row, depth) for row in ROWS)


def original() -> Experiment:
    """Identity: 6.61 %."""
    return _recipe("original")


def scaled_0_1() -> Experiment:
    """Constant scaling 0 and 1, the plain network: fail."""
    return _recipe("scaled-0-1")


def scaled_half_1() -> Experiment:
    """Constant scaling 0.5 and 1: fail."""
    return _recipe("scaled-0.5-1")


def scaled_half_half() -> Experiment:
    """Constant scaling 0.5 and 0.5: 12.35 %."""
    return _recipe("scaled-0.5-0.5")


def exclusive_gating_0() -> Experiment:
    """(1 - g(x)) x + g(x) F, bias 0: fail."""
    return _recipe("exclusive-gating-bias-0")


def exclusive_gating_minus_6() -> Experiment:
    """(1 - g(x)) x + g(x) F, bias -6: 8.70 %."""
    return _recipe("exclusive-gating-bias-minus-6")


def exclusive_gating_minus_7() -> Experiment:
    """(1 - g(x)) x + g(x) F, bias -7: 9.81 %."""
    return _recipe("exclusive-gating-bias-minus-7")


def shortcut_only_gating_0() -> Experiment:
    """(1 - g(x)) x + F, bias 0: 12.86 %."""
    return _recipe("shortcut-only-gating-bias-0")


def shortcut_only_gating_minus_6() -> Experiment:
    """(1 - g(x)) x + F, bias -6: 6.91 %."""
    return _recipe("shortcut-only-gating-bias-minus-6")


def convolution_1x1() -> Experiment:
    """Option C: 12.22 %."""
    return _recipe("1x1-convolution")


def dropout_half() -> Experiment:
    """Dropout 0.5 of x: fail."""
    return _recipe("dropout-0.5")
