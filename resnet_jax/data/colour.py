"""Random color changes, on the device. Called with a key and images in [0, 1]."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, Key

from resnet_jax.data import intervals
from resnet_jax.errors import UserError

# Principal components of ImageNet's RGB values in [0, 1], one per column, as in fb.resnet.torch.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_GRAY = (0.299, 0.587, 0.114)

Images = Float[Array, "n h w 3"]


@dataclass(frozen=True)
class PcaLighting:
    """Adds one normally distributed color along ImageNet's principal components to all pixels of an image. Not clipped.

    Krizhevsky et al. 2012 ("AlexNet"), Section 4.1; He et al. 2015, Section 3.4, "the standard color augmentation".
    """

    deviation: float = 0.1
    """Per component, in units of its eigenvalue."""

    @property
    def described(self) -> str:
        """Text for result records; AlexNet's deviation is not stated."""
        return "colour" + f" of deviation {self.deviation:g}" * (self.deviation != 0.1)

    def __post_init__(self) -> None:
        intervals.check(self, "deviation")

    def __call__(self, key: Key[Array, ""], images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        _check_rgb(images)
        drawn = self.deviation * jax.random.normal(key, (images.shape[0], 3))
        # A sum, since some devices round matrix products more coarsely.
        colours = (jnp.asarray(_EIGENVECTORS) * (drawn * jnp.asarray(_EIGENVALUES))[:, None, :]).sum(axis=-1)
        return images + colours[:, None, None, :]


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast and saturation, in a random order per image; then ``PcaLighting``. Howard 2013 (arXiv 1312.5402).

    As in torchvision, factors are uniform in ``[max(0, 1 - x), 1 + x]``, and each step is clipped to [0, 1].
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    lighting: float = 0.0
    """Deviation of the final ``PcaLighting``. 0: none."""

    def __post_init__(self) -> None:
        intervals.check(self, "brightness", "contrast", "saturation", "lighting")

    def __call__(self, key: Key[Array, ""], images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        _check_rgb(images)
        order_key, factor_key, lighting_key = jax.random.split(key, 3)
        amounts = jnp.asarray([self.brightness, self.contrast, self.saturation])
        shape = (images.shape[0], 3)
        order = jax.random.permutation(order_key, jnp.broadcast_to(jnp.arange(3), shape), axis=1, independent=True)
        factors = jax.random.uniform(factor_key, shape, minval=jnp.maximum(0, 1 - amounts), maxval=1 + amounts)
        for position in range(3):
            which = order[:, position]
            images = adjusted(images, which, jnp.take_along_axis(factors, which[:, None], axis=1)[:, 0])
        return PcaLighting(self.lighting)(lighting_key, images) if self.lighting else images


def adjusted(images: Images, which: Int32[Array, "n"], factor: Float[Array, "n"]) -> Images:
    """Mixes each image with black (0: brightness), its mean gray (1: contrast) or its own gray (2: saturation)."""
    which, factor = which[:, None, None, None], factor[:, None, None, None]
    gray = (images * jnp.asarray(_GRAY)).sum(axis=-1, keepdims=True)
    other = jnp.where(which == 0, 0.0, jnp.where(which == 1, gray.mean(axis=(1, 2), keepdims=True), gray))
    return jnp.clip(factor * images + (1 - factor) * other, 0, 1)


def _check_rgb(images: Array) -> None:
    if images.shape[-1] != 3:
        raise UserError(f"color changes need RGB images, got {images.shape[-1]} channels. Give no colour.")
