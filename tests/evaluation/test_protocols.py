"""Protocols by their published names; images with torchvision's Resize and CenterCrop, each once and in order."""

import threading
import tomllib
from importlib import resources

import numpy as np
import pytest
from PIL import Image
from resnet_jax.data import datasets
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.evaluation.protocols import Protocol
from resnet_jax.weights import View

PARSED = {
    "256/224": (Protocol(resize=256, crop=224), "single 224x224 of 256"),
    "320/320": (Protocol(resize=320, crop=320), "single 320x320 of 320"),
    "236/224-bicubic": (Protocol(resize=236, crop=224, interpolation="bicubic"), "single 224x224 of 236, bicubic"),
    "ten-crop": (Protocol(resize=256, crop=224, crops=10), "10 crops 224x224 of 256"),
    "ten-crop-40/32": (Protocol(resize=40, crop=32, crops=10), "10 crops 32x32 of 40"),
    "ten-crop-bicubic": (Protocol(resize=256, crop=224, crops=10, interpolation="bicubic"), "10 crops 224x224 of 256, bicubic"),
    "multi-scale": (Protocol(scales=(224, 256, 384, 480, 640)), "multi-scale"),
    "multi-scale-224,256,384": (Protocol(scales=(224, 256, 384)), "multi-scale 224, 256, 384"),
    "multi-scale-bicubic": (Protocol(scales=(224, 256, 384, 480, 640), interpolation="bicubic"), "multi-scale, bicubic"),
}


def test_protocols_are_parsed_and_described() -> None:
    """The view of every published table of He et al. on ImageNet has a protocol that states exactly it."""
    for text, (expected, view) in PARSED.items():
        protocol = protocols.parse(text)
        assert (protocol, protocol.view()) == (expected, view)
    assert protocols.parse("ten-crop-256/224") == protocols.parse("ten-crop")
    assert protocols.parse("multi-scale-224,256,384,480,640") == protocols.parse("multi-scale")
    published = set()
    for paper in ("he2015", "he2016"):
        text = (resources.files("resnet_jax") / "studies" / "published" / f"{paper}.toml").read_text()
        published |= {protocol.get("view", "") for protocol in tomllib.loads(text)["protocol"].values()}
    assert {PARSED[text][1] for text in ("256/224", "ten-crop", "multi-scale", "320/320")} <= published
    card = View(mean=(0.5,), deviation=(0.5,), resize=236, crop=224, interpolation="bicubic")
    assert protocols.of(card) == protocols.parse("236/224-bicubic")
    whole = protocols.of(View(mean=(0.5,), deviation=(0.5,)))
    assert (whole, whole.view(32, 32)) == (Protocol(), "single 32x32")


def test_unknown_protocols_are_rejected_with_an_example() -> None:
    for text in (
        *("", "224", "224/256", "256/0", "0/0", "256x224", "256/224 ", "99999/99999", "٢٥٦/224"),
        *("256/224-lanczos", "256/224-bicubic-bicubic", "-bicubic", "ten-crops", "ten-crop-224"),
        *("multi-scale-", "multi-scale-0", "multi-scale-64,64", "multi-scale-64,", "multi-scale-64/32"),
    ):
        with pytest.raises(UserError, match="256/224|multi-scale-224,256,384") as error:
            protocols.parse(text)
        assert repr(text) in str(error.value)


def numbered(height: int, width: int, channels: int = 3) -> np.ndarray:
    """Every pixel holds its row, its column, 7."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, 7)][:channels], axis=-1).astype(np.uint8)


def test_resize_rounds_the_longer_side_down_and_is_antialiased() -> None:
    """torchvision 0.24's _compute_resized_output_size, int(size * long / short), by hand."""
    for size, resize, expected in (
        ((30, 47), 20, (20, 31)),  # 20 x 47 / 30 = 31.3
        ((47, 30), 20, (31, 20)),
        ((33, 33), 16, (16, 16)),
        ((10, 21), 16, (16, 33)),  # enlarged: 33.6
        ((375, 500), 256, (256, 341)),  # 341.33
    ):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        for interpolation in ("bilinear", "bicubic"):
            resized = protocols.resize_and_crop(image, Protocol(resize=resize, interpolation=interpolation))
            kind = Image.Resampling[interpolation.upper()]
            np.testing.assert_array_equal(resized, np.asarray(Image.fromarray(image).resize(expected[::-1], kind)), strict=True)
    np.testing.assert_array_equal(protocols.resize_and_crop(image, Protocol()), image)
    # Single black and white pixels become gray.
    pattern = np.repeat((np.indices((64, 64)).sum(0) % 2 * 255)[..., None], 3, -1).astype(np.uint8)
    resized = protocols.resize_and_crop(pattern, Protocol(resize=8))
    assert 120 < resized[1:-1, 1:-1].min() <= resized[1:-1, 1:-1].max() < 136


def test_crop_is_torchvisions() -> None:
    """torchvision 0.24: round((size - crop) / 2), halves to even; (crop - size) // 2 black pixels before a smaller image."""
    for size, first in (
        ((20, 31), (2, 8)),  # 7.5 rounds to 8
        ((21, 31), (2, 8)),  # 2.5 rounds to 2
        ((16, 16), (0, 0)),
        ((17, 19), (0, 2)),  # 0.5 and 1.5
        ((13, 12), (-1, -2)),  # of three rows, one before
        ((15, 9), (0, -3)),
        ((13, 30), (-1, 7)),
    ):
        for channels in (1, 3):
            crop = protocols.resize_and_crop(numbered(*size, channels), Protocol(crop=16))
            rows, columns = np.mgrid[first[0] : first[0] + 16, first[1] : first[1] + 16]
            inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
            expected = np.where(inside[..., None], np.stack([rows, columns, np.full_like(rows, 7)], -1), 0)
            np.testing.assert_array_equal(crop, expected[..., :channels])
    image = np.random.default_rng(1).integers(0, 256, (30, 47, 3), np.uint8)
    small = np.asarray(Image.fromarray(image).resize((31, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(protocols.resize_and_crop(image, Protocol(resize=20, crop=16)), small[2:18, 8:24])


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
    image = np.random.default_rng(2).integers(0, 256, (60, 90, 1), np.uint8)
    ten = protocols.ten_crops(image, Protocol(resize=40, crop=32, interpolation="bicubic", crops=10))
    whole = np.asarray(Image.fromarray(image[..., 0]).resize((60, 40), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(ten[3, ..., 0], whole[8:, 28:])


@pytest.fixture(scope="module")
def digits(digits_dir: str) -> datasets.DatasetInfo:
    return datasets.describe("digits", digits_dir)


def test_load_returns_unchanged_images_or_batches(digits: datasets.DatasetInfo, photographs: datasets.DatasetInfo) -> None:
    expected = datasets.read(digits, "test")
    assert protocols.load(digits, "test", Protocol(), 7) is expected
    small = Protocol(resize=12, crop=10)
    batch = next(iter(protocols.load(digits, "test", small, 4)))
    np.testing.assert_array_equal(batch.images, [protocols.resize_and_crop(image, small) for image in expected.images[:4]])
    for view in (Protocol(), Protocol(resize=64), Protocol(crop=56)):
        with pytest.raises(UserError, match=f"the images of {photographs.name} differ in size"):
            list(protocols.load(photographs, "validation", view, 8))


def test_batches_are_padded_and_shared_by_processes(digits: datasets.DatasetInfo) -> None:
    """Ten crops count as ten images. Black images of label -1 pad the last batch, and may be all that a process has."""
    whole = datasets.read(digits, "test")
    for batch_size, first, count, crops, processes in (
        (7, 0, 100, 1, 1),
        (64, 300, None, 1, 2),
        (64, 37, 41, 10, 4),
        (7, 359, 1, 10, 2),
        (400, 340, 1000, 1, 4),
        (120, 10, 345, 1, 4),
    ):
        small = Protocol(resize=8, crop=6, crops=crops)
        span = {"first": first, "count": count, "processes": processes}
        parts = [list(protocols.batches(digits, "test", small, batch_size, process=process, **span)) for process in range(processes)]
        share = -(-max(1, batch_size // crops) // processes)
        assert {len(batch) for part in parts for batch in part} == {share}
        ordered = [batch for step in zip(*parts, strict=True) for batch in step]
        images, labels = (np.concatenate([getattr(batch, name) for batch in ordered]) for name in ("images", "labels"))
        expected = whole.labels[first:][:count]
        assert len(parts[0]) == -(-len(expected) // (share * processes))
        np.testing.assert_array_equal(labels, np.pad(expected, (0, len(labels) - len(expected)), constant_values=-1))
        assert not images[len(expected) :].any()
        crop = protocols.resize_and_crop if crops == 1 else protocols.ten_crops
        np.testing.assert_array_equal(images[: len(expected)], [crop(image, small) for image in whole.images[first:][:count]])


def test_ahead_computes_two_groups_ahead_and_stops_its_threads() -> None:
    taken, before = [], threading.active_count()
    results = protocols.ahead(lambda n: n * n, (taken.append(n) or [n, n + 10] for n in range(5)))
    assert next(results) == ([0, 10], [0, 100])
    assert taken == [0, 1, 2]
    assert threading.active_count() > before
    results.close()
    assert threading.active_count() == before
    assert [members for members, _ in protocols.ahead(str, ([n] for n in range(5)))] == [[n] for n in range(5)]
