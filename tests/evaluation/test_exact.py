"""Scores are sums over every example once, whatever the batches and the devices."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import Examples
from resnet_jax.evaluation import exact
from resnet_jax.evaluation.exact import Score
from resnet_jax.models import Apply, cifar_architecture
from resnet_jax.training import sharding

import launched

PREPROCESSING = Preprocessing(np.full((8, 8, 1), 0.25, np.float32), np.array([0.5], np.float32))


@dataclasses.dataclass(frozen=True)
class Linear(Apply):
    """A linear classifier in the place of a network: NumPy computes it in one line."""

    def __call__(self, params: Any, batch_stats: Any, images: jax.Array, *, train: bool, **_: Any) -> tuple[jax.Array, Any]:
        assert not train
        return images.reshape(images.shape[0], -1) @ params["kernel"] + params["bias"], batch_stats


@pytest.fixture(scope="module")
def network() -> Linear:
    apply, _, _ = jax.eval_shape(lambda: cifar_architecture(8).init(jax.random.key(0)))
    return Linear(apply.graphdef)


@pytest.fixture(scope="module")
def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {"kernel": rng.normal(size=(64, 10)).astype(np.float32), "bias": rng.normal(size=10).astype(np.float32)}


@pytest.fixture(scope="module")
def digits(digits_dir: str) -> Examples:
    return datasets.read(datasets.describe("digits", digits_dir), "test")


@pytest.fixture(scope="module")
def logits(params: dict[str, np.ndarray], digits: Examples) -> np.ndarray:
    """NumPy, double precision."""
    normalized = (digits.images.astype(np.float64) / 255 - 0.25) / 0.5
    return normalized.reshape(360, 64) @ params["kernel"].astype(np.float64) + params["bias"]


def score(network: Linear, params: dict[str, np.ndarray], data: Any, batch_size: int, devices: int = 1, expected: int = 360) -> Score:
    over = sharding.make(devices)
    params, of_batch = jax.device_put(params, sharding.replicated(over)), sharding.batch(over)
    return exact.evaluate(network, params, {}, PREPROCESSING, data, batch_size=batch_size, expected_examples=expected, sharding=of_batch)


@pytest.mark.parametrize("devices", [1, 8])
def test_score_equals_numpys_for_every_batch_size(
    network: Linear, params: dict[str, np.ndarray], digits: Examples, logits: np.ndarray, devices: int
) -> None:
    """Errors and examples exactly, the loss up to rounding. 7 and 64 leave a remainder of 360 images; 8 devices do not share 1 or 60."""
    ordered = np.sort(logits, axis=1)
    assert (ordered[:, -1] - ordered[:, -2]).min() > 1e-3, "no image is so close that rounding decides"
    wrong = int((logits.argmax(axis=1) != digits.labels).sum())
    wrong5 = sum(label not in best for label, best in zip(digits.labels, np.argsort(-logits, axis=1)[:, :5], strict=True))
    assert 50 < wrong5 < wrong < 360
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(360), digits.labels]
    for batch_size in (1 if devices == 8 else 7, 60, 64, 360):
        result = score(network, params, digits, batch_size, devices)
        assert (result.errors, result.top5_errors, result.examples) == (wrong, wrong5, 360)
        assert result.loss == pytest.approx(losses.sum(), rel=1e-6)
    assert result.error_percent == pytest.approx(100 * wrong / 360, rel=1e-12)
    assert result.top5_error_percent == pytest.approx(100 * wrong5 / 360, rel=1e-12)
    assert result.mean_loss == pytest.approx(losses.mean(), rel=1e-6)
    few = score(network, params, Examples(digits.images[:3], digits.labels[:3]), 64, devices, 3)
    assert (few.errors, few.examples) == (int((logits[:3].argmax(axis=1) != digits.labels[:3]).sum()), 3)


def test_evaluate_rejects_a_wrong_number_of_examples(network: Linear, params: dict[str, np.ndarray], digits: Examples) -> None:
    """An example left out or counted twice is no score."""
    part = [Examples(digits.images[:100], digits.labels[:100])]
    for data, scored, expected in ((digits, 360, 359), (digits, 360, 361), (part, 100, 360)):
        with pytest.raises(RuntimeError, match=f"{scored} examples were scored, the set has {expected}"):
            score(network, params, data, 120, expected=expected)


def test_losses_are_added_in_double_precision(network: Linear) -> None:
    """359 losses of log 10 beside one of 2^26: a sum in float32, whose steps are 8 there, would lose all of them."""
    images = np.zeros((360, 8, 8, 1), np.uint8)
    images[0] = 255
    kernel = np.zeros((64, 10), np.float32)
    kernel[0, 1] = 2.0**25
    bias = np.array([0, 2.0**24, *[0] * 8], np.float32)  # black pixels are -0.5 after normalization, white ones 1.5
    result = score(network, {"kernel": kernel, "bias": bias}, Examples(images, np.zeros(360, np.int32)), 8)
    # Within the first batch they are added in float32: its other seven may be lost, and a multiple of 8 remains.
    assert result.loss == pytest.approx(2.0**26 + 359 * np.log(10), abs=7 * np.log(10) + 4)


def test_ties_go_to_the_smaller_class_and_non_finite_scores_are_errors(
    network: Linear, params: dict[str, np.ndarray], digits: Examples
) -> None:
    wrong, wrong5 = exact.errors(jnp.zeros((7, 7)), jnp.arange(7, dtype=jnp.int32))
    assert wrong.tolist() == [False] + [True] * 6
    assert wrong5.tolist() == [False] * 5 + [True] * 2
    scores = jnp.asarray(np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)).at[3, 2].set(jnp.inf)
    _, wrong5 = exact.errors(scores, jnp.zeros(50, jnp.int32))
    assert np.flatnonzero(wrong5).tolist() == [3], "of five classes, every finite score is among the five best"
    # A network that has diverged answers nothing, not class 0.
    nothing = {"kernel": params["kernel"] * np.float32(np.nan), "bias": params["bias"]}
    result = score(network, nothing, Examples(digits.images, np.zeros(360, np.int32)), 360)
    assert np.isnan(result.loss)
    assert (result.errors, result.top5_errors) == (360, 360)


def test_views_of_an_image_are_averaged_as_probabilities(
    network: Linear, params: dict[str, np.ndarray], digits: Examples, logits: np.ndarray
) -> None:
    """Three digits stand in for the views of one: NumPy's average of their softmax scores. A batch has a third as many images as views."""
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    averaged, labels = probabilities.reshape(120, 3, 10).mean(axis=1), digits.labels[::3]
    losses, views = -np.log(averaged[np.arange(120), labels]), digits.images.reshape(120, 3, 8, 8, 1)
    for batch_size, devices in ((21, 1), (2, 1), (90, 8)):
        several = max(1, batch_size // 3)
        batches = [Examples(views[at : at + several], labels[at : at + several]) for at in range(0, 120, several)]
        result = score(network, params, batches, batch_size, devices, 120)
        assert (result.errors, result.examples) == (int((averaged.argmax(axis=1) != labels).sum()), 120)
        assert result.loss == pytest.approx(losses.sum(), rel=1e-6)


def test_one_non_finite_view_is_an_error(network: Linear) -> None:
    images = jnp.zeros((2, 2, 8, 8, 1), jnp.uint8).at[1, 1, 0, 0].set(255)
    # Black pixels are -0.5 after normalization, white ones 1.5, whose product is beyond the largest float32.
    kernel = np.zeros((64, 10), np.float32)
    kernel[0, 0] = 3e38
    of_batch = jax.jit(functools.partial(exact.score_batch, apply=network))
    # Of the finite image, class 0 is far below all others.
    sums = of_batch({"kernel": kernel, "bias": np.zeros(10, np.float32)}, {}, PREPROCESSING, images, jnp.ones(2, jnp.int32))
    assert [int(n) for n in (sums.errors, sums.top5_errors, sums.examples)] == [1, 1, 2]


@pytest.mark.slow
def test_two_processes_score_like_one(digits_dir: str) -> None:
    """With two devices each; the 360 images make seven batches of 50 and one of 10."""
    script = Path(__file__).parents[1] / "score_in_processes.py"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}

    def scores(processes: int) -> list[list[dict[str, Any]]]:
        address = launched.free_address()
        commands = [[sys.executable, str(script), str(process), str(processes), address, digits_dir] for process in range(processes)]
        running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
        outputs = [child.communicate(timeout=600)[0] for child in running]
        return [json.loads(output.splitlines()[-1]) for output in outputs]

    ((alone,), several) = scores(1), scores(2)
    assert several[0] == several[1]
    assert len(alone) == 2, "ten crops, multi-scale"
    for one, both in zip(alone, several[0], strict=True):
        assert {**one, "loss": 0} == {**both, "loss": 0}
        assert both["loss"] == pytest.approx(one["loss"], rel=1e-5)
