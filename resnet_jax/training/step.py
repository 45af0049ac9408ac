"""One step of training: on a batch that was streamed, or many in one dispatch over images that live on the device."""

import functools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Int32, Key, UInt8

from resnet_jax.data import order
from resnet_jax.data.augmentation import Augmentation, Preprocessing
from resnet_jax.models import Apply
from resnet_jax.training import loss as loss_lib
from resnet_jax.training.experiment import Loss
from resnet_jax.training.optimizer import ScheduleState
from resnet_jax.training.state import TrainState


class Batch(NamedTuple):
    """Images as the network takes them, and their classes."""

    images: Float[Array, "n h w c"]
    labels: Int32[Array, "n"]
    targets: Float[Array, "n classes"] | None = None
    """Shares of the classes, where images are mixed."""


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

    def order(self, key: Key[Array, ""], step: Int[Array, ""], steps: int, batch_size: int) -> Int[Array, "steps batch"]:
        """Which examples the batches of ``steps`` steps from ``step`` on have, from the run's root key."""
        examples = self.labels.shape[0]
        return order.batch_indices(jax.random.fold_in(key, 1), step, steps=steps, batch_size=batch_size, examples=examples)

    def of_step(self, key: Key[Array, ""], step: Int[Array, ""], batch_size: int) -> tuple[Preprocessing, Array, Array]:
        """Constants, images and labels of the batch after ``step`` steps."""
        return self.chosen(self.order(key, step, 1, batch_size)[0])

    def chosen(self, indices: Int[Array, "batch"]) -> tuple[Preprocessing, Array, Array]:
        """Constants, images and labels of some examples."""
        return self.preprocessing, self.images[indices], self.labels[indices]


class Arrived(NamedTuple):
    """One batch of a streamed training set, on the devices, with the constants that normalise it."""

    images: UInt8[Array, "n h w c"]
    labels: Int32[Array, "n"]
    preprocessing: Preprocessing

    def of_step(self, key: Key[Array, ""], step: Int[Array, ""], batch_size: int) -> tuple[Preprocessing, Array, Array]:
        """Constants, images and labels, of the step that they were read for."""
        del key, step
        assert len(self.labels) == batch_size
        return self.preprocessing, self.images, self.labels


@dataclass(frozen=True)
class Batches:
    """How images become batches; static."""

    size: int
    augmentation: Augmentation
    classes: int
    sharding: jax.sharding.Sharding | None = None
    """Of a batch; None: on one device."""

    def __call__(self, key: Key[Array, ""], preprocessing: Preprocessing, images: Array, labels: Array) -> Batch:
        """Normalised and augmented, split over devices."""
        augmented, targets = self.augmentation(key, preprocessing, images, labels, self.classes)
        batch = Batch(augmented, labels, targets)
        return batch if self.sharding is None else lax.with_sharding_constraint(batch, self.sharding)


@dataclass(frozen=True)
class Learning:
    """What a batch is learned from by; static."""

    apply: Apply
    optimizer: optax.GradientTransformationExtraArgs
    loss: Loss = field(default_factory=Loss)
    ema: float = 0.0
    """Decay of the parameters' average."""
    accumulation: int = 1
    """Parts of a batch whose gradients are added up, one after another: less memory."""
    group_size: int = 1
    """Images that stay together in a part, being normalised together."""
    whole: jax.sharding.Sharding | None = None
    """Of parameters and gradients while they are used, where devices keep parts of them; None: as they are kept."""


def train_step(state: TrainState, batch: Batch, learning: Learning) -> tuple[TrainState, Metrics]:
    """The loss averaged over the batch, its gradient, one update. Pure."""
    examples = batch.labels.shape[0]
    (loss, (errors, batch_stats)), gradients = _gradients(state, batch, learning)
    updates, opt_state = learning.optimizer.update(gradients, state.opt_state, state.params, error=errors / examples)
    params: Any = optax.apply_updates(state.params, updates)
    averaged: Any = optax.incremental_update(params, state.ema, 1 - learning.ema) if learning.ema else state.ema
    new_state = state._replace(step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=averaged)
    metrics = Metrics(loss * examples, errors, jnp.int32(examples), _schedule_state(opt_state).learning_rate)
    return new_state, metrics


def norms(state: TrainState, data: Resident | Arrived, *, batches: Batches, learning: Learning) -> dict[str, Any]:
    """Euclidean norms of every array of the ``gradients`` of the next step, and of the ``parameters`` before it."""
    batch = batches(augmentation_key(state.key, state.step), *data.of_step(state.key, state.step, batches.size))
    _, gradients = _gradients(state, batch, learning)
    found = {"gradients": gradients, "parameters": state.params}
    return jax.tree.map(_norm, found)


def _norm(array: Array) -> Float[Array, ""]:
    # What is as large as float32 goes has no square there.
    array = array.astype(jnp.float32)
    largest = jnp.max(jnp.abs(array), initial=jnp.finfo(jnp.float32).tiny)
    return largest * jnp.linalg.norm((array / largest).ravel())


def _gradients(state: TrainState, batch: Batch, learning: Learning) -> Any:
    """Loss averaged over the batch, errors and statistics; the gradient of the loss."""
    examples = batch.labels.shape[0]
    key = jax.random.fold_in(jax.random.fold_in(state.key, 3), state.step)

    def loss_of(params: Any, part: Batch, key: Array) -> tuple[Array, tuple[Array, Any]]:
        logits, batch_stats = learning.apply(params, state.batch_stats, part.images, train=True, key=key)
        errors = jnp.sum(jnp.argmax(logits, axis=-1) != part.labels, dtype=jnp.int32)
        return _losses(logits, part, learning.loss).sum() / examples, (errors, batch_stats)

    def whole(tree: Any) -> Any:
        # Left to itself the compiler divides the convolutions as the parameters are, and sends activations around.
        return tree if learning.whole is None else lax.with_sharding_constraint(tree, learning.whole)

    of_part = functools.partial(jax.value_and_grad(loss_of, has_aux=True), whole(state.params))
    found, gradients = of_part(batch, key) if learning.accumulation == 1 else _accumulated(of_part, batch, key, learning)
    return found, whole(gradients)


def _losses(logits: Float[Array, "n classes"], batch: Batch, loss: Loss) -> Float[Array, "n"]:
    if batch.targets is None and loss == Loss():
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    targets = jax.nn.one_hot(batch.labels, logits.shape[-1]) if batch.targets is None else batch.targets
    return loss_lib.of(logits, targets, loss)


def _accumulated(of_part: Any, batch: Batch, key: Key[Array, ""], learning: Learning) -> Any:
    """Loss, errors, statistics and gradients of a whole batch from those of its parts.

    Every part begins with the same moving averages; what it makes of them is averaged, as groups within a batch are.
    """
    parts, group = learning.accumulation, learning.group_size

    def divided(array: Array) -> Array:
        # Every parts-th group, so that each part lies on all the devices that the batch lies on.
        return array.reshape(-1, parts, group, *array.shape[1:]).swapaxes(0, 1).reshape(parts, -1, *array.shape[1:])

    def one(totals: Any, inputs: Any) -> tuple[Any, None]:
        part, number = inputs
        return jax.tree.map(jnp.add, totals, of_part(part, jax.random.fold_in(key, number))), None

    divided_batch = jax.tree.map(divided, batch)
    first = jax.tree.map(lambda array: array[0], divided_batch)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_part, first, key))
    ((loss, (errors, batch_stats)), gradients), _ = lax.scan(one, zeros, (divided_batch, jnp.arange(parts)))
    return (loss, (errors, jax.tree.map(lambda total: total / parts, batch_stats))), gradients


def resident_steps(state: TrainState, data: Resident, *, steps: int, batches: Batches, learning: Learning) -> tuple[TrainState, Metrics]:
    """``steps`` training steps: choose, normalise and augment each batch on the device, then ``train_step``. Metrics have a leading axis.

    Which images a step sees depends on ``state.key`` and ``state.step`` alone.
    """
    indices = data.order(state.key, state.step, steps, batches.size)

    def one(state: TrainState, chosen: Int[Array, "batch"]) -> tuple[TrainState, Metrics]:
        return train_step(state, batches(augmentation_key(state.key, state.step), *data.chosen(chosen)), learning)

    if steps == 1:  # no loop around the program: XLA's CPU backend compiles entry computations best
        state, metrics = one(state, indices[0])
        return state, jax.tree.map(lambda m: m[None], metrics)
    return lax.scan(one, state, indices)


def streamed_step(state: TrainState, data: Arrived, *, batches: Batches, learning: Learning) -> tuple[TrainState, Metrics]:
    """One training step on a batch that was streamed; metrics as of ``resident_steps``."""
    batch = batches(augmentation_key(state.key, state.step), *data.of_step(state.key, state.step, batches.size))
    state, metrics = train_step(state, batch, learning)
    return state, jax.tree.map(lambda m: m[None], metrics)


def augmentation_key(key: Key[Array, ""], step: Int[Array, ""] | int) -> Key[Array, ""]:
    """Of the batch of a step, from the run's root key."""
    return jax.random.fold_in(jax.random.fold_in(key, 2), step)


def _schedule_state(opt_state: Any) -> ScheduleState:
    found = [s for s in jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, ScheduleState)) if isinstance(s, ScheduleState)]
    assert len(found) == 1, "the optimizer comes from resnet_jax.training.optimizer.make"
    return found[0]
