"""Wide residual networks, CIFAR and ImageNet. Zagoruyko and Komodakis 2016, arXiv 1605.07146.

Command: resnet-jax study zagoruyko2016_wide:cifar10 --seeds 5 --workdir runs/wide
Recipe: full pre-activation, 6n+4 layers; SGD, Nesterov momentum 0.9, weight decay 5e-4, batch 128,
    0.1 times 0.2 at 60, 120, 160 of 200 epochs; pad 4, random crop, flip; mean and
    deviation per channel; dropout 0.3 between the convolutions where named.
Deviation: no ZCA whitening (0.2 to 0.5 points); BatchNorm over the whole batch (not stated); no
    SVHN, only B(3,3). The recipe of ImageNet is our choice.
Expect: median test error of 5 seeds.
"""

from resnet_jax.models import Architecture
from resnet_jax.models.catalog import variant
from resnet_jax.training.config import Experiment, Optimizer
from resnet_jax.training.recipes import CIFAR10, Study, in_epochs, on_cifar100

# Depth, widening factor and dropout.
NETWORKS = (
    "40-1 40-2 40-4 40-8 28-10 28-10-dropout 28-12 22-8 22-10 16-8 16-10 16-4 16-4-dropout "
    "52-1 52-1-dropout 40-10-dropout"
)


def _recipe(name: str, model: Architecture) -> Experiment:
    return in_epochs(
        name,
        model,
        CIFAR10,
        batch_size=128,
        epochs=200,
        decays=(60, 120, 160),
        decay_factor=0.2,
        optimizer=Optimizer(nesterov=True, weight_decay=5e-4),
    )


def _wide(name: str) -> Experiment:
    depth, widen, *dropout = name.split("-")
    branch = "Basic(dropout=0.3)" if dropout else "Basic"
    return _recipe(f"wrn{name}", variant(f"wrn{depth}_{widen}", branch=branch))


def cifar10() -> Study:
    """Sixteen networks; those without a number here only with ZCA.

    40-4 4.53 %, 28-10 4.00 (dropout 3.89), 16-8 4.27, 16-4 5.02 (dropout 5.24),
    52-1 6.43 (dropout 6.28), 40-10 with dropout 3.8 (one run).
    """
    return tuple(map(_wide, NETWORKS.split()))


def cifar100() -> Study:
    """Those of CIFAR-10 without 40-8; those without a number here only with ZCA.

    40-4 21.18 %, 28-10 19.25 (dropout 18.85), 16-8 20.43, 16-4 24.03 (dropout 23.91),
    52-1 29.89 (dropout 29.78), 40-10 with dropout 18.3 (one run).
    """
    return tuple(on_cifar100(_wide(n)) for n in NETWORKS.split() if n != "40-8")


def _deep(n: int) -> Experiment:
    fields = {"stages": (12 // n,) * 3, "branch": f"Branch(kernels={(3,) * n})"}
    return _recipe(f"wrn40-2-l{n}", variant("wrn40_2", **fields))


def deepening() -> Study:
    """1 to 4 convolutions per block, as deep as WRN-40-2: 6.69, 5.43, 5.65, 5.93 % (CIFAR-10)."""
    return tuple(map(_deep, (1, 2, 3, 4)))


def imagenet() -> Study:
    """WRN-50-2: 21.9 % top-1, 5.79 % top-5 error (authors' README)."""
    model = variant("wide_resnet50_2", norm="BatchNorm(group_size=32)")
    return (in_epochs("wrn50-2", model, optimizer=Optimizer(nesterov=True)),)
