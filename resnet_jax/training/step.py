"""Training state and training step: pure functions of arrays."""

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jax.tree_util import KeyPath
from jaxtyping import Array, Float, Int, Int32, Key, Shaped

from resnet_jax.data.augment_device import Augmentation, Preprocessing
from resnet_jax.models import Apply, Architecture, Execution
from resnet_jax.models.resnet import Variables
from resnet_jax.training.config import Loss

Tree = TypeVar("Tree")


class TrainState(NamedTuple):
    """State of a run: arrays, or their shapes."""

    step: Int[Array, ""]
    """Number of completed steps."""
    params: Variables
    batch_stats: Variables
    opt_state: Any
    key: Key[Array, ""]
    """Root key: all randomness is a function of it and the step."""
    ema: Variables
    """Moving average of ``params``, if any."""
    statistics: Variables
    """Precise BatchNorm statistics, if any, evaluated in place of ``batch_stats``."""

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
    """Returns the network as a function, and its state at step 0. To be traced."""
    apply, params, batch_stats = architecture.init(jax.random.fold_in(key, 0), execution=execution)
    averages = params if ema else {}, batch_stats if statistics else {}
    opt_state = optimizer.init(params)
    return apply, TrainState(jnp.int32(0), params, batch_stats, opt_state, key, *averages)


def digest(tree: object) -> str:
    """Returns the sha256 over path, dtype, shape and bytes of every leaf. Collective if sharded."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        if isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        ):
            leaf = multihost_utils.process_allgather(leaf, tiled=True)
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def is_stacked(path: KeyPath) -> bool:
    """Returns whether the array at a path has blocks along its first axis."""
    return any(getattr(key, "key", None) == "stacked" for key in path)


def batch_indices(
    key: Key[Array, ""], first: Int[Array, ""], *, steps: int, batch_size: int, examples: int
) -> Int[Array, "steps batch"]:
    """Returns the examples of ``steps`` steps from ``first`` on. A batch may span two epochs."""
    start = first * batch_size
    first_epoch = start // examples
    # Relative to the first epoch, so that positions stay small.
    positions = start % examples + jnp.arange(steps * batch_size)
    epochs = -(-(steps * batch_size + examples - 1) // examples)

    def order(epoch: Array) -> Array:
        return jax.random.permutation(jax.random.fold_in(key, epoch), examples)

    orders = jax.vmap(order)(first_epoch + jnp.arange(epochs))
    return orders[positions // examples, positions % examples].reshape(steps, batch_size)


class Batch(NamedTuple):
    """A batch, or a whole device-resident training set."""

    images: Shaped[Array, "n h w c"]
    """uint8 as stored, or float32 as the network's input."""
    labels: Int32[Array, "n"]
    targets: Float[Array, "n classes"] | None = None
    """Class probabilities of mixed images."""


class Metrics(NamedTuple):
    """Sums over the examples of a batch, apart from the learning rate."""

    loss: Float[Array, "..."]
    errors: Int32[Array, "..."]
    examples: Int32[Array, "..."]
    learning_rate: Float[Array, "..."]


@dataclass(frozen=True)
class Learning:
    """Static arguments of a step: network, update, preprocessing."""

    apply: Apply
    optimizer: optax.GradientTransformationExtraArgs
    loss: Loss = field(default_factory=Loss)
    ema: float = 0.0
    """Decay of the average of the parameters; 0: none."""
    accumulation: int = 1
    """Microbatches per batch."""
    group_size: int = 0
    """Of BatchNorm; 0: a whole (micro)batch."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    classes: int = 0
    batch_size: int = 0
    streamed: bool = False
    """Data are batches, not the whole training set."""
    sharding: Sharding | None = None
    """Of a batch; None: one device."""
    whole: Sharding | None = None
    """Of parameters in use and gradients, under fsdp; None: that of the state."""


def train_steps(
    state: TrainState, data: Batch, preprocessing: Preprocessing, steps: int, learning: Learning
) -> tuple[TrainState, Metrics]:
    """Runs ``steps`` training steps, 1 on a streamed batch; metrics have shape (steps,)."""

    def batch(state: TrainState, indices: Array | None) -> Batch:
        key = augmentation_key(state.key, state.step)
        return augment(key, data, indices, preprocessing, learning)

    def run(carry: tuple[TrainState, Metrics], inputs: Any) -> tuple[Any, None]:
        (state, metrics), (number, indices) = carry, inputs
        state, new = train_step(state, batch(state, indices), learning)
        # Not stacked by the scan: a CUDA graph cannot hold a loop that updates slices.
        choose = functools.partial(jnp.where, jnp.arange(steps) == number)
        return (state, jax.tree.map(choose, new, metrics)), None

    indices = _indices(state.key, state.step, steps, data, learning)
    if steps > 1:
        dtypes = float, jnp.int32, jnp.int32, float
        zeros = Metrics(*(jnp.zeros(steps, dtype) for dtype in dtypes))
        return lax.scan(run, (state, zeros), (jnp.arange(steps), indices))[0]
    # Without a loop: XLA:CPU compiles entry computations to faster code.
    indices = None if indices is None else indices[0]
    state, metrics = train_step(state, batch(state, indices), learning)
    return state, jax.tree.map(lambda m: m[None], metrics)


def _indices(
    key: Key[Array, ""], step: Int[Array, ""], steps: int, data: Batch, learning: Learning
) -> Int[Array, "steps batch"] | None:
    if learning.streamed:
        assert steps == 1
        return None
    key, examples = jax.random.fold_in(key, 1), len(data.labels)
    return batch_indices(key, step, steps=steps, batch_size=learning.batch_size, examples=examples)


def augmentation_key(key: Key[Array, ""], step: Int[Array, ""] | int) -> Key[Array, ""]:
    return jax.random.fold_in(jax.random.fold_in(key, 2), step)


def augment(
    key: Key[Array, ""],
    data: Batch,
    indices: Int[Array, "batch"] | None,
    preprocessing: Preprocessing,
    learning: Learning,
) -> Batch:
    """Returns the network's batch, of ``indices`` or of all of ``data``."""
    images, labels, _ = data
    if indices is not None:
        images, labels = images[indices], labels[indices]
    images, targets = learning.augmentation(key, preprocessing, images, labels, learning.classes)
    return _constrain(Batch(images, labels, targets), learning.sharding)


def _constrain(tree: Tree, sharding: Sharding | None) -> Tree:
    return tree if sharding is None else lax.with_sharding_constraint(tree, sharding)


def train_step(state: TrainState, batch: Batch, learning: Learning) -> tuple[TrainState, Metrics]:
    """One update by the gradient of the mean loss over the batch. Pure."""
    examples = len(batch.labels)
    # Dropout and stochastic depth.
    key = jax.random.fold_in(jax.random.fold_in(state.key, 3), state.step)

    def loss_of(params: Variables, part: Batch, key: Array) -> tuple[Array, Any]:
        arrays = params, state.batch_stats, part.images
        logits, batch_stats = learning.apply(*arrays, train=True, key=key)
        errors = jnp.sum(jnp.argmax(logits, axis=-1) != part.labels, dtype=jnp.int32)
        return losses(logits, part, learning.loss).sum() / examples, (errors, batch_stats)

    # Otherwise the compiler splits convolutions as the parameters are and moves activations.
    whole = _constrain(state.params, learning.whole)
    of_part = functools.partial(jax.value_and_grad(loss_of, has_aux=True), whole)
    if learning.accumulation > 1:
        of_part = functools.partial(_accumulated, of_part, learning)
    (loss, (errors, batch_stats)), gradients = of_part(batch, key)
    gradients = _constrain(gradients, learning.whole)
    updates, opt_state = learning.optimizer.update(
        gradients, state.opt_state, state.params, error=errors / examples
    )
    params, ema = optax.apply_updates(state.params, updates), state.ema
    if learning.ema:
        ema = optax.incremental_update(params, ema, 1 - learning.ema)
    rate = optax.tree_utils.tree_get(opt_state, "learning_rate")
    metrics = Metrics(loss * examples, errors, jnp.int32(examples), rate)
    state = state._replace(step=state.step + 1, params=params, batch_stats=batch_stats)
    return state._replace(opt_state=opt_state, ema=ema), metrics


def _accumulated(
    of_part: Callable[..., Any], learning: Learning, batch: Batch, key: Key[Array, ""]
) -> Any:
    """Adds up microbatches; running statistics are averaged over them."""
    parts, group = learning.accumulation, learning.group_size or 1

    def divided(array: Array) -> Array:
        # Every parts-th group: a microbatch lies on all devices of the batch.
        groups = array.reshape(-1, parts, group, *array.shape[1:])
        return groups.swapaxes(0, 1).reshape(parts, -1, *array.shape[1:])

    def add(totals: Tree, inputs: tuple[Batch, Array]) -> tuple[Tree, None]:
        part, number = inputs
        return jax.tree.map(jnp.add, totals, of_part(part, jax.random.fold_in(key, number))), None

    microbatches = jax.tree.map(divided, batch)
    shapes = jax.eval_shape(of_part, jax.tree.map(lambda array: array[0], microbatches), key)
    zeros = optax.tree.zeros_like(shapes)
    totals, _ = lax.scan(add, zeros, (microbatches, jnp.arange(parts)))
    (loss, (errors, batch_stats)), gradients = totals
    return (loss, (errors, jax.tree.map(lambda total: total / parts, batch_stats))), gradients


def losses(logits: Float[Array, "n classes"], batch: Batch, loss: Loss) -> Float[Array, "n"]:
    """Returns the loss of each image.

    Label smoothing: Szegedy et al. 2015, arXiv 1512.00567, Section 7. Binary: Wightman et al. 2021,
    arXiv 2110.00476, Section 2.2, with the smoothing and the threshold of timm.
    """
    targets = batch.targets
    if targets is None:
        if loss == Loss():
            return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
        targets = jax.nn.one_hot(batch.labels, logits.shape[-1])
    if loss.smoothing:
        targets = optax.smooth_labels(targets, loss.smoothing)
    if loss.kind == "softmax":
        return optax.softmax_cross_entropy(logits, targets)
    if loss.threshold is not None:
        targets = (targets > loss.threshold).astype(targets.dtype)
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets), axis=-1)


def add_batch_moments(
    state: TrainState,
    totals: Variables,
    data: Batch,
    preprocessing: Preprocessing,
    number: Int[Array, ""],
    learning: Learning,
) -> Variables:
    """Adds the means and mean squares of batch ``number``, averaged over BatchNorm's groups.

    ``learning.apply`` has a BatchNorm momentum of 0: its statistics are those of its input.
    """
    key = jax.random.fold_in(jax.random.fold_in(state.key, 4), state.step)
    batch_key = jax.random.fold_in(key, number + 1)
    indices = _indices(jax.random.fold_in(key, 0), number, 1, data, learning)
    indices = None if indices is None else indices[0]
    images, *_ = augment(batch_key, data, indices, preprocessing, learning)
    groups = images.reshape(-1, learning.group_size or learning.batch_size, *images.shape[1:])
    params, _ = state.scored()

    def moments(images: Array, key: Array) -> Variables:
        _, stats = learning.apply(params, state.batch_stats, images, train=True, key=key)
        return _map_variance(stats, lambda mean, var: var + mean * mean)

    of_groups = jax.vmap(moments)(groups, jax.random.split(batch_key, len(groups)))
    return jax.tree.map(lambda total, moment: total + moment.mean(axis=0), totals, of_groups)


def set_statistics(state: TrainState, totals: Variables, count: int) -> TrainState:
    """Sets mean and variance over all images of ``count`` batches."""
    moments = jax.tree.map(lambda total: total / count, totals)
    statistics = _map_variance(moments, lambda mean, var: jnp.maximum(var - mean * mean, 0))
    return state._replace(statistics=statistics)


def _map_variance(tree: dict, function: Callable[..., Array]) -> dict:
    """Replaces ``var`` by a function of ``mean`` and ``var`` in every layer."""
    if tree.keys() == {"mean", "var"}:
        return tree | {"var": function(**tree)}
    return {
        name: _map_variance(inner, function) if isinstance(inner, dict) else inner
        for name, inner in tree.items()
    }


@jax.jit
def finite(state: TrainState) -> Array:
    leaves = jax.tree.leaves(state._replace(key=()))
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in leaves]))
