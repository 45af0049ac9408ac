"""Residual network: its architecture and execution as frozen values, and its modules."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.core import Tracer
from jax.extend.core import primitives

from resnet_jax import kernels
from resnet_jax.errors import Positive, UserError, check, users_line
from resnet_jax.kernels import Kernels, quick_to_compile
from resnet_jax.kernels.typing import Array, ArrayLike, Float, Int, Key, Num
from resnet_jax.models import components
from resnet_jax.models.blocks import Basic, Branch, ResidualBlock
from resnet_jax.models.components import Part
from resnet_jax.models.layers import (
    Activation,
    Conv,
    Output,
    Rngs,
    Sequence,
    checked,
    he_normal,
    rngs_of,
    width_of,
)
from resnet_jax.models.norms import (
    BatchNorm,
    FrozenBatchNorm,
    GroupNorm,
    NoNorm,
    Variables,
    moved,
    set_momentum_aside,
)
from resnet_jax.models.orders import Order, Original
from resnet_jax.models.shortcuts import Concatenation, NoShortcut, Projection, Shortcut
from resnet_jax.models.stems import DeepStem, DenseTransition, NoTransition, SmallImageStem
from resnet_jax.models.stochastic_depth import StochasticDepth

MAX_BLOCKS = 10_000


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Compilation of a network; not part of a fingerprint. The defaults are the trainer's."""

    blocks: Literal["auto", "loop", "scan"] = "auto"
    """Blocks of a stage unrolled or as one scan. auto: scan on CPU, elsewhere above 100 blocks."""
    kernels: Kernels = "auto"
    """Custom VJPs. plain: none; gpu: BatchNorm, pooling, ReLU; cpu: convolution, not ReLU."""
    remat: bool = False
    """Recompute a block's activations in the backward pass: less memory, more time."""
    steps_per_dispatch: int = 0
    """Training steps per call of the compiled program, at most. 0: 1 on CPU, 100 elsewhere."""
    images_per_device: int = 0
    """Per-device microbatch size. Larger batches use gradient accumulation. 0: no limit."""

    def __post_init__(self) -> None:
        check("execution", Execution, self)

    def steps_per_call(self, backend: str | None = None) -> int:
        """Returns the maximum of steps per call on a device-resident data set."""
        # CPU programs start cheaply, and a loop around the step compiles to slower code.
        is_cpu = (backend or jax.default_backend()) == "cpu"
        return self.steps_per_dispatch or (1 if is_cpu else 100)

    def scans(self, num_blocks: int, backend: str | None = None) -> bool:
        """Returns whether a network of this many blocks runs as scans."""
        if self.blocks == "auto":
            return (backend or jax.default_backend()) == "cpu" or num_blocks > 100
        return self.blocks == "scan"


PLAIN = Execution(blocks="loop", kernels="plain")
"""Execution of networks outside of the trainer: JAX differentiates every operation itself."""

# Public base classes of the package's components.
_ROLES: dict[str, tuple[type, ...]] = {
    "branch": (Branch,),
    "order": (Order,),
    "shortcut": (Shortcut, NoShortcut, Concatenation),
    "stem": (SmallImageStem, DeepStem),
    "norm": (BatchNorm, FrozenBatchNorm, GroupNorm, NoNorm),
    "transition": (NoTransition, DenseTransition),
}
_ALL_BLOCKS = StochasticDepth()


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Description of a network.

    A component is a class, ``component(CLASS, argument=value)``, a ``functools.partial`` or text:
    ``NAME`` or ``NAME(argument=value)``.
    """

    stages: tuple[Positive, ...]
    """Residual blocks per stage."""
    features: tuple[Positive, ...]
    """Width of each stage, before a bottleneck's expansion."""
    stem_features: int = 0
    """Width of the stem; 0: that of the first stage."""
    branch: Part = Basic
    """Basic, Bottleneck, BottleneckV15, SingleLayer, "Branch(kernels=(3, 1, 3))", FILE.py:CLASS."""
    order: Part = Original
    """Original, NormAfterAddition, ReluBeforeAddition, ReluOnlyPreactivation, FullPreactivation,
    Fixup, FILE.py:CLASS."""
    shortcut: Part = Projection
    """none, A, B, C, D, "Scaled(shortcut=0.5)", "ShortcutOnlyGating(bias=-6)", FILE.py:CLASS."""
    stem: Part = SmallImageStem
    """SmallImageStem, ImageNetStem, DeepStem, FILE.py:CLASS."""
    norm: Part = BatchNorm
    """BatchNorm, "BatchNorm(group_size=64)", FrozenBatchNorm, "GroupNorm(num_groups=8)", NoNorm,
    FILE.py:CLASS."""
    transition: Part = NoTransition
    """Between stages: NoTransition, "DenseTransition(compression=0.5)", FILE.py:CLASS."""
    stochastic_depth: StochasticDepth = _ALL_BLOCKS
    output_stride: int = 0
    """8 or 16: later stages are dilated instead of strided; 0: strided."""
    input_shape: tuple[Positive, Positive, Positive] = (32, 32, 3)
    """Height, width, channels of the images. The network depends only on the channels."""
    num_classes: int = 10
    """Number of logits; 0: no classifier, the output is the pooled embedding."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of computation. Parameters and statistics are float32."""

    def __post_init__(self) -> None:
        for name in _ROLES:
            if isinstance(part := getattr(self, name), str | functools.partial):
                object.__setattr__(self, name, components.resolve(part))
        check("model", Architecture, self)
        for name in _ROLES:
            cls, _ = components.parts(part := getattr(self, name))
            role = next((role for role, bases in _ROLES.items() if issubclass(cls, bases)), name)
            if role != name:
                part = components.name_of(part)
                raise UserError(f"{name}={part} is for the {role}, not for the {name}.")
        stages, features = self.stages, self.features
        if not (1 <= len(stages) == len(features) <= 100 and sum(stages) <= MAX_BLOCKS):
            raise UserError(
                f"stages={stages!s:.80} and features={features!s:.80} must have equal lengths, 1 "
                f"to 100, and the sum of stages be at most {MAX_BLOCKS}."
            )

    def build(self, *, rngs: Rngs = 0, execution: Execution = PLAIN) -> "ResNet":
        """Returns the module, initialized by one program: eagerly that takes tens of seconds."""
        key = rngs_of(rngs).params()
        # Inside another trace JAX rejects compiler options.
        options = None if isinstance(key, Tracer) else quick_to_compile()

        def variables(key: Array) -> Any:
            return nnx.split(ResNet(self, rngs=nnx.Rngs(key), execution=execution))

        return nnx.merge(*jax.jit(variables, compiler_options=options)(key))

    def init(
        self, key: Array | int, *, execution: Execution = PLAIN
    ) -> tuple["Apply", Variables, Variables]:
        """Returns ``(apply, params, batch_stats)`` as of ``build``. To be traced."""
        model = ResNet(self, rngs=nnx.Rngs(key).params(), execution=execution)
        graphdef, params, rest = nnx.split(model, nnx.Param, ...)
        return Apply(graphdef), nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


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
        method: str = "__call__",
        **options: Any,
    ) -> tuple[Any, Variables]:
        """Returns what a method of ``ResNet`` returns, by default float32 logits, and updated
        statistics; options as of ``ResNet.features``.
        """
        model: Any = nnx.merge(self.graphdef, params, batch_stats, copy=True)
        # Running statistics are updated here, whole stacks at once: XLA copies updated slices.
        momenta = set_momentum_aside(model) if train else {}
        outputs = getattr(model, method)(images, train, **options)
        after = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))
        return outputs, moved(momenta, batch_stats, after) if train else after


class ResNet(nnx.Module):
    """Deep residual network. He et al. 2015, Sections 3.3 and 4.2; plain with ``NoShortcut``.

    Methods take ``train``: use batch statistics, update the running ones in place, enable dropout
    and stochastic depth. None is the mode of ``train()`` and ``eval()``, at first evaluation.
    """

    def __init__(self, architecture: Architecture, *, rngs: Rngs = 0, execution: Execution = PLAIN):
        classes = [components.parts(getattr(architecture, name))[0] for name in _ROLES]
        names = map(components.describe, classes)
        users = ", ".join(name for name in names if not name.startswith("resnet_jax."))
        try:
            self._assemble(architecture, execution, rngs_of(rngs))
            self.deterministic = True
            self.eval()
            if users:
                # Errors of a call are raised now, not in the first step of a run.
                images = jax.ShapeDtypeStruct((1, *architecture.input_shape), jnp.uint8)
                nnx.eval_shape(lambda m, x: m(x, False, key=jax.random.key(0)), self, images)
        except (AttributeError, TypeError, ValueError) as error:
            if isinstance(error, UserError) or not users:
                raise
            problem, _, _ = str(error).partition("\n")
            problem = f"{users_line(error)}{problem}"
            raise UserError(f"{users} cannot be in this network: {problem}") from error

    def _assemble(self, architecture: Architecture, execution: Execution, rngs: nnx.Rngs) -> None:
        stages, features = architecture.stages, architecture.features
        self.channels = architecture.input_shape[2]
        width = architecture.stem_features or features[0]
        self.num_blocks = sum(stages)
        self.dtype, self.kernels = architecture.dtype, execution.kernels
        self.stochastic_depth = architecture.stochastic_depth
        if self.stochastic_depth != _ALL_BLOCKS:
            self.stochastic_depth.check(self.num_blocks)
        order: type[Order] = components.parts(architecture.order)[0]
        norm = architecture.norm
        shared = {"order": order, "conv": Conv, "norm": norm, "rngs": rngs}
        self.stem = components.make(architecture.stem, self.channels, width, **shared)
        block = functools.partial(
            ResidualBlock,
            branch=architecture.branch,
            shortcut=architecture.shortcut,
            num_blocks=self.num_blocks,
            order=order,
            norm=norm,
        )
        scan, remat = execution.scans(self.num_blocks), execution.remat
        transitions, built = [], []
        for index, (stride, dilation) in enumerate(_strides(architecture, self.stem)):
            transition = architecture.transition if index else NoTransition
            transitions.append(components.make(transition, width, **shared))
            first = {
                "in_features": width_of(transitions[-1]),
                "features": features[index],
                "stride": stride,
                "dilation": dilation,
                "first": index == 0 and order.shares_first,
            }
            stacks = _stacks(block, first, stages[index], scan=scan, remat=remat, rngs=rngs)
            built.append(nnx.List(stacks))
            width = stacks[-1].out_features
        self.transitions, self.stages = nnx.List(transitions), nnx.List(built)
        self.out_features = width
        self.head = Head(width, architecture.num_classes, order=order, norm=norm, rngs=rngs)

    @property
    def widths(self) -> dict[str, int]:
        """Channels of each map of ``features``."""
        stages = {f"stage{i}": stacks[-1].out_features for i, stacks in enumerate(self.stages, 1)}
        return {"stem": self.transitions[0].out_features} | stages

    def features(
        self,
        images: Num[Array, "n h w c"],
        train: bool | None = None,
        *,
        key: Key[Array, ""] | None = None,
        multipliers: Float[ArrayLike, "blocks *n"] | None = None,
        permutation: Int[ArrayLike, "blocks"] | None = None,
    ) -> dict[str, Float[Array, "n _ _ _"]]:
        """Returns the activations after the stem and each stage: ``stem``, ``stage1``, ...

        Args:
          images: dtype uint8 or floating, at least one image, at any resolution.
          train: None is the mode of the module.
          key: for stochastic depth and dropout.
          multipliers: factors on the branches, per block or per block and image.
          permutation: block at each position, within ``exchangeable``; unchecked if traced.
        """
        shape = np.shape(images)
        if len(shape) != 4 or shape[3] != self.channels or shape[0] == 0:
            hints = {3: "images[None] adds the axis of a batch", 4: "channels are the last axis"}
            allowed = f"images must be (n, height, width, {self.channels}), n at least 1"
            raise UserError(f"{allowed}, got {shape}: {hints.get(len(shape), 'give four axes')}.")
        count = shape[0]
        factors = self._factors(count, train, key, multipliers)
        order = None if permutation is None else self._checked(permutation)
        with kernels.active(self.kernels):
            # The scopes name sections of profiles and of the counts per stage.
            with jax.named_scope("stem"):
                mode = components.accepted(self.stem, train=train)
                x = self.stem(jnp.asarray(images, self.dtype), **mode)
                x = checked(self.stem, x, count, -1, -1, self.widths["stem"])
            maps, start = {"stem": x}, 0
            stages = zip(self.transitions, self.stages, strict=True)
            for index, (transition, stacks) in enumerate(stages, 1):
                with jax.named_scope(f"stage{index}"):
                    x = transition(x, **components.accepted(transition, train=train))
                    x = checked(transition, x, count, -1, -1, transition.out_features)
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
                    maps[f"stage{index}"] = x
        return maps

    def __call__(
        self, images: Num[Array, "n h w c"], train: bool | None = None, **options: Any
    ) -> Float[Array, "n classes"]:
        """Returns float32 logits. Arguments as of ``features``."""
        return self._end(self.head, self.features(images, train, **options), train)

    def logits_and_maps(
        self, images: Num[Array, "n h w c"], train: bool | None = None, **options: Any
    ) -> tuple[Float[Array, "n classes"], dict[str, Float[Array, "n _ _ _"]]]:
        """Returns float32 logits, and the maps of ``features``, whose arguments it takes."""
        maps = self.features(images, train, **options)
        return self._end(self.head, maps, train), maps

    def embed(
        self, images: Num[Array, "n h w c"], train: bool | None = None, **options: Any
    ) -> Float[Array, "n features"]:
        """Returns the float32 input of the classifier. Arguments as of ``features``."""
        return self._end(self.head.pool, self.features(images, train, **options), train)

    def _end(self, head: Callable[..., Array], maps: dict[str, Array], train: bool | None) -> Array:
        with kernels.active(self.kernels), jax.named_scope("head"):
            # By name: transforms that return a dictionary sort it.
            return head(maps[f"stage{len(self.stages)}"], train=train)

    def exchangeable(self) -> list[range]:
        """Returns ranges of blocks of equal structure, which may be permuted."""
        counts = [stack.count for stacks in self.stages for stack in stacks]
        ends = itertools.accumulate(counts, initial=0)
        return [range(start, end) for start, end in itertools.pairwise(ends)]

    def _factors(
        self,
        images: Any,
        train: bool | None,
        key: Key[Array, ""] | None,
        multipliers: Float[ArrayLike, "blocks *n"] | None,
    ) -> Float[Array, "blocks _"] | None:
        depth, drawn = self.stochastic_depth, None
        if depth.survival != 1 or depth.kept:
            key = None if key is None else jax.random.fold_in(key, self.num_blocks)
            train = components.in_training(self, train)
            drawn = depth.multipliers(self.num_blocks, images, train=train, key=key)
        if multipliers is None:
            return drawn
        factors = jnp.asarray(multipliers, jnp.float32)
        one, other = (self.num_blocks,), (self.num_blocks, images)
        if factors.shape not in (one, other):
            raise UserError(f"multipliers must have shape {one} or {other}, got {factors.shape}.")
        factors = factors.reshape(self.num_blocks, -1)
        return factors if drawn is None else factors * drawn

    def _checked(self, permutation: Int[ArrayLike, "blocks"]) -> Int[Array, "blocks"]:
        valid, runs = np.shape(permutation) == (self.num_blocks,), self.exchangeable()
        if valid and not isinstance(permutation, Tracer):
            order = np.asarray(permutation)
            valid = all(sorted(order[run]) == list(run) for run in runs)
        if not valid:
            allowed = ", ".join(f"{run[0]} to {run[-1]}" for run in runs if len(run) > 1)
            raise UserError(
                f"permutation must have length {self.num_blocks} and exchange blocks of equal "
                f"structure: only {allowed} may change places."
            )
        return jnp.asarray(permutation)


def _strides(architecture: Architecture, stem: object) -> list[tuple[int, tuple[int, int]]]:
    """Returns each stage's stride, and its dilations up to the strided convolution and after it.

    Beyond ``output_stride`` stages are dilated, so that the strided network's outputs are among
    the dilated one's (Chen et al. 2017, arXiv 1706.05587, Section 3.2).
    """
    later, wanted = len(architecture.stages) - 1, architecture.output_stride
    transition = components.parts(architecture.transition)[0]
    if not wanted:
        return [(1, (1, 1))] + [(2 // transition.stride, (1, 1))] * later
    # Stems without a stride and transitions with one cannot be dilated.
    reached: int = getattr(stem, "stride", None) or 0
    possible = [reached * 2**i for i in range(later + 1) if reached and transition.stride == 1]
    if wanted not in possible:
        parts = f"{later + 1} stages, this stem and {transition.__name__}"
        raise UserError(
            f"output_stride={wanted} is not possible with {parts}: use one of {possible}."
        )
    strided = (wanted // reached).bit_length() - 1
    dilated = [(1, (2**i, 2 ** (i + 1))) for i in range(later - strided)]
    return [(1, (1, 1))] + [(2, (1, 1))] * strided + dilated


def _stacks(
    block: Callable[..., ResidualBlock], first: dict[str, Any], count: int, **options: Any
) -> list["Stack"]:
    """Builds a stage; consecutive blocks of equal arguments are one stack."""
    stacks, arguments = [], first
    following = {"stride": 1, "dilation": (first["dilation"][1],) * 2, "first": False}
    while count:
        make = functools.partial(block, **arguments)
        built = nnx.eval_shape(make, rngs=nnx.Rngs(0))
        after = arguments | following | {"in_features": built.out_features}
        stacks.append(Stack(make, count if after == arguments else 1, **options))
        count, arguments = count - stacks[-1].count, after
    return stacks


class Head(nnx.Module):
    """Global average pooling and a fully connected layer, in float32."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        order: type[Order] = Original,
        norm: Part = BatchNorm,
        rngs: nnx.Rngs,
    ):
        self.before = Sequence(order.before_classifier, in_features, norm=norm, rngs=rngs)
        init = jax.nn.initializers.zeros if order.zero_classifier else he_normal
        linear = functools.partial(nnx.Linear, kernel_init=init, rngs=rngs)
        self.linear = linear(in_features, num_classes) if num_classes else None

    def __call__(self, x: Activation, *, train: bool | None = None) -> Float[Array, "n classes"]:
        pooled = self.pool(x, train=train)
        return pooled if self.linear is None else self.linear(pooled)

    def pool(self, x: Activation, *, train: bool | None = None) -> Float[Array, "n c"]:
        """Returns the means over the pixels."""
        return jnp.mean(self.before(x, train=train), axis=(1, 2), dtype=jnp.float32)


class Stack(nnx.Module):
    """Blocks ``make(rngs=)``, stacked along a first axis, as a loop or one ``lax.scan``."""

    def __init__(
        self, make: Callable[..., Any], count: int, *, scan: bool, remat: bool, rngs: nnx.Rngs
    ):
        def variables(key: Array) -> Any:
            graphdef, state = nnx.split(make(rngs=nnx.Rngs(key)))
            return graphdef, nnx.to_pure_dict(state)

        graphdef, stacked = jax.vmap(variables)(jax.random.split(rngs.params(), count))
        self.stacked = nnx.merge(graphdef, stacked)
        self.count, self.scan, self.remat = count, scan, remat
        self.out_features: int = self.stacked.out_features

    def __call__(
        self,
        x: Activation,
        *,
        train: bool | None = None,
        key: Key[Array, ""] | None = None,
        multipliers: Float[Array, "blocks _"] | None = None,
        permutation: Int[Array, "blocks"] | None = None,
    ) -> Output:
        """Runs the blocks in order. Multipliers and keys belong to positions, not to blocks."""
        graphdef, state = nnx.split(self.stacked)
        variables = nnx.to_pure_dict(state)
        if permutation is not None:
            variables = jax.tree.map(lambda a: a[permutation], variables)
        keys = None if key is None else jax.random.split(key, self.count)

        def run(x: Array, inputs: Any) -> tuple[Array, Any]:
            variables, key, multiplier = inputs
            block = nnx.merge(graphdef, variables, copy=True)
            x = block(x, train=train, key=key, multiplier=multiplier)
            return x, nnx.to_pure_dict(nnx.state(block, nnx.Not(nnx.Param)))

        inputs = variables, keys, multipliers
        scan = self.scan and self.count > 1
        if self.remat or scan:
            policy = None if self.remat else _is_expensive
            run = jax.checkpoint(run, prevent_cse=not scan, policy=policy)
        if scan:
            x, changed = lax.scan(run, x, inputs, length=self.count)
        else:
            afters = []
            for block_inputs in _unstacked(inputs, self.count):
                x, after = run(x, block_inputs)
                afters.append(after)
            changed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *afters)
        if _updates(self.stacked) if train is None else train:
            if permutation is not None:
                changed = jax.tree.map(lambda a: a[jnp.argsort(permutation)], changed)
            nnx.update(self.stacked, changed)
        return x


def _updates(module: nnx.Module) -> bool:
    """Returns whether any part of a module is in training mode."""
    parts = [part for _, part in nnx.iter_modules(module)]
    return any(getattr(p, mode, True) is False for p in parts for mode in components.FLAX_MODES)


_EXPENSIVE = (
    primitives.conv_general_dilated_p,
    primitives.dot_general_p,
    primitives.reduce_sum_p,
    primitives.random_bits_p,
)


def _is_expensive(operation: object, *_: object, **__: object) -> bool:
    """Remat policy of scans, which copy saved results: cheap ones are recomputed."""
    return operation in _EXPENSIVE


def _unstacked(tree: Any, count: int) -> list[Any]:
    # The gradient of a split is one concatenation; that of `count` slices a sum of padded arrays.
    def split(leaf: Array) -> list[Array]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return list(leaf)
        return [lax.squeeze(part, (0,)) for part in lax.split(leaf, (1,) * count)]

    leaves, treedef = jax.tree.flatten(tree)
    parts = [split(leaf) for leaf in leaves]
    return [jax.tree.unflatten(treedef, [part[i] for part in parts]) for i in range(count)]
