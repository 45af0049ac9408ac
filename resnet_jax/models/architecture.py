"""Architecture of a residual network as a frozen value."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import jax
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, ArrayLike

from resnet_jax.models.blocks import Basic
from resnet_jax.models.components import Factory
from resnet_jax.models.execution import Execution, quick_to_compile
from resnet_jax.models.norms import BatchNorm, moved, set_momentum_aside
from resnet_jax.models.orders import Order, Original
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import Projection
from resnet_jax.models.stems import NoTransition, SmallImageStem
from resnet_jax.models.stochastic_depth import StochasticDepth

Variables = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Arguments of ``ResNet``. A class may carry arguments, ``NAME(argument=value)``."""

    stages: tuple[int, ...]
    """Residual blocks per stage."""
    features: tuple[int, ...]
    """Width of each stage, before a bottleneck's expansion."""
    stem_features: int = 0
    """Width of the stem; 0: that of the first stage."""
    branch: Factory = Basic
    """Basic, Bottleneck, BottleneckV15, SingleLayer, "Branch(kernels=(3, 1, 3))", or FILE.py:CLASS."""
    order: type[Order] = Original
    """Original, NormAfterAddition, ReluBeforeAddition, ReluOnlyPreactivation, FullPreactivation, Fixup, or FILE.py:CLASS."""
    shortcut: Factory = Projection
    """none, A, B, C, D, "Scaled(shortcut=0.5)", "ShortcutOnlyGating(bias=-6)", or FILE.py:CLASS."""
    stem: Factory = SmallImageStem
    """SmallImageStem, ImageNetStem, DeepStem, or FILE.py:CLASS."""
    norm: Factory = BatchNorm
    """BatchNorm, "BatchNorm(group_size=64)", FrozenBatchNorm, "GroupNorm(num_groups=8)", NoNorm, or FILE.py:CLASS."""
    transition: Factory = NoTransition
    """Between stages: NoTransition, "DenseTransition(compression=0.5)", or FILE.py:CLASS."""
    stochastic_depth: StochasticDepth = field(default_factory=StochasticDepth)
    output_stride: int = 0
    """8 or 16: later stages are dilated instead of strided; 0: strided."""
    input_shape: tuple[int, int, int] = (32, 32, 3)
    """Height, width, channels of the images. The network depends only on the channels."""
    num_classes: int = 10
    """Number of logits."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of computation. Parameters and statistics are float32."""

    def build(self, *, rngs: nnx.Rngs, execution: Execution = Execution()) -> ResNet:
        """Returns the initialized module, compiled as one program: eager initialization of ResNet-50 takes tens of seconds."""
        key = rngs.params()
        # Inside of another trace there is nothing to compile, and jax rejects the options.
        options = None if isinstance(key, Tracer) else quick_to_compile()
        graphdef, state = jax.jit(
            lambda key: nnx.split(self._module(key, execution)), compiler_options=options
        )(key)
        return nnx.merge(graphdef, state)

    def init(
        self, key: Array, *, execution: Execution = Execution()
    ) -> tuple["Apply", Variables, Variables]:
        """Returns ``(apply, params, batch_stats)``, drawn as by ``build(rngs=nnx.Rngs(key))``. To be traced."""
        graphdef, params, rest = nnx.split(
            self._module(nnx.Rngs(key).params(), execution), nnx.Param, ...
        )
        return Apply(graphdef), nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    def _module(self, key: Array, execution: Execution) -> ResNet:
        arguments = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "input_shape"}
        return ResNet(
            **arguments, in_features=self.input_shape[2], execution=execution, rngs=nnx.Rngs(key)
        )


@jax.tree_util.register_static
@dataclass(frozen=True)
class Apply:
    """Network without its variables: a static, hashable function of them."""

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
        """Returns float32 logits ``(n, classes)`` and the statistics, updated if ``train``. Arguments as of ``ResNet``."""
        model: Any = nnx.merge(self.graphdef, params, batch_stats, copy=True)
        # Running statistics are updated here, whole stacks at once: XLA cannot update slices in place.
        momenta = set_momentum_aside(model) if train else {}
        logits = model(images, train, key=key, multipliers=multipliers, permutation=permutation)
        after = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
        return logits, moved(momenta, batch_stats, after) if train else after
