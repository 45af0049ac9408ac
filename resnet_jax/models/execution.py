"""Execution of a network: compiler options, and blocks of a stage unrolled or as one ``lax.scan``."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.extend.core import primitives
from jaxtyping import Array, Float, Int, Key

from resnet_jax.kernels import Kernels

_EXPENSIVE = (
    primitives.conv_general_dilated_p,
    primitives.dot_general_p,
    primitives.reduce_sum_p,
    primitives.random_bits_p,
)
_YNN_FUSION, _REDUCTIONS = "xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_REDUCE"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """Compilation of a network. It does not change what is computed, so it is not part of a fingerprint."""

    blocks: Literal["auto", "loop", "scan"] = "auto"
    """Blocks of a stage unrolled, or as one scan. auto: scan on CPU, and above 100 blocks elsewhere."""
    kernels: Kernels = "auto"
    """Custom VJPs. plain: none; gpu: BatchNorm and max pooling; cpu: convolutions too; auto: by backend."""
    remat: bool = False
    """Recompute all activations of a block in the backward pass: less memory, more time."""
    steps_per_dispatch: int = 0
    """Maximum number of training steps per call of the compiled program. 0: 1 on CPU, 100 elsewhere."""
    images_per_device: int = 0
    """Per-device microbatch size. Larger batches use gradient accumulation; BatchNorm groups stay whole. 0: no limit."""

    def steps_a_call(self, backend: str | None = None) -> int:
        """Returns the maximum number of training steps per call on a device-resident data set, by default on the backend in use."""
        # On CPU a call is cheap, and a loop around the step compiles to slower code.
        return self.steps_per_dispatch or (
            1 if (backend or jax.default_backend()) == "cpu" else 100
        )

    def scans(self, num_blocks: int, backend: str | None = None) -> bool:
        """Returns whether a network of this many blocks runs as scans, by default on the backend in use."""
        if self.blocks == "auto":
            return (backend or jax.default_backend()) == "cpu" or num_blocks > 100
        return self.blocks == "scan"


def quick_to_compile() -> dict[str, Any] | None:
    """Returns compiler options for what runs once."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def quick_to_run(platform: str | None = None) -> dict[str, str] | None:
    """Returns compiler options for what runs often, by default on the backend in use.

    On CPU they leave only reductions to YNNPACK: XLA's own code and Eigen are faster for convolutions and products.
    """
    if (
        (platform or jax.default_backend()) != "cpu"
        or _YNN_FUSION in os.environ.get("XLA_FLAGS", "")
        or not _knows(_YNN_FUSION)
    ):
        return None
    return {_YNN_FUSION: _REDUCTIONS}


@functools.cache
def _knows(option: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: _REDUCTIONS}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _is_expensive(operation: Any, *_: Any, **__: Any) -> bool:
    """Remat policy of scans, which copy what is saved: cheap results are recomputed."""
    return operation in _EXPENSIVE


class Stack(nnx.Module):
    """Consecutive blocks ``make(rngs=)`` of equal structure; each variable is one array with the blocks along its first axis."""

    def __init__(
        self, make: Callable[..., Any], count: int, *, scan: bool, remat: bool, rngs: nnx.Rngs
    ):
        def variables(key: Array) -> tuple[nnx.GraphDef[Any], Any]:
            graphdef, state = nnx.split(make(rngs=nnx.Rngs(key)))
            return graphdef, nnx.to_pure_dict(state)

        graphdef, stacked = jax.vmap(variables)(jax.random.split(rngs.params(), count))
        self.stacked = nnx.merge(graphdef, stacked)
        self.count, self.scan, self.remat = count, scan, remat
        self.out_features: int = self.stacked.out_features

    def block(self, index: int) -> nnx.Module:
        """Returns a copy of one block."""
        graphdef, state = nnx.split(self.stacked)
        return nnx.merge(graphdef, jax.tree.map(lambda a: a[index], nnx.to_pure_dict(state)))

    def __call__(
        self,
        x: Float[Array, "n h w c"],
        *,
        train: bool,
        key: Key[Array, ""] | None = None,
        multipliers: Float[Array, "blocks _"] | None = None,
        permutation: Int[Array, "blocks"] | None = None,
    ) -> Float[Array, "n ho wo co"]:
        """Runs the blocks in order, or in that of ``permutation``; multipliers and keys belong to positions, not to blocks."""
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

        inputs = (variables, keys, multipliers)
        scan = self.scan and self.count > 1
        if self.remat or scan:
            run = jax.checkpoint(
                run, prevent_cse=not scan, policy=None if self.remat else _is_expensive
            )
        if scan:
            x, changed = lax.scan(run, x, inputs)
        else:
            afters = []
            for block_inputs in _unstacked(inputs, self.count):
                x, after = run(x, block_inputs)
                afters.append(after)
            changed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *afters)
        if train:
            if permutation is not None:
                changed = jax.tree.map(lambda a: a[jnp.argsort(permutation)], changed)
            nnx.update(self.stacked, changed)
        return x


def _unstacked(tree: Any, count: int) -> list[Any]:
    # The gradient of a split is one concatenation; that of `count` slices a sum of padded arrays.
    def split(leaf: Array) -> list[Array]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return [leaf[i] for i in range(count)]
        return [lax.squeeze(part, (0,)) for part in lax.split(leaf, (1,) * count)]

    leaves, treedef = jax.tree.flatten(tree)
    parts = [split(leaf) for leaf in leaves]
    return [jax.tree.unflatten(treedef, [part[i] for part in parts]) for i in range(count)]
