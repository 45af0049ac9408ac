"""Boxes by hand from given draws, by their statistics, and crops against the image resized whole."""

import math

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import sources
from resnet_jax.data.crops import CentreCrop, RandomResizedCrop, ShorterSideCrop
from resnet_jax.errors import UserError


class Scripted(np.random.Generator):
    """Draws the numbers of a list; of integers, how many there are is remembered."""

    def __init__(self, *numbers: float):
        super().__init__(np.random.PCG64(0))
        self.left, self.asked = list(numbers), []

    def uniform(self, low, high):
        found = self.left.pop(0)
        assert low <= found <= high
        return found

    def integers(self, *bounds):
        self.asked.append(bounds)
        return self.left.pop(0)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture of slow waves."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 23 + 1) * np.cos(y / 31), np.sin((x + y) / 40), np.cos(x / 50 - y / 37)]
    return (127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)


def test_a_box_has_the_drawn_area_and_ratio() -> None:
    """Of 300x400 pixels a quarter, 30,000, four wide for three high: 200x150. Then 151 places down and 201 to the right."""
    rng = Scripted(0.25, math.log(4 / 3), 150, 7)
    assert RandomResizedCrop().box(300, 400, rng) == (7, 150, 207, 300)
    assert rng.asked == [(151,), (201,)]


def test_a_box_that_does_not_fit_is_drawn_again() -> None:
    """The whole area of a square, wider than high, is not in it; 0.81 of 100x100 at ratio 1 is 90x90."""
    rng = Scripted(1.0, math.log(1.2), 0.81, 0.0, 10, 0)
    assert RandomResizedCrop().box(100, 100, rng) == (0, 10, 90, 100)
    assert rng.asked == [(11,), (11,)]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (30, 300, (130, 0, 170, 30)),  # 40 of 300 pixels, 4:3
        (300, 30, (0, 130, 30, 170)),  # 3:4
        (100, 110, (0, 0, 110, 100)),
        (1, 500, (249, 0, 250, 1)),
    ],
)
def test_ten_boxes_that_do_not_fit_leave_the_largest_central_one(height: int, width: int, expected: tuple[int, ...]) -> None:
    rng = Scripted(*[1.0, math.log(3 / 4) if width >= height else math.log(4 / 3)] * 10)
    if height == 1:
        rng = Scripted(*[0.08, 0.0] * 10)
    assert RandomResizedCrop().box(height, width, rng) == expected
    assert rng.left == []


def test_areas_and_logarithms_of_ratios_are_uniform_and_places_too() -> None:
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


@pytest.mark.parametrize("filter", ["area", "bilinear", "bicubic"])
def test_random_resized_crop_shows_its_box(filter: str) -> None:
    """Of a picture whose red is the column and whose green is the row, the corners tell what is shown."""
    image = np.zeros((200, 250, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(250)[None, :], np.arange(200)[:, None]
    for seed in range(20):
        crop = RandomResizedCrop(filter=filter)
        left, top, right, bottom = crop.box(200, 250, np.random.default_rng(seed))
        found = crop(image, (40, 50), np.random.default_rng(seed)).astype(float)
        assert found.shape == (40, 50, 3)
        across, down = (right - left) / 50, (bottom - top) / 40
        np.testing.assert_allclose(found[20, 5:45, 0], left + across * (np.arange(5, 45) + 0.5) - 0.5, atol=1.1)
        np.testing.assert_allclose(found[5:35, 25, 1], top + down * (np.arange(5, 35) + 0.5) - 0.5, atol=1.1)


def directly(image: np.ndarray, side: int, top: int, left: int, size: tuple[int, int]) -> np.ndarray:
    """The crop out of the image resized whole."""
    height, width = image.shape[:2]
    short = min(height, width)
    whole = Image.fromarray(image).resize((int(side * width / short), int(side * height / short)), Image.Resampling.BILINEAR)
    return np.asarray(whole)[top : top + size[0], left : left + size[1]]


@pytest.mark.parametrize(("height", "width"), [(500, 375), (375, 500), (1200, 1600), (200, 300)])
@pytest.mark.parametrize("side", [256, 331, 480])
def test_shorter_side_crop_is_the_crop_of_the_resized_image_but_for_a_pixel_of_the_image(height: int, width: int, side: int) -> None:
    image, size = smooth(height, width), (224, 200)
    resized = (side, int(side * width / height)) if height < width else (int(side * height / width), side)
    for place in (0.0, 0.37, 1.0):
        top, left = round(place * (resized[0] - 224)), round(place * (resized[1] - 200))
        rng = Scripted(side, top, left)
        found = ShorterSideCrop(filter="bilinear")(image, size, rng).astype(float)
        assert rng.asked == [(256, 481), (resized[0] - 223,), (resized[1] - 199,)]
        # Waves of 120 rise by up to 120 / 23 from one pixel of the image to the next.
        difference = np.abs(found - directly(image, side, top, left, size))
        assert difference.max() <= 5
        assert difference.mean() < 1.5


def test_on_photographs_shorter_side_crop_differs_little_from_the_crop_of_the_resized_image() -> None:
    """Mean difference in grey levels; that of a crop moved by one pixel is the scale."""
    if "imagenet2012" not in sources.prepared():
        pytest.skip("ImageNet is not prepared: set TFDS_DATA_DIR")
    info = sources.describe("imagenet2012")
    source = sources.encoded(info, "train")
    ours, moved = [], []
    for index in range(24):
        image = sources.example(source, info, "train", index)["image"]
        short = min(image.shape[:2])
        room = [256 * extent // short - 224 for extent in image.shape[:2]]
        top, left = max(0, room[0] // 2 - 1), max(0, room[1] // 2 - 1)
        found = ShorterSideCrop(filter="bilinear")(image, (224, 224), Scripted(256, top, left))
        expected = directly(image, 256, top, left, (224, 224)).astype(float)
        ours.append(np.abs(found - expected).mean())
        moved.append(np.abs(directly(image, 256, top, left + 1, (224, 224)) - expected).mean())
    assert np.mean(ours) < 0.4 * np.mean(moved)


def test_shorter_sides_are_uniform_integers_with_both_ends() -> None:
    class Seen(np.random.Generator):
        def integers(self, *bounds):
            found = super().integers(*bounds)
            if len(bounds) == 2:
                sides.append(int(found))
            return found

    sides: list[int] = []
    rng = Seen(np.random.PCG64(0))
    for _ in range(2000):
        ShorterSideCrop(shorter_side=(30, 39))(smooth(40, 50), (28, 28), rng)
    counts = np.bincount(sides, minlength=40)[30:]
    assert len(counts) == 10
    assert ((counts - 200) ** 2 / 200).sum() < 9 + 5 * math.sqrt(18)


@pytest.mark.parametrize(("height", "width"), [(500, 375), (375, 501), (224, 224)])
def test_centre_crop_is_the_centre_whatever_is_random(height: int, width: int) -> None:
    image = smooth(height, width)
    found = CentreCrop(shorter_side=256, filter="bilinear")(image, (224, 224), np.random.default_rng(0))
    rows, columns = 256 * height // min(height, width), 256 * width // min(height, width)
    expected = directly(image, 256, round((rows - 224) / 2), round((columns - 224) / 2), (224, 224))
    assert np.abs(found.astype(float) - expected).mean() < 3
    np.testing.assert_array_equal(found, CentreCrop(filter="bilinear")(image, (224, 224), np.random.default_rng(1)))


def test_an_image_of_the_right_size_is_shown_as_it_is() -> None:
    image = smooth(256, 300)
    np.testing.assert_array_equal(CentreCrop()(image, (224, 224), np.random.default_rng(0)), image[16:240, 38:262])


def test_tiny_images_and_grey_ones_are_cropped_too() -> None:
    rng = np.random.default_rng(0)
    for image in (np.zeros((1, 1, 3), np.uint8), np.zeros((2, 900, 1), np.uint8)):
        for crop in (RandomResizedCrop(), ShorterSideCrop(), CentreCrop()):
            assert crop(image, (224, 224), rng).shape == (224, 224, image.shape[2])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: RandomResizedCrop(area=(0.0, 1.0)), "area is"),
        (lambda: RandomResizedCrop(area=(0.5, 1.1)), "area is"),
        (lambda: RandomResizedCrop(ratio=(2.0, 1.0)), "ratio is"),
        (lambda: ShorterSideCrop(shorter_side=(480, 256)), "shorter_side is"),
        (lambda: CentreCrop(shorter_side=0), "shorter_side is 0"),
        (lambda: ShorterSideCrop((99, 99))(smooth(300, 400), (224, 224), np.random.default_rng(0)), "99x132 with .*: give .* 224 or"),
        (lambda: CentreCrop(223)(smooth(300, 400), (224, 200), np.random.default_rng(0)), "223x297 with .*: give .* 224 or"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(made, said: str) -> None:
    with pytest.raises(UserError, match=said):
        made()


def test_a_filter_that_there_is_not_is_refused() -> None:
    """Made without the checks of types, as by the command line."""
    for crop in (RandomResizedCrop, ShorterSideCrop, CentreCrop):
        made = crop()
        object.__setattr__(made, "filter", "nearest")
        with pytest.raises(UserError, match="there is no filter 'nearest'; did you mean area or bilinear"):
            made.__post_init__()
