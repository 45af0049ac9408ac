"""Multi-scale scores are those of a slow direct computation, whatever the batches and the devices."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.evaluation import dense, protocols
from resnet_jax.models import Architecture
from resnet_jax.models.stems import ImageNetStem
from resnet_jax.training import sharding

NETWORK = Architecture(stages=(1, 1), features=(8, 16), stem=ImageNetStem, num_classes=20, input_shape=(32, 32, 3))
MEAN, DEVIATION = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
PREPROCESSING = Preprocessing(MEAN.astype(np.float32), DEVIATION.astype(np.float32))


@functools.cache
def network() -> tuple[Any, Any, Any]:
    """Function, parameters and statistics; the classifier is sharper than a random one, so that predictions differ."""
    apply, params, batch_stats = jax.jit(NETWORK.init)(jax.random.key(3))
    linear = {name: 3 * values for name, values in params["head"]["linear"].items()}
    return apply, params | {"head": params["head"] | {"linear": linear}}, batch_stats


def softmax(picture: Image.Image) -> np.ndarray:
    """Probabilities of one image of any size, float64."""
    pixels = ((np.asarray(picture) / 255 - MEAN) / DEVIATION).astype(np.float32)
    logits = np.asarray(_logits(*network(), pixels[None]), np.float64)[0]
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


@functools.partial(jax.jit, static_argnums=0)
def _logits(apply: Any, params: Any, batch_stats: Any, images: Any) -> Any:
    return apply(params, batch_stats, images, train=False)[0]


def multi_scale(picture: Image.Image, sides: tuple[int, ...]) -> np.ndarray:
    """Average over sizes and mirror images; the longer side is the multiple of 32 that is nearest, the larger of two."""
    probabilities = []
    for side in sides:
        longer = 32 * int(side * max(picture.size) / min(picture.size) / 32 + 0.5)
        size = (side, longer) if picture.width <= picture.height else (longer, side)
        size = (side, side) if picture.width == picture.height else size
        whole = picture.resize(size, Image.Resampling.BILINEAR)
        probabilities += [softmax(whole), softmax(whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT))]
    return np.mean(probabilities, axis=0)


def test_shape_rounds_the_longer_side_to_multiples_of_32() -> None:
    for size, side, expected in (
        ((375, 500), 224, (224, 288)),  # 298.67
        ((500, 375), 224, (288, 224)),
        ((375, 500), 640, (640, 864)),  # 853.33
        ((100, 175), 256, (256, 448)),  # 448 exactly
        ((100, 181), 256, (256, 448)),  # 463.36; 464 would be the half
        ((64, 116), 256, (256, 480)),  # 464: the half is rounded up
        ((100, 102), 40, (40, 40)),  # 40.8; a multiple of 32 would be below the shorter side
        ((500, 500), 48, (48, 48)),  # no multiple of 32, and a square
        ((10, 3000), 224, (224, 67200)),
    ):
        assert dense.shape(*size, side) == expected
        assert abs(max(expected) - side * max(size) / min(size)) <= 16


@pytest.mark.slow
def test_scores_equal_the_direct_computation(photographs: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of many images of 64x64 and of one or two, on one device and eight. The label of image i is the network's choice
    number i mod 10, so that of every ten one is right and five are among the five best."""
    source = datasets.encoded(photographs, "validation")
    pictures = [Image.fromarray(datasets.decode(source[index][0])) for index in range(20)]
    assert len({picture.size for picture in pictures}) > 5
    probabilities = np.stack([multi_scale(picture, (48, 64)) for picture in pictures])
    labels = np.argsort(-probabilities, axis=1)[range(20), np.arange(20) % 10]
    ordered = np.sort(probabilities, axis=1)[:, ::-1]
    for place in (0, 4):
        near = ordered[np.isin(np.arange(20) % 10, (place, place + 1)), place : place + 2]
        assert (near[:, 1] < 0.999 * near[:, 0]).all(), "no two probabilities are so close that rounding decides"
    items = [(source[index][0], int(label)) for index, label in enumerate(labels)]
    monkeypatch.setattr(datasets, "encoded", lambda info, split: items)
    loss = -np.log(probabilities[range(20), labels]).sum()
    info, protocol = dataclasses.replace(photographs, examples={"validation": 20}), protocols.parse("multi-scale-48,64")
    apply, *variables = network()
    for images, devices in ((40, 1), (40, 8), (3, 1)):
        over = sharding.make(devices)
        placed = jax.device_put(variables, sharding.replicated(over))
        options = {"pixels": images * 64 * 64, "sharding": sharding.batch(over)}
        score = dense.evaluate(apply, *placed, PREPROCESSING, info, "validation", protocol, **options)
        assert (score.errors, score.top5_errors, score.examples) == (18, 10, 20)
        assert score.loss == pytest.approx(loss, rel=1e-5)


def test_batches_hold_no_more_pixels_than_allowed() -> None:
    """Both mirror images counted; every image is in one batch of its shape at each scale."""
    sizes = [(300, 300)] * 11 + [(300, 400)] * 2 + [(400, 300)]
    batches = list(dense._batches(sizes, (64, 128), pixels=6 * 64 * 64, shards=1))
    for batch in batches:
        assert len({place[1:] for place in batch}) == 1
        first = batch[0]
        assert len(batch) <= first.capacity
        assert first.capacity == 1 or 2 * first.capacity * np.prod(first.size) <= 6 * 64 * 64
    for side in (64, 128):
        at = sorted(place.number for batch in batches for place in batch if min(place.size) == side)
        assert at == list(range(14))
    assert [len(batch) for batch in batches if batch[0].size == (64, 64)] == [3, 3, 3, 2]
    # Devices share a batch equally, and a shape of few images is not filled up beyond them.
    assert {batch[0].capacity for batch in dense._batches(sizes, (64,), pixels=100 * 2 * 64 * 96, shards=8)} == {8, 16}


def test_gray_images_of_one_size_are_scored_at_several(digits_dir: str) -> None:
    """A non-finite network makes only errors."""
    info = datasets.describe("digits", digits_dir)
    constants = Preprocessing(np.array([0.3], np.float32), np.array([0.4], np.float32))
    apply, params, batch_stats = jax.jit(Architecture(stages=(1,), features=(4,), input_shape=(8, 8, 1)).init)(jax.random.key(0))
    protocol = protocols.parse("multi-scale-8,12")
    result = dense.evaluate(apply, params, batch_stats, constants, info, "test", protocol, pixels=64 * 720)
    assert result.examples == 360
    assert 0 < result.top5_errors < result.errors <= 360
    params = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), params)
    result = dense.evaluate(apply, params, batch_stats, constants, info, "test", protocol, pixels=64 * 720)
    assert (result.errors, result.top5_errors, result.examples) == (360, 360, 360)
    assert np.isnan(result.loss)
