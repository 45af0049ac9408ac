"""Shortcut connections and how they merge with the residual branch.

A shortcut is an NNX module, constructed with ``(in_features, out_features, stride, rngs)`` and called
with ``(x, branch)``; it returns the merged activation. Optional arguments that it names are passed:
``conv`` and ``norm`` (the network's layer factories) to the constructor, ``train`` and ``key`` (of this
block and step, or None) to the call. If the result is wider than the branch, the attribute
``merged_features`` is its width. Classes defined elsewhere are treated alike.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from resnet_jax.errors import UserError, nearest
from resnet_jax.models import components
from resnet_jax.models.components import Component, component
from resnet_jax.models.layers import Activation, Conv, ConvFactory, NormFactory, keep
from resnet_jax.models.norms import BatchNorm

Branch = Float[Array, "n ho wo co"]


class _Pad(nnx.Module):
    """Strided subsampling and zero channels behind those of x, as in fb.resnet.torch.

    ``pool``: average pooling instead; ``both``: half of the zeros before x, as in akamaster/pytorch_resnet_cifar10.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        *,
        pool: bool = False,
        both: bool = False,
        **_: Any,
    ):
        if out_features < in_features:
            raise UserError(
                f"Option A cannot shrink {in_features} features to {out_features}: use a projection (B, Projection)."
            )
        missing = out_features - in_features
        before = missing // 2 if both else 0
        self.stride, self.pool, self.channels = stride, pool, (before, missing - before)

    def __call__(self, x: Activation, *, train: bool) -> Branch:
        if self.stride > 1:
            x = _pool(x, self.stride) if self.pool else x[:, :: self.stride, :: self.stride]
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), self.channels)) if any(self.channels) else x


class _ProjectAlways(nnx.Module):
    """Strided 1x1 convolution and normalization. He et al. 2015, eq. 2."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        *,
        conv: ConvFactory,
        norm: NormFactory,
        rngs: nnx.Rngs,
    ):
        self.conv = conv(in_features, out_features, 1, stride, rngs=rngs)
        self.norm = norm(out_features, rngs=rngs)

    def __call__(self, x: Activation, *, train: bool) -> Branch:
        return components.call(self.norm, self.conv(x), train=train)


class _Project(nnx.Module):
    """A projection where shapes change, else the identity. ``pool``: average pooling in place of its stride."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        *,
        pool: bool = False,
        **factories: Any,
    ):
        changes = stride != 1 or in_features != out_features
        self.pool_stride, stride = (stride, 1) if pool else (1, stride)
        self.projection = (
            _ProjectAlways(in_features, out_features, stride, **factories) if changes else None
        )

    def __call__(self, x: Activation, *, train: bool) -> Branch:
        return (
            x
            if self.projection is None
            else self.projection(_pool(x, self.pool_stride), train=train)
        )


def _pool(x: Activation, stride: int) -> Branch:
    # Windows at the edge average the pixels that exist, so odd sizes round up as the branch's do.
    if stride == 1:
        return x
    return nnx.avg_pool(
        x, (stride, stride), strides=(stride, stride), padding="SAME", count_include_pad=False
    )


# Ways to match the branch's shape where a block changes resolution or width.
RESIZES: dict[str, Callable[..., Any]] = {
    "pad": _Pad,
    "pad-both": partial(_Pad, both=True),
    "pool-pad": partial(_Pad, pool=True),
    "project": _Project,
    "pool-project": partial(_Project, pool=True),
    "project-always": _ProjectAlways,
}


class NoShortcut(nnx.Module):
    """Plain network: the branch alone. He et al. 2015, Section 3.3, "Plain Network"."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        pass

    def __call__(self, x: Activation, branch: Branch) -> Branch:
        return branch


class Shortcut(nnx.Module):
    """x + F(x), x resized where resolution or width changes, as ``RESIZES[resize or resized_by]`` does."""

    resized_by: ClassVar[str] = "pad"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        rngs: nnx.Rngs,
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        resize: str = "",
    ):
        name = resize or self.resized_by
        if name not in RESIZES:
            raise UserError(f"resize={name!r} is unknown{nearest(name, RESIZES)}")
        self.carry = RESIZES[name](
            in_features, out_features, stride, conv=conv, norm=norm, rngs=rngs
        )

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        return self.carry(x, train=train) + branch


class ZeroPad(Shortcut):
    """Option A, parameter-free: subsampling and zero channels. He et al. 2015, Section 3.3."""


class Projection(Shortcut):
    """Option B: 1x1 convolution and normalization where shapes change. He et al. 2015, Sections 3.3 and 4.1."""

    resized_by = "project"


class ProjectionEverywhere(Shortcut):
    """Option C: 1x1 convolution and normalization in every block. He et al. 2015, Section 4.1."""

    resized_by = "project-always"


class PooledProjection(Shortcut):
    """ResNet-D: average pooling, then a 1x1 convolution. He et al. 2018 (arXiv 1812.01187), Figure 2c."""

    resized_by = "pool-project"


class PooledZeroPad(Shortcut):
    """Average pooling and zero channels. Huang et al. 2016 (arXiv 1603.09382), Section 4."""

    resized_by = "pool-pad"


class Scaled(Shortcut):
    """``shortcut * x + branch * F(x)``. He et al. 2016, Section 3.1: (0, 1) is plain, (0.5, 0.5) frozen gating."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        rngs: nnx.Rngs,
        shortcut: float = 0.5,
        branch: float = 0.5,
        **layers: Any,
    ):
        super().__init__(in_features, out_features, stride, rngs, **layers)
        self.factors = (float(shortcut), float(branch))

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        of_shortcut, of_branch = self.factors
        return of_shortcut * self.carry(x, train=train) + of_branch * branch


class _Gated(Shortcut):
    """g(x) = sigmoid(W_g x + b_g), W_g a strided 1x1 convolution, b_g initially ``bias``. He et al. 2016, Section 3.1, Table 1."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        rngs: nnx.Rngs,
        bias: float = -6.0,
        conv: ConvFactory = Conv,
        **layers: Any,
    ):
        super().__init__(in_features, out_features, stride, rngs, conv=conv, **layers)
        self.gate = conv(in_features, out_features, 1, stride, rngs=rngs)
        self.gate_bias = nnx.Param(jnp.full(out_features, float(bias)))

    def _logits(self, x: Activation) -> Branch:
        return self.gate(x) + self.gate_bias[...].astype(x.dtype)


class ExclusiveGating(_Gated):
    """``(1 - g(x)) x + g(x) F(x)``, as in Highway Networks. He et al. 2016, Section 3.1."""

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        logits = self._logits(x)
        # 1 - sigmoid(z) = sigmoid(-z), without the cancellation.
        return (
            jax.nn.sigmoid(-logits) * self.carry(x, train=train) + jax.nn.sigmoid(logits) * branch
        )


class ShortcutOnlyGating(_Gated):
    """``(1 - g(x)) x + F(x)``. He et al. 2016, Section 3.1."""

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        return jax.nn.sigmoid(-self._logits(x)) * self.carry(x, train=train) + branch


class DropoutShortcut(Shortcut):
    """Dropout on the shortcut (He et al. 2016, Section 3.1), scaled by ``1 - rate`` in evaluation (Hinton et al. 2012)."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        rngs: nnx.Rngs,
        rate: float = 0.5,
        **layers: Any,
    ):
        if not 0 <= rate < 1:
            raise UserError(f"DropoutShortcut(rate={rate}): give 0 or more and less than 1.")
        super().__init__(in_features, out_features, stride, rngs, **layers)
        self.rate = rate

    def __call__(
        self, x: Activation, branch: Branch, *, train: bool, key: Key[Array, ""] | None = None
    ) -> Branch:
        resized = self.carry(x, train=train)
        factor = (
            keep(key, self.rate, resized.shape, "dropout on the shortcut")
            if train
            else 1 - self.rate
        )
        return resized * jnp.asarray(factor, resized.dtype) + branch


class LearnedScalar(Shortcut):
    """``x + alpha F(x)``, alpha a parameter per block, initially 0.

    ReZero (Bachlechner et al. 2020, arXiv 2003.04887, eq. 3); SkipInit (De and Smith 2020, arXiv 2002.10444, Section 4).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        rngs: nnx.Rngs,
        initial: float = 0.0,
        **layers: Any,
    ):
        super().__init__(in_features, out_features, stride, rngs, **layers)
        self.alpha = nnx.Param(jnp.full((), float(initial)))

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        return self.carry(x, train=train) + self.alpha[...].astype(branch.dtype) * branch


class Concatenation(nnx.Module):
    """``[x, F(x)]`` along the channels: DenseNet (Huang et al. 2017, arXiv 1608.06993, eq. 2)."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        if stride != 1:
            raise UserError(
                f"Concatenation cannot have a stride of {stride}: give the network a transition (DenseTransition)."
            )
        self.merged_features = in_features + out_features

    def __call__(self, x: Activation, branch: Branch) -> Float[Array, "n ho wo c+co"]:
        return jnp.concatenate([x, branch], axis=-1)


# Short names: the options of He et al. 2015, and names of later papers.
OPTIONS: dict[str, type[nnx.Module] | Component] = {
    "none": NoShortcut,
    "A": ZeroPad,
    "B": Projection,
    "C": ProjectionEverywhere,
    "D": PooledProjection,
    "ReZero": LearnedScalar,
    "SkipInit": component(LearnedScalar, resize="project"),
}
