"""Mixup and cutmix of training images and their targets, on the device."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from resnet_jax.data import intervals
from resnet_jax.errors import UserError


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
        intervals.check(self, "mixup", "cutmix", "group")
        intervals.check(self, "switch", "probability", high=1)
        if not self.mixup and not self.cutmix:
            raise UserError("mixup and cutmix are both 0. Give one of them, or no mix.")

    def __call__(
        self, key: Key[Array, ""], images: Float[Array, "n h w c"], targets: Float[Array, "n k"]
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "n k"]]:
        count, height, width, channels = images.shape
        group = self.group or count
        if count % group:
            raise UserError(f"a batch of {count} images does not consist of groups of {group}. Give Mix a group that divides it, or 0.")
        drawn = self._draw(key, count // group, height, width)
        box = _box(drawn, height, width)
        outside = 1 - box.mean(axis=(1, 2))
        weights = jnp.where(drawn.cut[:, None, None], 1 - box, drawn.share[:, None, None])
        weights = jnp.where(drawn.mixed[:, None, None], weights, 1)
        share = jnp.where(drawn.mixed, jnp.where(drawn.cut, outside, drawn.share), 1)
        grouped = images.reshape(-1, group, height, width, channels)
        return (
            _mixed(grouped, weights[:, None, :, :, None]).reshape(images.shape),
            _mixed(targets.reshape(-1, group, targets.shape[1]), share[:, None, None]).reshape(targets.shape),
        )

    def _draw(self, key: Key[Array, ""], groups: int, height: int, width: int) -> _Drawn:
        mixed_key, cut_key, share_key, row_key, column_key = jax.random.split(key, 5)
        cut = jax.random.bernoulli(cut_key, self.switch if self.mixup and self.cutmix else float(self.cutmix > 0), (groups,))
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
