"""Paths through networks: how long they are, and which carry the gradient. Veit et al. 2016 (arXiv 1605.06431), Section 4.3."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from scipy import special

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.lab import switched
from resnet_jax.lab.switched import Switched
from resnet_jax.models.pretrained.loading import Pretrained

MOST = 0.95
"""Share of the gradient that the effective paths carry at least; the paper says "almost all"."""


class Paths(NamedTuple):
    """Of a network of n units and 2^n paths, by their length: the number of branches that they pass."""

    lengths: Int[np.ndarray, "lengths"]
    """0 to n."""
    share: Float[np.ndarray, "lengths"]
    """Of all paths (Figure 6a)."""
    gradient: Float[np.ndarray, "draws lengths"]
    """Norm of the gradient that one path of each length carries to an image, mean over images; one row a draw (Figure 6b)."""
    carried: Float[np.ndarray, "lengths"]
    """Share of the gradient: the norm, mean over draws, times the number of paths (Figure 6c); their sum is 1."""

    @property
    def effective(self) -> range:
        """Lengths of the effective paths."""
        return shortest(self.carried, MOST)


def measure(
    weights: Pretrained,
    examples: Examples,
    *,
    draws: int = 10,
    batch_size: int = 200,
    seed: int = 0,
    told: Callable[[int], None] = lambda _: None,
) -> Paths:
    """Samples the gradients of paths of every length. One program is compiled for all of them.

    As in the paper, what is given on is that of the whole network; on the way back k units, drawn at random, propagate through their
    branch alone, and all others through their shortcut alone. The gradient is that of an image's loss, cross-entropy, by the image as
    the network takes it, normalised; in inference mode.

    Args:
      weights: the network, and how its images are prepared.
      examples: uint8 images of the network's size, and their classes.
      draws: paths of each length, the same ones for all images.
      batch_size: images at once.
      seed: of the draws.
      told: is given the number of paths measured so far.

    Raises:
      UserError: without images or draws, for a plain network, and where gradients are not finite or all of them are zero.
    """
    network, count = weights.architecture, len(examples)
    if not count or min(draws, batch_size) < 1:
        raise UserError(f"{count} images, {batch_size} at once, and {draws} draws show nothing of a gradient: give at least 1 of each")
    if switched.is_plain(network):
        raise UserError(f"{weights.card.source} is a plain network, which has one path: give a residual one")
    units, size = sum(network.stages), min(batch_size, count)
    apply = switched.network(network, switched.routed(network.shortcut))
    variables, constants = (weights.params, weights.batch_stats), Preprocessing(*weights.card.constants())
    # The last batch is filled up with the first images, which count once.
    rows = [np.arange(start, start + size) % count for start in range(0, count, size)]
    batches = [jax.device_put((examples.images[each], examples.labels[each])) for each in rows]
    norms = []
    for number, switches in enumerate(drawn(units, draws, seed).reshape(-1, units), 1):
        found = [_norms(variables, constants, *batch, switches, apply=apply) for batch in batches]
        norms.append(np.concatenate(jax.device_get(found))[:count].mean(dtype=np.float64))
        told(number)
    gradient = np.reshape(norms, (draws, units + 1))
    if not np.isfinite(gradient).all():
        length = int(np.argmin(np.isfinite(gradient).all(0)))
        raise UserError(f"paths of length {length} through {weights.card.source} carry a gradient that is not finite: did it diverge?")
    if not gradient.any():
        raise UserError(f"no path through {weights.card.source} carries any gradient from {count} images: give more of them, or others")
    return Paths(np.arange(units + 1), shares(units), gradient, carried(gradient.mean(0)))


def drawn(units: int, draws: int, seed: int) -> Float[np.ndarray, "draws lengths units"]:
    """Paths of each length 0 to ``units`` at random: 1 for the units whose branch they pass, 0 for the others."""
    places = np.tile(np.arange(units), (draws, units + 1, 1))
    ranks = np.random.default_rng(seed).permuted(places, axis=-1)
    return (ranks < np.arange(units + 1)[:, None]).astype(np.float32)


def shares(units: int) -> Float[np.ndarray, "lengths"]:
    """Of all paths, those of each length: C(n, k) / 2^n."""
    # Python's integers and their quotients are exact, and neither overflows.
    return np.asarray([math.comb(units, length) / 2**units for length in range(units + 1)])


def carried(gradient: Float[np.ndarray, "lengths"]) -> Float[np.ndarray, "lengths"]:
    """Shares of the whole gradient by length, from that of one path of each: C(n, k) times that, over the sum of all."""
    units = len(gradient) - 1
    with np.errstate(divide="ignore"):
        logs = np.log(gradient) + [math.log(math.comb(units, length)) for length in range(units + 1)]
    return special.softmax(logs)


def shortest(parts: Float[np.ndarray, "lengths"], least: float) -> range:
    """The shortest run of neighbours whose sum is at least ``least``, and of those that with the largest; all, where none is."""
    upto = np.concatenate([[0.0], np.cumsum(parts)])
    for size in range(1, len(parts) + 1):
        sums = upto[size:] - upto[:-size]
        # Sums that are equal on paper may differ in their last digits.
        if sums.max() >= least - 1e-12:
            start = int(sums.argmax())
            return range(start, start + size)
    return range(len(parts))


@functools.partial(jax.jit, static_argnames=("apply",))
def _norms(
    variables: Any, constants: Preprocessing, images: Array, labels: Array, switches: Float[Array, "units"], *, apply: Switched
) -> Float[Array, "n"]:
    params, batch_stats = variables

    def loss(prepared: Float[Array, "n h w c"]) -> Float[Array, ""]:
        logits = apply(params, batch_stats, prepared, switches)
        # No image is seen by another's loss in inference mode: the gradient of the sum has that of each.
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    slopes = jax.grad(loss)(constants(images)).reshape(len(images), -1)
    # What long paths carry may be so little that float32 has no squares of it.
    largest = jnp.abs(slopes).max(1)
    return largest * jnp.linalg.norm(slopes / jnp.where(largest > 0, largest, 1)[:, None], axis=1)
