"""CIFAR-10 networks of He et al. 2015 (arXiv 1512.03385), Section 4.2, Table 6 and Figure 6.

Command: resnet-jax train he2015_cifar10:resnet20 --seed 1 --workdir runs/r20
    resnet-jax study he2015_cifar10:table6 --seeds 5 --workdir runs/he2015-table6
Recipe: SGD, momentum 0.9, weight decay 1e-4, batch 128, 0.1 divided by 10 at 32k and 48k of 64k
    steps; pad 4, random crop, flip; per-pixel mean; option A; BatchNorm over 64 images (two GPUs).
    110 and 1202 layers start at 0.01 until the training error is below 80 %.
Deviation: 50,000 training images (`--data.validation-examples 5000`: the paper's split); momentum
    as in torch.
Expect: test error of the last step; plain networks get worse with depth.
Hardware: 205 images/s for resnet20 on 2 CPU cores.
"""

from resnet_jax.models.catalog import variant
from resnet_jax.training.config import Data, Evaluation, Experiment, Schedule
from resnet_jax.training.recipes import Study


def _recipe(kind: str, depth: int) -> Experiment:
    return Experiment(
        name=f"{kind}{depth}",
        model=variant(f"cifar_{kind}{depth}", norm="BatchNorm(group_size=64)"),
        data=Data(name="cifar10"),
        schedule=Schedule(
            learning_rate=0.1,
            decay_steps=(32_000, 48_000),
            warmup_until_error=0.8 if depth >= 110 else 1.0,
        ),
        steps=64_000,
        batch_size=128,
        evaluation=Evaluation(batch_size=1000),
    )


def resnet20() -> Experiment:
    """Table 6: 8.75 %."""
    return _recipe("resnet", 20)


def resnet32() -> Experiment:
    """Table 6: 7.51 %."""
    return _recipe("resnet", 32)


def resnet44() -> Experiment:
    """Table 6: 7.17 %."""
    return _recipe("resnet", 44)


def resnet56() -> Experiment:
    """Table 6: 6.97 %."""
    return _recipe("resnet", 56)


def resnet110() -> Experiment:
    """Table 6: 6.43 % best of five, 6.61 +- 0.16 % mean."""
    return _recipe("resnet", 110)


def resnet1202() -> Experiment:
    """Table 6: 7.93 %, training error below 0.1 %."""
    return _recipe("resnet", 1202)


def plain20() -> Experiment:
    """Figure 6, left."""
    return _recipe("plain", 20)


def plain32() -> Experiment:
    """Figure 6, left."""
    return _recipe("plain", 32)


def plain44() -> Experiment:
    """Figure 6, left."""
    return _recipe("plain", 44)


def plain56() -> Experiment:
    """Figure 6, left."""
    return _recipe("plain", 56)


def plain110() -> Experiment:
    """Figure 6, caption: error above 60 %."""
    return _recipe("plain", 110)


def plain1202() -> Experiment:
    """Not in the paper."""
    return _recipe("plain", 1202)


def table6() -> Study:
    """Table 6, the residual rows."""
    return tuple(_recipe("resnet", depth) for depth in (20, 32, 44, 56, 110, 1202))


def figure6() -> Study:
    """Errors by depth: plain networks (left), residual ones (middle), 1202 layers (right)."""
    return (*(_recipe("plain", depth) for depth in (20, 32, 44, 56, 110)), *table6())
