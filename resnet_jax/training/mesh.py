"""How arrays are laid out over devices: said here, and nowhere else."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax.errors import UserError


def make(devices: int | None = None, seeds: int = 1, batch: int = 0) -> Mesh:
    """Axes ``seed`` and ``data`` over the first ``devices`` devices; None: all.

    ``seeds`` runs stand beside each other, each on ``devices // seeds`` devices or so many of them as divide ``batch``; a remainder is left
    idle.

    Raises:
      UserError: for a number of devices that there is not.
    """
    if devices is not None and not 1 <= devices <= jax.device_count():
        raise UserError(f"{devices} devices were asked for; there are {jax.device_count()}: use 1 to {jax.device_count()}")
    usable = jax.devices()[:devices]
    assert 1 <= seeds <= len(usable)
    shape = (seeds, max(size for size in range(1, len(usable) // seeds + 1) if batch % size == 0))
    return jax.make_mesh(shape, ("seed", "data"), axis_types=(AxisType.Auto,) * 2, devices=usable[: shape[0] * shape[1]])


def replicated(mesh: Mesh) -> NamedSharding:
    """State of one seed, and data sets that live on the device: whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """Batches: split along their first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))


def by_seed(mesh: Mesh) -> NamedSharding:
    """States of several seeds, one after another along their first axis: each on its own devices."""
    return NamedSharding(mesh, PartitionSpec("seed"))


def over_seeds(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Lifts a function of one seed's arrays (its first argument) and of shared ones to arrays with an axis of seeds in front.

    Devices along the mesh's ``seed`` axis do not communicate. Seeds of the same device are vectorised; a single one runs the function as
    it is, so that its numbers are those of a run by itself.
    """

    def local(of_seed: Any, *shared: Any) -> Any:
        if jax.tree.leaves(of_seed)[0].shape[0] == 1:
            found = function(jax.tree.map(lambda a: a[0], of_seed), *shared)
            return jax.tree.map(lambda a: a[None], found)
        return jax.vmap(lambda one: function(one, *shared))(of_seed)

    if mesh.shape["seed"] == 1:
        return local
    along = PartitionSpec("seed")

    def lifted(of_seed: Any, *shared: Any) -> Any:
        specs = (along, *(PartitionSpec() for _ in shared))
        # Only `seed` is manual: within a seed the compiler splits batches over `data` as it does for a single run.
        return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=along, axis_names={"seed"}, check_vma=False)(of_seed, *shared)

    return lifted
