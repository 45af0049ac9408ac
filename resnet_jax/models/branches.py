"""What a residual unit computes beside its shortcut: a row of convolutions, F in F(x) + x.

A branch is an NNX module, made from ``(in_features, features, stride, rngs)`` and called with ``(x)``; its attribute ``out_features``
says how wide it comes out. It may ask for more by naming it: ``order``, ``units`` (of the whole network), ``dilation``, ``conv`` and
``norm`` in its constructor, ``train`` and ``key`` in its call.
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models.layers import Conv, ConvFactory, NormFactory, SqueezeExcitation, keep
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Norm, Order, Original, Sequence


class Branch(nnx.Module):
    """B(kernels): convolutions of the given sizes, with what the order puts around them. Wide ResNet (1605.07146), Section 2.

    Args:
      in_features: channels that come in.
      features: the stage's width; ``features * expansion`` channels go out.
      stride: of one convolution, that at ``stride_at``.
      kernels: sides of the kernels, in order: (3, 3) is He et al. 2015's basic branch, (1, 3, 1) the bottleneck's.
      expansion: width that goes out, over ``features``.
      stride_at: index of the convolution with the stride.
      groups: of the convolutions larger than 1x1 (ResNeXt's cardinality).
      base_width: the inner width is ``features * base_width / 64 * groups``: 4 with 32 groups is ResNeXt 32x4d, 128 Wide ResNet-50-2.
      dropout: rate, while training, before the last convolution (Wide ResNet, Section 2.4).
      reduction: of squeeze-and-excitation at the end; 0: none.
      dilation: of the convolutions larger than 1x1, up to the one with the stride, and after it. Where a stride has become a
        dilation, what comes after it has to be dilated more than the convolution that had it.
      zero_scale: the scale of the last normalisation begins at 0, so that a residual unit begins as its shortcut (Goyal et al. 2017, arXiv
        1706.02677, Section 5.1).
      order: see ``resnet_jax.models.orders``. What it puts before the first convolution and after the addition belongs to the unit.
      units: units of the whole network, which Fixup's initialisation depends on.
      conv, norm: layer factories.

    Raises:
      UserError: for no kernel, a ``stride_at`` that is none of them, a rate that is none, groups that do not divide the width, or
        ``zero_scale`` where no normalisation with a scale follows the last convolution.
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
        units: int = 1,
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        rngs: nnx.Rngs,
    ):
        if not kernels or not 0 <= stride_at < len(kernels):
            raise UserError(f"a branch with kernels={kernels} has no convolution {stride_at} to hold the stride (stride_at)")
        if not 0 <= dropout < 1:
            raise UserError(f"dropout={dropout} is no rate: give 0 or more and less than 1")
        inner = features * base_width // 64 * groups
        if inner < 1 or expansion < 1:
            raise UserError(f"features={features}, base_width={base_width}, expansion={expansion}: a branch needs at least one channel")
        if reduction < 0:
            raise UserError(f"reduction={reduction}: squeeze-and-excitation reduces by 1 or more; 0 leaves it out")
        last = len(kernels) - 1
        self.out_features = features * expansion
        self.dropout = dropout
        scales = order.initial_scales(len(kernels), units)
        convs, between = [], []
        for index, (size, scale) in enumerate(zip(kernels, scales, strict=True)):
            wide = self.out_features if index == last else inner
            spread = {"dilation": dilation[index > stride_at], "groups": groups} if size > 1 else {}
            convs.append(conv(in_features, wide, size, stride if index == stride_at else 1, **spread, rngs=rngs))
            if scale != 1:
                convs[-1].kernel[...] *= scale
            after = order.after_last_convolution if index == last else order.after_convolution + order.before_convolution
            between.append(Sequence(after, wide, norm=norm, rngs=rngs))
            in_features = wide
        self.convs, self.after = nnx.List(convs), nnx.List(between)
        if zero_scale:
            _begin_at_zero(self.after[last], order)
        self.excitation = SqueezeExcitation(self.out_features, reduction=reduction, rngs=rngs) if reduction else None

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool = False, key: Key[Array, ""] | None = None) -> Float[Array, "n ho wo co"]:
        for index, (conv, after) in enumerate(zip(self.convs, self.after, strict=True)):
            if self.dropout and train and index == len(self.convs) - 1:
                x = x * keep(key, self.dropout, x.shape, "dropout inside a branch").astype(x.dtype) / (1 - self.dropout)
            x = after(conv(x), train=train)
        return x if self.excitation is None else self.excitation(x)


def _begin_at_zero(after: Sequence, order: type[Order]) -> None:
    norms = [made for layer, made in zip(order.after_last_convolution, after.layers, strict=True) if layer is Norm]
    scale = getattr(norms[-1], "scale", None) if norms else None
    if scale is None:
        ends = f"in {type(norms[-1]).__name__}, which has no scale" if norms else "in no normalisation"
        raise UserError(
            f"zero_scale=True: a branch of the order {order.__name__} ends {ends}; leave it out, or use Original with BatchNorm"
        )
    scale[...] = jnp.zeros_like(scale[...])


# He et al. 2015, Figure 5: left; right, with the stride in the first 1x1 as in the paper; "v1.5", with the stride in the 3x3.
Basic = configured(Branch, kernels=(3, 3))
Bottleneck = configured(Branch, kernels=(1, 3, 1), expansion=4)
BottleneckV15 = configured(Bottleneck, stride_at=1)
# He et al. 2016, Table 3: "1-layer skip".
SingleLayer = configured(Branch, kernels=(3,))
