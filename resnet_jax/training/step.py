"""Training state."""

import functools
import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int, Int32, Key, UInt8

from resnet_jax.data.augment_device import Augmentation, Preprocessing
from resnet_jax.models import Apply, Architecture, Execution
from resnet_jax.models.resnet import Variables
from resnet_jax.training.config import Loss


class TrainState(NamedTuple):
    """State of a run: a pytree of arrays or of their shapes."""

    step: Int[Array, ""]
    """Number of completed steps."""
    params: Variables
    batch_stats: Variables
    opt_state: Any
    key: Key[Array, ""]
    """Root key: all randomness is a function of it and of the step."""
    ema: Variables
    """Moving average of ``params``; empty without one."""
    statistics: Variables
    """Precise BatchNorm statistics, evaluated in place of ``batch_stats``; empty without."""

    def scored(self) -> tuple[Variables, Variables]:
        """Returns the parameters and statistics that evaluation uses."""
        return self.ema or self.params, self.statistics or self.batch_stats


def create(
    architecture: Architecture,
    optimizer: optax.GradientTransformationExtraArgs,
    key: Key[Array, ""],
    execution: Execution = Execution(),
    *,
    ema: bool = False,
    statistics: bool = False,
) -> tuple[Apply, TrainState]:
    """Returns the network as a function and its state at step 0, under ``jax.jit`` or ``jax.eval_shape``."""
    apply, params, batch_stats = architecture.init(jax.random.fold_in(key, 0), execution=execution)
    averages = params if ema else {}, batch_stats if statistics else {}
    return apply, TrainState(
        jnp.int32(0), params, batch_stats, optimizer.init(params), key, *averages
    )


def digest(state: TrainState) -> str:
    """Returns the sha256 of a state, see ``tree_digest``."""
    return tree_digest(plain(state))


def tree_digest(tree: Any) -> str:
    """Returns the sha256 over path, dtype, shape and bytes of every leaf. Collective where leaves are sharded."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        whole = (
            not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated
        )
        array = np.asarray(leaf if whole else multihost_utils.process_allgather(leaf, tiled=True))
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def is_stacked(path: Any) -> bool:
    """Returns whether the array at a path of ``jax.tree`` holds several blocks along its first axis."""
    return any(getattr(key, "key", None) == "stacked" for key in path)


def plain(state: TrainState) -> TrainState:
    """Returns the state with the key as raw numbers, for serialization."""
    return state._replace(key=jax.random.key_data(state.key))


def from_plain(state: TrainState) -> TrainState:
    """Inverse of ``plain``."""
    return state._replace(key=jax.random.wrap_key_data(state.key))


def epoch_order(
    key: Key[Array, ""], epoch: Int[Array, ""], examples: int
) -> Int[Array, "examples"]:
    """Permutation of one epoch, a function of ``(key, epoch)``."""
    return jax.random.permutation(jax.random.fold_in(key, epoch), examples)


def batch_indices(
    key: Key[Array, ""], first: Int[Array, ""], *, steps: int, batch_size: int, examples: int
) -> Int[Array, "steps batch"]:
    """Indices of the batches of ``steps`` steps from step ``first`` on. A batch may span two epochs."""
    start = first * batch_size
    first_epoch = start // examples
    # Relative to the first epoch, so that positions stay small.
    positions = start % examples + jnp.arange(steps * batch_size)
    touched = -(-(steps * batch_size + examples - 1) // examples)
    orders = jax.vmap(lambda epoch: epoch_order(key, epoch, examples))(
        first_epoch + jnp.arange(touched)
    )
    return orders[positions // examples, positions % examples].reshape(steps, batch_size)


class Batch(NamedTuple):
    """Normalized, augmented images with their labels."""

    images: Float[Array, "n h w c"]
    labels: Int32[Array, "n"]
    targets: Float[Array, "n classes"] | None = None
    """Class probabilities, where images are mixed."""


class Metrics(NamedTuple):
    """Sums over the examples of a batch, and their count."""

    loss: Float[Array, "..."]
    errors: Int32[Array, "..."]
    examples: Int32[Array, "..."]
    learning_rate: Float[Array, "..."]
    """Learning rate of the step; not a sum."""


class ResidentData(NamedTuple):
    """Training set on the device."""

    images: UInt8[Array, "examples h w c"]
    labels: Int32[Array, "examples"]
    preprocessing: Preprocessing

    def order(
        self, key: Key[Array, ""], step: Int[Array, ""], steps: int, batch_size: int
    ) -> Int[Array, "steps batch"]:
        """Returns the indices of the batches of ``steps`` steps from ``step`` on; ``key`` is the root key."""
        examples = self.labels.shape[0]
        return batch_indices(
            jax.random.fold_in(key, 1), step, steps=steps, batch_size=batch_size, examples=examples
        )


class StreamedBatch(NamedTuple):
    """One streamed batch on the devices."""

    images: UInt8[Array, "n h w c"]
    labels: Int32[Array, "n"]
    preprocessing: Preprocessing


@dataclass(frozen=True)
class Batches:
    """Static arguments of preprocessing."""

    size: int
    augmentation: Augmentation
    classes: int
    sharding: jax.sharding.Sharding | None = None
    """Sharding of a batch; None: one device."""

    def __call__(
        self, key: Key[Array, ""], preprocessing: Preprocessing, images: Array, labels: Array
    ) -> Batch:
        """Returns the normalized, augmented, sharded batch."""
        augmented, targets = self.augmentation(key, preprocessing, images, labels, self.classes)
        batch = Batch(augmented, labels, targets)
        return (
            batch if self.sharding is None else lax.with_sharding_constraint(batch, self.sharding)
        )


@dataclass(frozen=True)
class Learning:
    """Static arguments of the update: model, optimizer, loss."""

    apply: Apply
    optimizer: optax.GradientTransformationExtraArgs
    loss: Loss = field(default_factory=Loss)
    ema: float = 0.0
    """Decay of the moving average of the parameters; 0: none."""
    accumulation: int = 1
    """Number of microbatches."""
    group_size: int = 1
    """Images that BatchNorm normalizes together; a microbatch consists of whole groups."""
    whole: jax.sharding.Sharding | None = None
    """Sharding of parameters and gradients in use, under fsdp; None: that of the state."""


def train_steps(
    state: TrainState,
    data: ResidentData | StreamedBatch,
    steps: int,
    *,
    batches: Batches,
    learning: Learning,
) -> tuple[TrainState, Metrics]:
    """Runs ``steps`` training steps (1 on a streamed batch), functions of state and data alone; metrics have shape (steps,)."""
    assert steps == 1 or isinstance(data, ResidentData)

    def one(state: TrainState, indices: Any) -> tuple[TrainState, Metrics]:
        images, labels = (
            (data.images, data.labels)
            if indices is None
            else (data.images[indices], data.labels[indices])
        )
        return train_step(
            state,
            batches(augmentation_key(state.key, state.step), data.preprocessing, images, labels),
            learning,
        )

    indices = (
        data.order(state.key, state.step, steps, batches.size)
        if isinstance(data, ResidentData)
        else None
    )
    if steps > 1:
        return lax.scan(one, state, indices)
    # Without a loop: XLA:CPU compiles entry computations to faster code.
    state, metrics = one(state, None if indices is None else indices[0])
    return state, jax.tree.map(lambda m: m[None], metrics)


def train_step(state: TrainState, batch: Batch, learning: Learning) -> tuple[TrainState, Metrics]:
    """One update by the gradient of the mean loss over the batch. Pure."""
    examples = batch.labels.shape[0]
    (loss, (errors, batch_stats)), gradients = _gradients(state, batch, learning)
    updates, opt_state = learning.optimizer.update(
        gradients, state.opt_state, state.params, error=errors / examples
    )
    params: Any = optax.apply_updates(state.params, updates)
    ema: Any = (
        optax.incremental_update(params, state.ema, 1 - learning.ema) if learning.ema else state.ema
    )
    metrics = Metrics(
        loss * examples,
        errors,
        jnp.int32(examples),
        optax.tree_utils.tree_get(opt_state, "learning_rate"),
    )
    return state._replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, ema=ema
    ), metrics


def _gradients(state: TrainState, batch: Batch, learning: Learning) -> Any:
    """Returns ((mean loss, (errors, batch_stats)), gradients)."""
    examples = batch.labels.shape[0]
    # Dropout and stochastic depth.
    key = jax.random.fold_in(jax.random.fold_in(state.key, 3), state.step)

    def loss_of(params: Any, part: Batch, key: Array) -> tuple[Array, tuple[Array, Any]]:
        logits, batch_stats = learning.apply(
            params, state.batch_stats, part.images, train=True, key=key
        )
        errors = jnp.sum(jnp.argmax(logits, axis=-1) != part.labels, dtype=jnp.int32)
        return losses(logits, part, learning.loss).sum() / examples, (errors, batch_stats)

    def whole(tree: Any) -> Any:
        # Without it the compiler splits convolutions as the parameters are and moves activations.
        return (
            tree if learning.whole is None else lax.with_sharding_constraint(tree, learning.whole)
        )

    of_part = functools.partial(jax.value_and_grad(loss_of, has_aux=True), whole(state.params))
    values, gradients = (
        of_part(batch, key)
        if learning.accumulation == 1
        else _accumulated(of_part, batch, key, learning)
    )
    return values, whole(gradients)


def _accumulated(of_part: Any, batch: Batch, key: Key[Array, ""], learning: Learning) -> Any:
    """Accumulates microbatches; running statistics are averaged over them."""
    parts, group = learning.accumulation, learning.group_size

    def divided(array: Array) -> Array:
        # Every parts-th group: a microbatch lies on all devices of the batch.
        return (
            array.reshape(-1, parts, group, *array.shape[1:])
            .swapaxes(0, 1)
            .reshape(parts, -1, *array.shape[1:])
        )

    def one(totals: Any, inputs: Any) -> tuple[Any, None]:
        part, number = inputs
        return jax.tree.map(jnp.add, totals, of_part(part, jax.random.fold_in(key, number))), None

    microbatches = jax.tree.map(divided, batch)
    first = jax.tree.map(lambda array: array[0], microbatches)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(of_part, first, key))
    ((loss, (errors, batch_stats)), gradients), _ = lax.scan(
        one, zeros, (microbatches, jnp.arange(parts))
    )
    return (loss, (errors, jax.tree.map(lambda total: total / parts, batch_stats))), gradients


def losses(logits: Float[Array, "n classes"], batch: Batch, loss: Loss) -> Float[Array, "n"]:
    """Returns the loss of each image.

    Softmax with label smoothing: Szegedy et al. 2015, arXiv 1512.00567, Section 7. Binary: Wightman et al. 2021,
    arXiv 2110.00476, Section 2.2, with the smoothing and the threshold of timm.
    """
    if batch.targets is None and loss == Loss():
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    targets = (
        jax.nn.one_hot(batch.labels, logits.shape[-1]) if batch.targets is None else batch.targets
    )
    if loss.smoothing:
        targets = optax.smooth_labels(targets, loss.smoothing)
    if loss.kind == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    if loss.threshold is not None:
        targets = (targets > loss.threshold).astype(targets.dtype)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def augmentation_key(key: Key[Array, ""], step: Int[Array, ""] | int) -> Key[Array, ""]:
    """Returns the augmentation key of a step."""
    return jax.random.fold_in(jax.random.fold_in(key, 2), step)


@jax.jit
def finite(state: TrainState) -> Array:
    """Returns whether the state is finite."""
    learned = (state.params, state.batch_stats, state.opt_state, state.ema, state.statistics)
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in jax.tree.leaves(learned)]))
