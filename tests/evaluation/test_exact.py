"""Scores are sums over every example once, whatever the batches and the devices."""

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from direct import PREPROCESSING as OF_IMAGENET
from direct import Ranked, ten_crops
from direct import network as small_network

from resnet_jax.data import sources, views
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import DatasetInfo, Examples
from resnet_jax.evaluation import exact, protocols
from resnet_jax.evaluation.exact import Score
from resnet_jax.models import Apply, cifar_architecture
from resnet_jax.training import mesh

# 7 and 64 leave a remainder of the 360 test images, 360 does not; eight devices share neither 7 nor 60 equally.
LAYOUTS = [(7, 1), (64, 1), (360, 1), (7, 8), (60, 8), (64, 8), (360, 8)]
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
    wrong5 = sum(label not in best for label, best in zip(digits.labels, np.argsort(-logits, axis=1)[:, :5], strict=True))
    assert 50 < wrong5 < wrong
    assert (found.errors, found.top5_errors, found.examples) == (wrong, wrong5, 360)
    assert found.top5_error_percent == pytest.approx(100 * wrong5 / 360, rel=1e-12)
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
    # Within the first batch they are added in float32: its other seven may be lost, and a multiple of 8 remains.
    assert found.loss == pytest.approx(2.0**26 + 359 * np.log(10), abs=7 * np.log(10) + 4)


def test_logits_that_are_not_numbers_are_not_right_answers(network: Linear, params: dict[str, np.ndarray], digits: Examples) -> None:
    """A network that has diverged answers nothing, not class 0."""
    nothing = {"kernel": params["kernel"] * np.float32(np.nan), "bias": params["bias"]}
    zeros = Examples(digits.images, np.zeros(360, np.int32))
    found = score(network, nothing, zeros, 360, 1)
    assert np.isnan(found.loss)
    assert (found.errors, found.top5_errors) == (360, 360)


def test_score_batch_ignores_negative_labels_only(network: Linear, params: dict[str, np.ndarray], digits: Examples) -> None:
    """Class 0 is a class."""
    labels = np.where(np.arange(360) % 2, -1, 0).astype(np.int32)
    sums = exact.score_batch(params, {}, PREPROCESSING, jnp.asarray(digits.images), jnp.asarray(labels), apply=network)
    assert int(sums.examples) == 180


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


def test_of_equal_answers_the_first_is_the_better() -> None:
    """As argmax has it: a network that answers every class alike is right about class 0 and, in five, about classes 0 to 4."""
    answers = jnp.zeros((7, 7))
    wrong, wrong5 = exact.errors(answers, jnp.arange(7, dtype=jnp.int32))
    assert wrong.tolist() == [False] + [True] * 6
    assert wrong5.tolist() == [False] * 5 + [True] * 2


def test_of_five_classes_every_finite_answer_is_among_the_five_best() -> None:
    answers = jnp.asarray(np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)).at[3, 2].set(jnp.inf)
    _, wrong5 = exact.errors(answers, jnp.zeros(50, jnp.int32))
    assert np.flatnonzero(wrong5).tolist() == [3]


@pytest.mark.parametrize(("batch_size", "devices"), [(90, 1), (21, 1), (2, 1), (90, 8)])
def test_views_of_an_image_are_averaged_as_probabilities(
    network: Linear, params: dict[str, np.ndarray], digits: Examples, logits: np.ndarray, batch_size: int, devices: int
) -> None:
    """Three digits stand in for the views of one: NumPy's average of their softmax scores. A batch has a third as many images as views."""
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    averaged = probabilities.reshape(120, 3, 10).mean(axis=1)
    labels = digits.labels[::3]
    losses = -np.log(averaged[np.arange(120), labels])
    shown = views.Shown(digits.images.reshape(120, 3, 8, 8, 1), labels)
    sizes = []

    of_batch = jax.jit(functools.partial(exact.score_batch, apply=network))

    def scored(images: jax.Array, labels: jax.Array) -> exact.Sums:
        sizes.append(images.shape[0])
        return of_batch(params, {}, PREPROCESSING, images, labels)

    several = max(1, batch_size // 3)
    batches = [views.Shown(shown.images[at : at + several], labels[at : at + several]) for at in range(0, 120, several)]
    over = mesh.batch(mesh.make(devices))
    (found,) = exact.tally(scored, batches, batch_size=batch_size, expected_examples=120, sharding=over)
    assert (found.errors, found.examples) == (int((averaged.argmax(axis=1) != labels).sum()), 120)
    assert found.loss == pytest.approx(losses.sum(), rel=1e-6)
    assert set(sizes) == {-(-several // devices) * devices}


def test_one_view_that_is_not_finite_makes_no_answer(network: Linear, params: dict[str, np.ndarray], digits: Examples) -> None:
    images = jnp.zeros((2, 2, 8, 8, 1), jnp.uint8).at[1, 1, 0, 0].set(255)
    # Black pixels are -0.5 after normalisation, white ones 1.5: that one is beyond the largest float32.
    kernel = np.zeros((64, 10), np.float32)
    kernel[0, 0] = 3e38
    # The image that has an answer answers the first of equal classes but 0, which is far below.
    labels = jnp.ones(2, jnp.int32)
    sums = exact.score_batch({"kernel": kernel, "bias": params["bias"] * 0}, {}, PREPROCESSING, images, labels, apply=network)
    assert [int(n) for n in (sums.errors, sums.top5_errors, sums.examples)] == [1, 1, 2]


@pytest.fixture(scope="module")
def ranked(photographs: DatasetInfo) -> Ranked:
    return Ranked(photographs, "validation", 20, lambda picture: ten_crops(picture, 40, 32))


def test_ten_crops_are_those_of_the_direct_computation(ranked: Ranked, photographs: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of every image is that of its averaged probabilities, and so are the errors; for its label and for any other class."""
    ranked.stand_in(monkeypatch)
    info = dataclasses.replace(photographs, examples={"validation": 20})
    apply, params, batch_stats = small_network()
    protocol = protocols.parse("ten-crop-40/32")
    of_batch = jax.jit(functools.partial(exact.score_batch, apply=apply))
    singly = list(views.batches(info, "validation", protocol, 10))
    assert [len(batch) for batch in singly] == [1] * 20
    for index, batch in enumerate(singly):
        for label in (ranked.labels[index], index):
            sums = of_batch(params, batch_stats, OF_IMAGENET, batch.images, np.array([label], np.int32))
            assert np.exp(-float(sums.loss)) == pytest.approx(ranked.probabilities[index, label], abs=1e-5)
    for batch_size in (70, 200, 320):
        batches = views.batches(info, "validation", protocol, batch_size)
        found = exact.evaluate(apply, params, batch_stats, OF_IMAGENET, batches, batch_size=batch_size, expected_examples=20)
        assert (found.errors, found.top5_errors) == (18, 10)
        assert found.loss == pytest.approx(ranked.loss, rel=1e-5)


@pytest.mark.slow
def test_every_photograph_is_scored_once_whatever_the_batches_and_devices(
    photographs: DatasetInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """220 of 220, at batches that leave remainders everywhere; counts agree exactly."""
    encoded = sources.encoded(photographs, "validation")
    items = [(encoded[index][0], encoded[index][1] % 20) for index in range(220)]
    monkeypatch.setattr(sources, "encoded", lambda info, split: items)
    apply, params, batch_stats = small_network()
    found = []
    for batch_size in (7, 64, 256):
        for devices in (1, 8):
            over = mesh.make(devices)
            found.append(
                exact.evaluate(
                    apply,
                    jax.device_put(params, mesh.replicated(over)),
                    jax.device_put(batch_stats, mesh.replicated(over)),
                    OF_IMAGENET,
                    views.batches(photographs, "validation", protocols.parse("40/32"), batch_size),
                    batch_size=batch_size,
                    expected_examples=220,
                    sharding=mesh.batch(over),
                )
            )
    assert {(each.errors, each.top5_errors, each.examples) for each in found} == {(found[0].errors, found[0].top5_errors, 220)}
    assert 100 < found[0].top5_errors < found[0].errors < 220
    for each in found:
        assert each.loss == pytest.approx(found[0].loss, rel=1e-5)


@pytest.mark.slow
def test_two_processes_that_decode_half_of_every_batch_find_the_score_of_one(digits_dir: str) -> None:
    """With two devices each; the 360 images make seven batches of 50 and one of 10."""
    script = Path(__file__).parents[1] / "score_in_processes.py"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}

    def found(processes: int) -> list[list[dict[str, Any]]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        commands = [[sys.executable, str(script), str(process), str(processes), address, digits_dir] for process in range(processes)]
        running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for command in commands]
        outputs = [each.communicate(timeout=400)[0] for each in running]
        return [json.loads(output.splitlines()[-1]) for output in outputs]

    ((alone,), several) = found(1), found(2)
    assert several[0] == several[1]
    assert len(alone) == 2, "ten crops, multi-scale"
    for one, both in zip(alone, several[0], strict=True):
        assert {**one, "loss": 0} == {**both, "loss": 0}
        assert both["loss"] == pytest.approx(one["loss"], rel=1e-5)
