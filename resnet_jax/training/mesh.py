"""How arrays are laid out over devices: said here, and nowhere else."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax.errors import UserError


def make(devices: int | None = None) -> Mesh:
    """One axis, ``data``, over the first ``devices`` devices; None: all. Raises UserError for a number that there is not."""
    if devices is not None and not 1 <= devices <= jax.device_count():
        raise UserError(f"{devices} devices were asked for; there are {jax.device_count()}: use 1 to {jax.device_count()}")
    chosen = jax.devices()[:devices]
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """State, and data sets that live on the device: whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """Batches: split along their first axis."""
    return NamedSharding(mesh, PartitionSpec("data"))
