"""Random changes of colour, on the device. Parts, called with a key and images between 0 and 1."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

from resnet_jax.data import intervals
from resnet_jax.errors import UserError

# Principal components of the colours of ImageNet's pixels, scale 0 to 1; the columns belong to the values. As in fb.resnet.torch.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_GREY = (0.299, 0.587, 0.114)

Images = Float[Array, "n h w 3"]
Grey = Float[Array, "n h w 1"]


@dataclass(frozen=True)
class PcaLighting:
    """Adds to all pixels of an image one colour, normally distributed along ImageNet's principal components. Not clipped.

    Krizhevsky et al. 2012 ("AlexNet"), Section 4.1; He et al. 2015, Section 3.4, "the standard color augmentation".

    Raises:
      UserError: for a negative deviation, or, when called, images that are not RGB.
    """

    deviation: float = 0.1
    """Of each component, in units of its eigenvalue."""

    @property
    def described(self) -> str:
        """As records of results say it; AlexNet's deviation needs no number."""
        return "colour" + f" of deviation {self.deviation:g}" * (self.deviation != 0.1)

    def __post_init__(self) -> None:
        intervals.check_at_least("deviation", self.deviation, 0)

    def __call__(self, key: Key[Array, ""], images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        _check_rgb(images)
        drawn = self.deviation * jax.random.normal(key, (images.shape[0], 3))
        # A sum rather than a product of matrices, which some devices round more coarsely.
        colours = (jnp.asarray(_EIGENVECTORS) * (drawn * jnp.asarray(_EIGENVALUES))[:, None, :]).sum(axis=-1)
        return images + colours[:, None, None, :]


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue by random factors, in an order of each image's own; then ``PcaLighting``.

    As torchvision's: a factor is uniform between ``max(0, 1 - x)`` and ``1 + x``, hue is turned by up to ``hue`` of the circle in either
    direction, and each step is clipped to 0 and 1. Howard 2013 (arXiv 1312.5402); with ``lighting=0.1`` it is fb.resnet.torch's, but for
    the clipping.

    Raises:
      UserError: for values outside their bounds, or, when called, images that are not RGB.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0
    """0 to 0.5."""
    order: Literal["random", "fixed"] = "random"
    """``fixed``: that of the fields."""
    lighting: float = 0.0
    """Deviation of the ``PcaLighting`` that follows; 0: none."""

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "lighting"):
            intervals.check_at_least(name, getattr(self, name), 0)
        intervals.check_at_least("hue", self.hue, 0, 0.5)
        if self.order not in ("random", "fixed"):
            raise UserError(f"order is {self.order!r}; it is 'random' or 'fixed'")

    def __call__(self, key: Key[Array, ""], images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        _check_rgb(images)
        order_key, factor_key, lighting_key = jax.random.split(key, 3)
        least = [max(0.0, 1 - self.brightness), max(0.0, 1 - self.contrast), max(0.0, 1 - self.saturation), -self.hue]
        most = [1 + self.brightness, 1 + self.contrast, 1 + self.saturation, self.hue]
        used = [number for number in range(4) if least[number] < most[number]]
        if used:
            count = images.shape[0]
            order = jnp.broadcast_to(jnp.asarray(used, jnp.int32), (count, len(used)))
            if self.order == "random":
                order = jax.random.permutation(order_key, order, axis=1, independent=True)
            factors = jax.random.uniform(factor_key, (count, 4), minval=jnp.asarray(least), maxval=jnp.asarray(most))
            for place in range(len(used)):
                which = order[:, place]
                factor = jnp.take_along_axis(factors, which[:, None], axis=1)[:, 0]
                images = adjusted(images, which, factor, hue=3 in used)
        return PcaLighting(self.lighting)(lighting_key, images) if self.lighting else images


def adjusted(images: Images, which: Int32[Array, "n"], factor: Float[Array, "n"], *, hue: bool) -> Images:
    """Changes of each image one thing: 0 brightness, 1 contrast, 2 saturation, 3 hue (where ``hue`` says that some are changed so).

    The first three mix an image with something grey: black, its mean, itself. So one formula does for all images.
    """
    which, factor = which[:, None, None, None], factor[:, None, None, None]
    grey = (images * jnp.asarray(_GREY)).sum(axis=-1, keepdims=True)
    mixed_with = jnp.where(which == 0, 0.0, jnp.where(which == 1, grey.mean(axis=(1, 2), keepdims=True), grey))
    mixed = jnp.clip(factor * images + (1 - factor) * mixed_with, 0, 1)
    return jnp.where(which == 3, _turned(images, factor), mixed) if hue else mixed


def _turned(images: Images, turns: Float[Array, "n 1 1 1"]) -> Images:
    """Adds to the hue of HSV, of which a turn is 1."""
    value, least = images.max(axis=-1, keepdims=True), images.min(axis=-1, keepdims=True)
    chroma = value - least
    safe = jnp.where(chroma > 0, chroma, 1)
    red, green, blue = jnp.split(images, 3, axis=-1)
    sixths = jnp.where(value == red, (green - blue) / safe, jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe))
    # Back again, a channel at a time: as far as the hue is from the channel's own, from `value` down to `least`.
    place = (jnp.asarray((5.0, 3.0, 1.0)) + sixths + 6 * turns) % 6
    return value - chroma * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)


def _check_rgb(images: Array) -> None:
    if images.shape[-1] != 3:
        raise UserError(f"images have {images.shape[-1]} channels, and changes of colour are for RGB: give no colour")
