"""The residual unit: a branch, a shortcut, and an order, each of them given. Any combination is a network."""

from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from resnet_jax.configured import Factory
from resnet_jax.errors import UserError
from resnet_jax.models import asking
from resnet_jax.models.branches import Basic
from resnet_jax.models.layers import Conv, ConvFactory, NormFactory
from resnet_jax.models.norms import BatchNorm, Nothing
from resnet_jax.models.orders import Norm, Order, Original, Sequence
from resnet_jax.models.shortcuts import ZeroPad


class Unit(nnx.Module):
    """``after(shortcut(x, branch(before(x))))``. He et al. 2016, eqs. 1 and 2; ``before`` and ``after`` are the order's.

    Where an order puts something before the convolutions, a unit that changes size or width, and the first of a network, hands it to
    both paths (Appendix).

    Args:
      in_features: channels that come in.
      features: the stage's width.
      stride: of the branch and of the shortcut.
      branch, shortcut: their classes, see ``resnet_jax.models.branches`` and ``resnet_jax.models.shortcuts``.
      order: see ``resnet_jax.models.orders``.
      first: whether it is the network's first unit.
      units: how many the network has.
      dilation: of the branch's convolutions up to the one with the stride, and of those after it.
      conv, norm: layer factories.

    Raises:
      UserError: where a dilation is asked of a branch that does not name it.
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
            raise UserError(f"{branch} cannot be dilated for output_stride: let its constructor take 'dilation'")
        offered: dict[str, Any] = {"order": order, "units": units, "dilation": dilation, "conv": conv, "norm": norm, "rngs": rngs}
        self.branch = asking.make(branch, in_features, features, stride, **offered)
        out_features = self.branch.out_features
        before, after = order.before_convolution, order.after_convolution + order.after_last_convolution + order.after_addition
        self.before = Sequence(before, in_features, norm=norm, rngs=rngs)
        # A projection is normalised as the branch's convolutions are: behind them. Full pre-activation and Fixup have nothing there.
        projection_norm = norm if Norm in after else Nothing
        self.shortcut = asking.make(shortcut, in_features, out_features, stride, conv=conv, norm=projection_norm, rngs=rngs)
        self.out_features: int = getattr(self.shortcut, "merged_features", out_features)
        resizes = stride != 1 or in_features != out_features
        self.shared = bool(before) and self.out_features == out_features and (resizes or (first and order.shares_first))
        self.after = Sequence(order.after_addition, self.out_features, norm=norm, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "n h w c"],
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        multiplier: Float[Array, "*n"] | None = None,
    ) -> Float[Array, "n ho wo co"]:
        """Returns the unit's activation. ``multiplier``, one number or one for each image, is a factor on the branch: 0 deletes it."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        ready = self.before(x, train=train)
        branch = asking.call(self.branch, ready, train=train, key=keys[0])
        if multiplier is not None:
            branch = branch * multiplier.reshape(-1, 1, 1, 1).astype(branch.dtype)
        merged = asking.call(self.shortcut, ready if self.shared else x, branch, train=train, key=keys[1])
        # A formula of a user's with a float32 parameter would raise the network's dtype.
        return self.after(merged.astype(branch.dtype), train=train)
