"""Evaluation images: sizes and positions of torchvision's Resize and CenterCrop, every image once."""

import threading
import time

import numpy as np
import pytest
from PIL import Image
from resnet_jax.data import datasets
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.evaluation.protocols import Protocol


def numbered(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Every pixel holds its row, its column, 7."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 7)][:channels], axis=-1).astype(np.uint8)


def test_resize_rounds_the_longer_side_down_and_is_antialiased() -> None:
    """torchvision 0.24's _compute_resized_output_size, int(size * long / short), by hand."""
    for size, resize, expected in (
        ((30, 47), 20, (20, 31)),  # 20 x 47 / 30 = 31.3
        ((47, 30), 20, (31, 20)),
        ((23, 46), 16, (16, 32)),
        ((33, 33), 16, (16, 16)),
        ((10, 21), 16, (16, 33)),  # enlarged: 33.6
        ((375, 500), 256, (256, 341)),  # 341.33
        ((500, 333), 256, (384, 256)),  # 384.38
    ):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        for interpolation in ("bilinear", "bicubic"):
            shown = protocols.resize_and_crop(image, Protocol(resize=resize, interpolation=interpolation))
            assert (shown.shape, shown.dtype) == ((*expected, 3), np.uint8)
            kind = Image.Resampling[interpolation.upper()]
            np.testing.assert_array_equal(shown, np.asarray(Image.fromarray(image).resize(expected[::-1], kind)))
    # Single black and white pixels become gray.
    pattern = np.repeat((np.indices((64, 64)).sum(0) % 2 * 255)[..., None], 3, -1).astype(np.uint8)
    shown = protocols.resize_and_crop(pattern, Protocol(resize=8))
    assert 120 < shown[1:-1, 1:-1].min() <= shown[1:-1, 1:-1].max() < 136


def test_crop_is_torchvisions() -> None:
    """torchvision 0.24: round((size - crop) / 2), halves to even; (crop - size) // 2 black pixels before a smaller image."""
    for size, first in (
        ((20, 31), (2, 8)),  # 7.5 rounds to 8
        ((21, 31), (2, 8)),  # 2.5 rounds to 2
        ((31, 20), (8, 2)),
        ((16, 16), (0, 0)),
        ((17, 19), (0, 2)),  # 0.5 and 1.5
        ((13, 12), (-1, -2)),  # of three rows, one before
        ((15, 9), (0, -3)),
        ((13, 30), (-1, 7)),
    ):
        shown = protocols.resize_and_crop(numbered(*size), Protocol(crop=16))
        rows, columns = np.mgrid[first[0] : first[0] + 16, first[1] : first[1] + 16]
        inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
        expected = np.where(inside[..., None], np.stack([rows, columns, np.full_like(rows, 7)], -1), 0)
        np.testing.assert_array_equal(shown, expected)


def test_resize_precedes_the_crop_and_gray_stays_gray() -> None:
    image = np.random.default_rng(1).integers(0, 256, (30, 47, 3), np.uint8)
    small = np.asarray(Image.fromarray(image).resize((31, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(protocols.resize_and_crop(image, Protocol(resize=20, crop=16)), small[2:18, 8:24])
    np.testing.assert_array_equal(protocols.resize_and_crop(image, Protocol()), image)
    np.testing.assert_array_equal(protocols.resize_and_crop(numbered(13, 20, 1), Protocol(crop=12)), numbered(13, 20, 1)[0:12, 4:16])
    assert protocols.resize_and_crop(numbered(13, 20, 1), Protocol(resize=8, crop=8)).shape == (8, 8, 1)


def test_ten_crops_are_corners_center_and_their_mirror_images() -> None:
    for size in ((40, 61), (61, 40), (45, 45)):
        image = numbered(*size)
        ten = protocols.ten_crops(image, Protocol(crop=32, crops=10))
        assert (ten.shape, ten.dtype) == ((10, 32, 32, 3), np.uint8)
        down, across = size[0] - 32, size[1] - 32
        # Halves round to even: 14.5 and 6.5 to 14 and 6.
        center = {8: 4, 29: 14, 13: 6}
        corners = [(0, 0), (0, across), (down, 0), (down, across), (center[down], center[across])]
        for crop, mirror, (top, left) in zip(ten[:5], ten[5:], corners, strict=True):
            np.testing.assert_array_equal(crop, image[top : top + 32, left : left + 32])
            np.testing.assert_array_equal(mirror, crop[:, ::-1])
    image = np.random.default_rng(2).integers(0, 256, (60, 90, 3), np.uint8)
    ten = protocols.ten_crops(image, Protocol(resize=40, crop=32, interpolation="bicubic", crops=10))
    whole = np.asarray(Image.fromarray(image).resize((60, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(ten[3], whole[8:, 28:])
    assert protocols.ten_crops(image[..., :1], Protocol(resize=40, crop=32, crops=10)).shape == (10, 32, 32, 1)


@pytest.fixture(scope="module")
def digits(digits_dir: str) -> datasets.DatasetInfo:
    return datasets.describe("digits", digits_dir)


def test_load_returns_unchanged_images_or_batches(digits: datasets.DatasetInfo) -> None:
    expected = datasets.read(digits, "test")
    assert protocols.load(digits, "test", Protocol(), 7) is expected
    small = Protocol(resize=12, crop=10)
    batch = next(iter(protocols.load(digits, "test", small, 4)))
    for image, original in zip(batch.images, expected.images, strict=False):
        np.testing.assert_array_equal(image, protocols.resize_and_crop(original, small))


def test_batches_pad_a_part_of_a_split(digits: datasets.DatasetInfo) -> None:
    """Ten crops count as ten images; the last batch is padded with black images of label -1."""
    whole = datasets.read(digits, "test")
    for batch_size, first, count, crops in ((7, 0, 100, 1), (64, 300, None, 1), (64, 37, 41, 10), (7, 359, 1, 10), (400, 340, 1000, 1)):
        small = Protocol(resize=8, crop=6, crops=crops)
        batches = list(protocols.batches(digits, "test", small, batch_size, first=first, count=count))
        size = max(1, batch_size // crops)
        expected = whole.labels[first:][:count]
        assert [len(batch) for batch in batches] == [size] * -(-len(expected) // size)
        labels = np.concatenate([batch.labels for batch in batches])
        np.testing.assert_array_equal(labels[: len(expected)], expected)
        assert (labels[len(expected) :] == -1).all()
        assert {batch.images.shape[1:] for batch in batches} == {(6, 6, 1) if crops == 1 else (10, 6, 6, 1)}
        assert all((batch.images[batch.labels < 0] == 0).all() for batch in batches)
        shown = batches[0].images[0] if crops == 1 else batches[0].images[0, 4]
        np.testing.assert_array_equal(shown, protocols.resize_and_crop(whole.images[first], small))


def test_processes_share_every_batch_equally(digits: datasets.DatasetInfo) -> None:
    """Joined, the parts of 2 and 4 processes are the images of one; a process may have padding only."""
    for batch_size, crops in ((120, 1), (64, 10), (360, 1)):
        small = Protocol(resize=8, crop=6, crops=crops)

        def parts(processes: int, small: Protocol = small, batch_size: int = batch_size) -> list[list[datasets.Examples]]:
            options = {"first": 10, "count": 345, "processes": processes}
            several = [
                list(protocols.batches(digits, "test", small, batch_size, process=process, **options)) for process in range(processes)
            ]
            size = -(-max(1, batch_size // small.crops) // processes)
            assert {len(batch) for part in several for batch in part} == {size}
            return [list(batch) for batch in zip(*several, strict=True)]

        def joined(batches: list[list[datasets.Examples]]) -> list[np.ndarray]:
            images, labels = (np.concatenate([getattr(part, name) for batch in batches for part in batch]) for name in ("images", "labels"))
            return [images[labels >= 0], labels[labels >= 0]]

        alone = joined(parts(1))
        assert len(alone[1]) == 345
        for processes in (2, 4):
            for one, several in zip(alone, joined(parts(processes)), strict=True):
                np.testing.assert_array_equal(one, several)


def test_batches_yield_every_photograph_once_in_order(photographs: datasets.DatasetInfo) -> None:
    small = Protocol(resize=64, crop=56)
    batches = list(protocols.batches(photographs, "validation", small, 64, count=150))
    assert [len(batch) for batch in batches] == [64, 64, 64]
    source = datasets.encoded(photographs, "validation")
    images = np.concatenate([batch.images for batch in batches])
    labels = np.concatenate([batch.labels for batch in batches])
    for index in range(150):
        encoded, label = source[index]
        np.testing.assert_array_equal(images[index], protocols.resize_and_crop(datasets.decode(encoded), small))
        assert labels[index] == label
    assert (labels[150:] == -1).all()
    assert len({image.tobytes() for image in images[:150]}) > 0.9 * 150


def test_load_rejects_different_sizes_without_resize_and_crop(photographs: datasets.DatasetInfo) -> None:
    for view in (Protocol(), Protocol(resize=64), Protocol(crop=56)):
        with pytest.raises(UserError, match=f"the images of {photographs.name} differ in size"):
            list(protocols.load(photographs, "validation", view, 8))


def test_batches_read_at_most_two_ahead(digits: datasets.DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(
        datasets, "example", lambda source, info, split, index: read.append(index) or {"image": numbered(8, 8, 1), "label": 0}
    )
    batches = protocols.batches(digits, "test", Protocol(), 10)
    next(batches)
    assert read.pop(0) == 0, "the shape of padding"
    for expected in (30, 40):
        deadline = time.monotonic() + 600
        while len(read) < expected and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert sorted(read) == list(range(expected))
        next(batches)
    batches.close()


def test_close_stops_all_threads(photographs: datasets.DatasetInfo) -> None:
    before = threading.active_count()
    batches = protocols.batches(photographs, "validation", Protocol(resize=64, crop=56), 4)
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_batches_name_the_corrupt_example(digits: datasets.DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = datasets.encoded(digits, "test")
    items = [(encoded[index][0][: 40 if index == 5 else None], 0) for index in range(360)]
    monkeypatch.setattr(datasets, "encoded", lambda info, split: items)
    with pytest.raises(UserError, match=r"example 5 of split 'test' is damaged"):
        list(protocols.batches(digits, "test", Protocol(), 4))
