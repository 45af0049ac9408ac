"""Device mesh and shardings."""

import operator
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax.errors import UserError
from resnet_jax.training.step import TrainState, is_stacked


def make(devices: int | None = None, fsdp: int = 1, among: Sequence[Any] | None = None) -> Mesh:
    """Returns a mesh with the axes ``data`` and ``fsdp``; a batch is split over both.

    Args:
      devices: number of devices; None: all.
      fsdp: devices that share one copy of the parameters and of the optimizer's state.
      among: devices to choose from; None: those of all processes.
    """
    # Each process reads the rows of its own devices, which must be neighbors.
    available = sorted(among or jax.devices(), key=operator.attrgetter("process_index", "id"))
    used = available[:devices]
    if devices is not None and not 1 <= devices <= len(available):
        raise UserError(f"devices must be 1 to {len(available)}, got {devices}.")
    if fsdp < 1 or len(used) % fsdp:
        raise UserError(f"fsdp must divide the {len(used)} devices of the run, got {fsdp}.")
    if among is None and len({device.process_index for device in used}) < jax.process_count():
        raise UserError(f"devices must be {len(available)}, so that every process has one.")
    return Mesh(np.array(used).reshape(-1, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of constants and device-resident data sets."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: split along the first axis."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def of_state(mesh: Mesh, state: TrainState) -> TrainState:
    """Returns the shardings of a state of arrays or shapes.

    Parameters, their average and their optimizer state are split over ``fsdp`` along the largest
    axis that it divides (Rajbhandari et al. 2020, arXiv 1910.02054, stage 3).
    """
    parts = mesh.shape["fsdp"]

    def split(path: Any, leaf: Any) -> NamedSharding:
        # A scan runs over the first axis of stacked blocks.
        axes = range(is_stacked(path), leaf.ndim)
        sizes = [(leaf.shape[axis], axis) for axis in axes if leaf.shape[axis] % parts == 0]
        if parts == 1 or not sizes:
            return replicated(mesh)
        # The last of equal axes: output features.
        return NamedSharding(mesh, PartitionSpec(*(None,) * max(sizes)[1], "fsdp"))

    names = ("params", "opt_state", "ema")
    fields = {name: jax.tree.map_with_path(split, getattr(state, name)) for name in names}
    return jax.tree.map(lambda _: replicated(mesh), state)._replace(**fields)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Places arrays, which every process holds whole, on the devices."""

    def place(array: Any) -> jax.Array:
        whole = np.asarray(array)
        # ``jax.device_put`` would compare the values of all processes. Without the copy, donation
        # on CPU could overwrite the caller's buffer.
        return jax.make_array_from_callback(
            whole.shape, sharding, lambda index: np.array(whole[index])
        )

    return jax.tree.map(place, tree)
