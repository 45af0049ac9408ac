"""The loss around a trained network: slices along filter-normalised random directions. Li et al. 2018 (arXiv 1712.09913), Section 4."""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.evaluation.exact import Sums
from resnet_jax.models import Apply
from resnet_jax.models.architecture import Variables
from resnet_jax.models.pretrained.loading import Pretrained


class Landscape(NamedTuple):
    """A slice through the parameters, in inference with the running statistics; the network itself stands at its centre."""

    offsets: Float[np.ndarray, "points"]
    """Along either direction, in norms of each filter."""
    loss: Float[np.ndarray, "points points"]
    """Mean cross-entropy in nats, by the offset along the first direction and along the second; it may be not finite."""
    error_percent: Float[np.ndarray, "points points"]

    @property
    def centre(self) -> float:
        """Loss of the network itself."""
        return float(self.loss[len(self.offsets) // 2, len(self.offsets) // 2])

    @property
    def highest(self) -> float:
        """What is not a number counts as infinite, here and below."""
        return float(np.max(self._losses()))

    def at(self, distance: float) -> float:
        """Median loss of the points at a distance from the centre, within half a step of the grid."""
        ring = np.abs(np.hypot(self.offsets[:, None], self.offsets) - distance) <= (self.offsets[1] - self.offsets[0]) / 2
        return float(np.median(self._losses()[ring]))

    def percent_below(self, loss: float) -> float:
        """Share of the points."""
        return 100 * float(np.mean(self._losses() < loss))

    def _losses(self) -> Float[np.ndarray, "points points"]:
        return np.where(np.isnan(self.loss), np.inf, self.loss)


def directions(params: Variables, seed: int, number: int) -> Variables:
    """A Gaussian direction whose filters have the norms of the filters of the parameters: d_ij / |d_ij| times |theta_ij| (Section 4).

    A filter is what gives a convolution one channel, and the linear layer one class. What belongs to none, biases and normalisations, has
    no direction, as in the authors' figures (``ignore='biasbn'`` in their code). The same seed draws the same numbers at the same place of
    any network, so that twins go the same way.

    Args:
      params: of a network, nested.
      seed: of all directions.
      number: of this one.
    """

    def one(path: Any, leaf: Any) -> np.ndarray:
        stacked = any(getattr(part, "key", None) == "stacked" for part in path)
        if leaf.ndim - stacked <= 1:
            return np.zeros(leaf.shape, np.float32)
        place = zlib.crc32(jax.tree_util.keystr(path).encode())
        drawn = np.random.default_rng((seed, number, place)).standard_normal(leaf.shape)
        # Each unit of a stack has filters of its own.
        axes = tuple(range(int(stacked), leaf.ndim - 1))
        norms, ours = (np.sqrt(np.square(np.float64(each)).sum(axes, keepdims=True)) for each in (leaf, drawn))
        return np.asarray(drawn / ours * norms, np.float32)

    return jax.tree.map_with_path(one, params)


def measure(
    weights: Pretrained,
    examples: Examples,
    *,
    points: int = 21,
    reach: float = 1.0,
    seed: int = 0,
    batch_size: int = 200,
    told: Callable[[int], None] = lambda _: None,
) -> Landscape:
    """Measures the loss on a square grid. One program is compiled for all of it.

    Args:
      weights: the network, and how its images are prepared.
      examples: uint8 images of the network's size, and their classes.
      points: along either direction; odd, so that the network is one of them.
      reach: the farthest along either direction, in norms of each filter; 1 in the paper.
      seed: of the two directions.
      batch_size: images at once.
      told: is given the number of points measured so far.

    Raises:
      UserError: without images, for fewer than 3 points or an even number of them, a reach that is none, and a seed below 0.
    """
    if not len(examples):
        raise UserError("there are no images to measure losses on: give at least one")
    if points < 3 or points % 2 == 0:
        raise UserError(f"{points} points along a direction: give an odd number, 3 or more, so that the network itself is one of them")
    if not 0 < reach < math.inf:
        raise UserError(f"the reach is {reach}: give a length above 0, where 1 is the norm of each filter")
    if seed < 0:
        raise UserError(f"the seed is {seed}: give 0 or more")
    half = points // 2
    # Exactly 0 in the middle.
    offsets = reach * np.arange(-half, half + 1) / half
    both = jax.device_put(tuple(directions(weights.params, seed, number) for number in (0, 1)))
    variables, constants, apply = (
        jax.device_put((weights.params, weights.batch_stats)),
        Preprocessing(*weights.card.constants()),
        weights.apply(),
    )
    loss, error = np.zeros((2, points, points))
    for number, place in enumerate(np.ndindex(points, points), 1):
        at = jnp.asarray(offsets[list(place)], jnp.float32)

        def score(images: Array, labels: Array, at: Array = at) -> Sums:
            return _score(variables, both, at, constants, images, labels, apply=apply)

        (tallied,) = exact.tally(score, examples, batch_size=batch_size, expected_examples=len(examples))
        loss[place], error[place] = tallied.mean_loss, tallied.error_percent
        told(number)
    return Landscape(offsets, loss, error)


@functools.partial(jax.jit, static_argnames=("apply",))
def _score(
    variables: Any,
    both: tuple[Variables, Variables],
    at: Float[Array, "2"],
    constants: Preprocessing,
    images: Array,
    labels: Array,
    *,
    apply: Apply,
) -> Sums:
    params, batch_stats = variables
    moved = jax.tree.map(lambda leaf, first, second: leaf + at[0] * first + at[1] * second, params, *both)
    return exact.score_batch(moved, batch_stats, constants, images, labels, apply=apply)
