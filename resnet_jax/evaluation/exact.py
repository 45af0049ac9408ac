"""The score of a network on a whole set: sums over all examples, whatever the batch size or the number of devices."""

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

from resnet_jax.data import views
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.models import Apply
from resnet_jax.models.architecture import Variables

# A label that is among so many best answers is no error of the papers' second number.
TOP = 5
# Batches that may wait on the devices, beside the one that they compute.
_WAITING = 2


@dataclass(frozen=True)
class Score:
    """Sums over the examples of a set."""

    errors: int
    loss: float
    examples: int
    top5_errors: int
    """Of labels that are not among the five best answers; of at most five classes only a network that is not finite has any."""

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
    """Over the examples of a batch; of each of several networks where they have an axis."""

    errors: Int[Array, "..."]
    loss: Float[Array, "..."]
    examples: Int[Array, "..."]
    top5_errors: Int[Array, "..."]


def score_batch(
    params: Variables,
    batch_stats: Variables,
    preprocessing: Preprocessing,
    images: UInt8[Array, "n *views h w c"],
    labels: Int32[Array, "n"],
    *,
    apply: Callable[..., tuple[Array, Variables]],
) -> Sums:
    """Scores one batch; a negative label marks padding and counts nowhere.

    Where an image stands there in several views, its softmax scores are averaged over them, and the loss is that of the average.
    ``apply`` is called as an ``Apply`` is.
    """
    real = labels >= 0
    shape = images.shape[1:-3]
    logits, _ = apply(params, batch_stats, preprocessing(images.reshape(-1, *images.shape[-3:])), train=False)
    if shape:
        # Logarithms of the averages: the losses and the order are theirs, and what is hardly probable is no zero.
        scores = jax.nn.log_softmax(logits).reshape(len(labels), math.prod(shape), -1)
        logits = jax.nn.logsumexp(scores, axis=1) - math.log(math.prod(shape))
        losses = -jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    wrong, wrong5 = (wrong & real for wrong in errors(logits, labels))
    return Sums(jnp.sum(wrong), jnp.sum(jnp.where(real, losses, 0)), jnp.sum(real), jnp.sum(wrong5))


def errors(answers: Float[Array, "n classes"], labels: Int32[Array, "n"]) -> tuple[Bool[Array, "n"], Bool[Array, "n"]]:
    """Whether a label is not the best answer, and whether it is not among the five best; of equal ones the first counts as the better."""
    of_label = jnp.take_along_axis(answers, jnp.maximum(labels, 0)[:, None], axis=1)
    before = jnp.arange(answers.shape[1]) < labels[:, None]
    better = jnp.sum((answers > of_label) | ((answers == of_label) & before), axis=1)
    # A network that diverged answers nothing, neither rightly nor wrongly: it compares as if it answered the label.
    nothing = ~jnp.all(jnp.isfinite(answers), axis=1)
    return (better >= 1) | nothing, (better >= TOP) | nothing


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
      apply, params, batch_stats: the network and its variables.
      preprocessing: the constants it was trained with.
      data: images and labels in host memory, or batches of at most ``batch_size`` of them.
      batch_size: examples a call; where an image stands there in several views, so many views. Where the devices do not divide it: the next
        multiple.
      expected_examples: the set's own number of examples, from its description and not from ``data``.
      sharding: of a batch.

    Raises:
      RuntimeError: where the number scored is not ``expected_examples``.
    """

    def score(images: Array, labels: Array) -> Sums:
        return _score_batch(params, batch_stats, preprocessing, images, labels, apply=apply)

    (found,) = tally(score, data, batch_size=batch_size, expected_examples=expected_examples, sharding=sharding)
    return found


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
) -> list[Score]:
    """Adds up the sums that ``score`` finds in each batch of images and labels; one score for each network that it scores at once.

    ``processes``: of how many the batches are equal parts, each process giving its own; 1: they are whole, wherever they are.
    ``between`` is called after every batch, and ends the tally by raising.

    Raises:
      RuntimeError: as ``evaluate``.
    """
    sums: list[Sums] = []
    for batch in _batches(data, batch_size) if isinstance(data, Examples) else data:
        sums.append(score(*_placed(batch, batch_size, sharding, processes)))
        if len(sums) > _WAITING:
            # Images may come faster than they are scored, and wait in the devices' memory.
            jax.block_until_ready(sums[-1 - _WAITING])
        between()
    fetched = zip(*jax.device_get(sums), strict=True)
    # Added in double precision on the host: exact counts, and a loss that does not depend on the batch size beyond rounding.
    totals = (np.atleast_1d(np.sum(parts, axis=0, dtype=np.float64)) for parts in fetched)
    scores = [Score(int(e), float(lost), int(n), int(e5)) for e, lost, n, e5 in zip(*totals, strict=True)]
    for found in scores:
        check(found.examples, expected_examples)
    return scores


def check(scored: int, expected: int) -> None:
    """Raises RuntimeError where an example was left out or scored twice."""
    if scored != expected:
        raise RuntimeError(f"{scored} examples were scored, the set has {expected}: this is a defect, please report it")


def _placed(batch: Examples, batch_size: int, sharding: jax.sharding.Sharding | None, processes: int) -> tuple[Array, Array]:
    """Fills a batch up and puts it on the devices."""
    images, labels = batch.images, batch.labels
    shards = 1 if sharding is None else sharding.num_devices
    whole = views.rows(batch_size, math.prod(images.shape[1:-3]), shards)
    missing = max(whole // processes, views.rows(len(labels), 1, shards // processes)) - len(labels)
    if missing:
        images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
        labels = np.concatenate([labels, np.full(missing, -1, labels.dtype)])
    if processes > 1:
        return tuple(jax.make_array_from_process_local_data(sharding, array) for array in (images, labels))
    if sharding is None:
        return jax.device_put((images, labels))
    # Every process has the whole batch, and gives its devices their rows of it.
    return (
        jax.make_array_from_callback(images.shape, sharding, lambda rows: images[rows]),
        jax.make_array_from_callback(labels.shape, sharding, lambda rows: labels[rows]),
    )


def _batches(data: Examples, batch_size: int) -> Iterator[Examples]:
    for start in range(0, len(data), batch_size):
        yield Examples(data.images[start : start + batch_size], data.labels[start : start + batch_size])
