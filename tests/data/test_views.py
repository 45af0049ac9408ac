"""Images as a card says that they are shown: sizes and places as torchvision's Resize and CenterCrop have them, every image once."""

import dataclasses
import hashlib
import threading
import time

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import decoding, sources, views
from resnet_jax.data.views import Squares
from resnet_jax.errors import UserError
from resnet_jax.models import View

PLAIN = View(mean=(0.0,) * 3, deviation=(1.0,) * 3)


def view(resize: int = 0, crop: int = 0, **fields: str) -> View:
    return dataclasses.replace(PLAIN, resize=resize, crop=crop, **fields)


def numbered(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Every pixel says where it is: its row, its column, 7."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 7)][:channels], axis=-1).astype(np.uint8)


# (height, width), resize -> (height, width): torchvision 0.24's _compute_resized_output_size, int(size * long / short), by hand.
SIZES = [
    ((30, 47), 20, (20, 31)),  # 20 x 47 / 30 = 31.3: landscape
    ((47, 30), 20, (31, 20)),
    ((23, 46), 16, (16, 32)),
    ((33, 33), 16, (16, 16)),
    ((10, 21), 16, (16, 33)),  # enlarged: 33.6, rounded down
    ((375, 500), 256, (256, 341)),  # an ImageNet photograph: 341.33
    ((500, 333), 256, (384, 256)),  # 384.38
]


@pytest.mark.parametrize(("size", "resize", "expected"), SIZES)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_shorter_side_is_resized_and_the_longer_rounded_down(
    size: tuple[int, int], resize: int, expected: tuple[int, int], interpolation: str
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = views.shown(image, view(resize, interpolation=interpolation))
    assert (found.shape, found.dtype) == ((*expected, 3), np.uint8)
    kind = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    np.testing.assert_array_equal(found, np.asarray(Image.fromarray(image).resize(expected[::-1], kind)))


def test_resizing_averages_what_it_makes_smaller() -> None:
    """Antialiased: a pattern of single black and white pixels becomes grey, where four neighbours alone would leave it black or white."""
    pattern = np.indices((64, 64)).sum(0) % 2 * 255
    found = views.shown(np.repeat(pattern[..., None], 3, -1).astype(np.uint8), view(8))
    assert 120 < found[1:-1, 1:-1].min() <= found[1:-1, 1:-1].max() < 136


# (height, width), crop -> first row and column of the crop; negative: so many black ones before the image. torchvision 0.24's center_crop:
# int(round((size - crop) / 2)), halves to even, for a larger image; (crop - size) // 2 before a smaller one.
PLACES = [
    ((20, 31), 16, (2, 8)),  # 7.5 rounds to 8
    ((21, 31), 16, (2, 8)),  # 2.5 rounds to 2
    ((31, 20), 16, (8, 2)),
    ((16, 16), 16, (0, 0)),
    ((17, 19), 16, (0, 2)),  # 0.5 and 1.5
    ((13, 12), 16, (-1, -2)),  # of three rows, one before
    ((15, 9), 16, (0, -3)),
    ((13, 30), 16, (-1, 7)),
]


@pytest.mark.parametrize(("size", "crop", "first"), PLACES)
def test_the_crop_is_torchvisions(size: tuple[int, int], crop: int, first: tuple[int, int]) -> None:
    found = views.shown(numbered(*size), view(crop=crop))
    assert found.shape == (crop, crop, 3)
    rows, columns = np.mgrid[first[0] : first[0] + crop, first[1] : first[1] + crop]
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    expected = np.where(inside[..., None], np.stack([rows, columns, np.full_like(rows, 7)], -1), 0)
    np.testing.assert_array_equal(found, expected)


def test_both_one_after_the_other_and_nothing_at_all() -> None:
    image = np.random.default_rng(1).integers(0, 256, (30, 47, 3), np.uint8)
    small = np.asarray(Image.fromarray(image).resize((31, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(views.shown(image, view(20, 16)), small[2:18, 8:24])
    np.testing.assert_array_equal(views.shown(image, PLAIN), image)


def test_grey_images_keep_their_one_channel() -> None:
    found = views.shown(numbered(13, 20, 1), view(crop=12))
    np.testing.assert_array_equal(found, numbered(13, 20, 1)[0:12, 4:16])
    assert views.shown(numbered(13, 20, 1), view(8, 8)).shape == (8, 8, 1)


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (45, 45)])
def test_ten_crops_are_four_corners_the_centre_and_their_mirror_images(size: tuple[int, int]) -> None:
    image = numbered(*size)
    found = views.ten_crops(image, Squares(crop=32, crops=10))
    assert (found.shape, found.dtype) == ((10, 32, 32, 3), np.uint8)
    down, across = size[0] - 32, size[1] - 32
    # round() of torchvision's center_crop: 14.5 and 6.5 go down to the even 14 and 6.
    centre = {8: 4, 29: 14, 13: 6}
    corners = [(0, 0), (0, across), (down, 0), (down, across), (centre[down], centre[across])]
    for crop, mirror, (top, left) in zip(found[:5], found[5:], corners, strict=True):
        np.testing.assert_array_equal(crop, image[top : top + 32, left : left + 32])
        np.testing.assert_array_equal(mirror, crop[:, ::-1])


def test_ten_crops_are_cut_out_of_the_resized_image() -> None:
    image = np.random.default_rng(2).integers(0, 256, (60, 90, 3), np.uint8)
    found = views.ten_crops(image, Squares(resize=40, crop=32, interpolation="bicubic", crops=10))
    whole = np.asarray(Image.fromarray(image).resize((60, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(found[3], whole[8:, 28:])
    grey = views.ten_crops(image[..., :1], Squares(resize=40, crop=32, crops=10))
    assert grey.shape == (10, 32, 32, 1)
    with pytest.raises(UserError, match="an image of 40x60 has no crops of 48x48"):
        views.ten_crops(image, Squares(resize=40, crop=48, crops=10))


def test_an_image_is_stretched_to_any_size() -> None:
    image = np.random.default_rng(3).integers(0, 256, (30, 47, 3), np.uint8)
    found = views.stretched(image, 32, 20, "bilinear")
    np.testing.assert_array_equal(found, np.asarray(Image.fromarray(image).resize((20, 32), Image.Resampling.BILINEAR)))
    assert views.stretched(image[..., :1], 12, 14, "bicubic").shape == (12, 14, 1)


@pytest.fixture(scope="module")
def digits(digits_dir: str) -> sources.DatasetInfo:
    return sources.describe("digits", digits_dir)


@pytest.mark.parametrize("count", [None, 1, 7, 100, 359, 360, 1000])
@pytest.mark.parametrize("batch_size", [7, 100, 360, 400])
def test_load_gives_the_first_images_in_order(digits: sources.DatasetInfo, batch_size: int, count: int | None) -> None:
    found = list(views.load(digits, "test", Squares(), batch_size, count))
    expected = sources.read(digits, "test")
    wanted = 360 if count is None else min(count, 360)
    assert [len(batch) for batch in found] == [min(batch_size, wanted - at) for at in range(0, wanted, batch_size)]
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in found]), expected.images[:wanted])
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in found]), expected.labels[:wanted])


def test_load_resizes_images_of_one_size_too(digits: sources.DatasetInfo) -> None:
    small = Squares(resize=12, crop=10)
    (found,) = views.load(digits, "test", small, 4, 3)
    for image, original in zip(found.images[:3], sources.read(digits, "test").images, strict=False):
        np.testing.assert_array_equal(image, views.shown(original, small))
    assert found.images.shape == (4, 10, 10, 1)
    assert (found.labels[3], found.images[3].max()) == (-1, 0)


@pytest.mark.parametrize("batch_size", [7, 64, 360, 400])
@pytest.mark.parametrize(("first", "count"), [(0, None), (0, 100), (300, None), (37, 41), (359, 1), (340, 1000)])
@pytest.mark.parametrize("crops", [1, 10])
def test_a_part_of_a_split_is_shown_in_whole_batches(
    digits: sources.DatasetInfo, batch_size: int, first: int, count: int | None, crops: int
) -> None:
    """Ten crops are a tenth of the images; the last batch is filled up."""
    small = Squares(resize=8, crop=6, crops=crops)
    found = list(views.batches(digits, "test", small, batch_size, first=first, count=count))
    images = max(1, batch_size // crops)
    expected = sources.read(digits, "test").labels[first:][:count]
    assert [len(batch) for batch in found] == [images] * -(-len(expected) // images)
    labels = np.concatenate([batch.labels for batch in found])
    np.testing.assert_array_equal(labels[: len(expected)], expected)
    assert (labels[len(expected) :] == -1).all()
    assert {batch.images.shape[1:] for batch in found} == {(6, 6, 1) if crops == 1 else (10, 6, 6, 1)}
    assert all((batch.images[batch.labels < 0] == 0).all() for batch in found)
    shown = found[0].images[0] if crops == 1 else found[0].images[0, 4]
    np.testing.assert_array_equal(shown, views.shown(sources.read(digits, "test").images[first], small))


@pytest.mark.quick(2)
@pytest.mark.parametrize("crops", [1, 10])
@pytest.mark.parametrize("batch_size", [120, 64, 360])
def test_processes_share_every_batch(digits: sources.DatasetInfo, batch_size: int, crops: int) -> None:
    """One after the other, the parts of 1, 2 and 4 processes are the same images; each has as many of every batch as any other."""
    small = Squares(resize=8, crop=6, crops=crops)

    def parts(processes: int) -> list[list[views.Shown]]:
        several = [
            list(views.batches(digits, "test", small, batch_size, first=10, count=345, process=process, processes=processes))
            for process in range(processes)
        ]
        assert {len(batch) for part in several for batch in part} == {-(-max(1, batch_size // crops) // processes)}
        return [list(batch) for batch in zip(*several, strict=True)]

    def joined(batches: list[list[views.Shown]]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = (np.concatenate([getattr(part, name) for batch in batches for part in batch]) for name in ("images", "labels"))
        return images[labels >= 0], labels[labels >= 0]

    alone = parts(1)
    for processes in (2, 4):
        shared = parts(processes)
        if max(1, batch_size // crops) % processes == 0:
            for one, several in zip(alone, shared, strict=True):
                np.testing.assert_array_equal(one[0].images, np.concatenate([part.images for part in several]))
                np.testing.assert_array_equal(one[0].labels, np.concatenate([part.labels for part in several]))
        for one, several in zip(joined(alone), joined(shared), strict=True):
            np.testing.assert_array_equal(one, several)


def test_every_photograph_is_shown_once_and_in_order(photographs: sources.DatasetInfo) -> None:
    seen = Squares(resize=64, crop=56)
    found = list(views.batches(photographs, "validation", seen, 64, count=150))
    assert [len(batch) for batch in found] == [64, 64, 64]
    source = sources.encoded(photographs, "validation")
    images = np.concatenate([batch.images for batch in found])
    labels = np.concatenate([batch.labels for batch in found])
    for index in range(150):
        encoded, label = source[index]
        np.testing.assert_array_equal(images[index], views.shown(decoding.decode(encoded), seen))
        assert labels[index] == label
    assert (labels[150:] == -1).all()
    assert len({hashlib.sha256(image.tobytes()).digest() for image in images[:150]}) > 0.9 * 150


def test_images_of_many_sizes_need_a_size(photographs: sources.DatasetInfo) -> None:
    for seen in (Squares(), Squares(resize=64), Squares(crop=56)):
        with pytest.raises(UserError, match="the images of imagenet2012 differ in size, and nothing says how they are resized"):
            list(views.load(photographs, "validation", seen, 8))


def test_no_more_than_two_batches_wait(digits: sources.DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the one in use: whoever takes no more has no more decoded."""
    read = []
    monkeypatch.setattr(
        sources, "example", lambda source, info, split, index: read.append(index) or {"image": numbered(8, 8, 1), "label": 0}
    )
    several = views.batches(digits, "test", Squares(), 10)
    next(several)
    for expected in (30, 40):
        deadline = time.monotonic() + 60
        while len(read) < expected and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
        assert sorted(read) == list(range(expected))
        next(several)


def test_an_abandoned_batch_leaves_nothing_running(photographs: sources.DatasetInfo) -> None:
    before = threading.active_count()
    several = views.batches(photographs, "validation", Squares(resize=64, crop=56), 4)
    next(several)
    assert threading.active_count() > before
    several.close()
    assert threading.active_count() == before


def test_an_example_that_cannot_be_read_is_named(digits: sources.DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = sources.encoded(digits, "test")
    items = [(encoded[index][0][: 40 if index == 5 else None], 0) for index in range(360)]
    monkeypatch.setattr(sources, "encoded", lambda info, split: items)
    with pytest.raises(UserError, match=r"example 5 of split 'test' is damaged"):
        list(views.batches(digits, "test", Squares(), 4))
