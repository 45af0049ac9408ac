"""How far units are from the identity, and what that leaves to their branches.

"If an identity mapping were optimal, it would be easier to push the residual to zero than to fit an identity mapping by a stack of
nonlinear layers" (He et al. 2015, Section 3.1). A unit that maps 5 to 5.1 is a whole H(5) = 5.1, or a branch F(5) = 0.1 beside 5: where 5.2
is wanted, the whole changes by 2 %, and the branch by 100 %.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.lab.responses import length
from resnet_jax.models import Apply, Execution, activations
from resnet_jax.models.pretrained.loading import Pretrained


class Identity(NamedTuple):
    """Of each unit of a network in inference; means over images of ratios of lengths, each over all values of an image.

    The whole is the branch with what travels beside it, before what the order has behind the addition. Where there is no whole as wide as
    the branch (features are concatenated), numbers are NaN.
    """

    distance: Float[np.ndarray, "units"]
    """Of the whole from what came in, carried by the shortcut to another size or width; over its length. NaN where nothing carries it."""
    leverage: Float[np.ndarray, "units"]
    """Length of the whole over that of the branch: by so many percent a branch has to change for 1 percent of the whole."""
    branch_change: Float[np.ndarray, "units"]
    """Of the branch where the image changes a little, over its length."""
    whole_change: Float[np.ndarray, "units"]
    """Of the whole."""


def measure(weights: Pretrained, examples: Examples, *, change: float = 0.02, batch_size: int = 200, seed: int = 0) -> Identity:
    """Measures a network.

    Args:
      weights: the network, and how its images are prepared.
      examples: uint8 images of the network's size, and their classes.
      change: length of the noise on an image, over that of the image as the network takes it.
      batch_size: images at once.
      seed: of the noise.

    Raises:
      UserError: without images, or for a change that is not above 0.
    """
    if not len(examples) or not change > 0:
        raise UserError(f"there are {len(examples)} images, and the change is {change}: give at least 1 image, and a change above 0")
    apply, units = weights.apply(Execution(blocks="loop", convolution="plain")), sum(weights.architecture.stages)
    variables, constants = (weights.params, weights.batch_stats), Preprocessing(*weights.card.constants())
    sums = []
    for start in range(0, len(examples), batch_size):
        key = jax.random.fold_in(jax.random.key(seed), start)
        images = examples.images[start : start + batch_size]
        sums.append(jax.device_get(_sums(variables, constants, images, key, change, apply=apply, units=units)))
    means: list[Any] = [np.sum(each, axis=0, dtype=np.float64) / len(examples) for each in zip(*sums, strict=True)]
    return Identity(*means)


@functools.partial(jax.jit, static_argnames=("apply", "units"))
def _sums(
    variables: Any, constants: Preprocessing, images: Array, key: Key[Array, ""], change: Float[ArrayLike, ""], *, apply: Apply, units: int
) -> tuple[Float[Array, "units"], ...]:
    (params, batch_stats), images = variables, constants(images)
    noise = jax.random.normal(key, images.shape)
    noise *= (change * length(images) / length(noise)).reshape(-1, 1, 1, 1)
    looked_at = tuple(f"unit*{part}" for part in ("/branch", "/shortcut", activations.INPUT))

    def look(images: Array) -> dict[str, Array]:
        _, found = activations.of(apply, params, batch_stats, images, looked_at)
        return {name: value.astype(jnp.float32) for name, value in found.items()}

    before, after = look(images), look(images + noise)
    names = [tuple(part.replace("*", str(unit)) for part in looked_at) for unit in range(units)]
    rows = [_unit(*(tuple(each[name] for name in named) for each in (before, after))) for named in names]
    return tuple(jnp.stack(column) for column in zip(*rows, strict=True))


def _unit(before: tuple[Array, ...], after: tuple[Array, ...]) -> tuple[Array, ...]:
    """Sums over images of what ``Identity`` has of a unit, from its branch, its whole and its input without and with the noise."""
    (branch, whole, given), (branch_then, whole_then, _) = before, after
    branch_change = (length(branch_then - branch) / length(branch)).sum()
    if whole.shape != branch.shape:
        none = jnp.full_like(branch_change, jnp.nan)
        return none, none, branch_change, none
    carried = given if given.shape == whole.shape else whole - branch
    return (
        # What a plain unit resizes is carried by nothing.
        jnp.where(length(carried) > 0, length(whole - carried) / length(carried), jnp.nan).sum(),
        (length(whole) / length(branch)).sum(),
        branch_change,
        (length(whole_then - whole) / length(whole)).sum(),
    )
