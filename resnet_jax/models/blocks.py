"""Residual block of any branch, shortcut and order."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from resnet_jax.errors import UserError
from resnet_jax.models import components
from resnet_jax.models.components import Factory, component
from resnet_jax.models.layers import (
    Activation,
    Conv,
    Norm,
    NormFactory,
    Output,
    Sequence,
    SqueezeExcitation,
    keep,
)
from resnet_jax.models.norms import BatchNorm, Nothing
from resnet_jax.models.orders import Order, Original
from resnet_jax.models.shortcuts import ZeroPad


class Branch(nnx.Module):
    """B(kernels) of Wide ResNet (arXiv 1605.07146), Section 2, with the layers of the order.

    Args:
      features: the stage's width; the output has ``features * expansion`` channels.
      kernels: kernel sizes.
      stride_at: index of the strided convolution.
      groups: of the convolutions larger than 1x1 (ResNeXt's cardinality).
      base_width: the inner width is ``features * base_width / 64 * groups``.
      dropout: rate in training before the last convolution (Wide ResNet, Section 2.4).
      reduction: of squeeze-and-excitation at the end; 0: none.
      dilation: of the convolutions larger than 1x1 up to the strided one, and after it.
      zero_scale: the last normalization's scale is initially 0 (Goyal et al. 2017,
        arXiv 1706.02677, Section 5.1).
      num_blocks: blocks of the network, for Fixup's initialization.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        *,
        kernels: tuple[int, ...] = (3, 3),
        expansion: int = 1,
        stride_at: int = 0,
        groups: int = 1,
        base_width: int = 64,
        dropout: float = 0.0,
        reduction: int = 0,
        dilation: tuple[int, int] = (1, 1),
        zero_scale: bool = False,
        order: type[Order] = Original,
        num_blocks: int = 1,
        norm: NormFactory = BatchNorm,
        rngs: nnx.Rngs,
    ):
        if not 0 <= stride_at < len(kernels):
            raise UserError(f"kernels={kernels} has no convolution {stride_at} (stride_at).")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout must be in [0, 1), got {dropout}.")
        inner = features * base_width // 64 * groups
        if min(inner, expansion) < 1:
            raise UserError(
                f"a branch needs at least one channel: features={features}, groups={groups}, "
                f"base_width={base_width}, expansion={expansion}."
            )
        self.out_features = features * expansion
        self.dropout = dropout
        between = order.after_convolution + order.before_convolution
        last = len(kernels) - 1
        widths = [inner] * last + [self.out_features]
        scales = order.initial_scales(len(kernels), num_blocks)
        convs, afters = [], []
        for index, (size, width, scale) in enumerate(zip(kernels, widths, scales, strict=True)):
            options = (
                {} if size == 1 else {"dilation": dilation[index > stride_at], "groups": groups}
            )
            step = stride if index == stride_at else 1
            convs.append(Conv(in_features, width, size, step, **options, rngs=rngs))
            if scale != 1:
                convs[-1].kernel[...] *= scale
            layers = order.after_last_convolution if index == last else between
            afters.append(Sequence(layers, width, norm=norm, rngs=rngs))
            in_features = width
        self.convs, self.after = nnx.List(convs), nnx.List(afters)
        if zero_scale:
            norms = zip(afters[last].layers, order.after_last_convolution, strict=True)
            scaled = [layer for layer, cls in norms if cls is Norm and hasattr(layer, "scale")]
            if not scaled:
                raise UserError(
                    f"zero_scale: branches of {order.__name__} do not end in a normalization with "
                    "a scale; use Original with BatchNorm."
                )
            scaled[-1].scale[...] = jnp.zeros_like(scaled[-1].scale[...])
        self.excitation = (
            SqueezeExcitation(self.out_features, reduction=reduction, rngs=rngs)
            if reduction
            else None
        )

    def __call__(
        self, x: Activation, *, train: bool = False, key: Key[Array, ""] | None = None
    ) -> Output:
        for index, (conv, after) in enumerate(zip(self.convs, self.after, strict=True)):
            if self.dropout and train and index == len(self.convs) - 1:
                kept = keep(key, self.dropout, x.shape, "dropout inside a branch").astype(x.dtype)
                x = x * kept / (1 - self.dropout)
            x = after(conv(x), train=train)
        return x if self.excitation is None else self.excitation(x)


# He et al. 2015, Figure 5: left; right, with the stride in the first 1x1 as there; in the 3x3.
Basic = component(Branch, kernels=(3, 3))
Bottleneck = component(Branch, kernels=(1, 3, 1), expansion=4)
BottleneckV15 = component(Bottleneck, stride_at=1)
# He et al. 2016, Table 3: "1-layer skip".
SingleLayer = component(Branch, kernels=(3,))


class ResidualBlock(nnx.Module):
    """``after(shortcut(x, branch(before(x))))``. He et al. 2016, eqs. 1 and 2.

    A block that changes resolution or width, and the ``first`` of a network, passes ``before(x)``
    to both paths (Appendix). Arguments as of ``Branch``.
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
        num_blocks: int = 1,
        dilation: tuple[int, int] = (1, 1),
        norm: NormFactory = BatchNorm,
        rngs: nnx.Rngs,
    ):
        declared, open_ended = components.constructor_parameters(components.parts(branch)[0])
        if dilation != (1, 1) and "dilation" not in declared and not open_ended:
            raise UserError(f"{branch} cannot be dilated: its constructor has to take 'dilation'.")
        self.branch = components.make(
            branch,
            in_features,
            features,
            stride,
            order=order,
            num_blocks=num_blocks,
            dilation=dilation,
            conv=Conv,
            norm=norm,
            rngs=rngs,
        )
        out_features = self.branch.out_features
        self.before = Sequence(order.before_convolution, in_features, norm=norm, rngs=rngs)
        # A projection is normalized as the branch's convolutions are: behind them, or not at all.
        behind = order.after_convolution + order.after_last_convolution + order.after_addition
        self.shortcut = components.make(
            shortcut,
            in_features,
            out_features,
            stride,
            conv=Conv,
            norm=norm if Norm in behind else Nothing,
            rngs=rngs,
        )
        self.out_features: int = getattr(self.shortcut, "merged_features", out_features)
        resizes = stride != 1 or in_features != out_features
        self.shared = (
            bool(order.before_convolution)
            and self.out_features == out_features
            and (resizes or (first and order.shares_first))
        )
        self.after = Sequence(order.after_addition, self.out_features, norm=norm, rngs=rngs)

    def __call__(
        self,
        x: Activation,
        *,
        train: bool = False,
        key: Key[Array, ""] | None = None,
        multiplier: Float[Array, "*n"] | None = None,
    ) -> Output:
        """Runs the block; ``multiplier`` is a factor on the branch, one or one per image."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        ready = self.before(x, train=train)
        branch = components.call(self.branch, ready, train=train, key=keys[0])
        if multiplier is not None:
            branch = branch * multiplier.reshape(-1, 1, 1, 1).astype(branch.dtype)
        carried = ready if self.shared else x
        merged = components.call(self.shortcut, carried, branch, train=train, key=keys[1])
        # A user's formula with a float32 parameter would raise the network's dtype.
        return self.after(merged.astype(branch.dtype), train=train)
