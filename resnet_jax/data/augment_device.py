"""Preprocessing and augmentation on the device: pure functions of a key, the same on any number of devices."""

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
    return _preprocessing(
        flat.mean(axis=0, dtype=np.float64) / 255, flat.std(axis=0, dtype=np.float64) / 255
    )


def _preprocessing(mean: Any, deviation: Any) -> Preprocessing:
    return Preprocessing(np.asarray(mean, np.float32), np.asarray(deviation, np.float32))


def fit_each(
    images: Iterable[UInt8[np.ndarray, "h w c"]], normalization: Normalization
) -> Preprocessing:
    """Like ``fit``, for an iterable of images of one size."""
    if normalization == "imagenet":
        return _preprocessing(IMAGENET_MEAN, IMAGENET_DEVIATION)
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for image in images:
        scaled = image.astype(np.float64) / 255
        count, total, squares = (
            count + 1,
            total + scaled,
            squares + (scaled * scaled).mean(axis=(0, 1)),
        )
    mean: np.ndarray = total / count
    if normalization == "pixel_mean":
        return _preprocessing(mean, np.ones(mean.shape[-1]))
    mean = mean.mean(axis=(0, 1))
    return _preprocessing(mean, np.sqrt(squares / count - mean * mean))


def random_crop(
    key: Key[Array, ""], images: Float[Array, "n h w c"], pad: int
) -> Float[Array, "n h w c"]:
    """Pads each side with zeros and crops each image at a random position. He et al. 2015, Section 4.2; fb.resnet.torch."""
    count, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    corners = jax.random.randint(key, (count, 2), 0, 2 * pad + 1)
    return jax.vmap(
        lambda image, corner: lax.dynamic_slice(
            image, (corner[0], corner[1], 0), (height, width, channels)
        )
    )(padded, corners)


def random_flip(key: Key[Array, ""], images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
    """Mirrors each image left to right with probability 1/2."""
    mirrored = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def crop_and_flip(
    key: Key[Array, ""], images: Float[Array, "n h w c"], *, pad: int, flip: bool
) -> Float[Array, "n h w c"]:
    """Random crop, then random flip; ``pad=0`` and ``flip=False`` turn them off."""
    crop_key, flip_key = jax.random.split(key)
    if pad:
        images = random_crop(crop_key, images, pad)
    return random_flip(flip_key, images) if flip else images


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a batch on the device, in the order of the fields; ``color`` precedes the normalization."""

    pad: int = 0
    """Padding of random crops, in pixels. 0: no crops."""
    flip: bool = False
    erasing: Factory | None = None
    """See ``resnet_jax.data.augment_device``."""
    mix: Factory | None = None
    """See ``resnet_jax.data.augment_device``."""
    color: Factory | None = None
    """See ``resnet_jax.data.augment_device``."""

    def __call__(
        self,
        key: Key[Array, ""],
        preprocessing: Preprocessing,
        images: UInt8[Array, "n h w c"],
        labels: Int32[Array, "n"],
        classes: int,
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n classes"] | None]:
        """Returns normalized images, and the mixed targets if there is ``mix``."""
        scaled = images.astype(jnp.float32) / 255
        if self.color is not None:
            scaled = self.color()(jax.random.fold_in(key, 1), scaled)
        augmented = crop_and_flip(
            key, preprocessing.normalised(scaled), pad=self.pad, flip=self.flip
        )
        if self.erasing is not None:
            augmented = self.erasing()(jax.random.fold_in(key, 2), augmented)
        if self.mix is None:
            return augmented, None
        return self.mix()(jax.random.fold_in(key, 3), augmented, jax.nn.one_hot(labels, classes))


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
        return "color" + f" of deviation {self.deviation:g}" * (self.deviation != 0.1)

    def __post_init__(self) -> None:
        check(self, "deviation")

    def __call__(
        self, key: Key[Array, ""], images: Float[Array, "n h w c"]
    ) -> Float[Array, "n h w c"]:
        _check_rgb(images)
        drawn = self.deviation * jax.random.normal(key, (images.shape[0], 3))
        # A sum, since some devices round matrix products more coarsely.
        colors = (jnp.asarray(_EIGENVECTORS) * (drawn * jnp.asarray(_EIGENVALUES))[:, None, :]).sum(
            axis=-1
        )
        return images + colors[:, None, None, :]


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
        check(self, "brightness", "contrast", "saturation", "lighting")

    def __call__(
        self, key: Key[Array, ""], images: Float[Array, "n h w c"]
    ) -> Float[Array, "n h w c"]:
        _check_rgb(images)
        order_key, factor_key, lighting_key = jax.random.split(key, 3)
        amounts = jnp.asarray([self.brightness, self.contrast, self.saturation])
        shape = (images.shape[0], 3)
        order = jax.random.permutation(
            order_key, jnp.broadcast_to(jnp.arange(3), shape), axis=1, independent=True
        )
        factors = jax.random.uniform(
            factor_key, shape, minval=jnp.maximum(0, 1 - amounts), maxval=1 + amounts
        )
        for position in range(3):
            which = order[:, position]
            images = adjusted(
                images, which, jnp.take_along_axis(factors, which[:, None], axis=1)[:, 0]
            )
        return PcaLighting(self.lighting)(lighting_key, images) if self.lighting else images


def adjusted(images: Images, which: Int32[Array, "n"], factor: Float[Array, "n"]) -> Images:
    """Mixes each image with black (0: brightness), its mean gray (1: contrast) or its own gray (2: saturation)."""
    which, factor = which[:, None, None, None], factor[:, None, None, None]
    gray = (images * jnp.asarray(_GRAY)).sum(axis=-1, keepdims=True)
    other = jnp.where(
        which == 0, 0.0, jnp.where(which == 1, gray.mean(axis=(1, 2), keepdims=True), gray)
    )
    return jnp.clip(factor * images + (1 - factor) * other, 0, 1)


def _check_rgb(images: Array) -> None:
    if images.shape[-1] != 3:
        raise UserError(
            f"color changes need RGB images, got {images.shape[-1]} channels. Give no color."
        )


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
        check(self, "probability", high=1)
        check_pair("area", self.area, 1)
        check_pair("ratio", self.ratio)

    def __call__(
        self, key: Key[Array, ""], images: Float[Array, "n h w c"]
    ) -> Float[Array, "n h w c"]:
        count, height, width, _ = images.shape
        chosen_key, area_key, ratio_key, row_key, column_key = jax.random.split(key, 5)
        area = (
            height
            * width
            * jax.random.uniform(
                area_key, (count, _TRIES), minval=self.area[0], maxval=self.area[1]
            )
        )
        logarithms = map(math.log, self.ratio)
        ratio = jnp.exp(jax.random.uniform(ratio_key, (count, _TRIES), jnp.float32, *logarithms))
        rows, columns = (
            jnp.round(jnp.sqrt(area * ratio)).astype(jnp.int32),
            jnp.round(jnp.sqrt(area / ratio)).astype(jnp.int32),
        )
        fits = (rows < height) & (columns < width)
        first = jnp.argmax(fits, axis=1, keepdims=True)
        fit, rows, columns = (
            jnp.take_along_axis(values, first, axis=1)[:, 0] for values in (fits, rows, columns)
        )
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


class _Drawn(NamedTuple):
    """Random draws, one per group."""

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
    """Mixup (Zhang et al. 2017, arXiv 1710.09412) or cutmix (Yun et al. 2019, arXiv 1905.04899), one draw per group of images.

    An image is mixed with the one at the mirrored position of its group, as in timm. The cutmix box follows torchvision; targets
    are mixed by the share of pixels. Called with a key, images and target distributions.
    """

    mixup: float = 0.2
    """Shares are drawn from Beta(mixup, mixup). 0: no mixup."""
    cutmix: float = 1.0
    """The area of the box is 1 - Beta(cutmix, cutmix). 0: no cutmix."""
    group: int = 128
    """Consecutive images that share a draw (in the original codes, the images of one GPU). 0: the whole batch."""
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
        self, key: Key[Array, ""], images: Float[Array, "n h w c"], targets: Float[Array, "n k"]
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
        count, height, width, channels = images.shape
        group = self.group or count
        if count % group:
            raise UserError(
                f"a batch of {count} images does not consist of groups of {group}. Give Mix a group that divides it, or 0."
            )
        drawn = self._draw(key, count // group, height, width)
        box = _box(drawn, height, width)
        outside = 1 - box.mean(axis=(1, 2))
        weights = jnp.where(drawn.cut[:, None, None], 1 - box, drawn.share[:, None, None])
        weights = jnp.where(drawn.mixed[:, None, None], weights, 1)
        share = jnp.where(drawn.mixed, jnp.where(drawn.cut, outside, drawn.share), 1)
        grouped = images.reshape(-1, group, height, width, channels)
        return (
            _mixed(grouped, weights[:, None, :, :, None]).reshape(images.shape),
            _mixed(targets.reshape(-1, group, targets.shape[1]), share[:, None, None]).reshape(
                targets.shape
            ),
        )

    def _draw(self, key: Key[Array, ""], groups: int, height: int, width: int) -> _Drawn:
        mixed_key, cut_key, share_key, row_key, column_key = jax.random.split(key, 5)
        cut = jax.random.bernoulli(
            cut_key,
            self.switch if self.mixup and self.cutmix else float(self.cutmix > 0),
            (groups,),
        )
        alpha = jnp.where(cut, self.cutmix, self.mixup)
        return _Drawn(
            jax.random.bernoulli(mixed_key, self.probability, (groups,)),
            cut,
            jax.random.beta(share_key, alpha, alpha),
            jax.random.randint(row_key, (groups,), 0, height),
            jax.random.randint(column_key, (groups,), 0, width),
        )


def _box(drawn: _Drawn, height: int, width: int) -> Float[Array, "g h w"]:
    """1 inside the box of each group, else 0."""
    radius = 0.5 * jnp.sqrt(1 - drawn.share)
    rows = _near(drawn.row, (radius * height).astype(jnp.int32), height)
    columns = _near(drawn.column, (radius * width).astype(jnp.int32), width)
    return (rows[:, :, None] & columns[:, None, :]).astype(jnp.float32)


def _near(middle: Array, radius: Array, size: int) -> Bool[Array, "g size"]:
    index = jnp.arange(size)
    return (index >= (middle - radius)[:, None]) & (index < (middle + radius)[:, None])


def _mixed(grouped: Array, weights: Array) -> Array:
    return weights * grouped + (1 - weights) * grouped[:, ::-1]


def check_pair(name: str, value: tuple[float, float], high: float = math.inf) -> None:
    """Raises UserError unless ``value`` is a pair ``0 < a <= b <= high``."""
    if not isinstance(value, tuple) or len(value) != 2 or not 0 < value[0] <= value[1] <= high:
        bound = "" if high == math.inf else f" <= {high:g}"
        raise UserError(f"{name} must be a pair (a, b) with 0 < a <= b{bound}, got {value!r}.")


def check(config: object, *names: str, low: float = 0, high: float = math.inf) -> None:
    """Raises UserError unless these fields are in ``[low, high]``."""
    for name in names:
        if not low <= getattr(config, name) <= high:
            bound = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise UserError(f"{name} must be {bound}, got {getattr(config, name)!r}.")
