"""Boxes from scripted draws and by their statistics; crops against the image resized whole."""

import math

import numpy as np
import pytest
from PIL import Image
from resnet_jax.data import datasets
from resnet_jax.data.augment_host import CenterCrop, RandomResizedCrop, ShorterSideCrop, resample
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError


class Scripted(np.random.Generator):
    """Draws the numbers of a list, and records the bounds of integers."""

    def __init__(self, *numbers: float):
        super().__init__(np.random.PCG64(0))
        self.left, self.asked = list(numbers), []

    def uniform(self, low, high):
        number = self.left.pop(0)
        assert low <= number <= high
        return number

    def integers(self, *bounds):
        self.asked.append(bounds)
        return self.left.pop(0)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture of slow waves."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 23 + 1) * np.cos(y / 31), np.sin((x + y) / 40), np.cos(x / 50 - y / 37)]
    return (127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def test_box_has_the_drawn_area_and_ratio() -> None:
    """Of 300x400 pixels a quarter, 30,000, four wide for three high: 200x150. Then 151 places down and 201 to the right."""
    rng = Scripted(0.25, math.log(4 / 3), 150, 7)
    assert RandomResizedCrop().box(300, 400, rng) == (7, 150, 207, 300)
    assert rng.asked == [(151,), (201,)]


def test_box_that_does_not_fit_is_drawn_again() -> None:
    """The whole area of a square, wider than high, is not in it; 0.81 of 100x100 at ratio 1 is 90x90."""
    rng = Scripted(1.0, math.log(1.2), 0.81, 0.0, 10, 0)
    assert RandomResizedCrop().box(100, 100, rng) == (0, 10, 90, 100)
    assert rng.asked == [(11,), (11,)]


def test_box_falls_back_to_the_largest_central_one_after_ten_tries() -> None:
    for height, width, expected in (
        (30, 300, (130, 0, 170, 30)),  # 40 of 300 pixels, 4:3
        (300, 30, (0, 130, 30, 170)),  # 3:4
        (100, 110, (0, 0, 110, 100)),
        (1, 500, (249, 0, 250, 1)),
    ):
        rng = Scripted(*[1.0, math.log(3 / 4) if width >= height else math.log(4 / 3)] * 10)
        if height == 1:
            rng = Scripted(*[0.08, 0.0] * 10)
        assert RandomResizedCrop().box(height, width, rng) == expected
        assert rng.left == []


def test_box_areas_log_ratios_and_positions_are_uniform() -> None:
    """Where nearly all boxes fit; bounds are five deviations of the mean."""
    crop, rng = RandomResizedCrop(area=(0.05, 0.45), ratio=(0.5, 2.0)), np.random.default_rng(0)
    boxes = np.array([crop.box(1000, 1200, rng) for _ in range(4000)], np.float64)
    left, top, right, bottom = boxes.T
    assert boxes.min() >= 0
    assert right.max() <= 1200
    assert bottom.max() <= 1000
    area, ratio = (right - left) * (bottom - top) / 1.2e6, np.log((right - left) / (bottom - top)) / math.log(2)
    for values, low, high in (
        (area, 0.05, 0.45),
        (ratio, -1, 1),
        (left / (1200 - right + left), 0, 1),
        (top / (1000 - bottom + top), 0, 1),
    ):
        assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * 4000)
        assert abs(values.std() / (high - low) - 1 / math.sqrt(12)) < 0.01
        assert values.min() >= low - 0.01
        assert values.max() <= high + 0.01
    assert abs(np.corrcoef(area, ratio)[0, 1]) < 5 / math.sqrt(4000)


def test_random_resized_crop_contains_its_box() -> None:
    """In a picture whose red is the column and whose green is the row, the values tell what is shown."""
    image = np.zeros((200, 250, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(250)[None, :], np.arange(200)[:, None]
    for seed in range(20):
        crop = RandomResizedCrop(filter="bicubic" if seed % 2 else "bilinear")
        left, top, right, bottom = crop.box(200, 250, np.random.default_rng(seed))
        shown = crop(image, (40, 50), np.random.default_rng(seed)).astype(float)
        assert shown.shape == (40, 50, 3)
        across, down = (right - left) / 50, (bottom - top) / 40
        np.testing.assert_allclose(shown[20, 5:45, 0], left + across * (np.arange(5, 45) + 0.5) - 0.5, atol=1.1)
        np.testing.assert_allclose(shown[5:35, 25, 1], top + down * (np.arange(5, 35) + 0.5) - 0.5, atol=1.1)


def test_resample_equals_pillows_resize() -> None:
    """Gray images too. The same size is the same image."""
    image = np.random.default_rng(0).integers(0, 256, (48, 60, 3)).astype(np.uint8)
    for filter in ("bilinear", "bicubic"):
        expected = Image.fromarray(image).crop((7, 3, 51, 40)).resize((24, 20), Image.Resampling[filter.upper()])
        np.testing.assert_array_equal(resample(image[3:40, 7:51], (20, 24), filter), np.asarray(expected))
        gray = resample(image[3:40, 7:51, :1], (20, 24), filter)
        np.testing.assert_array_equal(gray[..., 0], np.asarray(expected)[..., 0])
        np.testing.assert_array_equal(resample(image[12:36, 10:40], (24, 30), filter), image[12:36, 10:40])


def directly(image: np.ndarray, side: int, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """The crop out of the image resized whole."""
    height, width = image.shape[:2]
    short = min(height, width)
    whole = Image.fromarray(image).resize((int(side * width / short), int(side * height / short)), Image.Resampling.BILINEAR)
    return np.asarray(whole)[top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize(("height", "width", "side"), [(500, 375, 256), (375, 500, 331), (1200, 1600, 480), (200, 300, 256)])
def test_shorter_side_crop_equals_the_crop_of_the_resized_image_up_to_one_source_pixel(height: int, width: int, side: int) -> None:
    image, size = smooth(height, width), (224, 200)
    resized = (side, int(side * width / height)) if height < width else (int(side * height / width), side)
    for place in (0.0, 0.37, 1.0):
        top, left = round(place * (resized[0] - 224)), round(place * (resized[1] - 200))
        rng = Scripted(side, top, left)
        cropped = ShorterSideCrop()(image, size, rng).astype(float)
        assert rng.asked == [(256, 481), (resized[0] - 223,), (resized[1] - 199,)]
        # Waves of 120 rise by up to 120 / 23 from one pixel of the image to the next.
        difference = np.abs(cropped - directly(image, side, top, left, size))
        assert difference.max() <= 5
        assert difference.mean() < 1.5


def test_shorter_side_crop_differs_little_on_photographs(photographs: DatasetInfo) -> None:
    """Mean difference in gray levels, on the scale of that of a crop moved by one pixel."""
    source = datasets.encoded(photographs, "train")
    ours, moved = [], []
    for index in range(24):
        image = datasets.example(source, photographs, "train", index)["image"]
        side = min(image.shape[:2]) // 2
        size = (side * 7 // 8, side * 7 // 8)
        top, left = (side * extent // min(image.shape[:2]) // 2 - size[0] // 2 - 1 for extent in image.shape[:2])
        shown = ShorterSideCrop()(image, size, Scripted(side, top, left))
        expected = directly(image, side, top, left, size).astype(float)
        ours.append(np.abs(shown - expected).mean())
        moved.append(np.abs(directly(image, side, top, left + 1, size) - expected).mean())
    assert np.mean(ours) < 0.4 * np.mean(moved)


def test_shorter_sides_are_uniform_integers_with_both_ends() -> None:
    sides: list[int] = []

    class Seen(np.random.Generator):
        def integers(self, *bounds):
            number = super().integers(*bounds)
            if len(bounds) == 2:
                sides.append(int(number))
            return number

    rng = Seen(np.random.PCG64(0))
    for _ in range(2000):
        ShorterSideCrop(shorter_side=(30, 39))(smooth(40, 50), (28, 28), rng)
    counts = np.bincount(sides, minlength=40)[30:]
    assert len(counts) == 10
    assert ((counts - 200) ** 2 / 200).sum() < 9 + 5 * math.sqrt(18)


def test_centre_crop_is_the_center_without_randomness() -> None:
    for height, width in ((500, 375), (375, 501), (224, 224)):
        image = smooth(height, width)
        shown = CenterCrop()(image, (224, 224), np.random.default_rng(0))
        rows, columns = 256 * height // min(height, width), 256 * width // min(height, width)
        expected = directly(image, 256, round((rows - 224) / 2), round((columns - 224) / 2), (224, 224))
        assert np.abs(shown.astype(float) - expected).mean() < 3
        np.testing.assert_array_equal(shown, CenterCrop()(image, (224, 224), np.random.default_rng(1)))
    image = smooth(256, 300)
    np.testing.assert_array_equal(CenterCrop()(image, (224, 224), np.random.default_rng(0)), image[16:240, 38:262])


def test_tiny_and_gray_images_are_cropped_too() -> None:
    for image in (np.zeros((1, 1, 3), np.uint8), np.zeros((2, 900, 1), np.uint8)):
        for crop in (RandomResizedCrop(), ShorterSideCrop(), CenterCrop()):
            assert crop(image, (224, 224), np.random.default_rng(0)).shape == (224, 224, image.shape[2])


def test_invalid_crops_are_rejected() -> None:
    rng = np.random.default_rng(0)
    for build, message in (
        (lambda: RandomResizedCrop(area=(0.5, 1.1)), "area must be a pair"),
        (lambda: RandomResizedCrop(ratio=(2.0, 1.0)), "ratio must be a pair"),
        (lambda: ShorterSideCrop(shorter_side=(480, 256)), "shorter_side must be a pair"),
        (lambda: ShorterSideCrop((99, 99))(smooth(300, 400), (224, 224), rng), "to 99x132, smaller than the 224x224"),
        (lambda: CenterCrop(223)(smooth(300, 400), (224, 200), rng), "to 223x297, smaller than the 224x200"),
    ):
        with pytest.raises(UserError, match=message):
            build()
