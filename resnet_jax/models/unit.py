"""Residual block of any branch, shortcut and order."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from resnet_jax.configured import Factory
from resnet_jax.errors import UserError
from resnet_jax.models import asking
from resnet_jax.models.branches import Basic
from resnet_jax.models.layers import Activation, Conv, ConvFactory, NormFactory
from resnet_jax.models.norms import BatchNorm, Nothing
from resnet_jax.models.orders import Norm, Order, Original, Sequence
from resnet_jax.models.shortcuts import ZeroPad


class Unit(nnx.Module):
    """``after(shortcut(x, branch(before(x))))``. He et al. 2016, eqs. 1 and 2; ``before`` and ``after`` are the order's.

    A block that changes resolution or width, and the first of a network, passes ``before(x)`` to both
    paths (Appendix).

    Args:
      features: the stage's width.
      first: true for the network's first block.
      units: blocks of the network.
      dilation: of the branch's convolutions up to the strided one, and after it.
      Others: see ``branches``, ``shortcuts`` and ``orders``.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        *,
        branch: Factory = Basic,
        shortcut: Factory = ZeroPad,
        order: type[Order] = Original,
        first: bool = False,
        units: int = 1,
        dilation: tuple[int, int] = (1, 1),
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        rngs: nnx.Rngs,
    ):
        if dilation != (1, 1) and not asking.names(branch, "dilation"):
            raise UserError(f"{branch} cannot be dilated for output_stride: let its constructor take 'dilation'.")
        offered: dict[str, Any] = {"order": order, "units": units, "dilation": dilation, "conv": conv, "norm": norm, "rngs": rngs}
        self.branch = asking.make(branch, in_features, features, stride, **offered)
        out_features = self.branch.out_features
        before, after = order.before_convolution, order.after_convolution + order.after_last_convolution + order.after_addition
        self.before = Sequence(before, in_features, norm=norm, rngs=rngs)
        # A projection is normalized as the branch's convolutions are: behind them, or not at all.
        projection_norm = norm if Norm in after else Nothing
        self.shortcut = asking.make(shortcut, in_features, out_features, stride, conv=conv, norm=projection_norm, rngs=rngs)
        self.out_features: int = getattr(self.shortcut, "merged_features", out_features)
        resizes = stride != 1 or in_features != out_features
        self.shared = bool(before) and self.out_features == out_features and (resizes or (first and order.shares_first))
        self.after = Sequence(order.after_addition, self.out_features, norm=norm, rngs=rngs)

    def __call__(
        self, x: Activation, *, train: bool = False, key: Key[Array, ""] | None = None, multiplier: Float[Array, "*n"] | None = None
    ) -> Float[Array, "n ho wo co"]:
        """Returns the block's activation. ``multiplier`` is a factor on the branch, one for all images or one per image."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        ready = self.before(x, train=train)
        branch = asking.call(self.branch, ready, train=train, key=keys[0])
        if multiplier is not None:
            branch = branch * multiplier.reshape(-1, 1, 1, 1).astype(branch.dtype)
        merged = asking.call(self.shortcut, ready if self.shared else x, branch, train=train, key=keys[1])
        # A user's formula with a float32 parameter would raise the network's dtype.
        return self.after(merged.astype(branch.dtype), train=train)
