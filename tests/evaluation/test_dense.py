"""Multi-scale scores are those of a slow direct computation, whatever the batches and the devices."""

import dataclasses

import jax
import numpy as np
import pytest
from direct import PREPROCESSING, Ranked, multi_scale, network

from resnet_jax.data import sources
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.evaluation import dense, protocols
from resnet_jax.evaluation.exact import Score
from resnet_jax.models import Architecture
from resnet_jax.training import mesh

SIDES = (48, 64)
COUNT = 20
PROTOCOL = protocols.parse("multi-scale-48,64")

# (height, width), side -> (height, width), by hand.
SHAPES = [
    ((375, 500), 224, (224, 288)),  # 298.67
    ((500, 375), 224, (288, 224)),
    ((375, 500), 640, (640, 864)),  # 853.33
    ((300, 300), 256, (256, 256)),
    ((100, 175), 256, (256, 448)),  # 448 exactly
    ((100, 181), 256, (256, 448)),  # 463.36; 464 would be the half
    ((64, 116), 256, (256, 480)),  # 464: the half is rounded up
    ((100, 100), 40, (40, 40)),  # a multiple of 32 would be below the shorter side
    ((100, 102), 40, (40, 40)),  # 40.8
    ((500, 500), 48, (48, 48)),  # no multiple of 32, and a square
    ((10, 3000), 224, (224, 67200)),
]


@pytest.mark.parametrize(("size", "side", "expected"), SHAPES)
def test_the_longer_side_is_the_nearest_multiple_of_32(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert dense.shape(*size, side) == expected
    longer = side * max(size) / min(size)
    assert abs(max(expected) - longer) <= 16


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
    over, (apply, params, batch_stats) = mesh.make(devices), network()
    params, batch_stats = jax.device_put((params, batch_stats), mesh.replicated(over))
    sharding = mesh.batch(over)
    return dense.evaluate(
        apply, params, batch_stats, PREPROCESSING, info, "validation", PROTOCOL, pixels=images * 64 * 64, sharding=sharding
    )


@pytest.mark.quick(1)
@pytest.mark.parametrize(("images", "devices"), [(40, 1), (40, 8), (3, 1)])
def test_scores_are_those_of_the_direct_computation(
    info: DatasetInfo, ranked: Ranked, monkeypatch: pytest.MonkeyPatch, images: int, devices: int
) -> None:
    """Probabilities of every image, and the sums over them, in batches of many and of one or two."""
    seen = []
    count = dense._score
    monkeypatch.setattr(dense, "_score", lambda scores, labels: seen.append((scores, labels)) or count(scores, labels))
    found = score(info, images, devices)
    ((probabilities, labels),) = seen
    np.testing.assert_allclose(probabilities, ranked.probabilities, atol=1e-5)
    np.testing.assert_array_equal(labels, ranked.labels)
    assert (found.errors, found.top5_errors, found.examples) == (18, 10, COUNT)
    assert found.loss == pytest.approx(ranked.loss, rel=1e-5)


def test_batches_hold_no_more_pixels_than_allowed() -> None:
    """Both mirror images counted; every image is in one batch of its shape at each scale."""
    sizes = [(300, 300)] * 11 + [(300, 400)] * 2 + [(400, 300)]
    batches = list(dense._batches(sizes, (64, 128), pixels=6 * 64 * 64, shards=1))
    for batch in batches:
        assert len({(place.height, place.width, place.room) for place in batch}) == 1
        first = batch[0]
        assert len(batch) <= first.room
        assert first.room == 1 or 2 * first.room * first.height * first.width <= 6 * 64 * 64
    for side in (64, 128):
        at = sorted(place.number for batch in batches for place in batch if min(place.height, place.width) == side)
        assert at == list(range(14))
    assert [len(batch) for batch in batches if batch[0].height == batch[0].width == 64] == [3, 3, 3, 2]
    # Devices share a batch equally, and a shape of few images is not filled up beyond them.
    assert {batch[0].room for batch in dense._batches(sizes, (64,), pixels=100 * 2 * 64 * 96, shards=8)} == {8, 16}


def test_an_image_that_is_not_scored_at_every_size_is_a_defect(info: DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = dense._batches
    monkeypatch.setattr(dense, "_batches", lambda *given: (group for group in list(batches(*given))[1:]))
    with pytest.raises(RuntimeError, match="not every image was scored 4 times"):
        score(info, 4, 1)


def test_a_network_that_is_not_finite_answers_nothing(info: DatasetInfo) -> None:
    apply, params, batch_stats = network()
    nothing = jax.tree.map(lambda a: a * np.float32(np.nan), params)
    info = dataclasses.replace(info, examples={"validation": 3})
    found = dense.evaluate(apply, nothing, batch_stats, PREPROCESSING, info, "validation", PROTOCOL, pixels=1)
    assert (found.errors, found.top5_errors, found.examples) == (3, 3, 3)
    assert np.isnan(found.loss)


def test_a_damaged_image_stops_it_and_is_named(info: DatasetInfo, ranked: Ranked, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [*ranked.items[:3], (b"no image", 0), *ranked.items[4:]]
    monkeypatch.setattr(sources, "encoded", lambda info, split: items)
    with pytest.raises(UserError, match="example 3 of split 'validation' is damaged"):
        score(info, 40, 1)


def test_grey_images_of_one_size_are_scored_at_several(digits_dir: str) -> None:
    info = sources.describe("digits", digits_dir)
    model = Architecture(stages=(1,), features=(4,), input_shape=(8, 8, 1))
    apply, params, batch_stats = jax.jit(model.init)(jax.random.key(0))
    constants = Preprocessing(np.array([0.3], np.float32), np.array([0.4], np.float32))
    found = dense.evaluate(apply, params, batch_stats, constants, info, "test", protocols.parse("multi-scale-8,12"), pixels=64 * 100)
    assert found.examples == 360
    assert 0 < found.top5_errors < found.errors <= 360
