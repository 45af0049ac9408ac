"""How x is carried to the shape of the branch, where a unit changes size or width. What they do where it does not, is the identity."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from resnet_jax.errors import UserError
from resnet_jax.models import asking
from resnet_jax.models.layers import ConvFactory, NormFactory

Activation = Float[Array, "n h w c"]
Carried = Float[Array, "n ho wo co"]


class Resizing(nnx.Module):
    """Made from ``(in_features, out_features, stride)``, the network's layer factories and ``rngs``; maps x to the branch's shape."""

    def __init__(self, in_features: int, out_features: int, stride: int, *, conv: ConvFactory, norm: NormFactory, rngs: nnx.Rngs):
        raise NotImplementedError

    def __call__(self, x: Activation, *, train: bool) -> Carried:
        raise NotImplementedError


class Pad(Resizing):
    """Every stride-th pixel; missing channels are zero, behind those of x, as in fb.resnet.torch. He et al. 2015, option A."""

    def __init__(self, in_features: int, out_features: int, stride: int, *, conv: ConvFactory, norm: NormFactory, rngs: nnx.Rngs):
        if out_features < in_features:
            raise UserError(f"option A cannot shrink {in_features} features to {out_features}: use a projection (B, Projection)")
        self.stride, self.missing = stride, out_features - in_features

    def __call__(self, x: Activation, *, train: bool) -> Carried:
        return self._widened(x[:, :: self.stride, :: self.stride] if self.stride > 1 else x)

    def _widened(self, x: Activation) -> Carried:
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.missing))) if self.missing else x


class PadBoth(Pad):
    """Every stride-th pixel; missing channels are zero, half of them before those of x. Option A of akamaster/pytorch_resnet_cifar10."""

    def _widened(self, x: Activation) -> Carried:
        before = self.missing // 2
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (before, self.missing - before)))


class PoolPad(Pad):
    """Averages of stride x stride pixels; missing channels zero. Stochastic depth (Huang et al. 2016), Section 4."""

    def __call__(self, x: Activation, *, train: bool) -> Carried:
        return self._widened(_pooled(x, self.stride))


class ProjectAlways(Resizing):
    """A strided 1x1 convolution and a normalisation, on every unit. He et al. 2015, eq. 2; option C."""

    def __init__(self, in_features: int, out_features: int, stride: int, *, conv: ConvFactory, norm: NormFactory, rngs: nnx.Rngs):
        self.conv = conv(in_features, out_features, 1, stride, rngs=rngs)
        self.norm = norm(out_features, rngs=rngs)

    def __call__(self, x: Activation, *, train: bool) -> Carried:
        return asking.call(self.norm, self.conv(x), train=train)


class Project(Resizing):
    """A projection where size or width changes. He et al. 2015, option B."""

    def __init__(self, in_features: int, out_features: int, stride: int, *, conv: ConvFactory, norm: NormFactory, rngs: nnx.Rngs):
        changes = stride != 1 or in_features != out_features
        self.projection = ProjectAlways(in_features, out_features, stride, conv=conv, norm=norm, rngs=rngs) if changes else None

    def __call__(self, x: Activation, *, train: bool) -> Carried:
        return x if self.projection is None else self.projection(x, train=train)


class PoolProject(Project):
    """Averages of stride x stride pixels, then the projection without stride: nothing of x is thrown away. ResNet-D (He et al. 2018)."""

    def __init__(self, in_features: int, out_features: int, stride: int, *, conv: ConvFactory, norm: NormFactory, rngs: nnx.Rngs):
        self.stride = stride
        changes = stride != 1 or in_features != out_features
        self.projection = ProjectAlways(in_features, out_features, 1, conv=conv, norm=norm, rngs=rngs) if changes else None

    def __call__(self, x: Activation, *, train: bool) -> Carried:
        return super().__call__(_pooled(x, self.stride), train=train)


BY_NAME: dict[str, type[Resizing]] = {
    "pad": Pad,
    "pad-both": PadBoth,
    "pool-pad": PoolPad,
    "project": Project,
    "pool-project": PoolProject,
    "project-always": ProjectAlways,
}


def _pooled(x: Activation, stride: int) -> Carried:
    # A window that hangs over the edge averages the pixels that are there, so odd sizes come out as the branch's: rounded up.
    if stride == 1:
        return x
    return nnx.avg_pool(x, (stride, stride), strides=(stride, stride), padding="SAME", count_include_pad=False)
