"""Compiled programs: initial state, scores against NumPy, shapes of the normalization constants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_network import drawn, each, predict
from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.training import sharding, step
from resnet_jax.training import train as train_lib
from resnet_jax.training.config import Experiment
from resnet_jax.training.sharding import Program
from resnet_jax.training.step import TrainState


@pytest.fixture(scope="module")
def compiled(tiny: Experiment) -> Program:
    return sharding.compiled(tiny, 1)


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


@pytest.fixture(scope="module")
def trained(compiled: Program) -> TrainState:
    """Every parameter and statistic drawn by NumPy: no parameter has its initial value."""
    rng = np.random.default_rng(6)
    shapes = compiled.abstract_state

    params = drawn(each(lambda leaf: leaf.shape, shapes.params), rng)
    batch_stats = each(lambda leaf: rng.uniform(0.5, 2, leaf.shape), shapes.batch_stats)
    single = each(jnp.float32, params), each(jnp.float32, batch_stats)
    params, batch_stats = jax.device_put(single, sharding.replicated(compiled.mesh))
    return compiled.init(jax.random.key(0))._replace(params=params, batch_stats=batch_stats)


def test_score_equals_numpy(compiled: Program, trained: TrainState, digits_dir: str) -> None:
    """Errors exactly and loss to rounding on all 360 test images: running statistics, not the batch's; the last batch padded."""
    info = datasets.describe("digits", digits_dir)
    test = datasets.read(info, "test")
    rng = np.random.default_rng(7)
    mean, deviation = rng.uniform(0, 0.5, (8, 8, 1)), np.array([0.3])
    images = (test.images.astype(np.float64) / 255 - mean) / deviation
    doubles = (each(lambda leaf: np.asarray(leaf, np.float64), tree) for tree in (trained.params, trained.batch_stats))
    logits = predict(*doubles, images)
    ordered = np.sort(logits, axis=1)
    assert (ordered[:, -1] - ordered[:, -2]).min() > 1e-5, "no image is so close that rounding decides"
    wrong = logits.argmax(axis=1) != test.labels
    assert 100 < wrong.sum() < 360
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(360), test.labels]
    score = compiled.score(trained, Preprocessing(np.float32(mean), np.float32(deviation)), test, info.examples["test"], 200)
    assert (score.errors, score.examples) == (wrong.sum(), 360)
    assert score.loss == pytest.approx(losses.sum(), rel=1e-5)


def test_abstract_constants_have_the_shapes_of_the_measured_ones(tiny: Experiment, digits_dir: str) -> None:
    for normalization, mean in (("pixel_mean", (8, 8, 1)), ("channel", (1,))):
        experiment = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, normalization=normalization))
        announced = sharding.abstract_preprocessing(experiment)
        measured = train_lib.measure_constants(experiment, datasets.describe("digits", digits_dir))
        assert announced.mean.shape == measured.mean.shape == mean
        assert announced.deviation.shape == measured.deviation.shape == (1,)
        assert announced.mean.dtype == measured.mean.dtype == np.float32
