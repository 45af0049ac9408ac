"""Random erasing of training images, on the device."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from resnet_jax.data import intervals

_TRIES = 10


@dataclass(frozen=True)
class RandomErasing:
    """Erases a box of random area, aspect ratio and position in some images. Zhong et al. 2017, arXiv 1708.04896.

    As in torchvision, ratios are log-uniform, and of ten boxes the first that is smaller than the image both ways is erased.
    Called with a key and normalized images.
    """

    probability: float = 0.1
    """Per image."""
    area: tuple[float, float] = (0.02, 0.33)
    """Range of the area, as a fraction of the image."""
    ratio: tuple[float, float] = (0.3, 3.3)
    """Range of height over width."""
    value: float = 0.0
    """Of erased pixels; 0 in normalized images is the mean."""

    def __post_init__(self) -> None:
        intervals.check(self, "probability", high=1)
        intervals.check_pair("area", self.area, 1)
        intervals.check_pair("ratio", self.ratio)

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
    """Mask (n, size) of the rows or columns of each box."""
    index = jnp.arange(size)
    return (index >= first[:, None]) & (index < (first + extent)[:, None])
