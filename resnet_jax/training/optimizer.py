"""Stochastic gradient descent as the papers use it, composed of optax transformations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from resnet_jax.training.experiment import Optimizer, Schedule


class ScheduleState(NamedTuple):
    """State of ``scale_by_papers_schedule``."""

    step: Int[Array, ""]
    learning_rate: Float[Array, ""]
    """Of the update made last."""
    training_error: Float[Array, ""]
    """Running average over about 50 batches; begins at 1."""
    warming: Bool[Array, ""]


def make(optimizer: Optimizer, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Weight decay, momentum, learning rate, in that order: ``v = 0.9 v + g + wd w``, ``w = w - lr v`` (fb.resnet.torch's form).

    Its ``update`` takes the batch's training error as ``error=``, a fraction.
    """
    return optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay, mask=_kernels if optimizer.decay == "kernels" else None),
        optax.trace(optimizer.momentum, nesterov=optimizer.nesterov),
        scale_by_papers_schedule(schedule),
    )


def _kernels(params: Any) -> Any:
    return jax.tree.map(lambda p: p.ndim > 1, params)


def scale_by_papers_schedule(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Piecewise-constant learning rate with the warm-ups of He et al. 2015 (Section 4.2, n=18: until the training error is below 80 %)
    and He et al. 2016 (400 steps). A warm-up that has ended does not begin again; the decay steps count from the run's beginning.
    """
    # optax takes each boundary once: two decays of one step, which a shortened schedule may have, are one decay by the product.
    decays = {step: schedule.decay_factor ** schedule.decay_steps.count(step) for step in schedule.decay_steps}
    decayed = optax.piecewise_constant_schedule(schedule.learning_rate, decays)

    def init(params: Any) -> ScheduleState:
        del params
        return ScheduleState(jnp.int32(0), jnp.float32(0), jnp.float32(1), jnp.bool(True))

    def update(updates: Any, state: Any, params: Any = None, *, error: Any = None, **_: Any) -> tuple[Any, ScheduleState]:
        del params
        # A single batch of 128 has a spread of 3.5 points at 80 % error; the average over 50 has 0.5.
        average = 0.98 * state.training_error + 0.02 * error
        too_early = state.step < schedule.warmup_steps
        too_bad = (average >= schedule.warmup_until_error) & (schedule.warmup_until_error < 1)
        warming = state.warming & (too_early | too_bad)
        rate = jnp.where(warming, schedule.warmup_learning_rate, decayed(state.step)).astype(jnp.float32)
        scaled = jax.tree.map(lambda u: -rate * u, updates)
        return scaled, ScheduleState(state.step + 1, rate, average, warming)

    return optax.GradientTransformationExtraArgs(init, update)
