"""Crops against the image resized whole, policies against torchvision and timm; random draws scripted and by their statistics."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from distributions import frequency, uncorrelated, uniform
from PIL import Image
from resnet_jax.data import augment_host
from resnet_jax.data.augment_host import (
    CenterCrop,
    RandAugment,
    RandomResizedCrop,
    Sampling,
    ShorterSideCrop,
    TimmRandAugment,
    TrivialAugment,
)
from resnet_jax.errors import UserError

# Made by tests/write_augmentation_golden.py.
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "augmentations.npz")
PHOTOGRAPH, OPERATIONS, NAMES = GOLDEN["photograph"], GOLDEN["operations"].tolist(), GOLDEN["names"].tolist()
SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}


class Scripted(np.random.Generator):
    """Draws the numbers of a list; ``random`` is 0.5 and ``normal`` its mean. Records the bounds of integers."""

    def __init__(self, *numbers: float):
        super().__init__(np.random.PCG64(0))
        self.left, self.bounds = list(numbers), []

    def uniform(self, low, high):
        number = self.left.pop(0)
        assert low <= number <= high
        return number

    def integers(self, *bounds, size=None):
        self.bounds.append(bounds)
        return self.left.pop(0) if size is None else np.array([self.left.pop(0) for _ in range(size)])

    def random(self):
        return 0.5

    def normal(self, mean, deviation):
        return mean


def smooth(height: int, width: int) -> np.ndarray:
    """A picture of slow waves."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 23 + 1) * np.cos(y / 31), np.sin((x + y) / 40), np.cos(x / 50 - y / 37)]
    return (127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def test_box_has_the_drawn_area_ratio_and_position() -> None:
    """A quarter of 300x400 pixels, 30,000, four wide for three high, is 200x150, at 151 places down and 201 to the right.
    A box that does not fit is drawn again; after ten tries it is the largest central one."""
    wide, square = math.log(4 / 3), (1.0, math.log(1.2))
    for height, width, numbers, bounds, expected in (
        (300, 400, (0.25, wide, 150, 7), [(151,), (201,)], (7, 150, 207, 300)),
        (100, 100, (*square, 0.81, 0.0, 10, 0), [(11,), (11,)], (0, 10, 90, 100)),
        (30, 300, (1.0, -wide) * 10, [], (130, 0, 170, 30)),  # 40 of 300 pixels, 4:3
        (300, 30, (1.0, wide) * 10, [], (0, 130, 30, 170)),  # 3:4
        (100, 110, (1.0, -wide) * 10, [], (0, 0, 110, 100)),
    ):
        rng = Scripted(*numbers)
        assert RandomResizedCrop().box(height, width, rng) == expected
        assert (rng.left, rng.bounds) == ([], bounds)


def test_box_areas_log_ratios_and_positions_are_uniform() -> None:
    """Where nearly all boxes fit."""
    crop, rng = RandomResizedCrop(area=(0.05, 0.45), ratio=(0.5, 2.0)), np.random.default_rng(0)
    boxes = np.array([crop.box(1000, 1200, rng) for _ in range(4000)], np.float64)
    left, top, right, bottom = boxes.T
    assert boxes.min() >= 0
    assert right.max() <= 1200
    assert bottom.max() <= 1000
    area, ratio = (right - left) * (bottom - top) / 1.2e6, np.log((right - left) / (bottom - top)) / math.log(2)
    across, down = left / (1200 - right + left), top / (1000 - bottom + top)
    for values, low, high in ((area, 0.05, 0.45), (ratio, -1, 1), (across, 0, 1), (down, 0, 1)):
        uniform(values, low, high)
    uncorrelated(area, ratio)


def test_random_resized_crop_is_its_box_as_pillow_resizes_it() -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 250, 3)).astype(np.uint8)
    for seed, filter in enumerate(("bilinear", "bicubic")):
        crop = RandomResizedCrop(filter=filter)
        box = crop.box(200, 250, np.random.default_rng(seed))
        expected = np.asarray(Image.fromarray(image).crop(box).resize((50, 40), Image.Resampling[filter.upper()]))
        np.testing.assert_array_equal(crop(image, (40, 50), np.random.default_rng(seed)), expected)
        np.testing.assert_array_equal(crop(image[..., :1], (40, 50), np.random.default_rng(seed)), expected[..., :1])


def directly(image: np.ndarray, side: int, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """The crop out of the image resized whole."""
    height, width = (int(side * extent / min(image.shape[:2])) for extent in image.shape[:2])
    whole = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(whole)[top : top + size[0], left : left + size[1]]


def test_shorter_side_crops_equal_the_crop_of_the_resized_image_up_to_one_source_pixel() -> None:
    """Waves of 120 rise by up to 120 / 23 from one pixel of the image to the next."""
    for height, width, side in ((500, 375, 256), (375, 500, 331), (1200, 1600, 480), (200, 300, 256)):
        image = smooth(height, width)
        resized = [int(side * extent / min(height, width)) for extent in (height, width)]
        for place in (0.0, 0.37, 1.0):
            top, left = round(place * (resized[0] - 224)), round(place * (resized[1] - 200))
            rng = Scripted(side, top, left)
            difference = np.abs(ShorterSideCrop()(image, (224, 200), rng).astype(float) - directly(image, side, top, left, (224, 200)))
            assert rng.bounds == [(256, 481), (resized[0] - 223,), (resized[1] - 199,)]
            assert difference.max() <= 5
            assert difference.mean() < 1.5
        resized = [256 * extent // min(height, width) for extent in (height, width)]
        top, left = (round((extent - 224) / 2) for extent in resized)
        center = CenterCrop()(image, (224, 224), Scripted()).astype(float)
        assert np.abs(center - directly(image, 256, top, left, (224, 224))).mean() < 3
    image = smooth(256, 300)
    np.testing.assert_array_equal(CenterCrop()(image, (224, 224), Scripted()), image[16:240, 38:262])
    for image in (np.zeros((1, 1, 3), np.uint8), np.zeros((2, 900, 1), np.uint8)):
        for crop in (RandomResizedCrop(), ShorterSideCrop(), CenterCrop()):
            assert crop(image, (224, 224), np.random.default_rng(0)).shape == (224, 224, image.shape[2])


def test_operations_equal_torchvisions_and_timms_bit_for_bit() -> None:
    assert Counter(name.split()[0] for name in NAMES) == {"RandAugment": 14, "TrivialAugment": 14, "TimmRandAugment": 30}
    for name, expected in zip(NAMES, GOLDEN["images"], strict=True):
        policy, operation, place, sign = name.split()
        signs = [int(int(sign) < 0)] if operation in SIGNED else []
        if policy == "RandAugment":
            rng, bounds = Scripted(OPERATIONS.index(operation), *signs), [14] + [2] * len(signs)
            part = RandAugment(operations=1, magnitude=int(place))
        elif policy == "TrivialAugment":
            rng, bounds = Scripted(int(place), OPERATIONS.index(operation), *signs), [31, 14] + [2] * len(signs)
            part = TrivialAugment()
        else:
            # timm's positive translations are to the left and upwards.
            negative = (int(sign) < 0) != operation.startswith("Translate")
            rng, bounds = Scripted(augment_host.TIMM_OPERATIONS.index(operation), int(negative), int(float(place) != 7)), [15, 2, 2]
            part = TimmRandAugment(magnitude=float(place), operations=1, probability=1.0)
        np.testing.assert_array_equal(part(PHOTOGRAPH, rng), expected, err_msg=name)
        assert rng.bounds == [(bound,) for bound in bounds], name
        assert np.array_equal(expected, PHOTOGRAPH) == (operation == "Identity")


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, Sampling]]:
    """Operations and arguments, which are recorded instead of applied."""
    calls: list[tuple[str, float, Sampling]] = []
    record = {name: lambda image, *rest, name=name: calls.append((name, *rest)) or image for name in augment_host.OPERATIONS}
    monkeypatch.setattr(augment_host, "OPERATIONS", record)
    return calls


def test_every_bin_has_torchvisions_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
    for number, operation in enumerate(OPERATIONS):
        for place in range(31):
            signs = [0] if operation in SIGNED else []
            RandAugment(operations=1, magnitude=place)(PHOTOGRAPH, Scripted(number, *signs))
            TrivialAugment()(PHOTOGRAPH, Scripted(place, number, *signs))
    arguments = np.array([argument for _, argument, _ in calls]).reshape(len(OPERATIONS), 31, 2)
    for index, policy in enumerate(("RandAugment", "TrivialAugment")):
        for row, operation, expected in zip(arguments[..., index], OPERATIONS, GOLDEN[f"{policy} magnitudes"], strict=True):
            if operation in ("Brightness", "Color", "Contrast", "Sharpness"):
                expected = 1 + expected
            if operation in ("TranslateX", "TranslateY"):
                # In single precision torch makes 15.999999 of the 16 pixels halfway to 32, which is 15 there.
                expected = np.trunc(expected.round(5))
            np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-6, err_msg=operation)


def test_policies_draw_each_operation_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's applies each with a probability of 1/2 and a normal magnitude, clipped to [0, 10]."""
    calls, rng = recorded(monkeypatch), np.random.default_rng(0)
    for policy, numbers, names in (
        (RandAugment(operations=3), {3}, OPERATIONS),
        (TrivialAugment(), {1}, OPERATIONS),
        (TimmRandAugment(), {0, 1, 2}, augment_host.TIMM_OPERATIONS),
    ):
        calls.clear()
        applied = []
        for _ in range(2000):
            before = len(calls)
            policy(PHOTOGRAPH, rng)
            applied.append(len(calls) - before)
        assert set(applied) == numbers
        assert abs(np.mean(applied) - np.mean(list(numbers))) < 5 * np.sqrt(0.5 / 2000)
        counts, mean = Counter(name for name, *_ in calls), len(calls) / len(names)
        assert set(counts) == set(names)
        assert sum((count - mean) ** 2 / mean for count in counts.values()) < len(names) - 1 + 5 * np.sqrt(2 * (len(names) - 1))
        frequency(np.array([degrees > 0 for name, degrees, _ in calls if name == "Rotate" and degrees]), 0.5)
    levels = np.array([abs(degrees) / 3 for name, degrees, _ in calls if name == "Rotate"])
    filters = [sampling.resample.name for name, _, sampling in calls if name == "Rotate"]
    assert abs(levels.mean() - 7) < 5 * 0.5 / np.sqrt(len(levels))
    assert abs(levels.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * len(levels))
    assert set(filters) == {"BILINEAR", "BICUBIC"}
    frequency(np.array(filters) == "BICUBIC", 0.5)
    calls.clear()
    for _ in range(1000):
        TimmRandAugment(magnitude=9.5, deviation=5, probability=1.0)(PHOTOGRAPH, rng)
    degrees = np.abs([degrees for name, degrees, _ in calls if name == "Rotate"])
    assert 0 <= degrees.min() < degrees.max() == 30
    assert 0.3 < np.mean(degrees == 30) < 0.6


def test_invalid_crops_and_policies_are_rejected() -> None:
    """A crop that some draws make too small, at the first draw."""
    rng, image = np.random.default_rng(0), smooth(300, 400)
    for build, message in (
        (lambda: RandomResizedCrop(area=(0.5, 1.1)), r"area must be in \[0, 1\]"),
        (lambda: RandomResizedCrop(ratio=(0.0, 1.0)), "ratio must be a positive finite number"),
        (lambda: ShorterSideCrop(shorter_side=(480, 256)), "shorter_side must be ascending"),
        (lambda: ShorterSideCrop((99, 999))(image, (224, 224), Scripted()), "shorter_side 99 is smaller than the 224x224 of the model"),
        (lambda: CenterCrop(223)(image, (224, 200), rng), "shorter_side 223 is smaller than the 224x200 of the model"),
        (lambda: RandAugment(magnitude=31), r"magnitude must be in \[0, 30\], got 31"),
        (lambda: TimmRandAugment(probability=1.5), r"probability must be in \[0, 1\]"),
        (lambda: TrivialAugment()(PHOTOGRAPH[..., :1], rng), "need RGB images, got 1 channels"),
    ):
        with pytest.raises(UserError, match=message):
            build()
