"""Shortcut connections and how they merge with the residual branch.

A shortcut is an NNX module, constructed with ``(in_features, out_features, stride, *, rngs)`` and
called with ``(x, branch)``; it returns the merged activation. If declared, the constructor also
receives the network's ``conv`` and ``norm``, the call ``key`` (or None) and the mode: ``train``, a
bool unless its default is None, or ``use_running_average`` and ``deterministic`` of Flax layers.
``merged_features`` is the width of a result that is wider than the branch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from resnet_jax.errors import Fraction, UserError, check, nearest
from resnet_jax.kernels.typing import Array, Float, Key
from resnet_jax.models import components
from resnet_jax.models.components import Factory, Part, component
from resnet_jax.models.layers import Activation, Conv, Output, keep
from resnet_jax.models.norms import BatchNorm


class _Pad(nnx.Module):
    """Subsampling, or average pooling, and zero channels behind those of x (fb.resnet.torch).

    ``both``: half of the zeros before x, as in akamaster/pytorch_resnet_cifar10.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        *,
        pool: bool = False,
        both: bool = False,
        **_: object,
    ):
        missing = out_features - in_features
        if missing < 0:
            widths = f"{in_features} features to {out_features}"
            raise UserError(f"Option A cannot shrink {widths}: use a projection.")
        before = missing // 2 if both else 0
        self.stride, self.pool, self.channels = stride, pool, (before, missing - before)

    def __call__(self, x: Activation, *, train: bool | None = None) -> Output:
        if self.pool:
            x = _pool(x, self.stride)
        elif self.stride != 1:
            # Sizes in the form of a convolution's, unlike those of x[:, ::stride] if symbolic.
            x = lax.slice(x, (0,) * 4, x.shape, (1, self.stride, self.stride, 1))
        return jnp.pad(x, ((0, 0), (0, 0), (0, 0), self.channels)) if any(self.channels) else x


class _ProjectAlways(nnx.Module):
    """Strided 1x1 convolution and normalization. He et al. 2015, eq. 2."""

    def __init__(
        self, in_features: int, out_features: int, stride: int, *, norm: Part, rngs: nnx.Rngs
    ):
        self.conv = Conv(in_features, out_features, 1, stride, rngs=rngs)
        self.norm = components.make(norm, out_features, rngs=rngs)

    def __call__(self, x: Activation, *, train: bool | None = None) -> Output:
        mode = components.accepted(self.norm, train=train)
        return self.norm(self.conv(x), **mode).astype(x.dtype)


class _Project(nnx.Module):
    """Projection where shapes change, strided or after average pooling; else the identity."""

    def __init__(
        self, in_features: int, out_features: int, stride: int, pool: bool = False, **options: Any
    ):
        changes = stride != 1 or in_features != out_features
        self.pool_stride, stride = (stride, 1) if pool else (1, stride)
        widths = in_features, out_features
        self.projection = _ProjectAlways(*widths, stride, **options) if changes else None

    def __call__(self, x: Activation, *, train: bool | None = None) -> Output:
        if self.projection is None:
            return x
        return self.projection(_pool(x, self.pool_stride), train=train)


def _pool(x: Activation, stride: int) -> Output:
    # Windows at the edge average the pixels inside; odd sizes round up as in the branch, which JAX
    # has to prove for symbolic sizes.
    if stride == 1:
        return x
    window, sizes = (stride, stride), x.shape[1:3]
    padding: Any = [(0, -n % stride if isinstance(n, int) else stride - 1) for n in sizes]
    return nnx.avg_pool(x, window, strides=window, padding=padding, count_include_pad=False)


# Downsampling in the shortcut.
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

    def __call__(self, x: Activation, branch: Output) -> Output:
        return branch


class Shortcut(nnx.Module):
    """x + F(x); where the shape changes, ``resize`` (pad, project, ...) adapts x."""

    resized_by: ClassVar[str] = "pad"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        rngs: nnx.Rngs,
        norm: Part = BatchNorm,
        resize: str = "",
    ):
        name = resize or self.resized_by
        if name not in RESIZES:
            raise UserError(f"resize={name!r} is unknown{nearest(name, RESIZES)}")
        self.carry = RESIZES[name](in_features, out_features, stride, norm=norm, rngs=rngs)

    def __call__(self, x: Activation, branch: Output, *, train: bool | None = None) -> Output:
        return self.carry(x, train=train) + branch


class ZeroPad(Shortcut):
    """Option A, parameter-free: subsampling and zero channels. He et al. 2015, Section 3.3."""


class Projection(Shortcut):
    """Option B: 1x1 convolution, normalization where shapes change. He et al. 2015, Section 3.3."""

    resized_by = "project"


class ProjectionEverywhere(Shortcut):
    """Option C: 1x1 convolution and normalization in every block. He et al. 2015, Section 4.1."""

    resized_by = "project-always"


class PooledProjection(Shortcut):
    """ResNet-D: average pooling, 1x1 convolution. He et al. 2018 (arXiv 1812.01187), Figure 2c."""

    resized_by = "pool-project"


class PooledZeroPad(Shortcut):
    """Average pooling and zero channels. Huang et al. 2016 (arXiv 1603.09382), Section 4."""

    resized_by = "pool-pad"


class Scaled(Shortcut):
    """``shortcut * x + branch * F(x)``. He et al. 2016, Section 3.1."""

    def __init__(self, *args: Any, shortcut: float = 0.5, branch: float = 0.5, **options: Any):
        super().__init__(*args, **options)
        self.factors = (float(shortcut), float(branch))

    def __call__(self, x: Activation, branch: Output, *, train: bool | None = None) -> Output:
        of_shortcut, of_branch = self.factors
        return of_shortcut * self.carry(x, train=train) + of_branch * branch


class _Gated(Shortcut):
    """g(x) = sigmoid(W_g x + b_g); b_g is initially ``bias``. He et al. 2016, Section 3.1."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        rngs: nnx.Rngs,
        bias: float = -6.0,
        **options: Any,
    ):
        super().__init__(in_features, out_features, stride, rngs, **options)
        self.gate = Conv(in_features, out_features, 1, stride, rngs=rngs)
        self.gate_bias = nnx.Param(jnp.full(out_features, float(bias)))

    def _logits(self, x: Activation) -> Output:
        return self.gate(x) + self.gate_bias[...].astype(x.dtype)


class ExclusiveGating(_Gated):
    """``(1 - g(x)) x + g(x) F(x)``, as in Highway Networks. He et al. 2016, Section 3.1."""

    def __call__(self, x: Activation, branch: Output, *, train: bool | None = None) -> Output:
        logits = self._logits(x)
        # 1 - sigmoid(z) = sigmoid(-z), without the cancellation.
        carried = jax.nn.sigmoid(-logits) * self.carry(x, train=train)
        return carried + jax.nn.sigmoid(logits) * branch


class ShortcutOnlyGating(_Gated):
    """``(1 - g(x)) x + F(x)``. He et al. 2016, Section 3.1."""

    def __call__(self, x: Activation, branch: Output, *, train: bool | None = None) -> Output:
        return jax.nn.sigmoid(-self._logits(x)) * self.carry(x, train=train) + branch


class DropoutShortcut(Shortcut):
    """Dropout of x, scaled by ``1 - rate`` in evaluation. He et al. 2016, Section 3.1."""

    def __init__(self, *args: Any, rate: float = 0.5, **options: Any):
        super().__init__(*args, **options)
        self.rate, self.deterministic = rate, True
        check("DropoutShortcut.rate", Fraction, rate)

    def __call__(
        self,
        x: Activation,
        branch: Output,
        *,
        train: bool | None = None,
        key: Key[Array, ""] | None = None,
    ) -> Output:
        carried, factor = self.carry(x, train=train), 1 - self.rate
        if components.in_training(self, train):
            factor = keep(key, self.rate, carried.shape, "dropout on the shortcut")
        return carried * jnp.asarray(factor, carried.dtype) + branch


class LearnedScalar(Shortcut):
    """``x + alpha F(x)``, alpha a parameter per block, initially 0.

    ReZero (arXiv 2003.04887, eq. 3); SkipInit (arXiv 2002.10444, Section 4).
    """

    def __init__(self, *args: Any, initial: float = 0.0, **options: Any):
        super().__init__(*args, **options)
        self.alpha = nnx.Param(jnp.full((), float(initial)))

    def __call__(self, x: Activation, branch: Output, *, train: bool | None = None) -> Output:
        return self.carry(x, train=train) + self.alpha[...].astype(branch.dtype) * branch


class Concatenation(nnx.Module):
    """``[x, F(x)]`` along the channels: DenseNet (Huang et al. 2017, arXiv 1608.06993, eq. 2)."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        if stride != 1:
            raise UserError(f"Concatenation cannot have a stride of {stride}: use DenseTransition.")
        self.merged_features = in_features + out_features

    def __call__(self, x: Activation, branch: Output) -> Float[Array, "n h w c+co"]:
        return jnp.concatenate([x, branch], axis=-1)


# Short names in He et al. 2015 and later papers.
OPTIONS: dict[str, Factory] = {
    "none": NoShortcut,
    "A": ZeroPad,
    "B": Projection,
    "C": ProjectionEverywhere,
    "D": PooledProjection,
    "ReZero": LearnedScalar,
    "SkipInit": component(LearnedScalar, resize="project"),
}
