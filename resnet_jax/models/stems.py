"""How images enter a network: the first convolutions, and what they subsample (``stride``)."""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from resnet_jax.errors import UserError
from resnet_jax.models.convolution import Gradients, Pairs
from resnet_jax.models.layers import Conv, ConvFactory, NormFactory
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Order, Original, Sequence
from resnet_jax.models.pooling import max_pool

Images = Float[Array, "n h w c"]
Entered = Float[Array, "n ho wo co"]


class SmallImageStem(nnx.Module):
    """3x3 convolution at full resolution, for images of 8 to 64 pixels. He et al. 2015, Section 4.2."""

    stride: ClassVar[int] = 1

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        order: type[Order] = Original,
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(in_features, features, 3, rngs=rngs)
        self.after = Sequence(order.after_stem, features, norm=norm, rngs=rngs)

    def __call__(self, x: Images, *, train: bool = False) -> Entered:
        return self.after(self.conv(x), train=train)


class ImageNetStem(nnx.Module):
    """7x7 convolution and 3x3 max-pooling, each at stride 2. He et al. 2015, Table 1."""

    stride: ClassVar[int] = 4
    pooled: ClassVar[Pairs] = ((1, 1), (1, 1))

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        order: type[Order] = Original,
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        pooling: Gradients = "auto",
        rngs: nnx.Rngs,
    ):
        self.pooling: Gradients = pooling
        self.conv = conv(in_features, features, 7, 2, rngs=rngs)
        self.after = Sequence(order.before_pooling, features, norm=norm, rngs=rngs)

    def __call__(self, x: Images, *, train: bool = False) -> Entered:
        return max_pool(self.after(self.conv(x), train=train), self.pooled, self.pooling)


class CeilPooledStem(ImageNetStem):
    """The same, pooled as in He et al.'s released models for Caffe: windows begin at the first pixel, the last may hang over the edge."""

    pooled = ((0, 1), (0, 1))


class DeepStem(nnx.Module):
    """Three 3x3 convolutions, the first two half as wide, in place of the 7x7. ResNet-C (He et al. 2018, arXiv 1812.01187, Figure 2b)."""

    stride: ClassVar[int] = 4

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        order: type[Order] = Original,
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        pooling: Gradients = "auto",
        rngs: nnx.Rngs,
    ):
        self.pooling: Gradients = pooling
        half = features // 2
        if not half:
            raise UserError(f"a deep stem begins half as wide as it ends, which {features} features cannot be halved for: use 2 or more")
        widths = ((in_features, half, 2), (half, half, 1), (half, features, 1))
        self.convs = nnx.List([conv(come, go, 3, stride, rngs=rngs) for come, go, stride in widths])
        self.after = nnx.List([Sequence(order.before_pooling, go, norm=norm, rngs=rngs) for _, go, _ in widths])

    def __call__(self, x: Images, *, train: bool = False) -> Entered:
        for conv, after in zip(self.convs, self.after, strict=True):
            x = after(conv(x), train=train)
        return max_pool(x, ((1, 1), (1, 1)), self.pooling)
