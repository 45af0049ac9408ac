"""What travels beside the branch of a residual unit, and how the two meet.

A shortcut is an NNX module, made from ``(in_features, out_features, stride, rngs)`` and called with ``(x, branch)``; it returns the
merged activation. It may ask for more by naming it: ``conv`` and ``norm`` in its constructor (the network's own layer factories),
``train`` in its call. A class that a user writes elsewhere is treated exactly like those below.
"""

import inspect
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from resnet_jax.errors import UserError
from resnet_jax.models.layers import BatchNorm, Conv, ConvFactory, NormFactory

# ruff: noqa: ARG002  (every shortcut is made and called alike, whatever it needs)
Activation = Float[Array, "n h w c"]
Branch = Float[Array, "n ho wo co"]


class NoShortcut(nnx.Module):
    """The plain network: the branch alone. He et al. 2015, Section 3.3, "Plain Network"."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        pass

    def __call__(self, x: Activation, branch: Branch) -> Branch:
        return branch


class ZeroPad(nnx.Module):
    """Option A, parameter-free: identity, subsampled by the stride, missing channels zero. He et al. 2015, Section 3.3.

    The zeros are appended behind the channels of x, as in fb.resnet.torch.

    Raises:
      UserError: where the unit has fewer output than input features; nothing can be padded then.
    """

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        if out_features < in_features:
            raise UserError(f"ZeroPad cannot shrink {in_features} features to {out_features}: use Projection")
        self.stride = stride
        self.missing = out_features - in_features

    def __call__(self, x: Activation, branch: Branch) -> Branch:
        if self.stride > 1:
            x = x[:, :: self.stride, :: self.stride]
        if self.missing:
            x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.missing)))
        return x + branch


class ProjectionEverywhere(nnx.Module):
    """Option C: a strided 1x1 convolution and a normalisation on every unit. He et al. 2015, eq. 2 and Section 4.1."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        rngs: nnx.Rngs,
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
    ):
        self.conv = conv(in_features, out_features, 1, stride, rngs=rngs)
        self.norm = norm(out_features, rngs=rngs)

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        return self.norm(self.conv(x), train=train) + branch


class Projection(nnx.Module):
    """Option B: a projection where size or width changes, identity elsewhere. He et al. 2015, Sections 3.3 and 4.1."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        stride: int,
        rngs: nnx.Rngs,
        conv: ConvFactory = Conv,
        norm: NormFactory = BatchNorm,
    ):
        changes = stride != 1 or in_features != out_features
        self.projection = ProjectionEverywhere(in_features, out_features, stride, rngs, conv=conv, norm=norm) if changes else None

    def __call__(self, x: Activation, branch: Branch, *, train: bool) -> Branch:
        if self.projection is None:
            return x + branch
        return self.projection(x, branch, train=train)


# The names of the papers' tables, and the command line's.
OPTIONS: dict[str, type[nnx.Module]] = {"none": NoShortcut, "A": ZeroPad, "B": Projection, "C": ProjectionEverywhere}


def make(
    shortcut: type[Any],
    in_features: int,
    out_features: int,
    stride: int,
    *,
    conv: ConvFactory,
    norm: NormFactory,
    rngs: nnx.Rngs,
) -> nnx.Module:
    """Constructs a shortcut, handing it those of ``conv`` and ``norm`` that its constructor names."""
    extra = _named(shortcut, "__init__", conv=conv, norm=norm)
    return shortcut(in_features=in_features, out_features=out_features, stride=stride, rngs=rngs, **extra)


def merge(shortcut: nnx.Module, x: Activation, branch: Branch, *, train: bool) -> Branch:
    """Calls a shortcut, handing it ``train`` where its call names it. The result has the branch's dtype, whatever a formula promotes to."""
    merged = shortcut(x, branch, **_named(type(shortcut), "__call__", train=train))  # pyright: ignore[reportCallIssue]
    return merged.astype(branch.dtype)


def _named(made: type[Any], method: str, **offered: Any) -> dict[str, Any]:
    """Those of ``offered`` that a method names; one that takes ``**kwargs`` names what it hands on to its base class."""
    named: set[str] = set()
    # Not inspect.signature(made): the metaclass of NNX modules hides the constructor behind (*args, **kwargs).
    for base in made.__mro__[: made.__mro__.index(nnx.Module)]:
        if method in vars(base):
            parameters = inspect.signature(vars(base)[method]).parameters
            named |= parameters.keys()
            if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
                return {name: value for name, value in offered.items() if name in named}
    return offered
