"""Training only the effective paths. Veit et al. 2016, arXiv 1605.06431, Section 4.3.

Command: resnet-jax study experiments/veit2016_paths.py:table --seeds 5
    --workdir runs/veit2016-paths
    resnet-jax analyze paths runs/veit2016-paths/full-110/seed-0
Recipe: 110 layers, full pre-activation, 54 blocks; per batch 23 random blocks keep their branch.
    All else as in `he2016_orders.py`.
Deviation: the recipe is second hand. At test time branches are multiplied by 23/54, as in
    stochastic depth.
Expect: test error, second hand; He et al. 2016 state 6.37 % (full).
Hardware: one GPU or TPU. Dropped branches are multiplied by 0: no time is saved.
"""

from dataclasses import replace

from resnet_jax.models import StochasticDepth, cifar_architecture, component
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.training.config import Data, Evaluation, Experiment, Schedule


def full() -> Experiment:
    """All 54 blocks in every batch: 6.10 %."""
    norm = component(BatchNorm, group_size=64)
    return Experiment(
        name="full-110",
        model=cifar_architecture(110, order=FullPreactivation, norm=norm),
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


def effective() -> Experiment:
    """23 of the 54 blocks in every batch: 5.96 %."""
    model = replace(full().model, stochastic_depth=StochasticDepth(kept=23))
    return replace(full(), name="effective-paths-110", model=model)


def table() -> tuple[Experiment, ...]:
    """The full network and effective paths alone."""
    return full(), effective()
