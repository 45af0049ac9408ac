"""What stands between two stages, before the first unit of the second."""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from resnet_jax.errors import UserError
from resnet_jax.models.layers import Conv, ConvFactory, NormFactory
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Order, Original, Sequence


class NoTransition(nnx.Module):
    """Nothing: the first unit of the stage has the stride. He et al. 2015, Section 3.3."""

    stride: ClassVar[int] = 1

    def __init__(self, in_features: int, *, rngs: nnx.Rngs):
        self.out_features = in_features

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        return x


class DenseTransition(nnx.Module):
    """A 1x1 convolution to ``compression`` times the width, and 2x2 average pooling. DenseNet (arXiv 1608.06993), Section 3.

    Raises:
      UserError: for a compression outside (0, 1], or one that leaves no feature.
    """

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
            raise UserError(f"DenseTransition(compression={compression}): give more than 0 and at most 1; 0.5 in DenseNet-BC")
        self.out_features = int(round(in_features * compression, 6))  # 0.35 * 180 is 62.999... in floating point
        if self.out_features < 1:
            raise UserError(f"DenseTransition(compression={compression}) leaves nothing of {in_features} features: compress less")
        self.before = Sequence(order.before_convolution, in_features, norm=norm, rngs=rngs)
        self.conv = conv(in_features, self.out_features, 1, rngs=rngs)
        self.after = Sequence(order.after_last_convolution, self.out_features, norm=norm, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n ho wo co"]:
        x = self.after(self.conv(self.before(x, train=train)), train=train)
        return nnx.avg_pool(x, (2, 2), strides=(2, 2))
