"""Residual network: stem, stages of blocks, classifier."""

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

from resnet_jax.errors import UserError
from resnet_jax.models import components
from resnet_jax.models.blocks import Basic, ResidualBlock
from resnet_jax.models.components import Component, Factory, component, parts
from resnet_jax.models.execution import Execution, Stack
from resnet_jax.models.layers import Conv, NormFactory, he_normal
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Order, Original, Sequence
from resnet_jax.models.shortcuts import Projection
from resnet_jax.models.stems import NoTransition, SmallImageStem
from resnet_jax.models.stochastic_depth import StochasticDepth


class Head(nnx.Module):
    """Global average pooling and a fully connected layer; float32 whatever the dtype of the network."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        order: type[Order] = Original,
        norm: NormFactory = BatchNorm,
        rngs: nnx.Rngs,
    ):
        self.before = Sequence(order.before_classifier, in_features, norm=norm, rngs=rngs)
        init = jax.nn.initializers.zeros if order.zero_classifier else he_normal
        self.linear = nnx.Linear(in_features, num_classes, kernel_init=init, rngs=rngs)

    def __call__(
        self, x: Float[Array, "n h w c"], *, train: bool = False
    ) -> Float[Array, "n classes"]:
        return self.linear(jnp.mean(self.before(x, train=train), axis=(1, 2), dtype=jnp.float32))


class ResNet(nnx.Module):
    """Deep residual network (He et al. 2015, Sections 3.3 and 4.2); plain with ``shortcut=NoShortcut``.

    Arguments are fields of ``Architecture``. ``out_features`` are the classifier's inputs, ``widths`` the channels of
    each map of ``features``.
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
            raise UserError(
                f"stages={stages} and features={features}: give one width and at least one block for every stage."
            )
        if min(*features, stem_features or 1, num_classes, in_features) < 1:
            widths = f"features={features}, stem_features={stem_features}, num_classes={num_classes}, in_features={in_features}"
            raise UserError(f"{widths}: every width is at least 1.")
        stochastic_depth.check(sum(stages))
        self.dtype, self.stochastic_depth = dtype, stochastic_depth
        self.num_blocks = num_blocks = sum(stages)
        kernels = execution.kernels
        stack = functools.partial(Stack, scan=execution.scans(num_blocks), remat=execution.remat)
        shared: dict[str, Any] = {
            "order": order,
            "conv": component(Conv, kernels=kernels),
            "norm": components.bound(norm, kernels=kernels),
        }
        width = stem_features or features[0]
        self.stem = components.make(stem, in_features, width, **shared, kernels=kernels, rngs=rngs)
        widths = {"stem": width}
        transitions, built = [], []
        strides = _strides(len(stages), output_stride, self.stem, parts(transition)[0])
        for index, (stride, *dilation) in enumerate(strides):
            transitions.append(
                components.make(transition if index else NoTransition, width, **shared, rngs=rngs)
            )
            block = components.bound(
                ResidualBlock,
                features=features[index],
                branch=branch,
                shortcut=shortcut,
                num_blocks=num_blocks,
                **shared,
            )
            first = {
                "in_features": transitions[-1].out_features,
                "stride": stride,
                "dilation": tuple(dilation),
                "first": index == 0 and order.shares_first,
            }
            stacks = _stacks(block, first, stages[index], stack, rngs)
            built.append(nnx.List(stacks))
            width = widths[f"stage{index + 1}"] = stacks[-1].out_features
        self.transitions, self.stages = nnx.List(transitions), nnx.List(built)
        self.out_features = width
        self._widths = tuple(
            widths.items()
        )  # hashable, as static attributes of a module have to be
        self.head = Head(width, num_classes, order=order, norm=shared["norm"], rngs=rngs)

    @property
    def widths(self) -> dict[str, int]:
        return dict(self._widths)

    def features(
        self,
        images: Num[Array, "n h w c"],
        train: bool = False,
        *,
        key: Key[Array, ""] | None = None,
        multipliers: Float[ArrayLike, "blocks *n"] | None = None,
        permutation: Int[ArrayLike, "blocks"] | None = None,
    ) -> dict[str, Float[Array, "n _ _ _"]]:
        """Returns the activations after the stem and each stage: ``stem``, ``stage1``, ... in the network's dtype, NHWC.

        Args:
          images: of any numeric dtype.
          train: use batch statistics, update the running ones in place, and enable stochastic parts.
          key: for stochastic depth and dropout in training.
          multipliers: factors on the branches, per block or per block and image; 0 deletes a branch.
          permutation: index of the block at each position, within ``exchangeable``; traced values are not checked.
        """
        factors = self._factors(len(images), train, key, multipliers)
        order = None if permutation is None else self._checked(permutation)
        # The scopes name sections of profiles and of the counts per stage.
        with jax.named_scope("stem"):
            x = components.call(self.stem, jnp.asarray(images, self.dtype), train=train)
        maps, start = {"stem": x}, 0
        for index, (transition, stacks) in enumerate(
            zip(self.transitions, self.stages, strict=True)
        ):
            name = f"stage{index + 1}"
            with jax.named_scope(name):
                x = components.call(transition, x, train=train)
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
        multipliers: Float[ArrayLike, "blocks *n"] | None = None,
        permutation: Int[ArrayLike, "blocks"] | None = None,
    ) -> Float[Array, "n classes"]:
        """Returns float32 logits. Arguments as of ``features``."""
        *_, last = self.features(
            images, train, key=key, multipliers=multipliers, permutation=permutation
        ).values()
        with jax.named_scope("head"):
            return self.head(last, train=train)

    def exchangeable(self) -> list[range]:
        """Returns the runs of positions with blocks of equal structure, which ``permutation`` may exchange."""
        counts = [stack.count for stacks in self.stages for stack in stacks]
        return [
            range(start, end)
            for start, end in itertools.pairwise(itertools.accumulate(counts, initial=0))
        ]

    def _factors(
        self, images: int, train: bool, key: Any, multipliers: Any
    ) -> Float[Array, "blocks _"] | None:
        depth_key = None if key is None else jax.random.fold_in(key, self.num_blocks)
        drawn = self.stochastic_depth.multipliers(
            self.num_blocks, images, train=train, key=depth_key
        )
        if multipliers is None:
            return drawn
        factors = jnp.asarray(multipliers, jnp.float32)
        if factors.shape not in ((self.num_blocks,), (self.num_blocks, images)):
            raise UserError(
                f"multipliers have shape {factors.shape}: give ({self.num_blocks},), one per block, or ({self.num_blocks}, {images})."
            )
        factors = factors.reshape(self.num_blocks, -1)
        return factors if drawn is None else factors * drawn

    def _checked(self, permutation: Any) -> Int[Array, "blocks"]:
        if np.shape(permutation) != (self.num_blocks,):
            raise UserError(
                f"permutation has shape {np.shape(permutation)}: give ({self.num_blocks},), the block at each position."
            )
        if not isinstance(permutation, Tracer):
            order = np.asarray(permutation)
            runs = self.exchangeable()
            if any(sorted(order[run.start : run.stop].tolist()) != list(run) for run in runs):
                allowed = ", ".join(
                    f"{run.start} to {run.stop - 1}" for run in runs if len(run) > 1
                )
                raise UserError(
                    f"permutation {order.tolist()} exchanges blocks of unequal structure: only {allowed} may change places."
                )
        return jnp.asarray(permutation)


def _strides(
    stages: int, output_stride: int, stem: Any, transition: Any
) -> list[tuple[int, int, int]]:
    """Returns each stage's stride, and its dilation up to the strided convolution and after it.

    Stages whose stride would exceed ``output_stride`` are dilated, so that the strided network's outputs are among the
    dilated one's (Chen et al. 2017, arXiv 1706.05587, Section 3.2).
    """
    if not output_stride:
        return [(1, 1, 1)] + [(2 // transition.stride, 1, 1)] * (stages - 1)
    reached = getattr(stem, "stride", None)
    if reached is None or transition.stride != 1:
        what = (
            f"the stem {type(stem).__name__} has no stride"
            if reached is None
            else f"{transition.__name__} cannot be dilated"
        )
        raise UserError(f"output_stride={output_stride} is not possible: {what}.")
    possible = [reached * 2**i for i in range(stages)]
    if output_stride not in possible:
        raise UserError(
            f"output_stride={output_stride}: with {stages} stages after a stem of stride {reached} it is one of {possible}."
        )
    strides, dilation = [], 1
    for index in range(stages):
        stride, before = (2 if index else 1), dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        strides.append((stride, before, dilation))
    return strides


def _stacks(
    block: Component, first: dict[str, Any], count: int, stack: Callable[..., Stack], rngs: nnx.Rngs
) -> list[Stack]:
    """Builds a stage; consecutive blocks of equal arguments are one stack."""
    stacks, arguments = [], first
    following = {"stride": 1, "dilation": (first["dilation"][1],) * 2, "first": False}
    while count:
        make = components.bound(block, **arguments)
        alike = (
            count > 1
            and arguments == arguments | following
            and _out_features(make) == arguments["in_features"]
        )
        stacks.append(stack(make, count if alike else 1, rngs=rngs))
        count, arguments = (
            count - stacks[-1].count,
            following | {"in_features": stacks[-1].out_features},
        )
    return stacks


@functools.lru_cache(maxsize=1024)
def _out_features(make: Component) -> int:
    """Returns the width of a block. Cached: tracing one block takes as long as tracing a stack of them."""
    widths: list[int] = []
    jax.eval_shape(lambda: widths.append(make(rngs=nnx.Rngs(0)).out_features))
    return widths[0]
