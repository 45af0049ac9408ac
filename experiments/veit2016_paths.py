"""Training only the effective paths. Veit et al. 2016, arXiv 1605.06431, Section 4.3.

Command: resnet-jax study veit2016_paths:table --seeds 5 --workdir runs/veit2016-paths
    resnet-jax analyze paths runs/veit2016-paths/full-110/seed-0
Recipe: as he2016_orders.py, 110 layers of full pre-activation.
Deviation: the recipe is second hand. At test time branches are multiplied by 23/54, as in
    stochastic depth; dropped ones by 0: no time is saved.
Expect: test error, second hand; He et al. 2016 state 6.37 % (full).
"""

from dataclasses import replace

from resnet_jax.models import StochasticDepth
from resnet_jax.models.catalog import variant
from resnet_jax.training.config import Data, Evaluation, Experiment, Schedule
from resnet_jax.training.recipes import Study


def full() -> Experiment:
    """All 54 blocks in every batch: 6.10 %."""
    return Experiment(
        name="full-110",
        model=variant("cifar_preresnet110", shortcut="A", norm="BatchNorm(group_size=64)"),
        data=Data(name="cifar10"),
        schedule=Schedule(warmup_steps=400),
        evaluation=Evaluation(batch_size=1000, training_images=True),
    )


def effective() -> Experiment:
    """23 of the 54 blocks in every batch: 5.96 %."""
    model = replace(full().model, stochastic_depth=StochasticDepth(kept=23))
    return replace(full(), name="effective-paths-110", model=model)


def table() -> Study:
    """The full network and effective paths alone."""
    return full(), effective()
