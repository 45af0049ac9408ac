"""Networks with a switch in the shortcut of every block; all settings share one program."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Float

from resnet_jax.configured import Factory, configured, parts
from resnet_jax.models import Apply, Architecture
from resnet_jax.models.architecture import Variables
from resnet_jax.models.pretrained import loading
from resnet_jax.models.shortcuts import NoShortcut, ZeroPad


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Switched:
    """A network as a static function of its original variables and switches."""

    apply: Apply
    stacks: tuple[tuple[int, int, int], ...]
    """Stage, index in the stage, and number of blocks of each stack."""

    def __call__(
        self, params: Variables, batch_stats: Variables, images: Array, switches: Float[Array, "blocks"], **options: Any
    ) -> Float[Array, "n classes"]:
        """Returns the logits in inference mode; ``options`` as for ``Apply``."""
        stats, start = jax.tree.map(lambda leaf: leaf, batch_stats), 0
        for stage, stack, blocks in self.stacks:
            stacks = stats.setdefault("stages", {}).setdefault(stage, {})
            block = stacks.setdefault(stack, {}).setdefault("stacked", {})
            block.setdefault("shortcut", {})["switch"] = switches[start : start + blocks]
            start += blocks
        return self.apply(params, stats, images, train=False, **options)[0]


def network(architecture: Architecture, shortcut: Factory) -> Switched:
    """Returns the architecture with ``PassThrough`` or a shortcut of ``routed``."""
    apply, _, stats = loading.abstract(dataclasses.replace(architecture, shortcut=shortcut))
    stacks = [
        (stage, stack, block["stacked"]["shortcut"]["switch"].shape[0])
        for stage, stage_stacks in sorted(stats["stages"].items())
        for stack, block in sorted(stage_stacks.items())
    ]
    return Switched(apply, tuple(stacks))


def is_plain(architecture: Architecture) -> bool:
    """Returns whether the network has no shortcuts."""
    return parts(architecture.shortcut)[0] is NoShortcut


class Switch(nnx.Variable):
    """The switch of one block."""


class PassThrough(ZeroPad):
    """A plain block: its branch where the switch is 1, its input, resized as by option A, where it is 0.

    Veit et al. 2016 (Section 4.1) delete layers of plain networks so: a branch times 0 would leave nothing.
    """

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        super().__init__(in_features, out_features, stride, rngs)
        self.switch = Switch(jnp.ones(()))

    def __call__(self, x: Array, branch: Array, *, train: bool) -> Array:
        return jnp.where(self.switch[...] > 0, branch, self.carry(x, train=train))


def routed(shortcut: Factory) -> Factory:
    """Returns the shortcut with equal outputs and a switched gradient: through the branch at 1, through the shortcut at 0.

    The Jacobian of a block is a sum, so the gradients of all settings, the paths, add up to that of the network.
    """
    cls, arguments = parts(shortcut)
    return configured(_routed(cls), **arguments) if arguments else _routed(cls)


@functools.cache
def _routed(shortcut: type[nnx.Module]) -> type[nnx.Module]:
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        shortcut.__init__(self, *args, **kwargs)
        self.switch = Switch(jnp.ones(()))

    def call(self: Any, x: Array, branch: Array, **kwargs: Any) -> Array:
        merge: Any = shortcut.__call__  # pyright: ignore[reportAttributeAccessIssue]
        by_branch = merge(self, lax.stop_gradient(x), branch, **kwargs)
        by_shortcut = merge(self, x, lax.stop_gradient(branch), **kwargs)
        return jnp.where(self.switch[...] > 0, by_branch, by_shortcut)

    return type(f"Routed{shortcut.__name__}", (shortcut,), {"__init__": init, "__call__": call, "__module__": __name__})
