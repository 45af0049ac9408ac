"""One step of training, and many of them in one dispatch over images that live on the device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Int32, Key, UInt8

from resnet_jax.data import augmentation, order
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.models import Apply
from resnet_jax.training.optimizer import ScheduleState
from resnet_jax.training.state import TrainState


class Batch(NamedTuple):
    """Images as the network takes them, and their classes."""

    images: Float[Array, "n h w c"]
    labels: Int32[Array, "n"]


class Metrics(NamedTuple):
    """Sums over the examples of a batch, and their count; division happens where they are printed."""

    loss: Float[Array, "..."]
    errors: Int32[Array, "..."]
    examples: Int32[Array, "..."]
    learning_rate: Float[Array, "..."]
    """Not a sum: the rate of the step."""


class Resident(NamedTuple):
    """A training set on the device, with the constants that normalise it."""

    images: UInt8[Array, "examples h w c"]
    labels: Int32[Array, "examples"]
    preprocessing: Preprocessing


def train_step(
    state: TrainState, batch: Batch, *, apply: Apply, optimizer: optax.GradientTransformationExtraArgs, ema: float = 0.0
) -> tuple[TrainState, Metrics]:
    """Softmax cross-entropy averaged over the batch, its gradient, one update. Pure; ``ema`` is the decay of the parameters' average."""
    examples = batch.labels.shape[0]
    key = jax.random.fold_in(jax.random.fold_in(state.key, 3), state.step)

    def loss_of(params: Any) -> tuple[Array, tuple[Array, Any]]:
        logits, batch_stats = apply(params, state.batch_stats, batch.images, train=True, key=key)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).sum()
        return loss / examples, (logits, batch_stats)

    (loss, (logits, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
    errors = jnp.sum(jnp.argmax(logits, axis=-1) != batch.labels, dtype=jnp.int32)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, error=errors / examples)
    params: Any = optax.apply_updates(state.params, updates)
    averaged: Any = optax.incremental_update(params, state.ema, 1 - ema) if ema else state.ema
    new_state = state._replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=averaged)
    metrics = Metrics(loss * examples, errors, jnp.int32(examples), _schedule_state(opt_state).learning_rate)
    return new_state, metrics


def resident_steps(
    state: TrainState,
    data: Resident,
    *,
    steps: int,
    batch_size: int,
    pad: int,
    flip: bool,
    apply: Apply,
    optimizer: optax.GradientTransformationExtraArgs,
    ema: float = 0.0,
    sharding: jax.sharding.Sharding | None = None,
) -> tuple[TrainState, Metrics]:
    """``steps`` training steps: choose, normalise and augment each batch on the device, then ``train_step``. Metrics have a leading axis.

    ``sharding`` is that of a batch. Which images a step sees depends on ``state.key`` and ``state.step`` alone.
    """
    indices = order.batch_indices(
        jax.random.fold_in(state.key, 1), state.step, steps=steps, batch_size=batch_size, examples=data.labels.shape[0]
    )

    def one(state: TrainState, chosen: Int[Array, "batch"]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, 2), state.step)
        batch = prepared(data, chosen, key, pad=pad, flip=flip, sharding=sharding)
        return train_step(state, batch, apply=apply, optimizer=optimizer, ema=ema)

    if steps == 1:  # no loop around the program: XLA's CPU backend compiles entry computations best
        state, metrics = one(state, indices[0])
        return state, jax.tree.map(lambda m: m[None], metrics)
    return lax.scan(one, state, indices)


def prepared(
    data: Resident,
    chosen: Int[Array, "batch"],
    key: Key[Array, ""],
    *,
    pad: int,
    flip: bool,
    sharding: jax.sharding.Sharding | None = None,
) -> Batch:
    """Chosen images, normalised and augmented, split over devices."""
    images = augmentation.augment(key, data.preprocessing(data.images[chosen]), pad=pad, flip=flip)
    batch = Batch(images, data.labels[chosen])
    return batch if sharding is None else lax.with_sharding_constraint(batch, sharding)


def _schedule_state(opt_state: Any) -> ScheduleState:
    found = [s for s in jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, ScheduleState)) if isinstance(s, ScheduleState)]
    assert len(found) == 1, "the optimizer comes from resnet_jax.training.optimizer.make"
    return found[0]
