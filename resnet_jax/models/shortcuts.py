"""What travels beside the branch of a residual unit, and how the two meet.

A shortcut is an NNX module, made from ``(in_features, out_features, stride, rngs)`` and called with ``(x, branch)``; it returns the
merged activation. It may ask for more by naming it: ``conv`` and ``norm`` in its constructor (the network's own layer factories),
``train`` and ``key`` (a random key of this unit and step, or None) in its call. Where the result is wider than the branch, its attribute
``merged_features`` says how wide. A class that a user writes elsewhere is treated exactly like those below.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from resnet_jax.configured import Configured, configured
from resnet_jax.errors import UserError, nearest
from resnet_jax.models import resizing
from resnet_jax.models.layers import Conv, ConvFactory, NormFactory, keep
from resnet_jax.models.norms import BatchNorm

Activation = Float[Array, "n h w c"]
Branch = Float[Array, "n ho wo co"]


class NoShortcut(nnx.Module):
    """The plain network: the branch alone. He et al. 2015, Section 3.3, "Plain Network"."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        pass

    def __call__(self, x: Activation, branch: Branch) -> Branch:
        return branch


class Shortcut(nnx.Module):
    """x + F(x), x carried to the branch's shape where size or width changes; the formulas below derive from it.

    Args:
      in_features, out_features, stride: of the branch.
      resize: how x is carried, one of ``resnet_jax.models.resizing.BY_NAME``; the class's own ``carried_by`` where empty.
      conv, norm: layer factories.
    """

    carried_by: ClassVar[type[resizing.Resizing]] = resizing.Pad

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
        if resize and resize not in resizing.BY_NAME:
            raise UserError(f"resize={resize!r} is no way to carry x to another shape{nearest(resize, resizing.BY_NAME)}")
        made = resizing.BY_NAME[resize] if resize else self.carried_by
        self.carry = made(in_features, out_features, stride, conv=conv, norm=norm, rngs=rngs)

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        return self.carry(x, train=train) + branch


class ZeroPad(Shortcut):
    """Option A, parameter-free: identity, subsampled by the stride, missing channels zero. He et al. 2015, Section 3.3.

    Raises:
      UserError: where the unit has fewer output than input features; nothing can be padded then.
    """


class Projection(Shortcut):
    """Option B: a 1x1 convolution and a normalisation where size or width changes. He et al. 2015, Sections 3.3 and 4.1."""

    carried_by = resizing.Project


class ProjectionEverywhere(Shortcut):
    """Option C: a 1x1 convolution and a normalisation on every unit. He et al. 2015, Section 4.1; 2016, Section 3.1."""

    carried_by = resizing.ProjectAlways


class PooledProjection(Shortcut):
    """ResNet-D: average pooling, then the 1x1 convolution, where size or width changes. He et al. 2018 (arXiv 1812.01187), Figure 2c."""

    carried_by = resizing.PoolProject


class PooledZeroPad(Shortcut):
    """Average pooling and zero padding where size or width changes. Stochastic depth (Huang et al. 2016, arXiv 1603.09382), Section 4."""

    carried_by = resizing.PoolPad


class Scaled(Shortcut):
    """Constant scaling: ``shortcut * x + branch * F(x)``. He et al. 2016, Section 3.1: (0, 1) is plain, (0.5, 0.5) frozen gating."""

    def __init__(
        self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs, shortcut: float = 0.5, branch: float = 0.5, **layers: Any
    ):
        super().__init__(in_features, out_features, stride, rngs, **layers)
        self.factors = (float(shortcut), float(branch))

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        of_shortcut, of_branch = self.factors
        return of_shortcut * self.carry(x, train=train) + of_branch * branch


class _Gated(Shortcut):
    """g(x) = sigmoid(W_g x + b_g), elementwise, W_g a (strided) 1x1 convolution. He et al. 2016, Section 3.1.

    Args:
      bias: initial b_g: the paper tried 0 to -10; -6 was best, -7 the next in Table 1.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        rngs: nnx.Rngs,
        bias: float = -6.0,
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
        resize: str = "",
    ):
        super().__init__(in_features, out_features, stride, rngs, conv=conv, norm=norm, resize=resize)
        self.gate = conv(in_features, out_features, 1, stride, rngs=rngs)
        self.gate_bias = nnx.Param(jnp.full(out_features, float(bias)))

    def _logits(self, x: Activation) -> Branch:
        return self.gate(x) + self.gate_bias[...].astype(x.dtype)


class ExclusiveGating(_Gated):
    """``(1 - g(x)) x + g(x) F(x)``, Highway Networks' gates. He et al. 2016, Section 3.1 and Table 1."""

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        logits = self._logits(x)
        # 1 - sigmoid(z) = sigmoid(-z), without the cancellation.
        return jax.nn.sigmoid(-logits) * self.carry(x, train=train) + jax.nn.sigmoid(logits) * branch


class ShortcutOnlyGating(_Gated):
    """``(1 - g(x)) x + F(x)``. He et al. 2016, Section 3.1 and Table 1."""

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        return jax.nn.sigmoid(-self._logits(x)) * self.carry(x, train=train) + branch


class DropoutShortcut(Shortcut):
    """Dropout on the shortcut. He et al. 2016, Section 3.1: "statistically imposes a scale of lambda with an expectation of 0.5".

    As in the paper's reference (Hinton et al. 2012) values are dropped while training, and scaled by ``1 - rate`` when not.
    """

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs, rate: float = 0.5, **layers: Any):
        if not 0 <= rate < 1:
            raise UserError(f"DropoutShortcut(rate={rate}): give 0 or more and less than 1")
        super().__init__(in_features, out_features, stride, rngs, **layers)
        self.rate = rate

    def __call__(self, x: Activation, branch: Branch, *, train: bool, key: Key[Array, ""] | None = None) -> Branch:
        carried = self.carry(x, train=train)
        factor = keep(key, self.rate, carried.shape, "dropout on the shortcut") if train else 1 - self.rate
        return carried * jnp.asarray(factor, carried.dtype) + branch


class LearnedScalar(Shortcut):
    """``x + alpha F(x)``, alpha one parameter a unit: ReZero (Bachlechner et al. 2020, arXiv 2003.04887, eq. 3) and SkipInit (De and
    Smith 2020, arXiv 2002.10444, Section 4), which begin at 0.
    """

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs, initial: float = 0.0, **layers: Any):
        super().__init__(in_features, out_features, stride, rngs, **layers)
        self.alpha = nnx.Param(jnp.full((), float(initial)))

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        return self.carry(x, train=train) + self.alpha[...].astype(branch.dtype) * branch


class Concatenation(nnx.Module):
    """``[x, F(x)]``, the channels side by side: DenseNet (Huang et al. 2017, arXiv 1608.06993, eq. 2).

    Raises:
      UserError: for a stride: sizes change between dense blocks only, in a ``transition``.
    """

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        if stride != 1:
            raise UserError(f"a concatenation cannot follow a stride of {stride}: give the network a transition (DenseTransition)")
        self.merged_features = in_features + out_features

    def __call__(self, x: Activation, branch: Branch) -> Float[Array, "n ho wo c+co"]:
        return jnp.concatenate([x, branch], axis=-1)


# Short names: of He et al. 2015's options, of the others as their papers call them.
OPTIONS: dict[str, type[nnx.Module] | Configured] = {
    "none": NoShortcut,
    "A": ZeroPad,
    "B": Projection,
    "C": ProjectionEverywhere,
    "D": PooledProjection,
    "ReZero": LearnedScalar,
    "SkipInit": configured(LearnedScalar, resize="project"),
}
