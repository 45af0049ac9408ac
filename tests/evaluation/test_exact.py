"""Scores are sums over every example once, whatever the batches and the devices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.data import sources
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import Examples
from resnet_jax.evaluation import exact
from resnet_jax.evaluation.exact import Score
from resnet_jax.models import Apply, cifar_architecture
from resnet_jax.training import mesh

# A batch over eight devices is a multiple of eight; 7 and 64 leave a remainder of the 360 test images, 360 does not.
LAYOUTS = [(7, 1), (64, 1), (360, 1), (8, 8), (64, 8), (360, 8)]
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
    return sources.read(sources.describe("digits", digits_dir), "test")


@pytest.fixture(scope="module")
def logits(params: dict[str, np.ndarray], digits: Examples) -> np.ndarray:
    """NumPy, double precision."""
    normalised = (digits.images.astype(np.float64) / 255 - 0.25) / 0.5
    return normalised.reshape(360, 64) @ params["kernel"].astype(np.float64) + params["bias"]


def score(network: Linear, params: dict[str, np.ndarray], data: Examples, batch_size: int, devices: int) -> Score:
    over = mesh.make(devices)
    return exact.evaluate(
        network,
        jax.device_put(params, mesh.replicated(over)),
        {},
        PREPROCESSING,
        data,
        batch_size=batch_size,
        expected_examples=len(data),
        sharding=mesh.batch(over),
    )


@pytest.mark.parametrize(("batch_size", "devices"), LAYOUTS)
def test_score_is_numpys_for_every_batch_size_on_one_and_eight_devices(
    network: Linear, params: dict[str, np.ndarray], digits: Examples, logits: np.ndarray, batch_size: int, devices: int
) -> None:
    """Errors and examples exactly, the loss to rounding."""
    ordered = np.sort(logits, axis=1)
    assert (ordered[:, -1] - ordered[:, -2]).min() > 1e-3, "no image is so close that rounding decides"
    wrong = int((logits.argmax(axis=1) != digits.labels).sum())
    assert 100 < wrong < 360
    losses = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(360), digits.labels]
    found = score(network, params, digits, batch_size, devices)
    assert (found.errors, found.examples) == (wrong, 360)
    assert found.loss == pytest.approx(losses.sum(), rel=1e-6)
    assert found.error_percent == pytest.approx(100 * wrong / 360, rel=1e-12)
    assert found.mean_loss == pytest.approx(losses.mean(), rel=1e-6)


@pytest.mark.parametrize(("batch_size", "devices"), LAYOUTS)
@pytest.mark.parametrize("label", range(0, 10, 3))
def test_padding_counts_nowhere(
    network: Linear, params: dict[str, np.ndarray], digits: Examples, batch_size: int, devices: int, label: int
) -> None:
    """Whatever class the padding looks like: a network that always answers right makes 0 errors, one that always answers wrong 360."""
    sure = {"kernel": params["kernel"] * 0, "bias": 50 * np.eye(10, dtype=np.float32)[label]}
    right = Examples(digits.images, np.full(360, label, np.int32))
    wrong = Examples(digits.images, np.full(360, (label + 1) % 10, np.int32))
    found = score(network, sure, right, batch_size, devices)
    assert (found.errors, found.examples) == (0, 360)
    assert found.loss < 1e-6
    found = score(network, sure, wrong, batch_size, devices)
    assert (found.errors, found.examples) == (360, 360)
    assert found.loss == pytest.approx(360 * 50, rel=1e-6)


def test_set_smaller_than_a_batch_is_scored_once(
    network: Linear, params: dict[str, np.ndarray], digits: Examples, logits: np.ndarray
) -> None:
    found = score(network, params, Examples(digits.images[:3], digits.labels[:3]), 64, 1)
    assert (found.errors, found.examples) == (int((logits[:3].argmax(axis=1) != digits.labels[:3]).sum()), 3)


@pytest.mark.parametrize("expected", [359, 361])
def test_number_of_examples_that_the_set_does_not_have_is_an_error(
    network: Linear, params: dict[str, np.ndarray], digits: Examples, expected: int
) -> None:
    """An example left out or counted twice never passes for a score."""
    with pytest.raises(RuntimeError, match=f"360 examples were scored, the set has {expected}"):
        exact.evaluate(network, params, {}, PREPROCESSING, digits, batch_size=64, expected_examples=expected)


def test_losses_are_added_in_double_precision(network: Linear) -> None:
    """359 losses of log 10 beside one of 2^26: a sum in float32, whose steps are 8 there, would lose all of them."""
    images = np.zeros((360, 8, 8, 1), np.uint8)
    images[0] = 255
    kernel = np.zeros((64, 10), np.float32)
    kernel[0, 1] = 2.0**25
    bias = np.array([0, 2.0**24, *[0] * 8], np.float32)  # black pixels are -0.5 after normalisation, white ones 1.5
    found = score(network, {"kernel": kernel, "bias": bias}, Examples(images, np.zeros(360, np.int32)), 8, 1)
    # The loss of the first batch is a float32: 2^26 + 7 log 10 is rounded to a multiple of 8.
    assert found.loss == pytest.approx(2.0**26 + 359 * np.log(10), abs=8)


def test_logits_that_are_not_numbers_are_not_right_answers(network: Linear, params: dict[str, np.ndarray], digits: Examples) -> None:
    """A network that has diverged answers nothing, not class 0."""
    nothing = {"kernel": params["kernel"] * np.float32(np.nan), "bias": params["bias"]}
    zeros = Examples(digits.images, np.zeros(360, np.int32))
    found = score(network, nothing, zeros, 360, 1)
    assert np.isnan(found.loss)
    assert found.errors == 360


def test_score_batch_ignores_negative_labels_only(network: Linear, params: dict[str, np.ndarray], digits: Examples) -> None:
    """Class 0 is a class."""
    labels = np.where(np.arange(360) % 2, -1, 0).astype(np.int32)
    sums = exact.score_batch(params, {}, PREPROCESSING, jnp.asarray(digits.images), jnp.asarray(labels), apply=network)
    assert int(sums[2]) == 180


@pytest.mark.parametrize("sizes", [(64, 64, 64, 64, 64, 40), (360,), (8, 1, 100, 251)], ids=str)
def test_batches_of_any_size_make_the_score_of_the_whole(
    sizes: tuple[int, ...], network: Linear, params: dict[str, np.ndarray], digits: Examples
) -> None:
    """One after the other, as they come: nothing is asked of an iterator but the next one."""
    ends = np.cumsum(sizes)
    parts = (Examples(digits.images[end - size : end], digits.labels[end - size : end]) for size, end in zip(sizes, ends, strict=True))
    options: dict[str, Any] = {"batch_size": max(sizes), "expected_examples": 360}
    whole = exact.evaluate(network, params, {}, PREPROCESSING, digits, **options)
    found = exact.evaluate(network, params, {}, PREPROCESSING, parts, **options)
    assert (found.errors, found.examples) == (whole.errors, 360)
    assert found.loss == pytest.approx(whole.loss, rel=1e-6)


def test_batches_that_lack_an_image_are_no_score(network: Linear, params: dict[str, np.ndarray], digits: Examples) -> None:
    part = Examples(digits.images[:100], digits.labels[:100])
    with pytest.raises(RuntimeError, match="100 examples were scored, the set has 360"):
        exact.evaluate(network, params, {}, PREPROCESSING, [part], batch_size=128, expected_examples=360)
