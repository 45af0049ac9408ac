"""Lesions of trained networks: units deleted, and exchanged. Veit et al. 2016 (arXiv 1605.06431), Section 4."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import stats

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact
from resnet_jax.evaluation.exact import Sums
from resnet_jax.lab import switched
from resnet_jax.lab.switched import HandedOn, Switched
from resnet_jax.models import Apply
from resnet_jax.models.pretrained.loading import Pretrained

Kind = Literal["none", "one", "several", "exchanged"]


class Lesion(NamedTuple):
    """What is done to a network."""

    kind: Kind
    deleted: tuple[int, ...] = ()
    """Units whose branch is deleted, in order."""
    order: tuple[int, ...] = ()
    """The unit that stands at each place; empty: each at its own."""
    pairs: int = 0
    """So many were exchanged, one after another."""

    @property
    def tau(self) -> float:
        """Kendall's rank correlation between the order of the units and their own: 1 where each stands at its own place."""
        found: Any = stats.kendalltau(range(len(self.order)), self.order) if self.order else (1.0, 0.0)
        return float(found[0])


def plan(
    exchangeable: Sequence[range], *, most_deleted: int = 20, most_exchanged: int = 20, draws: int = 10, seed: int = 0
) -> list[Lesion]:
    """The lesions of the paper: none, each unit alone, 1, 2, ... units at once (Figure 5a), 1, 2, ... pairs exchanged (Figure 5b).

    Args:
      exchangeable: runs of units of equal structure, which cover all of them, see ``ResNet.exchangeable``.
      most_deleted, most_exchanged: how many at once at most; no more than the network has but one.
      draws: of each number, at random.
      seed: of the draws.
    """
    units = exchangeable[-1].stop
    drawn = np.random.default_rng(seed)
    found = [Lesion("none"), *(Lesion("one", (unit,)) for unit in range(units))]
    for count in range(1, min(most_deleted, units - 1) + 1):
        for _ in range(draws):
            found.append(Lesion("several", tuple(sorted(drawn.choice(units, count, replace=False).tolist()))))
    pairs = [(one, other) for run in exchangeable for one in run for other in run if one < other]
    for count in range(1, most_exchanged + 1 if pairs else 1):
        for _ in range(draws):
            order = list(range(units))
            for number in drawn.integers(len(pairs), size=count):
                one, other = pairs[number]
                order[one], order[other] = order[other], order[one]
            found.append(Lesion("exchanged", order=tuple(order), pairs=count))
    return found


def measure(
    weights: Pretrained,
    examples: Examples,
    lesions: Sequence[Lesion],
    *,
    batch_size: int = 200,
    told: Callable[[int], None] = lambda _: None,
) -> Float[np.ndarray, "lesions"]:
    """Error after each lesion, percent. One program is compiled for all of them.

    A unit is deleted by a factor of 0 on its branch; one of a plain network, which has nothing else, hands on what it is given.

    Args:
      weights: the network, and how its images are prepared.
      examples: uint8 images of the network's size, and their classes.
      lesions: those that ``plan`` returns, or others.
      batch_size: images at once.
      told: is given the number of lesions measured so far.

    Raises:
      UserError: without images, or for units that the network does not have or that may not change places.
    """
    if not len(examples):
        raise UserError("there are no images to measure errors on: give at least one")
    network, runs = weights.architecture, exchangeable(weights)
    units = sum(network.stages)
    for lesion in lesions:
        _check(lesion, runs)
    apply = switched.network(network, HandedOn) if switched.is_plain(network) else weights.apply()
    variables, constants = (weights.params, weights.batch_stats), Preprocessing(*weights.card.constants())
    found = []
    for number, lesion in enumerate(lesions, 1):
        factors = jnp.asarray([float(unit not in lesion.deleted) for unit in range(units)])
        order = jnp.asarray(lesion.order or range(units))

        def score(images: Array, labels: Array, factors: Array = factors, order: Array = order) -> Sums:
            return _score(variables, constants, images, labels, factors, order, apply=apply)

        (tallied,) = exact.tally(score, examples, batch_size=batch_size, expected_examples=len(examples))
        found.append(tallied.error_percent)
        told(number)
    return np.asarray(found)


def exchangeable(weights: Pretrained) -> list[range]:
    """Runs of units that may change places."""
    return weights.build().exchangeable()


def _check(lesion: Lesion, runs: Sequence[range]) -> None:
    units = runs[-1].stop
    if lesion.deleted and not 0 <= min(lesion.deleted) <= max(lesion.deleted) < units:
        raise UserError(f"units {list(lesion.deleted)} are to be deleted, and the network has the units 0 to {units - 1}")
    # Inside the compiled program an order is not looked at.
    if lesion.order and any(sorted(lesion.order[run.start : run.stop]) != list(run) for run in runs):
        raise UserError(f"the order {list(lesion.order)} exchanges units of unequal structure: only {runs} may change places")


@functools.partial(jax.jit, static_argnames=("apply",))
def _score(
    variables: Any,
    constants: Preprocessing,
    images: Array,
    labels: Array,
    factors: Float[Array, "units"],
    order: Int[Array, "units"],
    *,
    apply: Apply | Switched,
) -> Sums:
    def lesioned(params: Any, batch_stats: Any, images: Array, *, train: bool) -> tuple[Array, Any]:
        if isinstance(apply, Switched):
            return apply(params, batch_stats, images, factors, permutation=order), batch_stats
        return apply(params, batch_stats, images, train=train, multipliers=factors, permutation=order)

    params, batch_stats = variables
    return exact.score_batch(params, batch_stats, constants, images, labels, apply=lesioned)
