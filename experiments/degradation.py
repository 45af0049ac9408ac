"""Figure 1 of He et al. 2015 (arXiv 1512.03385) on a laptop: deeper plain networks train worse, deeper residual ones do not.

Command:   make demo
           = resnet-jax prepare digits; resnet-jax study experiments/degradation.py:figure1 --seeds 3 --workdir runs/demo
Data:      `digits`, 1,437 training and 360 test images of 8x8 pixels: not the paper's CIFAR-10, and never compared with its numbers.
Recipe:    the paper's for its deepest networks (Section 4.2, n=18) in 14 epochs: SGD, momentum 0.9, weight decay 1e-4, batch 128, 0.01
           until the training error is below 80 % and for 40 steps at least, then 0.1, divided by 10 at 1/2 and 3/4. The same for all four.
Hardware:  2 CPU cores; 9 seconds a run at depth 20, 25 at depth 56 (measured).
Expect:    training error of plain56 above 25 % (72 measured), of resnet56 below 2 % (0.1), its test error below 3 % (2.6).
"""

from resnet_jax.models import cifar_architecture
from resnet_jax.models.shortcuts import NoShortcut, ZeroPad
from resnet_jax.training.experiment import Checkpointing, Data, Evaluation, Experiment, Schedule

STEPS = 160


def _experiment(name: str, depth: int, shortcut: type) -> Experiment:
    return Experiment(
        name=name,
        model=cifar_architecture(depth, shortcut=shortcut, input_shape=(8, 8, 1)),
        # Nothing is cropped or flipped: a digit mirrored is another digit, and one pixel is an eighth of it.
        data=Data(name="digits", pad=0, flip=False),
        schedule=Schedule(
            learning_rate=0.1, decay_steps=(STEPS // 2, STEPS * 3 // 4), warmup_learning_rate=0.01, warmup_steps=40, warmup_until_error=0.8
        ),
        steps=STEPS,
        batch_size=128,
        evaluation=Evaluation(every=20, batch_size=360, training_images=True),
        checkpointing=Checkpointing(every=80),
    )


def plain20() -> Experiment:
    """20 layers without shortcuts: trains."""
    return _experiment("plain-20", 20, NoShortcut)


def plain56() -> Experiment:
    """56 layers without shortcuts: does not."""
    return _experiment("plain-56", 56, NoShortcut)


def resnet20() -> Experiment:
    """20 layers, option A."""
    return _experiment("ResNet-20", 20, ZeroPad)


def resnet56() -> Experiment:
    """56 layers, option A: trains."""
    return _experiment("ResNet-56", 56, ZeroPad)


def figure1() -> tuple[Experiment, ...]:
    """The comparison: plain 20 and 56, residual 20 and 56."""
    return plain20(), plain56(), resnet20(), resnet56()


def depths() -> tuple[Experiment, ...]:
    """The comparison at eight depths: ``resnet-jax lab depth`` shows from which on a plain network stops learning."""
    kinds, each = (("plain", NoShortcut), ("ResNet", ZeroPad)), (8, 14, 20, 26, 32, 38, 44, 56)
    return tuple(_experiment(f"{name}-{depth}", depth, shortcut) for name, shortcut in kinds for depth in each)
