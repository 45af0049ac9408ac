"""How arrays are laid out over devices: said here, and nowhere else."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make(devices: int | None = None) -> Mesh:
    """One axis, ``data``, over the first ``devices`` devices; None: all."""
    chosen = jax.devices()[:devices]
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """State, and data sets that live on the device: whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """Batches: split along their first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))
