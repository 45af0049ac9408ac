"""Shortcuts of He et al. 2016 (arXiv 1603.05027), Section 3 and Table 1: what is done to x on its way round the branch.

Command:   resnet-jax prepare cifar10        (once; or point TFDS_DATA_DIR at a prepared set)
           resnet-jax study experiments/he2016_shortcuts.py:table1 --seeds 5 --workdir runs/he2016-table1
           resnet-jax train experiments/he2016_shortcuts.py:original --seed 1 --workdir runs/original
Recipe:    ResNet-110, the shortcut on all 54 units, ReLU after the addition. SGD, momentum 0.9, weight decay 1e-4, batch 128, 0.01 for the
           first 400 steps, then 0.1, divided by 10 at 32k and 48k of 64k steps; pad 4, random crop, flip; per-pixel mean.
           BatchNorm sees groups of 64 images, as on the paper's two GPUs. Where the width changes x is carried as in option A.
Deviation: all 50,000 images are trained on; momentum in the form of fb.resnet.torch. All training images are scored after the last step.
           Exclusive gating with biases from 0 to -5 is one row, "fail": 0 stands for it here.
Expect:    test error of the last step, percent, median of 5 seeds; "fail" is an error above 20 %. original 6.61; scaling 0/1 fail, 0.5/1
           fail, 0.5/0.5 12.35; exclusive gating, bias 0 fail, -6 8.70, -7 9.81; shortcut-only gating, bias 0 12.86, -6 6.91;
           1x1 convolution 12.22; dropout fail.
Hardware:  one GPU or TPU. Time: not measured.
"""

from resnet_jax.models import cifar_architecture, configured
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.shortcuts import DropoutShortcut, ExclusiveGating, ProjectionEverywhere, Scaled, ShortcutOnlyGating, ZeroPad
from resnet_jax.training.experiment import Data, Evaluation, Experiment, Schedule

# "Batch size 128 on two GPUs": each normalised its own 64 images.
NORM = configured(BatchNorm, group_size=64)

ROWS = {
    "original": ZeroPad,
    "scaled-0-1": configured(Scaled, shortcut=0.0, branch=1.0),
    "scaled-0.5-1": configured(Scaled, shortcut=0.5, branch=1.0),
    "scaled-0.5-0.5": configured(Scaled, shortcut=0.5, branch=0.5),
    "exclusive-gating-bias-0": configured(ExclusiveGating, bias=0.0),
    "exclusive-gating-bias-minus-6": configured(ExclusiveGating, bias=-6.0),
    "exclusive-gating-bias-minus-7": configured(ExclusiveGating, bias=-7.0),
    "shortcut-only-gating-bias-0": configured(ShortcutOnlyGating, bias=0.0),
    "shortcut-only-gating-bias-minus-6": configured(ShortcutOnlyGating, bias=-6.0),
    "1x1-convolution": ProjectionEverywhere,
    "dropout-0.5": configured(DropoutShortcut, rate=0.5),
}


def _cell(row: str, depth: int = 110) -> Experiment:
    return Experiment(
        name=row,
        model=cifar_architecture(depth, shortcut=ROWS[row], norm=NORM),
        data=Data(name="cifar10"),
        schedule=Schedule(learning_rate=0.1, decay_steps=(32_000, 48_000), warmup_learning_rate=0.01, warmup_steps=400),
        steps=64_000,
        batch_size=128,
        evaluation=Evaluation(every=1000, batch_size=1000, training_images=True),
    )


def table1(depth: int = 110) -> tuple[Experiment, ...]:
    """Table 1: eleven shortcuts. The paper has 110 layers; another depth, 6n+2, is a comparison of one's own."""
    return tuple(_cell(row, depth) for row in ROWS)


def original() -> Experiment:
    """Identity: 6.61 %."""
    return _cell("original")


def scaled_0_1() -> Experiment:
    """Constant scaling, nothing of x and all of F: the plain network; fail."""
    return _cell("scaled-0-1")


def scaled_half_1() -> Experiment:
    """Constant scaling, 0.5 x and all of F: fail."""
    return _cell("scaled-0.5-1")


def scaled_half_half() -> Experiment:
    """Constant scaling, 0.5 x and 0.5 F, "frozen gating": 12.35 %."""
    return _cell("scaled-0.5-0.5")


def exclusive_gating_0() -> Experiment:
    """1 - g(x) on x, g(x) on F, gates begin at bias 0: fail, as all from 0 to -5."""
    return _cell("exclusive-gating-bias-0")


def exclusive_gating_minus_6() -> Experiment:
    """1 - g(x) on x, g(x) on F, gates begin at bias -6, the best of 0 to -10 on the training set: 8.70 %."""
    return _cell("exclusive-gating-bias-minus-6")


def exclusive_gating_minus_7() -> Experiment:
    """1 - g(x) on x, g(x) on F, gates begin at bias -7: 9.81 %."""
    return _cell("exclusive-gating-bias-minus-7")


def shortcut_only_gating_0() -> Experiment:
    """1 - g(x) on x, all of F, gates begin at bias 0: 12.86 %."""
    return _cell("shortcut-only-gating-bias-0")


def shortcut_only_gating_minus_6() -> Experiment:
    """1 - g(x) on x, all of F, gates begin at bias -6: 6.91 %."""
    return _cell("shortcut-only-gating-bias-minus-6")


def convolution_1x1() -> Experiment:
    """A 1x1 convolution on every unit, option C: 12.22 %."""
    return _cell("1x1-convolution")


def dropout_half() -> Experiment:
    """Half of x dropped at random on every unit: fail."""
    return _cell("dropout-0.5")
