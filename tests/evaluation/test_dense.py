"""Multi-scale scores are those of a slow direct computation, whatever the batches and the devices."""

import dataclasses

import jax
import numpy as np
import pytest
from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.evaluation import dense, protocols
from resnet_jax.evaluation.exact import Score
from resnet_jax.models import Architecture
from resnet_jax.training import sharding as sharding_lib

from direct import PREPROCESSING, Ranked, multi_scale, network

SIDES = (48, 64)
COUNT = 20
PROTOCOL = protocols.parse("multi-scale-48,64")


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


@pytest.fixture(scope="module")
def ranked(photographs: DatasetInfo) -> Ranked:
    found = Ranked(photographs, "validation", COUNT, lambda picture: multi_scale(picture, SIDES))
    assert len({picture.size for picture in found.pictures}) > 5
    return found


@pytest.fixture
def info(photographs: DatasetInfo, ranked: Ranked, monkeypatch: pytest.MonkeyPatch) -> DatasetInfo:
    ranked.stand_in(monkeypatch)
    return dataclasses.replace(photographs, examples={"validation": COUNT})


def score(info: DatasetInfo, images: int, devices: int) -> Score:
    """With batches of so many images of 64x64."""
    over, (apply, params, batch_stats) = sharding_lib.make(devices), network()
    params, batch_stats = jax.device_put((params, batch_stats), sharding_lib.replicated(over))
    sharding = sharding_lib.batch(over)
    return dense.evaluate(
        apply, params, batch_stats, PREPROCESSING, info, "validation", PROTOCOL, pixels=images * 64 * 64, sharding=sharding
    )


@pytest.mark.slow
def test_scores_equal_the_direct_computation(info: DatasetInfo, ranked: Ranked) -> None:
    """In batches of many images and of one or two, on one device and eight."""
    for images, devices in ((40, 1), (40, 8), (3, 1)):
        result = score(info, images, devices)
        assert (result.errors, result.top5_errors, result.examples) == (18, 10, COUNT)
        assert result.loss == pytest.approx(ranked.loss, rel=1e-5)


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
