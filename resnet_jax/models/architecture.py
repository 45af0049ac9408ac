"""A network as data: everything that decides its structure, in one frozen value that builds it."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import jax
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from resnet_jax.configured import Factory
from resnet_jax.models.branches import Basic
from resnet_jax.models.depth import StochasticDepth
from resnet_jax.models.execution import Execution, quick_to_compile
from resnet_jax.models.norms import BatchNorm, moved, set_momentum_aside
from resnet_jax.models.orders import Order, Original
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import Projection
from resnet_jax.models.stems import SmallImageStem
from resnet_jax.models.transitions import NoTransition

Variables = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Structure of a residual network. Fields as the arguments of ``ResNet``; a class may carry arguments, ``NAME(argument=value)``."""

    stages: tuple[int, ...]
    """Units per stage."""
    features: tuple[int, ...]
    """Width of the units of each stage, before a bottleneck's expansion."""
    stem_features: int = 0
    """Width of the stem; 0: that of the first stage."""
    branch: Factory = Basic
    """What a unit computes: Basic, Bottleneck, BottleneckV15, SingleLayer, "Branch(kernels=(3, 1, 3))", or FILE.py:CLASS."""
    order: type[Order] = Original
    """Original, NormAfterAddition, ReluBeforeAddition, ReluOnlyPreactivation, FullPreactivation, Fixup, or FILE.py:CLASS."""
    shortcut: Factory = Projection
    """What travels beside it: none, A, B, C, D, "Scaled(shortcut=0.5)", "ShortcutOnlyGating(bias=-6)", or FILE.py:CLASS."""
    stem: Factory = SmallImageStem
    """SmallImageStem, ImageNetStem, DeepStem, or FILE.py:CLASS."""
    norm: Factory = BatchNorm
    """BatchNorm, "BatchNorm(group_size=64)", FrozenBatchNorm, "GroupNorm(num_groups=8)", NoNorm, or FILE.py:CLASS."""
    transition: Factory = NoTransition
    """What stands between stages: NoTransition, "DenseTransition(compression=0.5)", or FILE.py:CLASS."""
    stochastic_depth: StochasticDepth = field(default_factory=StochasticDepth)
    output_stride: int = 0
    """8 or 16: later stages are dilated instead of strided; 0: they are strided."""
    input_shape: tuple[int, int, int] = (32, 32, 3)
    """Height, width, channels of the images. Only the channels are structure; counts and checks use the size."""
    num_classes: int = 10
    """Number of logits."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in. Parameters and statistics are float32."""

    def build(self, *, rngs: nnx.Rngs, execution: Execution = Execution()) -> ResNet:
        """Returns the initialised module. One compiled initialisation: NNX's eager one takes tens of seconds for ResNet-50."""
        key = rngs.params()
        # Inside another trace there is nothing to compile, and jax refuses the options.
        options = None if isinstance(key, Tracer) else quick_to_compile()
        graphdef, state = jax.jit(lambda key: nnx.split(self._module(key, execution)), compiler_options=options)(key)
        return nnx.merge(graphdef, state)

    def init(self, key: Array, *, execution: Execution = Execution()) -> tuple["Apply", Variables, Variables]:
        """Returns ``(apply, params, batch_stats)``: the network as a function, and its variables as plain nested dictionaries.

        ``build(rngs=nnx.Rngs(key))`` draws the same parameters, to rounding. Trace it (``jax.jit``,
        ``jax.eval_shape``) rather than run it eagerly.
        """
        graphdef, params, rest = nnx.split(self._module(nnx.Rngs(key).params(), execution), nnx.Param, ...)
        return Apply(graphdef), nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def _module(self, key: Array, execution: Execution) -> ResNet:
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "input_shape"}
        return ResNet(**given, in_features=self.input_shape[2], execution=execution, rngs=nnx.Rngs(key))


@jax.tree_util.register_static
@dataclass(frozen=True)
class Apply:
    """A network without its variables: a static, hashable function of them."""

    graphdef: nnx.GraphDef[Callable[..., Array]]

    def __call__(
        self,
        params: Variables,
        batch_stats: Variables,
        images: Array,
        *,
        train: bool,
        key: Array | None = None,
        multipliers: ArrayLike | None = None,
        permutation: ArrayLike | None = None,
    ) -> tuple[Array, Variables]:
        """Returns float32 logits ``(n, classes)`` and the batch statistics, updated where ``train``; arguments as of ``ResNet``."""
        model: Any = nnx.merge(self.graphdef, params, batch_stats, copy=True)
        # The running statistics are moved here, all at once and whole stacks of them: in the units, on slices, XLA cannot do it in place.
        momenta = set_momentum_aside(model) if train else {}
        logits = model(images, train, key=key, multipliers=multipliers, permutation=permutation)
        after = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
        return logits, moved(momenta, batch_stats, after) if train else after
