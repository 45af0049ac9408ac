"""A network as data: everything that decides its structure, in one frozen value that builds it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array

from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.execution import Execution, quick_to_compile
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import Projection
from resnet_jax.models.stems import SmallImageStem

Variables = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Structure of a residual network. Fields as the arguments of ``ResNet``."""

    stages: tuple[int, ...]
    """Units per stage."""
    features: tuple[int, ...]
    """Width of the units of each stage, before a bottleneck's expansion."""
    block: type[nnx.Module] = BasicBlock
    """Class of the units: BasicBlock, Bottleneck, BottleneckV15, or FILE.py:CLASS."""
    shortcut: type[nnx.Module] = Projection
    """Class of the shortcuts: none, A, B, C, or FILE.py:CLASS."""
    stem: type[nnx.Module] = SmallImageStem
    """Class of the stem: SmallImageStem, ImageNetStem, or FILE.py:CLASS."""
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
        return ResNet(
            stages=self.stages,
            features=self.features,
            block=self.block,
            shortcut=self.shortcut,
            stem=self.stem,
            num_classes=self.num_classes,
            in_features=self.input_shape[2],
            dtype=self.dtype,
            execution=execution,
            rngs=nnx.Rngs(key),
        )


@jax.tree_util.register_static
@dataclass(frozen=True)
class Apply:
    """A network without its variables: a static, hashable function of them."""

    graphdef: nnx.GraphDef[Callable[..., Array]]

    def __call__(self, params: Variables, batch_stats: Variables, images: Array, *, train: bool) -> tuple[Array, Variables]:
        """Returns float32 logits ``(n, classes)`` and the batch statistics, updated where ``train``."""
        model = nnx.merge(self.graphdef, params, batch_stats, copy=True)
        logits = model(images, train=train)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
