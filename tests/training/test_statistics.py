"""BatchNorm's statistics over whole batches and the parameters' moving average, against NumPy; and that scores use both."""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from numpy_network import drawn, each
from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm
from resnet_jax.studies import score as score_lib
from resnet_jax.training import fine_tune, sharding
from resnet_jax.training import step as step_lib
from resnet_jax.training.config import Experiment
from resnet_jax.training.run_dir import Workdir
from resnet_jax.training.sharding import Program
from resnet_jax.training.step import Batch, TrainState
from resnet_jax.training.train import train

import oracle

PREPROCESSING = Preprocessing(np.full((8, 8, 1), 0.25, np.float32), np.array([0.5], np.float32))
IMAGES, BATCH = 120, 40


def variant(
    tiny: Experiment, *, batches: int = 3, ema: float = 0.0, batch_size: int = BATCH, norm: Any = BatchNorm, **data: Any
) -> Experiment:
    return dataclasses.replace(
        tiny,
        batch_size=batch_size,
        model=dataclasses.replace(tiny.model, norm=norm),
        optimizer=dataclasses.replace(tiny.optimizer, ema=ema),
        evaluation=dataclasses.replace(tiny.evaluation, statistics_batches=batches),
        data=dataclasses.replace(tiny.data, **{"pad": 0, "flip": False} | data),
    )


@pytest.fixture(scope="module")
def digits(digits_dir: str) -> Examples:
    """Images for three batches of distinct images."""
    everything = datasets.read(datasets.describe("digits", digits_dir), "train")
    return Examples(everything.images[:IMAGES], everything.labels[:IMAGES])


def doubles(images: np.ndarray) -> np.ndarray:
    return (images.astype(np.float64) / 255 - 0.25) / 0.5


def trained(compiled: Program, seed: int = 6, step: int = 7) -> TrainState:
    """A state with every parameter and running statistic drawn by NumPy; the average is another network."""
    rng = np.random.default_rng(seed)
    initial = compiled.init(jax.random.key(3))
    params, ema = (each(jnp.float32, drawn(initial.params, rng)) for _ in range(2))
    batch_stats = each(lambda leaf: jnp.float32(rng.uniform(0.5, 2, leaf.shape)), initial.batch_stats)
    state = initial._replace(step=jnp.int32(step), params=params, batch_stats=batch_stats, ema=ema if initial.ema else {})
    return jax.device_put(state, compiled.abstract_state.step.sharding)


def settled(experiment: Experiment, digits: Examples, *, devices: int = 1, **replaced: Any) -> TrainState:
    compiled = sharding.compiled(experiment, devices)
    return recomputed(compiled, trained(compiled)._replace(**replaced), digits, experiment.evaluation.statistics_batches)


def recomputed(compiled: Program, state: TrainState, digits: Examples, count: int = 3) -> TrainState:
    data = compiled.put(Batch(digits.images, digits.labels))
    return compiled.recompute_statistics(state, itertools.repeat(data, count), PREPROCESSING)


@pytest.mark.parametrize("norm", [component(BatchNorm, momentum=0.5), component(BatchNorm, group_size=8)], ids=str)
def test_first_statistics_are_those_of_all_images_of_all_batches(tiny: Experiment, digits: Examples, norm: Any) -> None:
    """The variance of 120 images, not the mean of three batches' (or of fifteen groups'); whatever the momentum."""
    state = settled(variant(tiny, norm=norm), digits)
    kernel = np.asarray(state.params["stem"]["conv"]["kernel"], np.float64)
    activations = oracle.convolved(doubles(digits.images), kernel)
    ours: Any = state.statistics["stem"]["after"]["layers"][0]
    np.testing.assert_allclose(ours["mean"], activations.mean(axis=(0, 1, 2)), rtol=0, atol=1e-5)
    np.testing.assert_allclose(ours["var"], activations.var(axis=(0, 1, 2)), rtol=1e-5, atol=1e-5)


def test_recomputing_changes_only_the_statistics(tiny: Experiment, digits: Examples) -> None:
    """Moving averages stay, and neither they nor earlier precise statistics have an effect."""
    compiled = sharding.compiled(variant(tiny), 1)
    before = trained(compiled)
    expected = step_lib.digest(before._replace(statistics={}))
    after = recomputed(compiled, before, digits)
    assert step_lib.digest(after._replace(statistics={})) == expected
    other = jax.tree.map(lambda s: s + 1, before.batch_stats)
    again = settled(variant(tiny), digits, batch_stats=other, statistics=other)
    assert step_lib.digest(again._replace(batch_stats={})) == step_lib.digest(after._replace(batch_stats={}))


@pytest.mark.slow
def test_statistics_are_a_function_of_key_and_step(tiny: Experiment, digits: Examples) -> None:
    """The batches of a step are its own: another step, another seed and augmentation give others; the same gives the same bits."""
    experiment = variant(tiny, batches=2, pad=1)
    bits = {}
    for name, recipe, fields in (
        ("first", experiment, {}),
        ("again", experiment, {}),
        ("step", experiment, {"step": jnp.int32(8)}),
        ("key", experiment, {"key": jax.random.key(4)}),
        ("plain", variant(tiny, batches=2), {}),
    ):
        bits[name] = step_lib.digest(settled(recipe, digits, **fields).statistics)
    assert bits["first"] == bits["again"]
    assert len(set(bits.values())) == 4


def test_score_uses_averages_and_precise_statistics(tiny: Experiment, digits: Examples) -> None:
    """Trained parameters or moving averages would give another loss. Errors are exact."""
    compiled = sharding.compiled(variant(tiny, ema=0.9), 1)
    state = recomputed(compiled, trained(compiled), digits)
    score = compiled.score(state, PREPROCESSING, digits, IMAGES, 72)
    wrong = {}
    for name, trees in {
        "scored": (state.ema, state.statistics),
        "trained": (state.params, state.statistics),
        "moving": (state.ema, state.batch_stats),
    }.items():
        params, statistics = (flatten_dict(each(np.float64, tree)) for tree in trees)
        _, logits, _ = oracle.network(unflatten_dict(params | statistics), doubles(digits.images), stages=(1, 1, 1))
        losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(IMAGES), digits.labels]
        wrong[name] = (int((logits.argmax(axis=1) != digits.labels).sum()), losses.sum())
    assert score.errors == wrong["scored"][0]
    assert score.loss == pytest.approx(wrong["scored"][1], rel=1e-4)
    assert all(abs(wrong["scored"][1] - wrong[other][1]) > 1e-2 * wrong["scored"][1] for other in ("trained", "moving"))


@pytest.mark.slow
def test_run_saves_and_scores_its_averages(tiny: Experiment, digits_dir: str, tmp_path: Path) -> None:
    """The same score from the checkpoint, and training that is the same without averages."""
    run = functools.partial(train, data_dir=digits_dir, devices=1)
    result = run(variant(tiny, batches=5, ema=0.8), 0, tmp_path / "run")
    assert result["protocol"]["batch_norm_averaged"] == "over 5 batches of 40 after training"
    (scored,) = score_lib.score(tmp_path / "run", data=None, split=None, batch_size=72, data_dir=digits_dir)
    assert (scored["error_percent"], scored["step"], scored["protocol"]) == (result["value"], 12, result["protocol"])
    assert step_lib.digest(fine_tune.restore(tmp_path / "run").state) == result["state_digest"]
    run(variant(tiny, batches=0), 0, tmp_path / "plain")
    losses = [[r["loss"] for r in Workdir(tmp_path / name).records() if r["split"] == "train"] for name in ("plain", "run")]
    assert losses[0] == losses[1]
