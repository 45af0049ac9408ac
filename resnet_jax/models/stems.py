"""How images enter a network: the first convolution, and what it subsamples."""

from flax import nnx
from jaxtyping import Array, Float

from resnet_jax.models.layers import BatchNorm, Conv, ConvFactory, NormFactory


class SmallImageStem(nnx.Module):
    """3x3 convolution at full resolution, for images of 8 to 64 pixels. He et al. 2015, Section 4.2."""

    def __init__(self, in_features: int, features: int, *, conv: ConvFactory = Conv, norm: NormFactory = BatchNorm, rngs: nnx.Rngs):
        self.conv = conv(in_features, features, 3, rngs=rngs)
        self.norm = norm(features, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n h w co"]:
        return nnx.relu(self.norm(self.conv(x), train=train))


class ImageNetStem(nnx.Module):
    """7x7 convolution and 3x3 max-pooling, each at stride 2. He et al. 2015, Table 1."""

    def __init__(self, in_features: int, features: int, *, conv: ConvFactory = Conv, norm: NormFactory = BatchNorm, rngs: nnx.Rngs):
        self.conv = conv(in_features, features, 7, 2, rngs=rngs)
        self.norm = norm(features, rngs=rngs)

    def __call__(self, x: Float[Array, "n h w c"], *, train: bool = False) -> Float[Array, "n ho wo co"]:
        x = nnx.relu(self.norm(self.conv(x), train=train))
        return nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))  # pyright: ignore[reportArgumentType]
