"""How arrays are laid out over devices: said here, and nowhere else."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resnet_jax.errors import UserError
from resnet_jax.training.state import TrainState

# A batch is split over both: devices that hold different parts of the parameters see different images as well.
_BATCH = ("data", "fsdp")


def make(devices: int | None = None, seeds: int = 1, batch: int = 0, fsdp: int = 1, among: Sequence[Any] | None = None) -> Mesh:
    """Axes ``seed``, ``data`` and ``fsdp`` over the first ``devices`` devices; None: all.

    ``seeds`` runs stand beside each other, each on ``devices // seeds`` devices or so many of them as divide ``batch``; a remainder is left
    idle. Of the devices of a run, ``fsdp`` neighbours share one copy of its parameters.

    Args:
      devices: how many.
      seeds: runs that stand beside each other, at most as many as there are devices.
      batch: images that the devices of a run share equally; 0: any number.
      fsdp: devices that share a copy of the parameters and of the optimizer's state.
      among: the devices to choose from; None: those that there are, of all processes.

    Raises:
      UserError: for a number of devices that there is not, or that cannot be laid out so.
    """
    # Rows of a batch are read by the process whose devices take them, so those of a process stand side by side, as their numbers need not.
    there = sorted(jax.devices() if among is None else among, key=lambda device: (device.process_index, device.id))
    if devices is not None and not 1 <= devices <= len(there):
        raise UserError(f"{devices} devices were asked for; there are {len(there)}: use 1 to {len(there)}")
    usable = there[:devices]
    assert 1 <= seeds <= len(usable)
    each = max(size for size in range(1, len(usable) // seeds + 1) if batch % size == 0)
    if fsdp < 1 or each % fsdp:
        raise UserError(f"fsdp is {fsdp}, and a run has {each} devices: parameters are split over a divisor of these")
    shape = (seeds, each // fsdp, fsdp)
    chosen = usable[: seeds * each]
    left_out = jax.process_count() - len({device.process_index for device in chosen})
    if among is None and left_out:
        raise UserError(f"{len(chosen)} devices leave {left_out} of {jax.process_count()} processes without any: use all {len(there)}")
    return Mesh(np.array(chosen).reshape(shape), ("seed", *_BATCH), axis_types=(AxisType.Auto,) * 3)


def replicated(mesh: Mesh) -> NamedSharding:
    """Data sets that live on the device, and constants: whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch(mesh: Mesh) -> NamedSharding:
    """Batches: split along their first axis."""
    return NamedSharding(mesh, PartitionSpec(_BATCH))


def devices_of_a_batch(mesh: Mesh) -> int:
    """How many devices share a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def of_state(mesh: Mesh, state: TrainState) -> TrainState:
    """The shardings of the state of one seed, whose leaves have shapes.

    Parameters, their average and what the optimizer keeps of each are split over ``fsdp`` along their largest axis that it divides
    (Rajbhandari et al. 2020, arXiv 1910.02054, stage 3); all else is whole on every device.
    """
    parts = mesh.shape["fsdp"]

    def split(path: Any, leaf: Any) -> NamedSharding:
        # Units of a stage stand behind each other along a first axis, which a scan runs over.
        first = int(any(getattr(key, "key", None) == "stacked" for key in path))
        fitting = [axis for axis in range(first, len(leaf.shape)) if parts > 1 and leaf.shape[axis] % parts == 0]
        if not fitting:
            return replicated(mesh)
        # Of equal axes the last: a convolution's output features.
        longest = max(fitting, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))

    whole = jax.tree.map(lambda _: replicated(mesh), state)
    learned = {name: jax.tree.map_with_path(split, getattr(state, name)) for name in ("params", "opt_state", "ema")}
    return whole._replace(**learned)


def by_seed(mesh: Mesh, shardings: Any = None) -> Any:
    """Arrays of several seeds, one after another along their first axis: each seed's on its own devices, there as ``shardings``."""
    if shardings is None:
        return NamedSharding(mesh, PartitionSpec("seed"))
    return jax.tree.map(lambda one: NamedSharding(mesh, PartitionSpec("seed", *one.spec)), shardings)


def shared(mesh: Mesh, part: np.ndarray) -> jax.Array:
    """Puts this process's rows of a batch on its devices: the whole batch as one array."""
    return jax.make_array_from_process_local_data(batch(mesh), part)


def put(tree: Any, shardings: Any) -> Any:
    """Puts arrays, of which every process has the whole, on devices of one process or of several.

    ``shardings``: one for all of them, or a tree of as many.
    """

    def one(array: Any, sharding: NamedSharding) -> jax.Array:
        whole = np.asarray(array)
        # ``jax.device_put`` compares what processes have by sending it around. Copied for each device: on CPU an array may stay where it
        # is, and what is given up to a step would be written over.
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: np.array(whole[index]))

    if isinstance(shardings, NamedSharding):
        return jax.tree.map(lambda array: one(array, shardings), tree)
    return jax.tree.map(one, tree, shardings)


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
