"""Boxes of training images made blank, on the device."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from resnet_jax.data import intervals

_TRIES = 10


@dataclass(frozen=True)
class RandomErasing:
    """A box of random area, aspect ratio and place, in some of the images. Zhong et al. 2017, arXiv 1708.04896; torchvision's algorithm.

    Ratios are uniform in their logarithm. Ten boxes are drawn and the first is taken that is smaller than the image both ways; where none
    is, the image stays as it is. A part, called with a key and normalised images.

    Raises:
      UserError: for values outside their bounds.
    """

    probability: float = 0.1
    """Of each image."""
    area: tuple[float, float] = (0.02, 0.33)
    """Least and most of the image's area."""
    ratio: tuple[float, float] = (0.3, 3.3)
    """Least and most height over width."""
    value: float = 0.0
    """Of erased pixels; 0 in normalised images is the mean."""

    def __post_init__(self) -> None:
        intervals.check_at_least("probability", self.probability, 0, 1)
        intervals.check("area", self.area, most=1)
        intervals.check("ratio", self.ratio)

    def __call__(self, key: Key[Array, ""], images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        count, height, width, _ = images.shape
        chosen_key, area_key, ratio_key, row_key, column_key = jax.random.split(key, 5)
        area = height * width * jax.random.uniform(area_key, (count, _TRIES), minval=self.area[0], maxval=self.area[1])
        logarithms = map(math.log, self.ratio)
        ratio = jnp.exp(jax.random.uniform(ratio_key, (count, _TRIES), jnp.float32, *logarithms))
        rows, columns = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32), jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
        fits = (rows < height) & (columns < width)
        first = jnp.argmax(fits, axis=1, keepdims=True)
        fit, rows, columns = (jnp.take_along_axis(values, first, axis=1)[:, 0] for values in (fits, rows, columns))
        top = jax.random.randint(row_key, (count,), 0, jnp.maximum(height - rows + 1, 1))
        left = jax.random.randint(column_key, (count,), 0, jnp.maximum(width - columns + 1, 1))
        chosen = fit & jax.random.bernoulli(chosen_key, self.probability, (count,))
        down = _between(height, top, rows) & chosen[:, None]
        erased = down[:, :, None, None] & _between(width, left, columns)[:, None, :, None]
        return jnp.where(erased, jnp.asarray(self.value, images.dtype), images)


def _between(size: int, first: Array, extent: Array) -> Array:
    """Of each image (n, size): which rows or columns are in its box."""
    index = jnp.arange(size)
    return (index >= first[:, None]) & (index < (first + extent)[:, None])
