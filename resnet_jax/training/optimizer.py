"""Update rules and learning-rate schedules, composed of optax transformations."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import KeyPath
from jaxtyping import Array, Bool, Float, Int

from resnet_jax.errors import UserError, nearest
from resnet_jax.training.config import Optimizer, Schedule
from resnet_jax.training.step import is_stacked

# You et al. 2017 (arXiv 1708.03888), eq. 6, eta.
_LARS_TRUST = 0.001
# As in timm and apex; You et al. 2019 (arXiv 1904.00962) state none.
_LAMB_EPSILON = 1e-6


class ScheduleState(NamedTuple):
    """Learning rate of the last update, and training error averaged over about 50 batches."""

    step: Int[Array, ""]
    learning_rate: Float[Array, ""]
    training_error: Float[Array, ""]
    warming: Bool[Array, ""]


@functools.lru_cache(maxsize=64)
def make(optimizer: Optimizer, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Returns gradient clipping and the update rule, the same object for equal arguments.

    ``sgd``: ``v = 0.9 v + g + wd w``, ``w = w - lr v`` (fb.resnet.torch). ``lars``, ``lamb``: as in
    optax, with a beta_2 of 0.999. Parameters without weight decay have no trust ratio, as in timm.
    Frozen parameters have no update, no momentum and no part in the clipped norm. ``update`` takes
    the training error of the batch, a fraction, as ``error``.
    """
    mask = _kernels if optimizer.decay == "kernels" else None
    decay = optax.add_decayed_weights(optimizer.weight_decay, mask=mask)
    momentum = optax.trace(optimizer.momentum, nesterov=optimizer.nesterov)
    rate = scale_by_papers_schedule(schedule)
    adam = optax.scale_by_adam(b1=optimizer.momentum, b2=0.999, eps=_LAMB_EPSILON)
    rule = {
        "sgd": (decay, momentum, rate),
        "lars": (decay, _scale_by_trust_ratio(_LARS_TRUST, mask), rate, momentum),
        "lamb": (adam, decay, _scale_by_trust_ratio(1.0, mask), rate),
    }[optimizer.rule]
    chain = optax.chain(*[optax.clip_by_global_norm(optimizer.clip)] * (optimizer.clip > 0), *rule)
    if optimizer.frozen:
        labels = dict.fromkeys(optimizer.frozen, "frozen")
        chain = optax.partition(
            {"trained": chain, "frozen": optax.set_to_zero()},
            lambda params: _by_prefix(params, labels, "trained", "frozen"),
        )
    if optimizer.rates:
        # Howard and Ruder 2018 (arXiv 1801.06146), Section 3.2.
        def scale(updates: Any, params: Any) -> optax.Updates:
            factors = _by_prefix(params, dict(optimizer.rates), 1.0, "rates")
            return jax.tree.map(lambda factor, update: factor * update, factors, updates)

        chain = optax.chain(chain, optax.stateless(scale))
    return chain


def _by_prefix(
    tree: optax.Params, values: Mapping[str, Any], default: Any, field: str
) -> optax.Params:
    """Returns the value of the longest path prefix, of whole names, for each leaf."""
    leaves, structure = jax.tree.flatten_with_path(tree)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    prefixes = [
        [prefix for prefix in values if f"{path}/".startswith(f"{prefix.rstrip('/')}/")]
        for path in paths
    ]
    for unused in values.keys() - set[str]().union(*prefixes):
        known = {"/".join(path.split("/")[:depth]) for path in paths for depth in (1, 2)}
        hint = nearest(unused, known)
        raise UserError(f"optimizer.{field}: no parameter lies below {unused!r}{hint}")
    chosen = [values[max(names, key=len)] if names else default for names in prefixes]
    return jax.tree.unflatten(structure, chosen)


def _kernels(params: optax.Params) -> optax.Params:
    return jax.tree.map_with_path(lambda path, leaf: leaf.ndim - is_stacked(path) > 1, params)


def _scale_by_trust_ratio(coefficient: float, mask: Any) -> optax.GradientTransformation:
    """Trust ratio where the mask is set, one per block of stacked arrays."""
    ratio = optax.scale_by_trust_ratio(trust_coefficient=coefficient)

    def scale(path: KeyPath, update: Array, param: Array) -> Array:
        def scale_block(update: Array, param: Array) -> Any:
            return ratio.update(update, optax.EmptyState(), param)[0]

        return (jax.vmap(scale_block) if is_stacked(path) else scale_block)(update, param)

    blockwise = optax.stateless(functools.partial(jax.tree.map_with_path, scale))
    return blockwise if mask is None else optax.masked(blockwise, mask)


def scale_by_papers_schedule(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Scales by the negative learning rate. A warm-up does not restart."""
    low, full = schedule.warmup_learning_rate, _after_warmup(schedule)
    high = schedule.learning_rate if schedule.linear_warmup else low
    warmup = optax.linear_schedule(low, high, schedule.warmup_steps)

    def init(params: object) -> ScheduleState:  # noqa: ARG001
        return ScheduleState(jnp.int32(0), jnp.float32(0), jnp.float32(1), jnp.bool(True))

    def update(
        updates: Any, state: Any, params: object = None, *, error: Any = None
    ) -> tuple[Any, ScheduleState]:
        del params
        # A batch of 128 has a deviation of 3.5 points at 80 % error; the average over 50 has 0.5.
        average = 0.98 * state.training_error + 0.02 * error
        too_early = state.step < schedule.warmup_steps
        too_high = (average >= schedule.warmup_until_error) & (schedule.warmup_until_error < 1)
        warming = state.warming & (too_early | too_high)
        rate = jnp.where(warming, warmup(state.step), full(state.step)).astype(jnp.float32)
        scaled = jax.tree.map(lambda update: -rate * update, updates)
        return scaled, ScheduleState(state.step + 1, rate, average, warming)

    return optax.GradientTransformationExtraArgs(init, update)


def _after_warmup(schedule: Schedule) -> optax.Schedule:
    rate, steps = schedule.learning_rate, schedule.decay_steps
    if not schedule.cosine_steps:
        # A shortened schedule can have two decays at one step.
        decays = {step: schedule.decay_factor ** steps.count(step) for step in steps}
        return optax.piecewise_constant_schedule(rate, decays)
    start = schedule.warmup_steps if schedule.cosine_from == "warmup" else 0
    length, floor = schedule.cosine_steps - start, schedule.final_learning_rate / rate
    cosine = optax.cosine_decay_schedule(rate, length, floor)
    return lambda step: cosine(step - start)
