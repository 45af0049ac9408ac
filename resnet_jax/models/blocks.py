"""Residual block of any branch, shortcut and order."""

import functools

import jax
from flax import nnx

from resnet_jax.errors import Fraction, UserError, check
from resnet_jax.kernels.typing import Array, Float, Key
from resnet_jax.models import components
from resnet_jax.models.components import Part, component
from resnet_jax.models.layers import (
    Activation,
    Conv,
    Norm,
    Output,
    Rngs,
    Sequence,
    SqueezeExcitation,
    checked,
    keep,
    rngs_of,
    width_of,
)
from resnet_jax.models.norms import BatchNorm, Nothing
from resnet_jax.models.orders import Order, Original
from resnet_jax.models.shortcuts import ZeroPad


class Branch(nnx.Module):
    """B(kernels) of Wide ResNet (arXiv 1605.07146), Section 2, with the layers of the order.

    Args:
      features: the stage's width; the output has ``features * expansion`` channels.
      stride_at: index of the strided convolution.
      groups: of the convolutions larger than 1x1 (ResNeXt's cardinality).
      base_width: the inner width is ``features * base_width / 64 * groups``.
      dropout: rate before the last convolution (Wide ResNet, Section 2.4).
      reduction: of squeeze-and-excitation at the end; 0: none.
      dilation: of the convolutions larger than 1x1 up to the strided one, and after it.
      zero_scale: initial scale 0 of the last normalization (arXiv 1706.02677, Section 5.1).
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
        norm: Part = BatchNorm,
        rngs: nnx.Rngs,
    ):
        if not 0 <= stride_at < len(kernels):
            raise UserError(f"kernels={kernels} has no convolution {stride_at} (stride_at).")
        self.dropout, self.deterministic = dropout, True
        check("Branch.dropout", Fraction, dropout)
        inner = features * base_width // 64 * groups
        if min(inner, expansion) < 1:
            widths = f"{features=}, {groups=}, {base_width=}, {expansion=}"
            raise UserError(f"a branch needs at least one channel: {widths}.")
        self.out_features = features * expansion
        between, last = order.after_convolution + order.before_convolution, len(kernels) - 1
        scales = order.initial_scales(len(kernels), num_blocks)
        convs, afters = [], []
        for index, (size, scale) in enumerate(zip(kernels, scales, strict=True)):
            width = self.out_features if index == last else inner
            step = stride if index == stride_at else 1
            spread, split = (1, 1) if size == 1 else (dilation[index > stride_at], groups)
            conv = Conv(in_features, width, size, step, dilation=spread, groups=split, rngs=rngs)
            convs.append(conv)
            if scale != 1:
                conv.kernel[...] *= scale
            layers = order.after_last_convolution if index == last else between
            afters.append(Sequence(layers, width, norm=norm, rngs=rngs))
            in_features = width
        self.convs, self.after = nnx.List(convs), nnx.List(afters)
        if zero_scale:
            norms = zip(afters[-1].layers, order.after_last_convolution, strict=True)
            norm_scales = [n.scale for n, cls in norms if cls is Norm and hasattr(n, "scale")]
            if not norm_scales:
                problem = f"{order.__name__}'s branches do not end in a normalization with a scale"
                raise UserError(f"zero_scale: {problem}; use Original with BatchNorm.")
            norm_scales[-1][...] *= 0
        excitation = functools.partial(SqueezeExcitation, reduction=reduction, rngs=rngs)
        self.excitation = excitation(self.out_features) if reduction else None

    def __call__(
        self, x: Activation, *, train: bool | None = None, key: Key[Array, ""] | None = None
    ) -> Output:
        for index, (conv, after) in enumerate(zip(self.convs, self.after, strict=True)):
            is_last = index == len(self.convs) - 1
            if self.dropout and is_last and components.in_training(self, train):
                kept = keep(key, self.dropout, x.shape, "dropout inside a branch").astype(x.dtype)
                x = x * kept / (1 - self.dropout)
            x = after(conv(x), train=train)
        return x if self.excitation is None else self.excitation(x)


# He et al. 2015, Figure 5, with the stride in the first 1x1; V15: in the 3x3.
Basic = component(Branch, kernels=(3, 3))
Bottleneck = component(Branch, kernels=(1, 3, 1), expansion=4)
BottleneckV15 = component(Bottleneck, stride_at=1)
# He et al. 2016, Table 3: "1-layer skip".
SingleLayer = component(Branch, kernels=(3,))


class ResidualBlock(nnx.Module):
    """``after(shortcut(x, branch(before(x))))``. He et al. 2016, eqs. 1 and 2.

    Blocks that change shapes, and the network's ``first``, pass ``before(x)`` to both paths
    (Appendix).
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        *,
        branch: Part = Basic,
        shortcut: Part = ZeroPad,
        order: type[Order] = Original,
        first: bool = False,
        num_blocks: int = 1,
        dilation: tuple[int, int] = (1, 1),
        norm: Part = BatchNorm,
        rngs: Rngs,
    ):
        rngs, norm = rngs_of(rngs), components.resolve(norm)
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
        out_features = width_of(self.branch)
        self.before = Sequence(order.before_convolution, in_features, norm=norm, rngs=rngs)
        # A projection is normalized if the branch's convolutions are, behind them.
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
        merges = self.out_features != out_features
        shares = resizes or (first and order.shares_first)
        self.shared = bool(order.before_convolution) and shares and not merges
        self.after = Sequence(order.after_addition, self.out_features, norm=norm, rngs=rngs)

    def __call__(
        self,
        x: Activation,
        *,
        train: bool | None = None,
        key: Key[Array, ""] | None = None,
        multiplier: Float[Array, "*n"] | None = None,
    ) -> Output:
        """Runs the block; ``multiplier`` is one factor on the branch, or one per image."""
        keys = (None, None) if key is None else tuple(jax.random.split(key))
        ready = self.before(x, train=train)
        options = components.accepted(self.branch, train=train, key=keys[0])
        branch = self.branch(ready, **options)
        branch = checked(self.branch, branch, x.shape[0], -1, -1, self.branch.out_features)
        if multiplier is not None:
            branch = branch * multiplier.reshape(-1, 1, 1, 1).astype(branch.dtype)
        carried = ready if self.shared else x
        options = components.accepted(self.shortcut, train=train, key=keys[1])
        merged = self.shortcut(carried, branch, **options)
        merged = checked(self.shortcut, merged, *branch.shape[:3], self.out_features)
        # A user's float32 parameter would raise the network's dtype.
        return self.after(merged.astype(branch.dtype), train=train)
