"""Layouts over devices."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from resnet_jax.training import mesh


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_mesh_has_the_devices_asked_for_along_data(devices: int) -> None:
    found = mesh.make(devices)
    assert dict(found.shape) == {"seed": 1, "data": devices, "fsdp": 1}
    assert found.devices.ravel().tolist() == jax.devices()[:devices]


@pytest.mark.parametrize(("devices", "seeds", "data"), [(8, 4, 2), (8, 8, 1), (8, 3, 2), (4, 3, 1), (1, 1, 1)])
def test_seeds_share_the_devices_equally(devices: int, seeds: int, data: int) -> None:
    assert mesh.make(devices, seeds).devices.shape == (seeds, data, 1)


def test_mesh_has_all_devices_where_nothing_is_asked_for() -> None:
    assert mesh.make().devices.ravel().tolist() == jax.devices()
    assert mesh.make().size == 8


@pytest.mark.parametrize("devices", [9, 0, -1])
def test_more_devices_than_there_are_or_none_is_an_error(devices: int) -> None:
    """Not a run on fewer, silently."""
    with pytest.raises(ValueError, match="8"):
        mesh.make(devices)


def test_batches_are_split_along_their_first_axis_and_states_are_whole_everywhere() -> None:
    over = mesh.make(8)
    values = np.arange(32.0).reshape(16, 2)
    batch = jax.device_put(values, mesh.batch(over))
    assert [shard.data.tolist() for shard in batch.addressable_shards] == [values[2 * i : 2 * i + 2].tolist() for i in range(8)]
    state = jax.device_put(values, mesh.replicated(over))
    assert [shard.data.tolist() for shard in state.addressable_shards] == [values.tolist()] * 8
    assert mesh.batch(over).spec == PartitionSpec(("data", "fsdp"))
