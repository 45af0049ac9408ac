"""The residual network: a stem, stages of units, a classifier."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int, Key, Num

from resnet_jax.configured import Configured, Factory, configured
from resnet_jax.configured import parts as configured_parts
from resnet_jax.errors import UserError
from resnet_jax.models import asking
from resnet_jax.models.branches import Basic
from resnet_jax.models.depth import StochasticDepth
from resnet_jax.models.execution import Execution, Stack
from resnet_jax.models.head import Head
from resnet_jax.models.layers import Conv, he_normal
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Order, Original
from resnet_jax.models.shortcuts import Projection
from resnet_jax.models.stems import SmallImageStem
from resnet_jax.models.strides import stage_strides
from resnet_jax.models.transitions import NoTransition
from resnet_jax.models.unit import Unit


class ResNet(nnx.Module):
    """Deep residual network (He et al. 2015, Sections 3.3 and 4.2); plain with ``shortcut=NoShortcut``.

    Args:
      stages: units per stage. The first unit of every stage but the first has stride 2.
      features: width of the units of each stage, before a bottleneck's expansion.
      stem_features: width of the stem; 0: that of the first stage.
      branch: class of the branches, see ``resnet_jax.models.branches``.
      order: see ``resnet_jax.models.orders``.
      shortcut: class of the shortcuts, see ``resnet_jax.models.shortcuts``.
      stem: class of the stem, see ``resnet_jax.models.stems``.
      norm: class of the normalisation layers, see ``resnet_jax.models.norms``.
      transition: class of what stands between stages, see ``resnet_jax.models.transitions``.
      stochastic_depth: whether branches are dropped while training.
      output_stride: pixels of the image to a pixel of the last map: later stages are dilated instead of strided. 0: no dilation.
      num_classes: number of logits.
      in_features: channels of the images.
      dtype: what the network computes in; parameters, statistics and logits stay float32.
      execution: how it is compiled.
      rngs: stream ``params``.

    Attributes:
      out_features: channels that the classifier sees.

    Raises:
      UserError: where ``stages`` and ``features`` differ in length, a stage is empty, or the parts do not fit each other.
    """

    def __init__(
        self,
        *,
        stages: tuple[int, ...],
        features: tuple[int, ...],
        stem_features: int = 0,
        branch: Factory = Basic,
        order: type[Order] = Original,
        shortcut: Factory = Projection,
        stem: Factory = SmallImageStem,
        norm: Factory = BatchNorm,
        transition: Factory = NoTransition,
        stochastic_depth: StochasticDepth = StochasticDepth(),
        output_stride: int = 0,
        num_classes: int,
        in_features: int = 3,
        dtype: str = "float32",
        execution: Execution = Execution(),
        rngs: nnx.Rngs,
    ):
        if len(stages) != len(features) or not stages or min(stages) < 1:
            raise UserError(f"stages={stages} and features={features}: give one width and at least one unit for every stage")
        if min(*features, stem_features or 1, num_classes, in_features) < 1:
            given = f"features={features}, stem_features={stem_features}, num_classes={num_classes}, in_features={in_features}"
            raise UserError(f"{given}: every width is at least 1")
        stochastic_depth.check(sum(stages))
        self.dtype, self.stochastic_depth = dtype, stochastic_depth
        self.units = units = sum(stages)
        conv = configured(Conv, gradients=execution.convolution)
        stack = functools.partial(Stack, scan=execution.scans(units), remat=execution.remat)
        parts: dict[str, Any] = {"order": order, "conv": conv, "norm": asking.bound(norm, gradients=execution.normalization)}
        width = stem_features or features[0]
        stem_conv = configured(conv, space_to_depth=execution.stem == "space_to_depth")
        self.stem = asking.make(stem, in_features, width, **parts | {"conv": stem_conv, "pooling": execution.pooling}, rngs=rngs)
        widths = {"stem": width}
        transitions, built = [], []
        strides = stage_strides(len(stages), output_stride, self.stem, configured_parts(transition)[0])
        for index, (stride, *dilation) in enumerate(strides):
            transitions.append(asking.make(transition if index else NoTransition, width, **parts, rngs=rngs))
            unit = asking.bound(Unit, features=features[index], branch=branch, shortcut=shortcut, units=units, **parts)
            first = {
                "in_features": transitions[-1].out_features,
                "stride": stride,
                "dilation": tuple(dilation),
                "first": index == 0 and order.shares_first,
            }
            stacks = _stacks(unit, first, stages[index], stack, rngs)
            built.append(nnx.List(stacks))
            width = widths[f"stage{index + 1}"] = stacks[-1].out_features
        self.transitions, self.stages = nnx.List(transitions), nnx.List(built)
        self.out_features = width
        self._widths = tuple(widths.items())  # hashable, as everything static in a module has to be
        self.head = Head(width, num_classes, order=order, norm=parts["norm"], rngs=rngs)

    def features(
        self,
        images: Num[Array, "n h w c"],
        train: bool = False,
        *,
        key: Key[Array, ""] | None = None,
        multipliers: Float[ArrayLike, "units *n"] | None = None,
        permutation: Int[ArrayLike, "units"] | None = None,
    ) -> dict[str, Float[Array, "n _ _ _"]]:
        """Returns the activations after the stem and after each stage: ``stem``, ``stage1``, ... in the network's dtype, NHWC.

        Args:
          images: numbers of any kind.
          train: batch statistics are used, and the running ones updated in place; stochastic parts are random.
          key: for stochastic depth and dropout while training.
          multipliers: a factor on the branch of every unit, in order, or on that of every unit and image; 0 deletes a branch. Arrays,
            so another lesion needs no other compilation.
          permutation: which unit stands at each place. Units of equal structure may be exchanged, see ``exchangeable``; values that are
            not known before the program runs, inside ``jax.jit``, are not checked.

        Raises:
          UserError: for stochastic parts without a key, or a permutation that exchanges units of unequal structure.
        """
        factors = self._factors(len(images), train, key, multipliers)
        order = None if permutation is None else self._checked(permutation)
        # The scopes carry the names into profiles, and into the per-stage table of `summary`.
        with jax.named_scope("stem"):
            x = asking.call(self.stem, jnp.asarray(images, self.dtype), train=train)
        maps, start = {"stem": x}, 0
        for index, (transition, stacks) in enumerate(zip(self.transitions, self.stages, strict=True)):
            name = f"stage{index + 1}"
            with jax.named_scope(name):
                x = asking.call(transition, x, train=train)
                for stack in stacks:
                    places = slice(start, start + stack.count)
                    x = stack(
                        x,
                        train=train,
                        key=None if key is None else jax.random.fold_in(key, start),
                        multipliers=None if factors is None else factors[places],
                        permutation=None if order is None else order[places] - start,
                    )
                    start += stack.count
                maps[name] = x
        return maps

    def __call__(
        self,
        images: Num[Array, "n h w c"],
        train: bool = False,
        *,
        key: Key[Array, ""] | None = None,
        multipliers: Float[ArrayLike, "units *n"] | None = None,
        permutation: Int[ArrayLike, "units"] | None = None,
    ) -> Float[Array, "n classes"]:
        """Returns float32 logits. Arguments as of ``features``."""
        *_, last = self.features(images, train, key=key, multipliers=multipliers, permutation=permutation).values()
        with jax.named_scope("head"):
            return self.head(last, train=train)

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each map of ``features``."""
        return dict(self._widths)

    def new_head(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replaces the fully connected layer by a new one, for other classes."""
        self.head.linear = nnx.Linear(self.out_features, num_classes, kernel_init=he_normal, rngs=rngs)

    def exchangeable(self) -> list[range]:
        """Runs of units of equal structure, by their places: those that ``permutation`` may exchange."""
        counts = [stack.count for stacks in self.stages for stack in stacks]
        return [range(start, end) for start, end in itertools.pairwise(itertools.accumulate(counts, initial=0))]

    def _factors(self, images: int, train: bool, key: Any, multipliers: Any) -> Float[Array, "units _"] | None:
        drawn_with = None if key is None else jax.random.fold_in(key, self.units)
        drawn = self.stochastic_depth.multipliers(self.units, images, train=train, key=drawn_with)
        if multipliers is None:
            return drawn
        given = jnp.asarray(multipliers, jnp.float32)
        if given.shape not in ((self.units,), (self.units, images)):
            raise UserError(f"multipliers have shape {given.shape}; give ({self.units},), one a unit, or ({self.units}, {images})")
        given = given.reshape(self.units, -1)
        return given if drawn is None else given * drawn

    def _checked(self, permutation: Any) -> Int[Array, "units"]:
        if np.shape(permutation) != (self.units,):
            raise UserError(f"permutation has shape {np.shape(permutation)}; give ({self.units},), the unit that stands at each place")
        if not isinstance(permutation, Tracer):
            order = np.asarray(permutation)
            runs = self.exchangeable()
            if any(sorted(order[run.start : run.stop].tolist()) != list(run) for run in runs):
                allowed = ", ".join(f"{run.start} to {run.stop - 1}" for run in runs if len(run) > 1)
                raise UserError(f"permutation {order.tolist()} exchanges units of unequal structure: only {allowed} may change places")
        return jnp.asarray(permutation)


def _stacks(unit: Configured, first: dict[str, Any], count: int, stack: Callable[..., Stack], rngs: nnx.Rngs) -> list[Stack]:
    """The units of a stage, the first made from the arguments ``first``; neighbours made from equal arguments are one stack."""
    stacks, arguments = [], first
    following = {"stride": 1, "dilation": (first["dilation"][1],) * 2, "first": False}
    while count:
        make = asking.bound(unit, **arguments)
        alike = count > 1 and arguments == arguments | following and _out_features(make) == arguments["in_features"]
        stacks.append(stack(make, count if alike else 1, rngs=rngs))
        count, arguments = count - stacks[-1].count, following | {"in_features": stacks[-1].out_features}
    return stacks


@functools.lru_cache(maxsize=1024)
def _out_features(make: Configured) -> int:
    """How wide a unit comes out, without making it: to trace one takes as long as it takes to trace a stack of them."""
    found: list[int] = []
    jax.eval_shape(lambda: found.append(make(rngs=nnx.Rngs(0)).out_features))
    return found[0]
