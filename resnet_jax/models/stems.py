"""Stems, with their ``stride``, and transitions between stages."""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from resnet_jax import kernels as kernels_lib
from resnet_jax.errors import UserError
from resnet_jax.kernels import Kernels, max_pooling
from resnet_jax.models.layers import Activation, Conv, ConvFactory, NormFactory
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Order, Original, Sequence

Output = Float[Array, "n ho wo co"]


def _max_pool(x: Activation, kernels: Kernels) -> Output:
    """3x3 max pooling at stride 2, padded by one pixel that is never the maximum."""
    padding = ((1, 1), (1, 1))
    if kernels_lib.resolve(kernels) == "plain":
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)  # pyright: ignore[reportArgumentType]
    return max_pooling.max_pool(x, padding)


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

    def __call__(self, x: Activation, *, train: bool = False) -> Output:
        return self.after(self.conv(x), train=train)


class ImageNetStem(nnx.Module):
    """7x7 convolution and 3x3 max pooling, each at stride 2. He et al. 2015, Table 1."""

    stride: ClassVar[int] = 4

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        order: type[Order] = Original,
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        kernels: Kernels = "auto",
        rngs: nnx.Rngs,
    ):
        self.kernels: Kernels = kernels
        self.conv = conv(in_features, features, 7, 2, rngs=rngs)
        self.after = Sequence(order.before_pooling, features, norm=norm, rngs=rngs)

    def __call__(self, x: Activation, *, train: bool = False) -> Output:
        return _max_pool(self.after(self.conv(x), train=train), self.kernels)


class DeepStem(nnx.Module):
    """Three 3x3 convolutions in place of the 7x7. ResNet-C (He et al. 2018, arXiv 1812.01187, Figure 2b)."""

    stride: ClassVar[int] = 4

    def __init__(
        self,
        in_features: int,
        features: int,
        *,
        order: type[Order] = Original,
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        kernels: Kernels = "auto",
        rngs: nnx.Rngs,
    ):
        self.kernels: Kernels = kernels
        half = features // 2
        if not half:
            raise UserError(
                f"DeepStem begins at half its width, which is 0 for {features} features: use 2 or more."
            )
        widths = ((in_features, half, 2), (half, half, 1), (half, features, 1))
        self.convs = nnx.List(
            [conv(inputs, outputs, 3, stride, rngs=rngs) for inputs, outputs, stride in widths]
        )
        self.after = nnx.List(
            [
                Sequence(order.before_pooling, outputs, norm=norm, rngs=rngs)
                for _, outputs, _ in widths
            ]
        )

    def __call__(self, x: Activation, *, train: bool = False) -> Output:
        for conv, after in zip(self.convs, self.after, strict=True):
            x = after(conv(x), train=train)
        return _max_pool(x, self.kernels)


class NoTransition(nnx.Module):
    """Identity: the first block of a stage has the stride. He et al. 2015, Section 3.3."""

    stride: ClassVar[int] = 1

    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        self.out_features = in_features

    def __call__(self, x: Activation) -> Activation:
        return x


class DenseTransition(nnx.Module):
    """1x1 convolution to ``compression`` times the width, 2x2 average pooling. DenseNet (arXiv 1608.06993), Section 3."""

    stride: ClassVar[int] = 2

    def __init__(
        self,
        in_features: int,
        *,
        compression: float = 1.0,
        order: type[Order] = Original,
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        rngs: nnx.Rngs,
    ):
        if not 0 < compression <= 1:
            raise UserError(
                f"DenseTransition(compression={compression}): give more than 0 and at most 1; DenseNet-BC has 0.5."
            )
        self.out_features = int(
            round(in_features * compression, 6)
        )  # 0.35 * 180 is 62.999... in floating point
        if self.out_features < 1:
            raise UserError(
                f"DenseTransition(compression={compression}) leaves none of {in_features} features: compress less."
            )
        self.before = Sequence(order.before_convolution, in_features, norm=norm, rngs=rngs)
        self.conv = conv(in_features, self.out_features, 1, rngs=rngs)
        self.after = Sequence(order.after_last_convolution, self.out_features, norm=norm, rngs=rngs)

    def __call__(self, x: Activation, *, train: bool = False) -> Output:
        x = self.after(self.conv(self.before(x, train=train)), train=train)
        return nnx.avg_pool(x, (2, 2), strides=(2, 2))
