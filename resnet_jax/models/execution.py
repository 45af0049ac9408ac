"""How the units of a network are run: one after another, or as one ``lax.scan``. Their variables are stored stacked either way."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.extend.core import primitives
from jaxtyping import Array, Float, Int, Key

from resnet_jax.configured import LATER
from resnet_jax.models.convolution import Gradients

_DEAR = (primitives.conv_general_dilated_p, primitives.dot_general_p, primitives.reduce_sum_p, primitives.random_bits_p)
_LIBRARY, _REDUCTIONS = "xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_REDUCE"


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a network is compiled; never what it computes, so it is no part of an experiment's fingerprint."""

    blocks: Literal["auto", "loop", "scan"] = "auto"
    """Units of a stage unrolled, or as one scan. auto: scan on CPU, and for more than 100 units (compile time) elsewhere."""
    convolution: Gradients = "auto"
    """Gradients of convolutions: XLA's own (plain) or written out (explicit). auto: explicit on CPU."""
    normalization: Gradients = field(default="auto", metadata={LATER: True})
    """Gradients of BatchNorm: JAX's own (plain) or written out (explicit). auto: explicit on CPU and GPU."""
    pooling: Gradients = field(default="auto", metadata={LATER: True})
    """Gradients of the stem's max-pooling: XLA's own (plain) or written out (explicit). auto: explicit on CPU and GPU."""
    stem: Literal["plain", "space_to_depth"] = field(default="plain", metadata={LATER: True})
    """Strided convolutions of the stem as they stand, or on blocks of 2x2 pixels with equal values, see ``models/space_to_depth.py``."""
    remat: bool = False
    """Whether all of a unit's activations are computed again on the way back rather than kept: less memory, more time."""
    steps_per_dispatch: int = 0
    """Training steps in one call of the compiled program, see ``steps_a_call``. 0: one on CPU, up to 100 elsewhere."""
    images_per_device: int = field(default=0, metadata={LATER: True})
    """At most so many images of a batch on a device at once: a batch is taken in parts, whose gradients are added up, as fewer devices
    need. BatchNorm's groups stay whole. 0: all."""

    def steps_a_call(self, backend: str | None = None) -> int:
        """Training steps in one call at most, on a backend or, None, on that of this machine, of images that live on the device."""
        # On CPU a call costs nothing beside a step, and a loop around the step compiles to slower code.
        return self.steps_per_dispatch or (1 if (backend or jax.default_backend()) == "cpu" else 100)

    def scans(self, units: int, backend: str | None = None) -> bool:
        """Whether a network of this many units is run by scans, on a backend (cpu, gpu, tpu) or, None, on that of this machine."""
        if self.blocks == "auto":
            return (backend or jax.default_backend()) == "cpu" or units > 100
        return self.blocks == "scan"


def quick_to_compile() -> dict[str, Any] | None:
    """Compiler options for what runs once. On CPU, LLVM's optimisations of an initialisation cost 5 s for ResNet-20 and save 20 ms."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def quick_to_run(platform: str | None = None) -> dict[str, str] | None:
    """Compiler options of what runs often, on a platform (cpu, gpu, tpu) or, None, on that of this machine.

    On CPU, XLA leaves to the YNNPACK library reductions alone. It would give it convolutions and products as well, which XLA's own code
    and Eigen are faster at: ``resnet-jax bench flags`` measures the flag. None elsewhere, where this jaxlib does not know the option, and
    where ``XLA_FLAGS`` says what to do.
    """
    if (platform or jax.default_backend()) != "cpu" or _LIBRARY in os.environ.get("XLA_FLAGS", "") or not _reductions_alone():
        return None
    return {_LIBRARY: _REDUCTIONS}


@functools.cache
def _reductions_alone() -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={_LIBRARY: _REDUCTIONS}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


def _dear(operation: Any, *_: Any, **__: Any) -> bool:
    """Whether a result inside a scan is kept for the way back. What is kept is copied into one array for all units, and out of it again,
    which costs more than to compute values by values (a normalisation from its sums, a ReLU) once more where they are used.
    """
    return operation in _DEAR


class Stack(nnx.Module):
    """Neighbouring units of equal structure; each of their variables is one array with the units along its first axis.

    So 1202 layers are initialised, trained and saved as few arrays as 20 are, and a scan over them has nothing to gather.

    Args:
      make: makes one unit, ``make(rngs=)``.
      count: how many.
      scan, remat: how they are run, see ``Execution``.
      rngs: stream ``params``.
    """

    def __init__(self, make: Callable[..., Any], count: int, *, scan: bool, remat: bool, rngs: nnx.Rngs):
        def variables(key: Array) -> tuple[nnx.GraphDef[Any], Any]:
            graphdef, state = nnx.split(make(rngs=nnx.Rngs(key)))
            return graphdef, nnx.to_pure_dict(state)

        graphdef, stacked = jax.vmap(variables)(jax.random.split(rngs.params(), count))
        self.stacked = nnx.merge(graphdef, stacked)
        self.count, self.scan, self.remat = count, scan, remat
        self.out_features: int = self.stacked.out_features

    def unit(self, index: int) -> nnx.Module:
        """A copy of one unit."""
        graphdef, state = nnx.split(self.stacked)
        return nnx.merge(graphdef, jax.tree.map(lambda a: a[index], nnx.to_pure_dict(state)))

    def __call__(
        self,
        x: Float[Array, "n h w c"],
        *,
        train: bool,
        key: Key[Array, ""] | None = None,
        multipliers: Float[Array, "units _"] | None = None,
        permutation: Int[Array, "units"] | None = None,
    ) -> Float[Array, "n ho wo co"]:
        """Runs the units in order, or in that of ``permutation``; ``multipliers`` and keys belong to places, not to units."""
        graphdef, state = nnx.split(self.stacked)
        variables = nnx.to_pure_dict(state)
        if permutation is not None:
            variables = jax.tree.map(lambda a: a[permutation], variables)
        keys = None if key is None else jax.random.split(key, self.count)

        def run(x: Array, inputs: Any) -> tuple[Array, Any]:
            variables, key, multiplier = inputs
            unit = nnx.merge(graphdef, variables, copy=True)
            x = unit(x, train=train, key=key, multiplier=multiplier)
            return x, nnx.to_pure_dict(nnx.state(unit, nnx.Not(nnx.Param)))

        inputs = (variables, keys, multipliers)
        scan = self.scan and self.count > 1
        if self.remat or scan:
            run = jax.checkpoint(run, prevent_cse=not scan, policy=None if self.remat else _dear)
        if scan:
            x, changed = lax.scan(run, x, inputs)
        else:
            each = []
            for one in _unstacked(inputs, self.count):
                x, after = run(x, one)
                each.append(after)
            changed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        if train:
            if permutation is not None:
                changed = jax.tree.map(lambda a: a[jnp.argsort(permutation)], changed)
            nnx.update(self.stacked, changed)
        return x


def _unstacked(tree: Any, count: int) -> list[Any]:
    # The gradient of a split is one concatenation; that of `count` slices a sum of as many padded arrays.
    def split(leaf: Array) -> list[Array]:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return [leaf[i] for i in range(count)]
        return [lax.squeeze(part, (0,)) for part in lax.split(leaf, (1,) * count)]

    leaves, treedef = jax.tree.flatten(tree)
    parts = [split(leaf) for leaf in leaves]
    return [jax.tree.unflatten(treedef, [part[i] for part in parts]) for i in range(count)]
