"""Layouts over devices change no result: parameters whole or in parts, batches at once or in parts."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

from resnet_jax.configured import configured
from resnet_jax.data import sources
from resnet_jax.errors import UserError
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training import feed, mesh, program
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.state import TrainState

STEPS = 3


@pytest.fixture(scope="module")
def grouped(tiny: Experiment) -> Experiment:
    """BatchNorm over groups of 8, momentum, an average of the parameters with statistics of its own."""
    return dataclasses.replace(
        tiny,
        model=dataclasses.replace(tiny.model, norm=configured(BatchNorm, group_size=8)),
        optimizer=dataclasses.replace(tiny.optimizer, ema=0.9),
        evaluation=dataclasses.replace(tiny.evaluation, statistics_batches=1),
    )


def trained(experiment: Experiment, digits_dir: str, **layout: Any) -> tuple[TrainState, Any]:
    made = program.compiled(experiment, **layout)
    images = feed.load(experiment, sources.describe("digits", digits_dir))
    reading = images.feed(made, made.constants(images.preprocessing), 0)
    states, losses = made.stack([made.init(jax.random.key(0))]), []
    for step in range(STEPS):
        states, metrics = made.train(states, reading.steps(step), 1)
        losses.append(float(np.asarray(metrics.loss)[0, 0]))
    (state,) = made.unstack(made.settle(states, reading.settling(STEPS)))
    return state, losses


@pytest.fixture(scope="module")
def on_one_device(grouped: Experiment, digits_dir: str) -> tuple[TrainState, Any]:
    return trained(grouped, digits_dir, devices=1)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    "layout", [{"devices": 8}, {"devices": 8, "fsdp": 8}, {"devices": 8, "fsdp": 2}, {"devices": 4, "fsdp": 4}], ids=str
)
@pytest.mark.parametrize("blocks", [pytest.param("loop", marks=pytest.mark.slow), "scan"])
def test_every_layout_trains_as_one_device_does(
    blocks: Any, layout: dict, grouped: Experiment, on_one_device: tuple[TrainState, Any], digits_dir: str
) -> None:
    experiment = dataclasses.replace(grouped, execution=dataclasses.replace(grouped.execution, blocks=blocks))
    state, losses = trained(experiment, digits_dir, **layout)
    expected, their_losses = on_one_device
    np.testing.assert_allclose(losses, their_losses, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state._replace(key=0)), jax.tree.leaves(expected._replace(key=0)), strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=2e-5)


def test_fsdp_leaves_each_device_its_part_of_what_divides(grouped: Experiment) -> None:
    """Of the 4 devices each holds a fourth of all parameters, their average and their momentum but for arrays that 4 does not divide."""
    made = program.compiled(grouped, 4, fsdp=4)
    state = made.init(jax.random.key(0))
    for name in ("params", "opt_state", "ema"):
        for path, leaf in jax.tree.leaves_with_path(getattr(state, name)):
            # The first axis of units that stand behind each other is left alone.
            own = leaf.shape[1:] if "stacked" in jax.tree_util.keystr(path) else leaf.shape
            parts = 4 if any(size % 4 == 0 for size in own) else 1
            held = {shard.data.size for shard in leaf.addressable_shards}
            assert held == {leaf.size // parts}, (path, leaf.shape)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.batch_stats))
    whole, held = (sum(f(leaf) for leaf in jax.tree.leaves(state.params)) for f in (np.size, lambda a: a.addressable_shards[0].data.size))
    assert held < 0.26 * whole


def test_of_axes_the_longest_is_split_of_equal_ones_the_last() -> None:
    over = mesh.make(8, fsdp=4)
    shapes = {"kernel": (3, 3, 16, 64), "square": (64, 64), "odd": (3, 5), "units": {"stacked": {"scale": (200, 16)}}}
    arrays = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple))
    empty = jax.ShapeDtypeStruct((), np.int32)
    found = mesh.of_state(over, TrainState(empty, arrays, {"mean": arrays["square"]}, (arrays,), empty, {}, {}))  # pyright: ignore
    specs = jax.tree.map(lambda sharding: tuple(sharding.spec), found.params)
    assert specs == {
        "kernel": (None, None, None, "fsdp"),
        "square": (None, "fsdp"),
        "odd": (),
        "units": {"stacked": {"scale": (None, "fsdp")}},
    }
    assert found.opt_state == (found.params,)
    assert tuple(found.batch_stats["mean"].spec) == ()


@pytest.mark.quick(1)
@pytest.mark.parametrize(("devices", "most"), [(1, 16), (2, 8), (8, 4)])
def test_fewer_images_at_once_change_nothing(
    devices: int, most: int, grouped: Experiment, on_one_device: tuple[TrainState, Any], digits_dir: str
) -> None:
    """64 images in parts of 16 (on 8 devices of 32), BatchNorm's groups of 8 whole."""
    experiment = dataclasses.replace(grouped, execution=dataclasses.replace(grouped.execution, images_per_device=most))
    state, losses = trained(experiment, digits_dir, devices=devices)
    np.testing.assert_allclose(losses, on_one_device[1], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(on_one_device[0].params), strict=True):
        np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), atol=2e-5)


def test_images_at_once_that_cannot_be_are_refused(tiny: Experiment, grouped: Experiment) -> None:
    few = dataclasses.replace(tiny.execution, images_per_device=4)
    ungrouped = dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, norm=BatchNorm), execution=few)
    with pytest.raises(UserError, match="BatchNorm sees all 64 images of a batch at once: give it groups, as .*group_size=4"):
        program.compiled(ungrouped, 1)
    with pytest.raises(UserError, match="1 devices have a whole BatchNorm group of 8 images at once; give 8 or more"):
        program.compiled(dataclasses.replace(grouped, execution=few), 1)


@pytest.mark.parametrize("fsdp", [0, 3, 16])
def test_parts_that_the_devices_do_not_have_are_refused(fsdp: int) -> None:
    with pytest.raises(UserError, match=f"fsdp is {fsdp}, and a run has 8 devices"):
        mesh.make(8, fsdp=fsdp)
