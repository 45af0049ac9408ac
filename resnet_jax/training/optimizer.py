"""Rules and learning rates as the papers use them, composed of optax transformations."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from resnet_jax.errors import UserError, nearest
from resnet_jax.training.learning import Optimizer, Schedule

# You et al. 2017 (arXiv 1708.03888), eq. 6, eta.
_LARS_TRUST = 0.001
# Of timm and apex. You et al. 2019 (arXiv 1904.00962) state none.
_LAMB_EPSILON = 1e-6


class ScheduleState(NamedTuple):
    """State of ``scale_by_papers_schedule``."""

    step: Int[Array, ""]
    learning_rate: Float[Array, ""]
    """Of the update made last."""
    training_error: Float[Array, ""]
    """Running average over about 50 batches; begins at 1."""
    warming: Bool[Array, ""]


def make(optimizer: Optimizer, schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Clipping of the gradient's norm, then one of the rules.

    - ``sgd``: weight decay, momentum, learning rate, in that order: ``v = 0.9 v + g + wd w``, ``w = w - lr v`` (fb.resnet.torch's form).
    - ``lars`` (You et al. 2017): weight decay, trust ratio, learning rate, momentum, as ``optax.lars``.
    - ``lamb`` (You et al. 2019): Adam with beta_2 0.999, weight decay, trust ratio, learning rate, as ``optax.lamb``.

    What does not decay has no trust ratio either, as in the authors' LAMB, timm's and most LARS: norms of scales and biases say nothing.
    Its ``update`` takes the batch's training error as ``error=``, a fraction. Frozen parameters get no update and no momentum, and are no
    part of the norm that is clipped.
    """
    chosen = _kernels if optimizer.decay == "kernels" else None
    decayed = optax.add_decayed_weights(optimizer.weight_decay, mask=chosen)
    momentum = optax.trace(optimizer.momentum, nesterov=optimizer.nesterov)
    rate = scale_by_papers_schedule(schedule)
    match optimizer.rule:
        case "sgd":
            rule = (decayed, momentum, rate)
        case "lars":
            rule = (decayed, _scale_by_trust_ratio(_LARS_TRUST, chosen), rate, momentum)
        case "lamb":
            adam = optax.scale_by_adam(b1=optimizer.momentum, b2=0.999, eps=_LAMB_EPSILON)
            rule = (adam, decayed, _scale_by_trust_ratio(1.0, chosen), rate)
    chain = optax.chain(optax.clip_by_global_norm(optimizer.clip), *rule) if optimizer.clip else optax.chain(*rule)
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


def _stacked(path: Any) -> bool:
    # The units of a stack lie along the first axis of its arrays.
    return any(getattr(part, "key", None) == "stacked" for part in path)


def _kernels(params: Any) -> Any:
    # A vector for each unit of a stack is no kernel.
    return jax.tree.map_with_path(lambda path, leaf: leaf.ndim - _stacked(path) > 1, params)


def _scale_by_trust_ratio(coefficient: float, mask: Any) -> optax.GradientTransformation:
    """optax's, each unit of a stack having a ratio of its own; only where the mask says so."""
    of_all = optax.scale_by_trust_ratio(trust_coefficient=coefficient)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def scaled(path: Any, update: Array, param: Array) -> Array:
            def of_one(update: Array, param: Array) -> Array:
                return of_all.update(update, state, param)[0]  # pyright: ignore[reportReturnType]

            return (jax.vmap(of_one) if _stacked(path) else of_one)(update, param)

        return jax.tree.map_with_path(scaled, updates, params), state

    layerwise = optax.GradientTransformation(of_all.init, update)
    return layerwise if mask is None else optax.masked(layerwise, mask)


def scale_by_papers_schedule(schedule: Schedule) -> optax.GradientTransformationExtraArgs:
    """Piecewise-constant learning rate or half a cosine, with the warm-ups of He et al. 2015 (Section 4.2, n=18: until the training error
    is below 80 %), He et al. 2016 (400 steps) and Goyal et al. 2017 (rising). A warm-up that has ended does not begin again; steps count
    from the run's beginning, from 0.
    """
    full = _cosine(schedule) if schedule.cosine_steps else _piecewise_constant(schedule)
    low = schedule.warmup_learning_rate
    rising = optax.linear_schedule(low, schedule.learning_rate, schedule.warmup_steps) if schedule.linear_warmup else lambda _: low

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
        rate = jnp.where(warming, rising(state.step), full(state.step)).astype(jnp.float32)
        scaled = jax.tree.map(lambda u: -rate * u, updates)
        return scaled, ScheduleState(state.step + 1, rate, average, warming)

    return optax.GradientTransformationExtraArgs(init, update)


def _piecewise_constant(schedule: Schedule) -> optax.Schedule:
    # optax takes each boundary once: two decays of one step, which a shortened schedule may have, are one decay by the product.
    decays = {step: schedule.decay_factor ** schedule.decay_steps.count(step) for step in schedule.decay_steps}
    return optax.piecewise_constant_schedule(schedule.learning_rate, decays)


def _cosine(schedule: Schedule) -> optax.Schedule:
    begins = schedule.warmup_steps if schedule.cosine_from == "warmup" else 0
    floor = schedule.final_learning_rate / schedule.learning_rate
    cosine = optax.cosine_decay_schedule(schedule.learning_rate, schedule.cosine_steps - begins, floor)
    return lambda step: cosine(step - begins)
