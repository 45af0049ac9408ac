"""Preprocessing and augmentation on the device: pure functions of a key, for any devices."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Key, UInt8

from resnet_jax.errors import UserError
from resnet_jax.models.components import Factory

Normalization = Literal["pixel_mean", "channel", "imagenet", "weights"]
RandomKey = Key[Array, ""]
Images = Float[Array, "n h w c"]

# As in torchvision and timm.
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Preprocessing(NamedTuple):
    """``(image / 255 - mean) / deviation``."""

    mean: Float[Array | np.ndarray, "..."]
    """(h, w, c) or (c,), in [0, 1]."""
    deviation: Float[Array | np.ndarray, "..."]
    """(c,), in [0, 1]."""

    def __call__(self, images: UInt8[Array, "n h w c"]) -> Images:
        return (images.astype(jnp.float32) / 255 - self.mean) / self.deviation


def fit(images: Iterable[UInt8[np.ndarray, "h w c"]], kind: Normalization) -> Preprocessing:
    """Computes the normalization statistics of training images of one size.

    ``pixel_mean``: "the per-pixel mean subtracted" (He et al. 2015, Section 3.4), no division.
    ``channel``: mean and deviation per channel, as in fb.resnet.torch. ``imagenet``: constants.
    """
    mean: Any = IMAGENET_MEAN
    deviation: Any = IMAGENET_DEVIATION
    if kind != "imagenet":
        count, total, squares = 0, 0.0, 0.0
        for image in images:
            scaled = image / 255
            count, total = count + 1, total + scaled
            if kind == "channel":
                squares = squares + np.square(scaled).mean(axis=(0, 1))
        mean = np.asarray(total / count)
        deviation = np.ones(mean.shape[-1])
        if kind == "channel":
            mean = mean.mean(axis=(0, 1))
            deviation = np.sqrt(squares / count - mean * mean)
    return Preprocessing(np.asarray(mean, np.float32), np.asarray(deviation, np.float32))


def crop_and_flip(key: RandomKey, images: Images, *, pad: int, flip: bool) -> Images:
    """Crops images padded with zeros at random positions, then mirrors them with probability 1/2.

    He et al. 2015, Section 4.2; fb.resnet.torch.
    """
    crop_key, flip_key = jax.random.split(key)
    if pad:
        padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        corners = jax.random.randint(crop_key, (len(images), 2), 0, 2 * pad + 1)

        def crop(image: Array, corner: Array) -> Array:
            return lax.dynamic_slice(image, (*corner, 0), images.shape[1:])

        images = jax.vmap(crop)(padded, corners)
    if flip:
        mirrored = jax.random.bernoulli(flip_key, 0.5, (len(images), 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1], images)
    return images


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a batch; ``color`` comes first, before the normalization."""

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
        """Returns normalized images, and the mixed targets if there is ``mix``."""
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
    """Adds one random color along ImageNet's principal components to an image. Not clipped.

    Krizhevsky et al. 2012 ("AlexNet"), Section 4.1; He et al. 2015, Section 3.4, "the standard
    color augmentation".
    """

    deviation: float = 0.1
    """Per component, in units of its eigenvalue."""

    def __post_init__(self) -> None:
        check(self, "deviation")

    @property
    def described(self) -> str:
        """Text for result records; AlexNet's deviation is not stated."""
        return "color" + f" of deviation {self.deviation:g}" * (self.deviation != 0.1)

    def __call__(self, key: RandomKey, images: Images) -> Images:
        _check_rgb(images)
        amounts = self.deviation * jax.random.normal(key, (len(images), 3))
        scaled = (amounts * jnp.asarray(_EIGENVALUES))[:, None, :]
        # A sum, since some devices round matrix products more coarsely.
        colors = (jnp.asarray(_EIGENVECTORS) * scaled).sum(axis=-1)
        return images + colors[:, None, None, :]


@dataclass(frozen=True)
class ColorJitter:
    """Random brightness, contrast and saturation, in a random order per image; then lighting.

    Howard 2013 (arXiv 1312.5402). As in torchvision, factors are uniform in
    ``[max(0, 1 - x), 1 + x]``, and each step is clipped to [0, 1].
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    lighting: float = 0.0
    """Deviation of the final ``PcaLighting``. 0: none."""

    def __post_init__(self) -> None:
        check(self, "brightness", "contrast", "saturation", "lighting")

    def __call__(self, key: RandomKey, images: Images) -> Images:
        _check_rgb(images)
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
    """Mixes each image with another: step 0 black, 1 its mean gray, 2 its own gray.

    These are brightness, contrast and saturation.
    """
    step, factor = step[:, None, None, None], factor[:, None, None, None]
    gray = (images * jnp.asarray(_GRAY)).sum(axis=-1, keepdims=True)
    mean = gray.mean(axis=(1, 2), keepdims=True)
    other = jnp.where(step == 0, 0.0, jnp.where(step == 1, mean, gray))
    return jnp.clip(factor * images + (1 - factor) * other, 0, 1)


def _check_rgb(images: Images) -> None:
    # One channel would be broadcast to three.
    if images.shape[-1] != 3:
        raise UserError(f"color changes need RGB images, got {images.shape[-1]} channels.")


_TRIES = 10


@dataclass(frozen=True)
class RandomErasing:
    """Erases a box of random area, aspect ratio and position in some normalized images.

    Zhong et al. 2017, arXiv 1708.04896. As in torchvision, ratios are log-uniform, and of ten boxes
    the first that is smaller than the image both ways is erased.
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
        check(self, "probability", "area", high=1)
        check(self, "ratio")

    def __call__(self, key: RandomKey, images: Images) -> Images:
        count, height, width, _ = images.shape
        chosen_key, area_key, ratio_key, row_key, column_key = jax.random.split(key, 5)
        shape, logarithms = (count, _TRIES), map(math.log, self.ratio)
        area = height * width * jax.random.uniform(area_key, shape, jnp.float32, *self.area)
        ratio = jnp.exp(jax.random.uniform(ratio_key, shape, jnp.float32, *logarithms))
        rows = jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32)
        columns = jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32)
        fits = (rows < height) & (columns < width)
        first = jnp.argmax(fits, axis=1, keepdims=True)
        fit, rows, columns = (
            jnp.take_along_axis(values, first, axis=1)[:, 0] for values in (fits, rows, columns)
        )
        top = jax.random.randint(row_key, (count,), 0, jnp.maximum(height - rows + 1, 1))
        left = jax.random.randint(column_key, (count,), 0, jnp.maximum(width - columns + 1, 1))
        chosen = fit & jax.random.bernoulli(chosen_key, self.probability, (count,))
        boxes = _boxes((height, top, top + rows), (width, left, left + columns))
        erased = (boxes & chosen[:, None, None])[..., None]
        return jnp.where(erased, jnp.asarray(self.value, images.dtype), images)


def _boxes(*axes: tuple[int, Array, Array]) -> Bool[Array, "n h w"]:
    """Masks of boxes from (size, first, end) of their rows and columns; ends are exclusive."""
    rows, columns = (
        (jnp.arange(size) >= first[:, None]) & (jnp.arange(size) < end[:, None])
        for size, first, end in axes
    )
    return rows[:, :, None] & columns[:, None, :]


class _Draws(NamedTuple):
    """Random numbers per group."""

    mixed: Bool[Array, "g"]
    cut: Bool[Array, "g"]
    """Cutmix, else mixup."""
    share: Float[Array, "g"]
    """Lambda, the share of the image itself; for cutmix before the box is rounded and clipped."""
    row: Array
    column: Array
    """(g,) integers: center of the box."""


@dataclass(frozen=True)
class Mix:
    """Mixup (Zhang et al. 2017, arXiv 1710.09412) or cutmix (Yun et al. 2019, arXiv 1905.04899).

    An image is mixed with the one at the mirrored position of its group, as in timm. The cutmix box
    follows torchvision; targets, class distributions, are mixed by the share of pixels.
    """

    mixup: float = 0.2
    """Shares are drawn from Beta(mixup, mixup). 0: no mixup."""
    cutmix: float = 1.0
    """The area of the box is 1 - Beta(cutmix, cutmix). 0: no cutmix."""
    group: int = 128
    """Consecutive images that share a draw, as those of one GPU. 0: the whole batch."""
    switch: float = 0.5
    """Probability of cutmix if both are on."""
    probability: float = 1.0
    """Per group, of being mixed."""

    def __post_init__(self) -> None:
        check(self, "mixup", "cutmix", "group")
        check(self, "switch", "probability", high=1)
        if not self.mixup and not self.cutmix:
            raise UserError("mixup and cutmix are both 0. Give one of them, or no mix.")

    def __call__(
        self, key: RandomKey, images: Images, targets: Float[Array, "n k"]
    ) -> tuple[Images, Float[Array, "n k"]]:
        count, height, width, _ = images.shape
        group = self.group or count
        if count % group:
            raise UserError(f"a batch of {count} images does not consist of groups of {group}.")
        draws = self._draw(key, count // group, height, width)
        radius = 0.5 * jnp.sqrt(1 - draws.share)
        down, across = ((radius * extent).astype(jnp.int32) for extent in (height, width))
        row, column = draws.row, draws.column
        box = _boxes((height, row - down, row + down), (width, column - across, column + across))
        box = box.astype(jnp.float32)
        outside = 1 - box.mean(axis=(1, 2))
        mixed, cut, share = (values[:, None, None] for values in draws[:3])
        weights = jnp.where(mixed, jnp.where(cut, 1 - box, share), 1)
        shares = jnp.where(draws.mixed, jnp.where(draws.cut, outside, draws.share), 1)

        def mix(values: Array, weights: Array) -> Array:
            grouped = values.reshape(-1, group, *values.shape[1:])
            return (weights * grouped + (1 - weights) * grouped[:, ::-1]).reshape(values.shape)

        return mix(images, weights[:, None, :, :, None]), mix(targets, shares[:, None, None])

    def _draw(self, key: RandomKey, groups: int, height: int, width: int) -> _Draws:
        mixed_key, cut_key, share_key, row_key, column_key = jax.random.split(key, 5)
        switch = self.switch if self.mixup and self.cutmix else float(self.cutmix > 0)
        cut = jax.random.bernoulli(cut_key, switch, (groups,))
        alpha = jnp.where(cut, self.cutmix, self.mixup)
        return _Draws(
            jax.random.bernoulli(mixed_key, self.probability, (groups,)),
            cut,
            jax.random.beta(share_key, alpha, alpha),
            jax.random.randint(row_key, (groups,), 0, height),
            jax.random.randint(column_key, (groups,), 0, width),
        )


def check(config: object, *names: str, high: float = math.inf) -> None:
    """Raises UserError unless these fields, numbers or ascending pairs, are in ``[0, high]``."""
    for name in names:
        value = getattr(config, name)
        first, last = value if isinstance(value, tuple) else (value, value)
        if not 0 <= first <= last <= high:
            pair = "a pair a <= b, " * isinstance(value, tuple)
            bound = "at least 0" if high == math.inf else f"in [0, {high:g}]"
            raise UserError(f"{name} must be {pair}{bound}, got {value}.")
