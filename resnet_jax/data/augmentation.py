"""Preprocessing and augmentation of small images on the device; pure functions of a key, the same on any number of devices."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key, UInt8

Normalization = Literal["pixel_mean", "channel", "weights"]


class Preprocessing(NamedTuple):
    """``(image / 255 - mean) / deviation``; the constants belong to the weights trained with them and are stored beside them."""

    mean: Float[Array | np.ndarray, "..."]
    """(h, w, c) per pixel, or (c,) per channel; scale 0 to 1."""
    deviation: Float[Array | np.ndarray, "..."]
    """(c,); scale 0 to 1."""

    def __call__(self, images: UInt8[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return (images.astype(jnp.float32) / 255 - self.mean) / self.deviation


def fit(images: UInt8[np.ndarray, "n h w c"], normalization: Normalization) -> Preprocessing:
    """Measures the constants on the training images.

    ``pixel_mean``: "the per-pixel mean subtracted" (He et al. 2015, Section 3.4), no division. ``channel``: mean and deviation of each
    channel, as in fb.resnet.torch. ``weights`` are not measured.
    """
    assert normalization != "weights"
    channels = images.shape[-1]
    if normalization == "pixel_mean":
        mean = images.mean(axis=0, dtype=np.float64) / 255
        deviation = np.ones(channels)
    else:
        flat = images.reshape(-1, channels)
        mean = flat.mean(axis=0, dtype=np.float64) / 255
        deviation = flat.std(axis=0, dtype=np.float64) / 255
    return Preprocessing(mean.astype(np.float32), deviation.astype(np.float32))


def random_crop(key: Key[Array, ""], images: Float[Array, "n h w c"], pad: int) -> Float[Array, "n h w c"]:
    """Pads each side with ``pad`` zeros (of normalised images: the mean) and crops each image at its own random place.

    He et al. 2015, Section 4.2, after Lee et al. 2014; zeros after normalisation as in fb.resnet.torch.
    """
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * pad + 1)
    return jax.vmap(lambda image, corner: lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels)))(padded, corners)


def random_flip(key: Key[Array, ""], images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Mirrors each image left to right with probability one half."""
    mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def augment(key: Key[Array, ""], images: Float[Array, "n h w c"], *, pad: int, flip: bool) -> Float[Array, "n h w c"]:
    """Random crop, then random flip; ``pad=0`` and ``flip=False`` leave images as they are."""
    crop_key, flip_key = jax.random.split(key)
    if pad:
        images = random_crop(crop_key, images, pad)
    return random_flip(flip_key, images) if flip else images
