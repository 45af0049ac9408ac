"""Degradation of plain networks, on a laptop. He et al. 2015, arXiv 1512.03385, Figure 1.

Command: make demo, or resnet-jax prepare digits;
    resnet-jax study degradation:figure1 --seeds 3 --workdir runs/demo
Recipe: as he2015_cifar10.py, in 14 epochs: 0.01 until the training error is below 80 % and for at
    least 40 steps, then 0.1, divided by 10 at 1/2 and 3/4.
Deviation: digits, 8x8 pixels, not augmented; BatchNorm over the batch; not comparable.
Expect: training error of plain56 above 25 % (measured 72), of resnet56 below 2 % (0.1).
Hardware: 2 CPU cores; 9 s per run with 20 layers, 25 s with 56.
"""

from resnet_jax.models.catalog import variant
from resnet_jax.training.config import Checkpointing, Data, Evaluation, Experiment, Schedule
from resnet_jax.training.recipes import Study


def _recipe(kind: str, depth: int) -> Experiment:
    return Experiment(
        name=f"{kind}-{depth}",
        model=variant(f"cifar_{kind.lower()}{depth}", input_shape=(8, 8, 1)),
        data=Data(name="digits", pad=0, flip=False),
        schedule=Schedule(decay_steps=(80, 120), warmup_steps=40, warmup_until_error=0.8),
        steps=160,
        evaluation=Evaluation(every=20, batch_size=360, training_images=True),
        checkpointing=Checkpointing(every=80),
    )


def plain20() -> Experiment:
    """20 plain layers: train."""
    return _recipe("plain", 20)


def plain56() -> Experiment:
    """56 plain layers: do not train."""
    return _recipe("plain", 56)


def resnet20() -> Experiment:
    """20 layers, option A: train."""
    return _recipe("ResNet", 20)


def resnet56() -> Experiment:
    """56 layers, option A: train."""
    return _recipe("ResNet", 56)


def figure1() -> Study:
    """Plain and residual networks of 20 and 56 layers."""
    return plain20(), plain56(), resnet20(), resnet56()


def depths() -> Study:
    """Eight depths, for ``resnet-jax analyze depth``."""
    layers = 8, 14, 20, 26, 32, 38, 44, 56
    return tuple(_recipe(kind, depth) for kind in ("plain", "ResNet") for depth in layers)
