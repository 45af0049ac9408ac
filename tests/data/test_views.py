"""Images as a card says that they are shown: sizes and places as torchvision's Resize and CenterCrop have them, every image once."""

import dataclasses
import hashlib
import warnings

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import sources, views
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


@pytest.fixture(scope="module")
def digits(digits_dir: str) -> sources.DatasetInfo:
    return sources.describe("digits", digits_dir)


@pytest.mark.parametrize("count", [None, 1, 7, 100, 359, 360, 1000])
@pytest.mark.parametrize("batch_size", [7, 100, 360, 400])
def test_load_gives_the_first_images_in_order(digits: sources.DatasetInfo, batch_size: int, count: int | None) -> None:
    grey = View(mean=(0.0,), deviation=(1.0,))
    found = list(views.load(digits, "test", grey, batch_size, count))
    expected = sources.read(digits, "test")
    wanted = 360 if count is None else min(count, 360)
    assert [len(batch) for batch in found] == [min(batch_size, wanted - at) for at in range(0, wanted, batch_size)]
    np.testing.assert_array_equal(np.concatenate([batch.images for batch in found]), expected.images[:wanted])
    np.testing.assert_array_equal(np.concatenate([batch.labels for batch in found]), expected.labels[:wanted])


def test_load_resizes_images_of_one_size_too(digits: sources.DatasetInfo) -> None:
    grey = View(mean=(0.0,), deviation=(1.0,), resize=12, crop=10)
    (found,) = views.load(digits, "test", grey, 4, 3)
    for image, original in zip(found.images, sources.read(digits, "test").images, strict=False):
        np.testing.assert_array_equal(image, views.shown(original, grey))
    assert found.images.shape == (3, 10, 10, 1)


@pytest.fixture(scope="module")
def photographs() -> sources.DatasetInfo:
    if "imagenet2012" not in sources.prepared():
        pytest.skip("no photographs of imagenet2012 are prepared: set TFDS_DATA_DIR")
    return sources.describe("imagenet2012")


def test_every_photograph_is_shown_once_and_in_order(photographs: sources.DatasetInfo) -> None:
    seen = view(64, 56)
    count = min(150, photographs.examples["validation"])
    found = list(views.batches(photographs, "validation", seen, 64, count))
    assert [len(batch) for batch in found] == [min(64, count - at) for at in range(0, count, 64)]
    source = sources.opened(photographs, "validation")
    images = np.concatenate([batch.images for batch in found])
    labels = np.concatenate([batch.labels for batch in found])
    for index in range(count):
        example = source[index]
        np.testing.assert_array_equal(images[index], views.shown(example["image"], seen))
        assert labels[index] == example["label"]
    assert len({hashlib.sha256(image.tobytes()).digest() for image in images}) > 0.9 * count


def test_images_of_many_sizes_need_a_size(photographs: sources.DatasetInfo) -> None:
    for seen in (PLAIN, view(64), view(crop=56)):
        with pytest.raises(UserError, match="the images of imagenet2012 differ in size, and the card does not say how they are resized"):
            list(views.load(photographs, "validation", seen, 8))


def test_an_abandoned_batch_leaves_nothing_running(photographs: sources.DatasetInfo) -> None:
    several = views.batches(photographs, "validation", view(64, 56), 4)
    next(several)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        several.close()


def test_an_example_that_cannot_be_read_is_named(digits: sources.DatasetInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    class Damaged:
        def __getitem__(self, index: int) -> dict:
            if index == 5:
                raise ValueError("bad block")
            return {"image": numbered(8, 8, 1), "label": 0}

    monkeypatch.setattr(sources, "opened", lambda info, split: Damaged())
    with pytest.raises(UserError, match=r"digits.*split 'test', example 5 is damaged \(bad block\)"):
        list(views.batches(digits, "test", View(mean=(0.0,), deviation=(1.0,)), 4))
