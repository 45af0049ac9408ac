"""Networks with a switch in the shortcut of every unit: a number given at run time, so that another setting needs no other compilation."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from resnet_jax.configured import Factory, configured, parts
from resnet_jax.models import Apply, Architecture, Execution
from resnet_jax.models.architecture import Variables
from resnet_jax.models.pretrained import loading
from resnet_jax.models.shortcuts import NoShortcut, ZeroPad


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Switched:
    """A network as a function of its variables and of its switches; static. Its own variables are those of the network without."""

    apply: Apply
    stacks: tuple[tuple[int, int, int], ...]
    """Stage, number in it, and units of each stack."""

    def __call__(
        self, params: Variables, batch_stats: Variables, images: Array, switches: Float[Array, "units"], **given: Any
    ) -> Float[Array, "n classes"]:
        """Returns the logits in inference; ``given`` as of ``Apply``."""
        stats, start = jax.tree.map(lambda leaf: leaf, batch_stats), 0
        for stage, stack, units in self.stacks:
            stacks = stats.setdefault("stages", {}).setdefault(stage, {})
            unit = stacks.setdefault(stack, {}).setdefault("stacked", {})
            unit.setdefault("shortcut", {})["switch"] = switches[start : start + units]
            start += units
        return self.apply(params, stats, images, train=False, **given)[0]


def network(architecture: Architecture, shortcut: Factory, execution: Execution = Execution()) -> Switched:
    """The architecture with another shortcut in its place, ``HandedOn`` or one that ``routed`` made."""
    apply, _, stats = loading.abstract(dataclasses.replace(architecture, shortcut=shortcut), execution)
    found = [
        (stage, stack, unit["stacked"]["shortcut"]["switch"].shape[0])
        for stage, stacks in sorted(stats["stages"].items())
        for stack, unit in sorted(stacks.items())
    ]
    return Switched(apply, tuple(found))


def is_plain(architecture: Architecture) -> bool:
    """Whether nothing travels beside the branches."""
    return parts(architecture.shortcut)[0] is NoShortcut


class Switch(nnx.Variable):
    """Of a unit."""


class HandedOn(ZeroPad):
    """A plain unit: its branch alone where its switch is 1; where it is 0, what came in, carried as by option A to another size or width.

    So layers are deleted from networks without shortcuts (Veit et al. 2016, Section 4.1): a branch times 0 would leave nothing at all.
    """

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        super().__init__(in_features, out_features, stride, rngs)
        self.switch = Switch(jnp.ones(()))

    def __call__(self, x: Array, branch: Array, *, train: bool) -> Array:
        return jnp.where(self.switch[...] > 0, branch, self.carry(x, train=train))


def routed(shortcut: Factory) -> Factory:
    """The same shortcut, whose values are the same, and whose gradient goes through the branch alone where its switch is 1, and through
    what travels beside it alone where it is 0.

    Jacobians of units being sums, the gradient of a network is the sum over all settings of the switches: over its paths.
    """
    made, given = parts(shortcut)
    return configured(_routed(made), **given) if given else _routed(made)


@functools.cache
def _routed(shortcut: type[nnx.Module]) -> type[nnx.Module]:
    def start(self: Any, *args: Any, **given: Any) -> None:
        shortcut.__init__(self, *args, **given)
        self.switch = Switch(jnp.ones(()))

    def call(self: Any, x: Array, branch: Array, **given: Any) -> Array:
        merge: Any = shortcut.__call__  # pyright: ignore[reportAttributeAccessIssue]
        by_branch = merge(self, lax.stop_gradient(x), branch, **given)
        by_shortcut = merge(self, x, lax.stop_gradient(branch), **given)
        return jnp.where(self.switch[...] > 0, by_branch, by_shortcut)

    return type(f"Routed{shortcut.__name__}", (shortcut,), {"__init__": start, "__call__": call, "__module__": __name__})
