"""CIFAR-10 networks of He et al. 2015 (arXiv 1512.03385), Section 4.2, Table 6 and Figure 6.

Command:   resnet-jax prepare cifar10        (once; or point TFDS_DATA_DIR at a prepared set)
           resnet-jax train experiments/he2015_cifar10.py:resnet20 --seed 1 --workdir runs/r20
           resnet-jax study experiments/he2015_cifar10.py:table6 --seeds 5 --workdir runs/he2015-table6
Recipe:    SGD, momentum 0.9, weight decay 1e-4, batch 128, 0.1 divided by 10 at 32k and 48k of 64k steps; pad 4, random crop, flip;
           per-pixel mean; option A everywhere. 110 and 1202 layers begin at 0.01 until the training error is below 80 %.
           BatchNorm sees groups of 64 images, as on the paper's two GPUs.
Deviation: all 50,000 images are trained on (`--data.validation-examples 5000` for the paper's split); momentum in the form of
           fb.resnet.torch, not Caffe's.
Expect:    test error of the last step, percent (paper: resnet20 8.75, 32 7.51, 44 7.17, 56 6.97, 110 6.61 +- 0.16 over 5 runs, 1202 7.93);
           plain networks the worse the deeper they are, plain110 above 60 % (Figure 6 caption).
Hardware:  one GPU or TPU; 2 CPU cores for short runs (`--steps 2000`).
Time:      205 images/s for resnet20 on 2 CPU cores (measured), 11 hours for its 64,000 steps; on an accelerator not measured.
"""

from resnet_jax.models import Architecture, cifar_architecture, configured
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.shortcuts import NoShortcut
from resnet_jax.training.experiment import Data, Evaluation, Experiment, Schedule

# "Batch size 128 on two GPUs": each normalised its own 64 images.
NORM = configured(BatchNorm, group_size=64)


def _experiment(name: str, model: Architecture, depth: int) -> Experiment:
    until = 0.8 if depth >= 110 else 1.0  # Section 4.2: "we use 0.01 to warm up the training until the training error is below 80%"
    return Experiment(
        name=name,
        model=model,
        data=Data(name="cifar10"),
        schedule=Schedule(learning_rate=0.1, decay_steps=(32_000, 48_000), warmup_until_error=until),
        steps=64_000,
        batch_size=128,
        evaluation=Evaluation(every=1000, batch_size=1000),
    )


def _resnet(depth: int) -> Experiment:
    return _experiment(f"resnet{depth}", cifar_architecture(depth, norm=NORM), depth)


def _plain(depth: int) -> Experiment:
    return _experiment(f"plain{depth}", cifar_architecture(depth, shortcut=NoShortcut, norm=NORM), depth)


def resnet20() -> Experiment:
    """Table 6: 8.75 % (0.27M parameters)."""
    return _resnet(20)


def resnet32() -> Experiment:
    """Table 6: 7.51 % (0.46M parameters)."""
    return _resnet(32)


def resnet44() -> Experiment:
    """Table 6: 7.17 % (0.66M parameters)."""
    return _resnet(44)


def resnet56() -> Experiment:
    """Table 6: 6.97 % (0.85M parameters)."""
    return _resnet(56)


def resnet110() -> Experiment:
    """Table 6: 6.43 % best of five, 6.61 +- 0.16 % mean (1.7M parameters); warm-up."""
    return _resnet(110)


def resnet1202() -> Experiment:
    """Table 6: 7.93 % (19.4M parameters), training error below 0.1 %; warm-up as resnet110."""
    return _resnet(1202)


def plain20() -> Experiment:
    """Figure 6, left."""
    return _plain(20)


def plain32() -> Experiment:
    """Figure 6, left."""
    return _plain(32)


def plain44() -> Experiment:
    """Figure 6, left."""
    return _plain(44)


def plain56() -> Experiment:
    """Figure 6, left."""
    return _plain(56)


def plain110() -> Experiment:
    """Figure 6, caption: error above 60 %, not displayed."""
    return _plain(110)


def plain1202() -> Experiment:
    """Not in the paper; the twin of resnet1202."""
    return _plain(1202)


def table6() -> tuple[Experiment, ...]:
    """Table 6, the residual rows: 8.75, 7.51, 7.17, 6.97, 6.43 (best of five; 6.61 +- 0.16 mean), 7.93 %."""
    return tuple(_resnet(depth) for depth in (20, 32, 44, 56, 110, 1202))


def figure6() -> tuple[Experiment, ...]:
    """Figure 6: plain 20 to 110 (left) get worse with depth in training already, plain110 is above 60 %; residual 20 to 110 (middle) get
    better; 1202 against 110 (right): training error below 0.1 %, test error 7.93 %.
    """
    return (*(_plain(depth) for depth in (20, 32, 44, 56, 110)), *table6())
