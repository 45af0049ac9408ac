"""The branches of He et al. 2015, Figure 5, each with the shortcut that it is given. ReLU follows the merge (original order)."""

from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from resnet_jax.models import shortcuts
from resnet_jax.models.layers import BatchNorm, Conv, ConvFactory, NormFactory


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions (Figure 5, left).

    Args:
      in_features: channels that come in.
      features: channels of each convolution; ``features * expansion`` go out.
      stride: of the first convolution, and of the shortcut.
      shortcut: class of the shortcut, see ``resnet_jax.models.shortcuts``.
      conv, norm: layer factories.
    """

    expansion: ClassVar[int] = 1

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        *,
        shortcut: type[nnx.Module],
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        rngs: nnx.Rngs,
    ):
        self.conv1 = conv(in_features, features, 3, stride, rngs=rngs)
        self.norm1 = norm(features, rngs=rngs)
        self.conv2 = conv(features, features, 3, rngs=rngs)
        self.norm2 = norm(features, rngs=rngs)
        self.shortcut = shortcuts.make(shortcut, in_features, features, stride, conv=conv, norm=norm, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n ho wo co"]:
        y = nnx.relu(self.norm1(self.conv1(x), train=train))
        y = self.norm2(self.conv2(y), train=train)
        return nnx.relu(shortcuts.merge(self.shortcut, x, y, train=train))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide (Figure 5, right), the stride in the first 1x1 as in the paper.

    Arguments as ``BasicBlock``.
    """

    expansion: ClassVar[int] = 4
    stride_in_1x1: ClassVar[bool] = True

    def __init__(
        self,
        in_features: int,
        features: int,
        stride: int,
        *,
        shortcut: type[nnx.Module],
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        rngs: nnx.Rngs,
    ):
        out_features = features * self.expansion
        stride1, stride2 = (stride, 1) if self.stride_in_1x1 else (1, stride)
        self.conv1 = conv(in_features, features, 1, stride1, rngs=rngs)
        self.norm1 = norm(features, rngs=rngs)
        self.conv2 = conv(features, features, 3, stride2, rngs=rngs)
        self.norm2 = norm(features, rngs=rngs)
        self.conv3 = conv(features, out_features, 1, rngs=rngs)
        self.norm3 = norm(out_features, rngs=rngs)
        self.shortcut = shortcuts.make(shortcut, in_features, out_features, stride, conv=conv, norm=norm, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n ho wo co"]:
        y = nnx.relu(self.norm1(self.conv1(x), train=train))
        y = nnx.relu(self.norm2(self.conv2(y), train=train))
        y = self.norm3(self.conv3(y), train=train)
        return nnx.relu(shortcuts.merge(self.shortcut, x, y, train=train))


class BottleneckV15(Bottleneck):
    """The bottleneck of fb.resnet.torch and torchvision ("v1.5"): the stride in the 3x3; ResNet-50 has 6 % more multiply-adds."""

    stride_in_1x1: ClassVar[bool] = False
