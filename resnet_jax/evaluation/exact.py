"""Exact evaluation: sums over all examples of a set, for any batch size and number of devices."""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Sharding
from jaxtyping import Array, Bool, Float, Int, Int32, UInt8

from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.evaluation import protocols
from resnet_jax.models import Apply
from resnet_jax.models.resnet import Variables

TOP = 5


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
        return 100 * self.errors / self.examples

    @property
    def top5_error_percent(self) -> float:
        return 100 * self.top5_errors / self.examples

    @property
    def mean_loss(self) -> float:
        """Cross-entropy in nats."""
        return self.loss / self.examples


class Sums(NamedTuple):
    """Score of a batch, on the devices."""

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
    """Scores a batch; negative labels are padding."""
    real = labels >= 0
    logits = scores(params, batch_stats, preprocessing, images, apply=apply)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    wrong, wrong5 = (wrong & real for wrong in errors(logits, labels))
    return Sums(jnp.sum(wrong), jnp.sum(jnp.where(real, losses, 0)), jnp.sum(real), jnp.sum(wrong5))


def scores(
    params: Variables,
    batch_stats: Variables,
    preprocessing: Preprocessing,
    images: UInt8[Array, "n *views h w c"],
    *,
    apply: Callable[..., tuple[Array, Variables]],
) -> Float[Array, "n classes"]:
    """Returns the logits of images, or the logarithm of the softmax averaged over views."""
    views = math.prod(images.shape[1:-3])
    flat = images.reshape(-1, *images.shape[-3:])
    logits, _ = apply(params, batch_stats, preprocessing(flat), train=False)
    if views == 1:
        return logits
    # Averaged as logarithms, so that small probabilities do not underflow.
    logits = jax.nn.log_softmax(logits).reshape(len(images), views, -1)
    return jax.nn.logsumexp(logits, axis=1) - math.log(views)


def errors(
    scores: Float[Array, "n classes"], labels: Int32[Array, "n"]
) -> tuple[Bool[Array, "n"], Bool[Array, "n"]]:
    """Top-1 and top-5 errors. Ties go to the smaller class; non-finite scores are wrong."""
    of_label = jnp.take_along_axis(scores, jnp.maximum(labels, 0)[:, None], axis=1)
    before = jnp.arange(scores.shape[1]) < labels[:, None]
    better = jnp.sum((scores > of_label) | ((scores == of_label) & before), axis=1)
    # NaN compares as false, which would count as right.
    non_finite = ~jnp.all(jnp.isfinite(scores), axis=1)
    return (better >= 1) | non_finite, (better >= TOP) | non_finite


_score_batch = jax.jit(score_batch, static_argnames="apply")


def evaluate(
    apply: Apply,
    params: Variables,
    batch_stats: Variables,
    preprocessing: Preprocessing,
    data: Examples | Iterable[Examples],
    **options: Any,
) -> Score:
    """Scores every example once, with the options of ``tally``."""
    score = functools.partial(_score_batch, params, batch_stats, preprocessing, apply=apply)
    return tally(score, data, **options)


def tally(
    score: Callable[[Array, Array], Sums],
    data: Examples | Iterable[Examples],
    *,
    batch_size: int,
    expected_examples: int,
    sharding: Sharding | None = None,
    processes: int = 1,
    between: Callable[[], None] = lambda: None,
) -> Score:
    """Adds up ``score`` of images and labels over all batches; labels of padding are -1.

    Args:
      data: a set in host memory, or batches of at most ``batch_size`` views.
      batch_size: views per call, rounded up to a multiple of the devices.
      sharding: of a batch; None: one device.
      processes: number of processes that yield equal parts of every batch; 1: batches are global.
      between: called after every batch; may raise to stop.
    """
    shards = sharding.num_devices if sharding else 1
    sums: list[Sums] = []
    for batch in _batches(data, batch_size) if isinstance(data, Examples) else data:
        views = math.prod(batch.images.shape[1:-3])
        rows = protocols.rows(batch_size, views, shards) // processes
        images = place(batch.images, rows, sharding, processes)
        labels = place(batch.labels, rows, sharding, processes, padding=-1)
        sums.append(score(images, labels))
        if len(sums) > 2:
            # Bounds device memory: dispatch is faster than computation.
            jax.block_until_ready(sums[-3])
        between()
    # In float64 on the host: up to rounding, the loss does not depend on the batch size.
    totals = np.asarray(jax.device_get(sums), np.float64).sum(axis=0)
    errors, loss, examples, top5_errors = totals.tolist()
    if examples != expected_examples:
        scored = f"{int(examples)} examples were scored"
        raise RuntimeError(f"{scored}, the set has {expected_examples}. Report this.")
    return Score(int(errors), loss, int(examples), int(top5_errors))


def place(
    array: np.ndarray, rows: int, sharding: Sharding | None, processes: int = 1, *, padding: int = 0
) -> Array:
    """Pads a batch, or the part of one process, to ``rows`` rows and puts it on the devices."""
    if missing := rows - len(array):
        widths = [(0, missing)] + [(0, 0)] * (array.ndim - 1)
        array = np.pad(array, widths, constant_values=padding)
    if sharding is None:
        return jax.device_put(array)
    # A process with the global batch gives its devices their rows.
    shape = (processes * rows, *array.shape[1:])
    return jax.make_array_from_process_local_data(sharding, array, shape)


def _batches(data: Examples, batch_size: int) -> Iterator[Examples]:
    for start in range(0, len(data), batch_size):
        part = slice(start, start + batch_size)
        yield Examples(data.images[part], data.labels[part])
