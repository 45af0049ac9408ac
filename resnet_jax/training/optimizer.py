"""Stochastic gradient descent as the papers use it, composed of optax transformations."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from resnet_jax.errors import UserError, nearest
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

    Its ``update`` takes the batch's training error as ``error=``, a fraction. Frozen parameters get no update and no momentum.
    """
    chain = optax.chain(
        optax.add_decayed_weights(optimizer.weight_decay, mask=_kernels if optimizer.decay == "kernels" else None),
        optax.trace(optimizer.momentum, nesterov=optimizer.nesterov),
        scale_by_papers_schedule(schedule),
    )
    if optimizer.frozen:
        frozen = functools.partial(_frozen, beginnings=optimizer.frozen)
        # Masked twice: the first leaves the frozen parameters' gradients as they are, the second makes them no update.
        chain = optax.chain(
            optax.masked(chain, lambda params: jax.tree.map(lambda still: not still, frozen(params))),
            optax.masked(optax.set_to_zero(), frozen),
        )
    return optax.chain(chain, scale_by_path(dict(optimizer.rates))) if optimizer.rates else chain


def scale_by_path(factors: dict[str, float]) -> optax.GradientTransformation:
    """Multiplies updates by the factor of the longest beginning of their paths; 1 where none fits. Discriminative fine-tuning (Howard and
    Ruder 2018, arXiv 1801.06146, Section 3.2).

    Raises:
      UserError: at ``init``, for a beginning that no parameter has.
    """

    def chosen(tree: Any) -> list[float]:
        # Longer beginnings come later, and overwrite.
        found = [1.0] * len(jax.tree.leaves(tree))
        for beginning in sorted(factors, key=len):
            for index in _below(tree, beginning, "optimizer.rates"):
                found[index] = factors[beginning]
        return found

    def init(params: Any) -> optax.EmptyState:
        chosen(params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        leaves, treedef = jax.tree.flatten(updates)
        return jax.tree.unflatten(treedef, [leaf * factor for leaf, factor in zip(leaves, chosen(updates), strict=True)]), state

    return optax.GradientTransformation(init, update)


def _frozen(params: Any, *, beginnings: tuple[str, ...]) -> Any:
    """Which parameters lie below one of some paths. Raises UserError for one that none lies below."""
    still = {index for beginning in beginnings for index in _below(params, beginning, "optimizer.frozen")}
    treedef = jax.tree.structure(params)
    return jax.tree.unflatten(treedef, [index in still for index in range(treedef.num_leaves)])


def _below(params: Any, beginning: str, option: str) -> list[int]:
    """Places among the leaves of those whose path begins so. Raises UserError where there are none."""
    paths = ["/".join(str(getattr(part, "key", part)) for part in path) + "/" for path, _ in jax.tree.leaves_with_path(params)]
    found = [index for index, path in enumerate(paths) if path.startswith(f"{beginning.rstrip('/')}/")]
    if not found:
        known = {"/".join(path.split("/")[:depth]) for path in paths for depth in (1, 2)}
        raise UserError(f"{option}: no parameter lies below {beginning!r}{nearest(beginning, known)}")
    return found


def _kernels(params: Any) -> Any:
    # The units of a stack lie along the first axis of its arrays; a vector for each of them is no kernel.
    def is_kernel(path: Any, leaf: Any) -> bool:
        return leaf.ndim - any(getattr(part, "key", None) == "stacked" for part in path) > 1

    return jax.tree.map_with_path(is_kernel, params)


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
