"""Exact evaluation: sums over all examples of a set, for any batch size and number of devices."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.evaluation import views
from resnet_jax.models import Apply
from resnet_jax.models.resnet import Variables

TOP = 5
# Batches that wait on the devices, beside the one that they compute.
_WAITING = 2


@dataclass(frozen=True)
class Score:
    """Sums over the examples of a set."""

    errors: int
    loss: float
    examples: int
    top5_errors: int
    """Labels that are not among the five best classes."""

    @property
    def error_percent(self) -> float:
        """Top-1 error."""
        return 100 * self.errors / self.examples

    @property
    def top5_error_percent(self) -> float:
        """Top-5 error."""
        return 100 * self.top5_errors / self.examples

    @property
    def mean_loss(self) -> float:
        """Cross-entropy in nats."""
        return self.loss / self.examples


class Sums(NamedTuple):
    """Sums over the examples of a batch."""

    errors: Int[Array, ""]
    loss: Float[Array, ""]
    examples: Int[Array, ""]
    top5_errors: Int[Array, ""]


def score_batch(
    params: Variables,
    batch_stats: Variables,
    preprocessing: Preprocessing,
    images: UInt8[Array, "n *views h w c"],
    labels: Int32[Array, "n"],
    *,
    apply: Callable[..., tuple[Array, Variables]],
) -> Sums:
    """Scores one batch; negative labels mark padding. Softmax scores of several views are averaged, and the loss is that of the average."""
    real = labels >= 0
    shape = images.shape[1:-3]
    logits, _ = apply(
        params, batch_stats, preprocessing(images.reshape(-1, *images.shape[-3:])), train=False
    )
    if shape:
        # Averaged as logarithms, so that small probabilities do not underflow.
        scores = jax.nn.log_softmax(logits).reshape(len(labels), math.prod(shape), -1)
        logits = jax.nn.logsumexp(scores, axis=1) - math.log(math.prod(shape))
        losses = -jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    wrong, wrong5 = (wrong & real for wrong in errors(logits, labels))
    return Sums(jnp.sum(wrong), jnp.sum(jnp.where(real, losses, 0)), jnp.sum(real), jnp.sum(wrong5))


def errors(
    scores: Float[Array, "n classes"], labels: Int32[Array, "n"]
) -> tuple[Bool[Array, "n"], Bool[Array, "n"]]:
    """Top-1 and top-5 errors; ties go to the smaller class. Non-finite scores are errors."""
    of_label = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[:, None], axis=1)
    before = jnp.arange(scores.shape[1]) < labels[:, None]
    better = jnp.sum((scores > of_label) | ((scores == of_label) & before), axis=1)
    # NaN compares as false, which would count as right.
    non_finite = ~jnp.all(jnp.isfinite(scores), axis=1)
    return (better >= 1) | non_finite, (better >= TOP) | non_finite


def evaluate(
    apply: Apply,
    params: Variables,
    batch_stats: Variables,
    preprocessing: Preprocessing,
    data: Examples | Iterable[Examples],
    *,
    batch_size: int,
    expected_examples: int,
    sharding: jax.sharding.Sharding | None = None,
) -> Score:
    """Scores every example of ``data`` once; the last batch is padded and masked.

    Args:
      data: images and labels in host memory, or batches of at most ``batch_size`` of them.
      batch_size: views per call, rounded up to a multiple of the devices.
      expected_examples: number of examples according to the set's metadata.
      sharding: of a batch.
      Others: the network, and the statistics it was trained with.

    Raises:
      RuntimeError: if the number of scored examples is not ``expected_examples``.
    """

    def score(images: Array, labels: Array) -> Sums:
        return _score_batch(params, batch_stats, preprocessing, images, labels, apply=apply)

    return tally(
        score, data, batch_size=batch_size, expected_examples=expected_examples, sharding=sharding
    )


_score_batch = functools.partial(jax.jit, static_argnames=("apply",))(score_batch)


def tally(
    score: Callable[[Array, Array], Sums],
    data: Examples | Iterable[Examples],
    *,
    batch_size: int,
    expected_examples: int,
    sharding: jax.sharding.Sharding | None = None,
    processes: int = 1,
    between: Callable[[], None] = lambda: None,
) -> Score:
    """Adds up the sums of ``score`` over all batches.

    Args:
      Others: as of ``evaluate``.
      processes: number of processes that each yield their own equal part of every batch; 1: batches are global.
      between: called after every batch; may raise to stop.
    """
    sums: list[Sums] = []
    for batch in _batches(data, batch_size) if isinstance(data, Examples) else data:
        sums.append(score(*_placed(batch, batch_size, sharding, processes)))
        if len(sums) > _WAITING:
            # Bounds the device memory of batches that are dispatched faster than computed.
            jax.block_until_ready(sums[-1 - _WAITING])
        between()
    # Added in float64 on the host, so that the loss does not depend on the batch size beyond rounding.
    errors, loss, examples, top5_errors = (
        np.sum(parts, dtype=np.float64) for parts in zip(*jax.device_get(sums), strict=True)
    )
    if examples != expected_examples:
        raise RuntimeError(
            f"{int(examples)} examples were scored, the set has {expected_examples}: this is a defect, please report it"
        )
    return Score(int(errors), float(loss), int(examples), int(top5_errors))


def _placed(
    batch: Examples, batch_size: int, sharding: jax.sharding.Sharding | None, processes: int
) -> tuple[Array, Array]:
    """Pads a batch and puts it on the devices."""
    images, labels = batch.images, batch.labels
    shards = 1 if sharding is None else sharding.num_devices
    whole = views.rows(batch_size, math.prod(images.shape[1:-3]), shards)
    missing = max(whole // processes, views.rows(len(labels), 1, shards // processes)) - len(labels)
    if missing:
        images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
        labels = np.concatenate([labels, np.full(missing, -1, labels.dtype)])
    if processes > 1:
        return tuple(
            jax.make_array_from_process_local_data(sharding, array) for array in (images, labels)
        )
    if sharding is None:
        return jax.device_put((images, labels))
    # Every process holds the global batch and gives its devices their rows.
    return (
        jax.make_array_from_callback(images.shape, sharding, lambda rows: images[rows]),
        jax.make_array_from_callback(labels.shape, sharding, lambda rows: labels[rows]),
    )


def _batches(data: Examples, batch_size: int) -> Iterator[Examples]:
    for start in range(0, len(data), batch_size):
        yield Examples(
            data.images[start : start + batch_size], data.labels[start : start + batch_size]
        )
