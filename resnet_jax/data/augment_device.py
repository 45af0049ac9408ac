"""Preprocessing and augmentation on the devices: pure functions of a key."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Key, UInt8

from resnet_jax.errors import Range, require
from resnet_jax.models.components import Factory

Normalization = Literal["pixel_mean", "channel", "imagenet", "weights"]
RandomKey = Key[Array, ""]
Images = Float[Array, "n h w c"]

# As in torchvision and timm.
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preprocessing(NamedTuple):
    """``(image / 255 - mean) / deviation``; the mean is an image, or per channel."""

    mean: Float[Array | np.ndarray, "*size c"]
    deviation: Float[Array | np.ndarray, "c"]

    def __call__(self, images: UInt8[Array, "n h w c"]) -> Images:
        return (images.astype(jnp.float32) / 255 - self.mean) / self.deviation


def fit(
    images: Iterable[UInt8[np.ndarray, "h w c"]], kind: Normalization, name: str = "the set"
) -> Preprocessing:
    """Computes the normalization statistics of training images of one size.

    ``pixel_mean``: "the per-pixel mean subtracted" (He et al. 2015, Section 3.4), no division.
    ``channel``: mean and deviation per channel, as in fb.resnet.torch. ``imagenet``: constants.
    Raises UserError, with the ``name`` of the set, for a channel that is the same in all images.
    """
    if kind == "imagenet":
        constants = IMAGENET_MEAN, IMAGENET_DEVIATION
        return Preprocessing(*(np.asarray(values, np.float32) for values in constants))
    measured = "data.normalization 'weights' is read from a file. Measure channel or pixel_mean."
    require(kind != "weights", measured)
    count, total, squares = 0, 0.0, 0.0
    for image in images:
        scaled = image / 255
        count, total, squares = count + 1, total + scaled, squares + scaled * scaled
    mean, square = np.asarray(total / count), squares / count
    if kind == "channel":
        mean, square = (np.mean(values, axis=(0, 1)) for values in (mean, square))
    deviation = np.sqrt(np.maximum(square - mean * mean, 0).reshape(-1, mean.shape[-1]).max(0))
    constant = np.flatnonzero(deviation < 1e-6).tolist()
    require(not constant, f"the training images of {name} are equal in the channels {constant}.")
    if kind == "pixel_mean":
        deviation = np.ones_like(deviation)
    return Preprocessing(mean.astype(np.float32), deviation.astype(np.float32))


def crop_and_flip(key: RandomKey, images: Images, *, pad: int, flip: bool) -> Images:
    """Crops zero-padded images and mirrors half of them (He et al. 2015, Section 4.2)."""
    crop_key, flip_key = jax.random.split(key)
    if pad:
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * pad + 1)
        shape = images.shape[1:]
        crop = jax.vmap(lambda image, corner: lax.dynamic_slice(image, (*corner, 0), shape))
        images = crop(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a batch; ``color`` comes before the normalization."""

    pad: int = 0
    """Padding of random crops, in pixels. 0: no crops."""
    flip: bool = False
    erasing: Factory | None = None
    mix: Factory | None = None
    color: Factory | None = None

    def __call__(
        self,
        key: RandomKey,
        preprocessing: Preprocessing,
        images: UInt8[Array, "n h w c"],
        labels: Int32[Array, "n"],
        classes: int,
    ) -> tuple[Images, Float[Array, "n classes"] | None]:
        """Returns normalized images, and the targets if they are mixed."""
        x = images.astype(jnp.float32) / 255
        if self.color is not None:
            x = self.color()(jax.random.fold_in(key, 1), x)
        x = (x - preprocessing.mean) / preprocessing.deviation
        x = crop_and_flip(key, x, pad=self.pad, flip=self.flip)
        if self.erasing is not None:
            x = self.erasing()(jax.random.fold_in(key, 2), x)
        if self.mix is None:
            return x, None
        return self.mix()(jax.random.fold_in(key, 3), x, jax.nn.one_hot(labels, classes))


# Principal components of ImageNet's RGB values in [0, 1], one per column, as in fb.resnet.torch.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
_GRAY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class PcaLighting:
    """Adds a random color along ImageNet's principal components, without clipping.

    Krizhevsky et al. 2012 ("AlexNet"), Section 4.1, used in He et al. 2015, Section 3.4.
    """

    deviation: float = 0.1
    """Per component, in units of its eigenvalue."""

    def __post_init__(self) -> None:
        check(self, "deviation")

    @property
    def described(self) -> str:
        """Text for result records."""
        return "color" + f" of deviation {self.deviation:g}" * (self.deviation != 0.1)

    def __call__(self, key: RandomKey, images: Images) -> Images:
        check_rgb(images)
        amounts = self.deviation * jax.random.normal(key, (len(images), 3))
        scaled = (amounts * jnp.asarray(_EIGENVALUES))[:, None, :]
        # Some devices round matrix products more coarsely.
        colors = (jnp.asarray(_EIGENVECTORS) * scaled).sum(axis=-1)
        return images + colors[:, None, None, :]


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast and saturation, in a random order per image; then lighting.

    Howard 2013, arXiv 1312.5402; factors in ``[max(0, 1 - x), 1 + x]`` as in torchvision.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    lighting: float = 0.0
    """Deviation of the final ``PcaLighting``. 0: none."""

    def __post_init__(self) -> None:
        check(self, "brightness", "contrast", "saturation", "lighting")

    def __call__(self, key: RandomKey, images: Images) -> Images:
        check_rgb(images)
        order_key, factor_key, lighting_key = jax.random.split(key, 3)
        amounts = jnp.asarray([self.brightness, self.contrast, self.saturation])
        low, high = jnp.maximum(0, 1 - amounts), 1 + amounts
        steps = jnp.broadcast_to(jnp.arange(3), (len(images), 3))
        order = jax.random.permutation(order_key, steps, axis=1, independent=True)
        factors = jax.random.uniform(factor_key, steps.shape, minval=low, maxval=high)
        ordered = jnp.take_along_axis(factors, order, axis=1)
        for position in range(3):
            images = adjusted(images, order[:, position], ordered[:, position])
        return PcaLighting(self.lighting)(lighting_key, images) if self.lighting else images


def adjusted(images: Images, step: Int32[Array, "n"], factor: Float[Array, "n"]) -> Images:
    """Brightness (step 0), contrast (1), saturation (2): mixes with black, mean gray, own gray."""
    step, factor = step[:, None, None, None], factor[:, None, None, None]
    gray = (images * jnp.asarray(_GRAY)).sum(axis=-1, keepdims=True)
    mean = gray.mean(axis=(1, 2), keepdims=True)
    other = jnp.where(step == 0, 0.0, jnp.where(step == 1, mean, gray))
    return jnp.clip(factor * images + (1 - factor) * other, 0, 1)


@dataclass(frozen=True)
class RandomErasing:
    """Erases a random box in some normalized images (Zhong et al. 2017, arXiv 1708.04896).

    As in torchvision, ratios are log-uniform, and the first of ten boxes that fits is erased.
    """

    probability: float = 0.1
    """Per image."""
    area: tuple[float, float] = (0.02, 0.33)
    """Fraction of the image."""
    ratio: tuple[float, float] = (0.3, 3.3)
    """Height over width."""
    value: float = 0.0
    """Of erased pixels; 0 in normalized images is the mean."""

    def __post_init__(self) -> None:
        check(self, "probability", "area", high=1)
        check(self, "ratio", positive=True)

    def __call__(self, key: RandomKey, images: Images) -> Images:
        count, height, width, _ = images.shape
        chosen_key, area_key, ratio_key, row_key, column_key = jax.random.split(key, 5)
        shape, logarithms = (count, 10), map(math.log, self.ratio)
        area = height * width * jax.random.uniform(area_key, shape, jnp.float32, *self.area)
        ratio = jnp.exp(jax.random.uniform(ratio_key, shape, jnp.float32, *logarithms))
        rows = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
        columns = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
        fits = (rows < height) & (columns < width)
        first = jnp.argmax(fits, axis=1, keepdims=True)
        tries = (fits, rows, columns)
        fit, rows, columns = (jnp.take_along_axis(t, first, axis=1)[:, 0] for t in tries)
        top = jax.random.randint(row_key, (count,), 0, jnp.maximum(height - rows + 1, 1))
        left = jax.random.randint(column_key, (count,), 0, jnp.maximum(width - columns + 1, 1))
        chosen = fit & jax.random.bernoulli(chosen_key, self.probability, (count,))
        boxes = _boxes((height, top, top + rows), (width, left, left + columns))
        erased = (boxes & chosen[:, None, None])[..., None]
        return jnp.where(erased, jnp.asarray(self.value, images.dtype), images)


def _boxes(*axes: tuple[int, Array, Array]) -> Bool[Array, "n h w"]:
    """Masks of boxes from (size, first, exclusive end) of rows and of columns."""
    rows, columns = (
        (jnp.arange(size) >= first[:, None]) & (jnp.arange(size) < end[:, None])
        for size, first, end in axes
    )
    return rows[:, :, None] & columns[:, None, :]


@dataclass(frozen=True)
class Mix:
    """Mixup (Zhang et al. 2017, arXiv 1710.09412) or cutmix (Yun et al. 2019, arXiv 1905.04899).

    An image is mixed with the one at the mirrored position of its group, as in timm. The box
    follows torchvision; targets (class distributions) are mixed by the share of pixels.
    """

    mixup: float = 0.2
    """Shares are drawn from Beta(mixup, mixup). 0: no mixup."""
    cutmix: float = 1.0
    """The area of the box is 1 - Beta(cutmix, cutmix). 0: no cutmix."""
    group: int = 128
    """Consecutive images with one draw, as those of one GPU. 0: the whole batch."""
    switch: float = 0.5
    """Probability of cutmix if both are on."""
    probability: float = 1.0
    """Per group, of being mixed."""

    def __post_init__(self) -> None:
        check(self, "mixup", "cutmix", "group")
        check(self, "switch", "probability", high=1)
        is_on = bool(self.mixup or self.cutmix)
        require(is_on, "mixup and cutmix are both 0. Give one of them, or no mix.")

    def __call__(
        self, key: RandomKey, images: Images, targets: Float[Array, "n k"]
    ) -> tuple[Images, Float[Array, "n k"]]:
        count, height, width, _ = images.shape
        group = self.group or count
        fits = count % group == 0
        require(fits, f"a batch of {count} images does not consist of groups of {group}.")
        groups = (count // group,)
        mixed_key, cut_key, share_key, row_key, column_key = jax.random.split(key, 5)
        mixed = jax.random.bernoulli(mixed_key, self.probability, groups)
        switch = self.switch if self.mixup and self.cutmix else float(self.cutmix > 0)
        cut = jax.random.bernoulli(cut_key, switch, groups)
        alpha = jnp.where(cut, self.cutmix, self.mixup)
        share = jax.random.beta(share_key, alpha, alpha)
        row = jax.random.randint(row_key, groups, 0, height)
        column = jax.random.randint(column_key, groups, 0, width)

        radius = 0.5 * jnp.sqrt(1 - share)
        down, across = ((radius * extent).astype(jnp.int32) for extent in (height, width))
        box = _boxes((height, row - down, row + down), (width, column - across, column + across))
        box = box.astype(jnp.float32)
        outside = 1 - box.mean(axis=(1, 2))
        shares = jnp.where(mixed, jnp.where(cut, outside, share), 1)
        mixed, cut, share = (values[:, None, None] for values in (mixed, cut, share))
        weights = jnp.where(mixed, jnp.where(cut, 1 - box, share), 1)

        def mix(values: Array, weights: Array) -> Array:
            grouped = values.reshape(-1, group, *values.shape[1:])
            return (weights * grouped + (1 - weights) * grouped[:, ::-1]).reshape(values.shape)

        return mix(images, weights[:, None, :, :, None]), mix(targets, shares[:, None, None])


def check_rgb(images: Array | np.ndarray) -> None:
    """Raises UserError for gray images, which NumPy would broadcast."""
    channels = images.shape[-1]
    require(channels == 3, f"color changes and policies need RGB images, got {channels} channels.")


def check(config: object, *names: str, high: float = math.inf, positive: bool = False) -> None:
    """Raises UserError unless fields, numbers or ascending pairs, are in ``[0, high]``."""
    limits = Range(0, high, ("(" if positive else "[") + (")" if high == math.inf else "]"))
    for name in names:
        value = getattr(config, name)
        first, last = value if isinstance(value, tuple) else (value, value)
        allowed = limits.allowed(first) or limits.allowed(last) or "ascending" * (first > last)
        require(not allowed, f"{name} must be {allowed}, got {value}.")
