"""Preprocessing and augmentation on the device: pure functions of a key, the same on any number of devices."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, Key, UInt8

from resnet_jax.configured import Factory

Normalization = Literal["pixel_mean", "channel", "imagenet", "weights"]


class Preprocessing(NamedTuple):
    """``(image / 255 - mean) / deviation``."""

    mean: Float[Array | np.ndarray, "..."]
    """(h, w, c) or (c,), in [0, 1]."""
    deviation: Float[Array | np.ndarray, "..."]
    """(c,), in [0, 1]."""

    def __call__(self, images: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return self.normalised(images.astype(jnp.float32) / 255)

    def normalised(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """Normalizes images in [0, 1]."""
        return (images - self.mean) / self.deviation


# As in torchvision and timm.
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def fit(images: UInt8[np.ndarray, "n h w c"], normalization: Normalization) -> Preprocessing:
    """Computes the normalization statistics of training images.

    ``pixel_mean``: "the per-pixel mean subtracted" (He et al. 2015, Section 3.4), no division. ``channel``: mean and deviation per
    channel, as in fb.resnet.torch. ``imagenet``: constants.
    """
    assert normalization != "weights"
    if normalization == "imagenet":
        return _preprocessing(IMAGENET_MEAN, IMAGENET_DEVIATION)
    channels = images.shape[-1]
    if normalization == "pixel_mean":
        return _preprocessing(images.mean(axis=0, dtype=np.float64) / 255, np.ones(channels))
    flat = images.reshape(-1, channels)
    return _preprocessing(flat.mean(axis=0, dtype=np.float64) / 255, flat.std(axis=0, dtype=np.float64) / 255)


def _preprocessing(mean: Any, deviation: Any) -> Preprocessing:
    return Preprocessing(np.asarray(mean, np.float32), np.asarray(deviation, np.float32))


def fit_each(images: Iterable[UInt8[np.ndarray, "h w c"]], normalization: Normalization) -> Preprocessing:
    """Like ``fit``, for an iterable of images of one size."""
    if normalization == "imagenet":
        return _preprocessing(IMAGENET_MEAN, IMAGENET_DEVIATION)
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for image in images:
        scaled = image.astype(np.float64) / 255
        count, total, squares = count + 1, total + scaled, squares + (scaled * scaled).mean(axis=(0, 1))
    mean: np.ndarray = total / count
    if normalization == "pixel_mean":
        return _preprocessing(mean, np.ones(mean.shape[-1]))
    mean = mean.mean(axis=(0, 1))
    return _preprocessing(mean, np.sqrt(squares / count - mean * mean))


def random_crop(key: Key[Array, ""], images: Float[Array, "n h w c"], pad: int) -> Float[Array, "n h w c"]:
    """Pads each side with zeros and crops each image at a random position. He et al. 2015, Section 4.2; fb.resnet.torch."""
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * pad + 1)
    return jax.vmap(lambda image, corner: lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels)))(padded, corners)


def random_flip(key: Key[Array, ""], images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Mirrors each image left to right with probability 1/2."""
    mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def crop_and_flip(key: Key[Array, ""], images: Float[Array, "n h w c"], *, pad: int, flip: bool) -> Float[Array, "n h w c"]:
    """Random crop, then random flip; ``pad=0`` and ``flip=False`` turn them off."""
    crop_key, flip_key = jax.random.split(key)
    if pad:
        images = random_crop(crop_key, images, pad)
    return random_flip(flip_key, images) if flip else images


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a batch on the device, in the order of the fields; ``colour`` precedes the normalization."""

    pad: int = 0
    """Padding of random crops, in pixels. 0: no crops."""
    flip: bool = False
    erasing: Factory | None = None
    """See ``resnet_jax.data.erasing``."""
    mix: Factory | None = None
    """See ``resnet_jax.data.mixing``."""
    colour: Factory | None = None
    """See ``resnet_jax.data.colour``."""

    def __call__(
        self, key: Key[Array, ""], preprocessing: Preprocessing, images: UInt8[Array, "n h w c"], labels: Int32[Array, "n"], classes: int
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n classes"] | None]:
        """Returns normalized images, and the mixed targets if there is ``mix``."""
        scaled = images.astype(jnp.float32) / 255
        if self.colour is not None:
            scaled = self.colour()(jax.random.fold_in(key, 1), scaled)
        augmented = crop_and_flip(key, preprocessing.normalised(scaled), pad=self.pad, flip=self.flip)
        if self.erasing is not None:
            augmented = self.erasing()(jax.random.fold_in(key, 2), augmented)
        if self.mix is None:
            return augmented, None
        return self.mix()(jax.random.fold_in(key, 3), augmented, jax.nn.one_hot(labels, classes))
