"""Training with the effective paths alone: Veit et al. 2016 (arXiv 1605.06431), Section 4.3.

Command:   resnet-jax prepare cifar10        (once; or point TFDS_DATA_DIR at prepared sets)
           resnet-jax study experiments/veit2016_paths.py:table --seeds 5 --workdir runs/veit2016-paths
           resnet-jax lab paths runs/veit2016-paths/full-110/seed-0 (which paths carry the gradient)
Data:      CIFAR-10.
Recipe:    110 layers, full pre-activation, 54 units. "Effective paths": for each batch 23 units, drawn at random, have their branch, and
           the others are their shortcut alone. All else is He et al. 2016's (arXiv 1603.05027; `he2016_orders.py`): SGD, momentum 0.9,
           weight decay 1e-4, batch 128, 0.01 for the first 400 steps, then 0.1, divided by 10 at 32k and 48k of 64k steps; pad 4, random
           crop, flip; per-pixel mean; BatchNorm sees groups of 64 images.
Deviation: we have not read the paper itself, and its recipe is not stated where we read of it. Nor is what the network is at test time:
           here all units have their branch, times 23/54, as in stochastic depth (Huang et al. 2016, arXiv 1603.09382, eq. 5).
Expect:    test error, percent: full 6.10, effective paths 5.96, "not significant"; second hand. He et al. 2016 state 6.37 for the full
           network. Neither has been run to its end here.
Hardware:  one GPU or TPU. Time: not measured (branches that are not kept are multiplied by 0, not left out: nothing is saved).
"""

from dataclasses import replace

from resnet_jax.models import StochasticDepth, cifar_architecture, configured
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.training.experiment import Data, Evaluation, Experiment, Schedule


def full() -> Experiment:
    """All 54 units in every batch: 6.10 % (second hand). In all but its name he2016_orders.py's pre-activation-110."""
    return Experiment(
        name="full-110",
        model=cifar_architecture(110, order=FullPreactivation, norm=configured(BatchNorm, group_size=64)),
        data=Data(name="cifar10"),
        schedule=Schedule(learning_rate=0.1, decay_steps=(32_000, 48_000), warmup_learning_rate=0.01, warmup_steps=400),
        steps=64_000,
        batch_size=128,
        evaluation=Evaluation(every=1000, batch_size=1000, training_images=True),
    )


def effective() -> Experiment:
    """23 of the 54 units in each batch: 5.96 % (second hand)."""
    whole = full()
    return replace(whole, name="effective-paths-110", model=replace(whole.model, stochastic_depth=StochasticDepth(kept=23)))


def table() -> tuple[Experiment, ...]:
    """The comparison: the full network 6.10 %, effective paths alone 5.96 % (second hand)."""
    return full(), effective()
