"""Stems, with their ``stride``, and transitions between stages."""

from typing import ClassVar

from flax import nnx

from resnet_jax.errors import require
from resnet_jax.kernels import max_pool
from resnet_jax.models.components import Part
from resnet_jax.models.layers import Activation, Conv, Output, Sequence
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Order, Original


class SmallImageStem(nnx.Module):
    """3x3 convolution at full resolution. He et al. 2015, Section 4.2."""

    stride: ClassVar[int] = 1
    kernel_and_stride: ClassVar[tuple[int, int]] = (3, 1)
    pools: ClassVar[bool] = False

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        order: type[Order] = Original,
        norm: Part = BatchNorm,
        rngs: nnx.Rngs,
    ):
        layers = order.before_pooling if self.pools else order.after_stem
        self.conv = Conv(in_features, features, *self.kernel_and_stride, rngs=rngs)
        self.after = Sequence(layers, features, norm=norm, rngs=rngs)

    def __call__(self, x: Activation, *, train: bool | None = None) -> Output:
        x = self.after(self.conv(x), train=train)
        return max_pool(x) if self.pools else x


class PooledSmallImageStem(SmallImageStem):
    """3x3 convolution at full resolution and 3x3 max pooling at stride 2."""

    stride, pools = 2, True


class ImageNetStem(SmallImageStem):
    """7x7 convolution and 3x3 max pooling, each at stride 2. He et al. 2015, Table 1."""

    stride, kernel_and_stride, pools = 4, (7, 2), True


class DeepStem(nnx.Module):
    """Three 3x3 convolutions for the 7x7. ResNet-C (arXiv 1812.01187), Figure 2b."""

    stride: ClassVar[int] = 4

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        order: type[Order] = Original,
        norm: Part = BatchNorm,
        rngs: nnx.Rngs,
    ):
        half, layers = features // 2, order.before_pooling
        require(half > 0, f"DeepStem has half of {features} features: use 2 or more.")
        shapes = ((in_features, half, 3, 2), (half, half, 3, 1), (half, features, 3, 1))
        self.convs = nnx.List([Conv(*shape, rngs=rngs) for shape in shapes])
        self.after = nnx.List([Sequence(layers, s[1], norm=norm, rngs=rngs) for s in shapes])

    def __call__(self, x: Activation, *, train: bool | None = None) -> Output:
        for conv, after in zip(self.convs, self.after, strict=True):
            x = after(conv(x), train=train)
        return max_pool(x)


class NoTransition(nnx.Module):
    """Identity: a stage's first block is strided. He et al. 2015, Section 3.3."""

    stride: ClassVar[int] = 1

    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        self.out_features = in_features

    def __call__(self, x: Activation) -> Activation:
        return x


class DenseTransition(nnx.Module):
    """1x1 convolution, 2x2 average pooling. DenseNet (arXiv 1608.06993), Section 3."""

    stride: ClassVar[int] = 2

    def __init__(
        self,
        in_features: int,
        *,
        compression: float = 1.0,
        order: type[Order] = Original,
        norm: Part = BatchNorm,
        rngs: nnx.Rngs,
    ):
        # 0.35 * 180 is 62.999... in floating point.
        self.out_features = int(round(in_features * compression, 6))
        valid = 0 < compression <= 1 <= self.out_features
        part = f"DenseTransition(compression={compression}) of {in_features} features"
        require(valid, f"{part} must be in (0, 1] and leave one.")
        self.before = Sequence(order.before_convolution, in_features, norm=norm, rngs=rngs)
        self.conv = Conv(in_features, self.out_features, 1, rngs=rngs)
        self.after = Sequence(order.after_last_convolution, self.out_features, norm=norm, rngs=rngs)

    def __call__(self, x: Activation, *, train: bool | None = None) -> Output:
        x = self.after(self.conv(self.before(x, train=train)), train=train)
        return nnx.avg_pool(x, (2, 2), strides=(2, 2))
