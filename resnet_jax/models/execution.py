"""How the units of a stage are run: one after another, or as one ``lax.scan``. Parameters are stored one by one either way."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array

from resnet_jax.models.convolution import Gradients


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a network is compiled; never what it computes, so it is no part of an experiment's fingerprint."""

    blocks: Literal["auto", "loop", "scan"] = "auto"
    """Units of a stage unrolled, or as one scan. auto: scan on CPU, and for more than 100 units (compile time) elsewhere."""
    convolution: Gradients = "auto"
    """Gradients of convolutions: XLA's own (plain) or written out (explicit). auto: explicit on CPU."""
    steps_per_dispatch: int = 0
    """Training steps in one call of the compiled program. 0: one on CPU, up to 100 elsewhere."""

    def scans(self, units: int) -> bool:
        """Whether a network of this many units is run by scans."""
        if self.blocks == "auto":
            return jax.default_backend() == "cpu" or units > 100
        return self.blocks == "scan"


def quick_to_compile() -> dict[str, Any] | None:
    """Compiler options for what runs once. On CPU, LLVM's optimisations of an initialisation cost 5 s for ResNet-20 and save 20 ms."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def run(units: Sequence[nnx.Module], x: Array, *, train: bool, scan: bool) -> Array:
    """Runs units one after another; with ``scan``, neighbours of equal structure become the iterations of one loop."""
    if not scan:
        for unit in units:
            x = unit(x, train=train)  # pyright: ignore[reportCallIssue]
        return x
    for _, alike in itertools.groupby(units, key=_structure):
        x = _scan(list(alike), x, train=train)
    return x


def repeat(make: Callable[[nnx.Rngs], nnx.Module], count: int, rngs: nnx.Rngs) -> list[nnx.Module]:
    """Makes ``count`` equal units by one vectorised initialisation: 1202 layers initialise as one unit a stage does."""
    if count == 0:
        return []

    def variables(key: Array) -> tuple[nnx.GraphDef[Any], Any]:
        graphdef, state = nnx.split(make(nnx.Rngs(key)))
        return graphdef, nnx.to_pure_dict(state)

    graphdef, stacked = jax.vmap(variables)(jax.random.split(rngs.params(), count))
    return [nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], stacked)) for i in range(count)]


def _structure(unit: nnx.Module) -> Any:
    graphdef, state = nnx.split(unit)
    leaves, treedef = jax.tree.flatten(nnx.to_pure_dict(state))
    return graphdef, treedef, [(leaf.shape, leaf.dtype) for leaf in leaves]


def _scan(units: list[nnx.Module], x: Array, *, train: bool) -> Array:
    if len(units) == 1:
        return units[0](x, train=train)  # pyright: ignore[reportCallIssue]
    graphdef, _ = nnx.split(units[0])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[nnx.to_pure_dict(nnx.state(unit)) for unit in units])

    def body(x: Array, variables: Any) -> tuple[Array, Any]:
        unit = nnx.merge(graphdef, variables, copy=True)
        x = unit(x, train=train)
        return x, nnx.to_pure_dict(nnx.state(unit, nnx.Not(nnx.Param)))

    x, changed = jax.lax.scan(body, x, stacked)
    if train:
        for i, unit in enumerate(units):
            nnx.update(unit, jax.tree.map(lambda a, i=i: a[i], changed))
    return x
