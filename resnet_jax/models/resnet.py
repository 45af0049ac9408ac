"""The residual network: a stem, stages of units, a classifier."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Num

from resnet_jax.errors import UserError
from resnet_jax.models import execution as execution_lib
from resnet_jax.models.execution import Execution
from resnet_jax.models.layers import BatchNorm, Conv, Head, NormFactory


class ResNet(nnx.Module):
    """Deep residual network (He et al. 2015, Sections 3.3 and 4.2); plain with ``shortcut=NoShortcut``.

    Args:
      stages: units per stage. The first unit of every stage but the first has stride 2.
      features: width of the units of each stage, before a bottleneck's expansion.
      block: class of the units, see ``resnet_jax.models.blocks``.
      shortcut: class of the shortcuts, see ``resnet_jax.models.shortcuts``.
      stem: class of the stem, see ``resnet_jax.models.stems``.
      num_classes: number of logits.
      in_features: channels of the images.
      dtype: what the network computes in; parameters, statistics and logits stay float32.
      norm: factory of the normalisation layers.
      execution: how it is compiled.
      rngs: stream ``params``.

    Raises:
      UserError: where ``stages`` and ``features`` differ in length or a stage is empty.
    """

    def __init__(
        self,
        *,
        stages: tuple[int, ...],
        features: tuple[int, ...],
        block: type[Any],
        shortcut: type[nnx.Module],
        stem: type[Any],
        num_classes: int,
        in_features: int = 3,
        dtype: str = "float32",
        norm: NormFactory = BatchNorm,
        execution: Execution = Execution(),
        rngs: nnx.Rngs,
    ):
        if len(stages) != len(features) or not stages or min(stages) < 1:
            raise UserError(f"stages={stages} and features={features}: give one width and at least one unit for every stage")
        self.dtype = dtype
        self.scan = execution.scans(sum(stages))
        conv = functools.partial(Conv, gradients=execution.convolution)
        make = functools.partial(block, shortcut=shortcut, conv=conv, norm=norm)
        self.stem = stem(in_features, features[0], conv=conv, norm=norm, rngs=rngs)
        expansion: int = block.expansion
        width, built = features[0], []
        for index, (count, wide) in enumerate(zip(stages, features, strict=True)):
            first = make(width, wide, 1 if index == 0 else 2, rngs=rngs)
            width = wide * expansion
            rest = execution_lib.repeat(lambda r, wide=wide, width=width: make(width, wide, 1, rngs=r), count - 1, rngs)
            built.append(nnx.List([first, *rest]))
        self.stages = nnx.List(built)
        self.head = Head(width, num_classes, rngs=rngs)

    def features(self, images: Num[Array, "n h w c"], train: bool = False) -> dict[str, Float[Array, "n _ _ _"]]:
        """Returns the activations after the stem and after each stage: ``stem``, ``stage1``, ... in the network's dtype, NHWC."""
        # The scopes carry the names into profiles, and into the per-stage table of `summary`.
        with jax.named_scope("stem"):
            x = self.stem(jnp.asarray(images, self.dtype), train=train)
        maps = {"stem": x}
        for index, units in enumerate(self.stages):
            name = f"stage{index + 1}"
            with jax.named_scope(name):
                x = maps[name] = execution_lib.run(units, x, train=train, scan=self.scan)
        return maps

    def __call__(self, images: Num[Array, "n h w c"], train: bool = False) -> Float[Array, "n classes"]:
        """Returns float32 logits. With ``train`` the batch's statistics are used, and the running ones updated in place."""
        *_, last = self.features(images, train=train).values()
        with jax.named_scope("head"):
            return self.head(last)
