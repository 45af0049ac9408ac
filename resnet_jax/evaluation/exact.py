"""The score of a network on a whole set: sums over all examples, whatever the batch size or the number of devices."""

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Int32, UInt8

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.models import Apply
from resnet_jax.models.architecture import Variables


@dataclass(frozen=True)
class Score:
    """Sums over the examples of a set."""

    errors: int
    loss: float
    examples: int

    @property
    def error_percent(self) -> float:
        """Top-1 error."""
        return 100 * self.errors / self.examples

    @property
    def mean_loss(self) -> float:
        """Cross-entropy in nats."""
        return self.loss / self.examples


# Errors, summed loss and number of the examples of a batch; of each of several networks where they have an axis.
Sums = tuple[Int[Array, "..."], Float[Array, "..."], Int[Array, "..."]]


def score_batch(
    params: Variables,
    batch_stats: Variables,
    preprocessing: Preprocessing,
    images: UInt8[Array, "n h w c"],
    labels: Int32[Array, "n"],
    *,
    apply: Apply,
) -> Sums:
    """Errors, summed loss and number of the examples of one batch; a negative label marks padding and counts nowhere."""
    real = labels >= 0
    logits, _ = apply(params, batch_stats, preprocessing(images), train=False)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    # A network that diverged answers nothing; argmax would have it answer class 0.
    wrong = (jnp.argmax(logits, axis=-1) != labels) | ~jnp.all(jnp.isfinite(logits), axis=-1)
    return jnp.sum(wrong & real), jnp.sum(jnp.where(real, losses, 0)), jnp.sum(real)


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
      batch_size: examples a call.
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
) -> list[Score]:
    """Adds up the sums that ``score`` finds in each batch of images and labels; one score for each network that it scores at once.

    Raises:
      RuntimeError: as ``evaluate``.
    """
    sums = []
    for batch in _batches(data, batch_size) if isinstance(data, Examples) else data:
        images, labels = batch.images, batch.labels
        missing = batch_size - len(labels)
        if missing:
            images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
            labels = np.concatenate([labels, np.full(missing, -1, labels.dtype)])
        images, labels = jax.device_put((images, labels), sharding)
        sums.append(score(images, labels))
    fetched = zip(*jax.device_get(sums), strict=True)
    # Added in double precision on the host: exact counts, and a loss that does not depend on the batch size beyond rounding.
    errors, losses, counts = (np.atleast_1d(np.sum(parts, axis=0, dtype=np.float64)) for parts in fetched)
    scores = [Score(int(e), float(lost), int(n)) for e, lost, n in zip(errors, losses, counts, strict=True)]
    for found in scores:
        if found.examples != expected_examples:
            raise RuntimeError(
                f"{found.examples} examples were scored, the set has {expected_examples}: this is a defect, please report it"
            )
    return scores


def _batches(data: Examples, batch_size: int) -> Iterator[Examples]:
    for start in range(0, len(data), batch_size):
        yield Examples(data.images[start : start + batch_size], data.labels[start : start + batch_size])
