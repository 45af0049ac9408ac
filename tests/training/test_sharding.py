"""Layouts over devices change no result: parameters whole or in parts, batches at once or in parts."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from resnet_jax.data import datasets
from resnet_jax.errors import UserError
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training import sharding, step
from resnet_jax.training import train as train_lib
from resnet_jax.training.config import Experiment
from resnet_jax.training.step import TrainState

STEPS = 3


@pytest.fixture(scope="module")
def grouped(tiny: Experiment) -> Experiment:
    """BatchNorm over groups of 8, momentum, an average of the parameters with statistics of its own."""
    return dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, norm=component(BatchNorm, group_size=8)),
        optimizer=dataclasses.replace(tiny.optimizer, ema=0.9),
        evaluation=dataclasses.replace(tiny.evaluation, statistics_batches=1),
    )


def trained(experiment: Experiment, digits_dir: str, **layout: Any) -> tuple[TrainState, Any]:
    compiled = sharding.compiled(experiment, **layout)
    info = datasets.describe("digits", digits_dir)
    constants = compiled.put(train_lib.measure_constants(experiment, info))
    batches = train_lib.Feed(experiment, info, compiled.mesh, 0, 0)
    state, losses = compiled.init(jax.random.key(0)), []
    for _ in range(STEPS):
        state, metrics = compiled.train(state, batches.next(), constants, 1)
        losses.append(float(np.asarray(metrics.loss)[0]))
    return compiled.recompute_statistics(state, batches.for_statistics(STEPS), constants), losses


@pytest.fixture(scope="module")
def on_one_device(grouped: Experiment, digits_dir: str) -> tuple[TrainState, Any]:
    return trained(grouped, digits_dir, devices=1)


@pytest.mark.parametrize(
    ("execution", "layout"),
    [
        ({}, {"devices": 8, "fsdp": 2}),
        ({"images_per_device": 16}, {"devices": 2}),  # 64 images in microbatches of 32
        pytest.param({"blocks": "loop"}, {"devices": 4, "fsdp": 4}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_layouts_train_as_one_device_does(
    execution: dict, layout: dict, grouped: Experiment, on_one_device: tuple[TrainState, Any], digits_dir: str
) -> None:
    experiment = dataclasses.replace(grouped, execution=dataclasses.replace(grouped.execution, **execution))
    state, losses = trained(experiment, digits_dir, **layout)
    expected, their_losses = on_one_device
    np.testing.assert_allclose(losses, their_losses, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state._replace(key=0)), jax.tree.leaves(expected._replace(key=0)), strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=2e-5)


def test_fsdp_splits_parameters_that_divide(grouped: Experiment) -> None:
    """Each of 4 devices holds a quarter of parameters, average and momentum, and arrays that 4 does not divide whole."""
    compiled = sharding.compiled(grouped, 4, fsdp=4)
    state = compiled.init(jax.random.key(0))
    for name in ("params", "opt_state", "ema"):
        for path, leaf in jax.tree.leaves_with_path(getattr(state, name)):
            # The first axis of stacked blocks is not split.
            own = leaf.shape[1:] if "stacked" in jax.tree_util.keystr(path) else leaf.shape
            parts = 4 if any(size % 4 == 0 for size in own) else 1
            held = {shard.data.size for shard in leaf.addressable_shards}
            assert held == {leaf.size // parts}, (path, leaf.shape)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.batch_stats))
    whole, held = (sum(f(leaf) for leaf in jax.tree.leaves(state.params)) for f in (np.size, lambda a: a.addressable_shards[0].data.size))
    assert held < 0.26 * whole


def test_impossible_microbatches_are_rejected(tiny: Experiment, grouped: Experiment) -> None:
    few = dataclasses.replace(tiny.execution, images_per_device=4)
    ungrouped = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, norm=BatchNorm), execution=few)
    for experiment, images in ((ungrouped, 64), (dataclasses.replace(grouped, execution=few), 8)):
        with pytest.raises(UserError, match=f"1 devices hold the {images} images that BatchNorm normalizes together\\. .* with N up to 4"):
            sharding.compiled(experiment, 1)


def test_mesh_has_the_requested_devices() -> None:
    """All devices lie along data; batches split along their first axis."""
    for devices in (1, 2, 8, None):
        mesh = sharding.make(devices)
        assert dict(mesh.shape) == {"data": devices or 8, "fsdp": 1}
        assert mesh.devices.ravel().tolist() == jax.devices()[:devices]
    for options in ({"devices": 9}, {"devices": 0}, {"fsdp": 0}, {"fsdp": 3}, {"fsdp": 16}):
        with pytest.raises(UserError, match=r"must (be 1 to|divide the) 8"):
            sharding.make(**options)
    values = np.arange(32.0).reshape(16, 2)
    batch, state = (jax.device_put(values, sharding) for sharding in (sharding.batch(mesh), sharding.replicated(mesh)))
    assert [shard.data.tolist() for shard in batch.addressable_shards] == [values[2 * i : 2 * i + 2].tolist() for i in range(8)]
    assert [shard.data.tolist() for shard in state.addressable_shards] == [values.tolist()] * 8


def test_initial_state_matches_the_abstract_state(tiny: Experiment) -> None:
    """Shapes, dtypes, layout: what a checkpoint is restored onto. The same numbers on any number of devices."""
    digests = set()
    for devices in (1, 8):
        compiled = sharding.compiled(tiny, devices)
        initial = compiled.init(jax.random.key(2))
        assert jax.tree.structure(initial) == jax.tree.structure(compiled.abstract_state)
        for leaf, announced in zip(jax.tree.leaves(initial), jax.tree.leaves(compiled.abstract_state), strict=True):
            assert (leaf.shape, leaf.dtype) == (announced.shape, announced.dtype)
            assert leaf.sharding.is_equivalent_to(announced.sharding, leaf.ndim)
            assert len(leaf.sharding.device_set) == devices
        digests.add(step.digest(initial))
    assert len(digests) == 1
