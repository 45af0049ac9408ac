"""Policies against golden results of torchvision and timm; draws by their statistics."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from resnet_jax.data import augment_host
from resnet_jax.data.augment_host import OPERATIONS as OPERATIONS_BY_NAME
from resnet_jax.data.augment_host import RandAugment, Sampling, TimmRandAugment, TrivialAugment
from resnet_jax.errors import UserError

# Made by tests/write_augmentation_golden.py.
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "augmentations.npz")
PHOTOGRAPH, OPERATIONS, NAMES = GOLDEN["photograph"], GOLDEN["operations"].tolist(), GOLDEN["names"].tolist()
SIGNED = {"ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness"}
HEIGHT, WIDTH, _ = PHOTOGRAPH.shape


class Scripted(np.random.Generator):
    """Draws integers from a list, uniform numbers are 0.5 and normal ones their mean; records the bounds of integers."""

    def __init__(self, integers: list[int]):
        super().__init__(np.random.PCG64(0))
        self.left, self.asked = list(integers), []

    def integers(self, high, size=None):
        self.asked.append(high)
        return self.left.pop(0) if size is None else np.array([self.left.pop(0) for _ in range(size)])

    def random(self):
        return 0.5

    def normal(self, mean, deviation):
        return mean


def test_golden_file_covers_operations_that_change_the_image() -> None:
    assert Counter(name.rpartition(" ")[0].split()[0] for name in NAMES) == {"RandAugment": 14, "TrivialAugment": 14, "TimmRandAugment": 30}
    same = {name.split()[1] for name, image in zip(NAMES, GOLDEN["images"], strict=True) if np.array_equal(image, PHOTOGRAPH)}
    assert same == {"Identity"}


def test_operations_equal_torchvisions_and_timms_bit_for_bit() -> None:
    images = dict(zip(NAMES, GOLDEN["images"], strict=True))
    for name, expected in images.items():
        policy, operation, place, sign = name.split()
        signs = [int(int(sign) < 0)] if operation in SIGNED else []
        if policy == "RandAugment":
            rng, asked = Scripted([OPERATIONS.index(operation), *signs]), [14] + [2] * len(signs)
            part = RandAugment(operations=1, magnitude=int(place))
        elif policy == "TrivialAugment":
            rng, asked = Scripted([int(place), OPERATIONS.index(operation), *signs]), [31, 14] + [2] * len(signs)
            part = TrivialAugment()
        else:
            # timm's positive translations are to the left and upwards.
            negative = (int(sign) < 0) != operation.startswith("Translate")
            rng, asked = Scripted([augment_host.TIMM_OPERATIONS.index(operation), int(negative), int(float(place) != 7)]), [15, 2, 2]
            part = TimmRandAugment(magnitude=float(place), operations=1, probability=1.0)
        np.testing.assert_array_equal(part(PHOTOGRAPH, rng), expected, err_msg=name)
        assert rng.asked == asked, name


@pytest.mark.parametrize("policy", ["RandAugment", "TrivialAugment"])
def test_every_bin_has_torchvisions_magnitude(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all operations: to single precision, whole pixels and bits exactly."""
    seen = []
    names = list(augment_host.OPERATIONS)
    told = {name: lambda image, argument, _, name=name: seen.append((name, argument)) or image for name in names}
    monkeypatch.setattr(augment_host, "OPERATIONS", told)
    for number, operation in enumerate(OPERATIONS):
        for place in range(31):
            signs = [0] if operation in SIGNED else []
            if policy == "RandAugment":
                RandAugment(operations=1, magnitude=place)(PHOTOGRAPH, Scripted([number, *signs]))
            else:
                TrivialAugment()(PHOTOGRAPH, Scripted([place, number, *signs]))
    table = GOLDEN[f"{policy} magnitudes"]
    assert [name for name, _ in seen] == [name for name in OPERATIONS for _ in range(31)]
    found = np.array([argument for _, argument in seen]).reshape(14, 31)
    for row, operation, expected in zip(found, OPERATIONS, table, strict=True):
        if operation in ("Brightness", "Color", "Contrast", "Sharpness"):
            expected = 1 + expected
        if operation in ("TranslateX", "TranslateY"):
            # In single precision torch makes 15.999999 of the 16 pixels halfway to 32, which is 15 there.
            expected = np.trunc(expected.round(5))
        exact = operation in ("TranslateX", "TranslateY", "Posterize", "Identity")
        np.testing.assert_allclose(row, expected, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6, err_msg=operation)


def test_timms_levels_have_the_arguments_of_its_table() -> None:
    """At ``inc1``, with the negative sign if there is one, for an image 200 wide and 100 high. Posterize keeps 4 to 0 bits."""
    for operation, level, expected in (
        ("Posterize", 2.49, 4), ("Posterize", 2.5, 3), ("Posterize", 10, 0),
        ("Solarize", 0, 256), ("Solarize", 7, 256 - 179), ("Solarize", 10, 0),
        ("SolarizeAdd", 7, 77), ("SolarizeAdd", 10, 110),
        ("Brightness", 10, 0.1), ("Color", 7, 1 - 0.63), ("ShearX", 5, -0.15), ("Rotate", 7, -21),
        ("TranslateX", 10, -0.45 * 200), ("TranslateY", 10, -0.45 * 100),
    ):  # fmt: skip
        assert augment_host.timm_argument(operation, level / 10, -1, (200, 100)) == pytest.approx(expected, abs=1e-12)


def drawn(policy, monkeypatch: pytest.MonkeyPatch, times: int) -> tuple[Counter, dict[str, list], list[int]]:
    """How often each operation is applied, its arguments, and how many were applied to each image."""
    arguments: dict[str, list] = {name: [] for name in augment_host.OPERATIONS}
    told = {name: lambda image, *rest, name=name: arguments[name].append(rest) or image for name in arguments}
    monkeypatch.setattr(augment_host, "OPERATIONS", told)
    rng = np.random.default_rng(0)
    each = []
    for _ in range(times):
        before = sum(map(len, arguments.values()))
        assert np.array_equal(policy(PHOTOGRAPH, rng), PHOTOGRAPH)
        each.append(sum(map(len, arguments.values())) - before)
    return Counter({name: len(found) for name, found in arguments.items() if found}), arguments, each


@pytest.mark.parametrize(("policy", "each"), [(RandAugment(), 2), (TrivialAugment(), 1), (RandAugment(operations=3), 3)])
def test_torchvisions_policies_draw_each_operation_equally_often(policy, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, arguments, applied = drawn(policy, monkeypatch, 2000)
    assert set(applied) == {each}
    assert set(counts) == set(OPERATIONS)
    mean = 2000 * each / 14
    chi_squared = sum((count - mean) ** 2 / mean for count in counts.values())
    assert chi_squared < 13 + 5 * np.sqrt(2 * 13)
    signs = [np.sign(argument) for argument, _ in arguments["Rotate"] if argument]
    assert abs(np.mean(signs)) < 5 / np.sqrt(len(signs))


def test_timms_policy_applies_each_operation_drawn_half_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    counts, arguments, applied = drawn(TimmRandAugment(), monkeypatch, 3000)
    assert set(counts) == set(augment_host.TIMM_OPERATIONS)
    assert abs(np.mean(applied) - 1) < 5 * np.sqrt(0.5 / 3000)
    assert set(applied) == {0, 1, 2}
    mean = sum(counts.values()) / 15
    assert sum((count - mean) ** 2 / mean for count in counts.values()) < 14 + 5 * np.sqrt(28)
    levels = np.array([abs(degrees) / 3 for degrees, _ in arguments["Rotate"]])
    assert abs(levels.mean() - 7) < 5 * 0.5 / np.sqrt(len(levels))
    assert abs(levels.std() - 0.5) < 5 * 0.5 / np.sqrt(2 * len(levels))
    filters = Counter(sampling.resample.name for _, sampling in arguments["Rotate"])
    assert set(filters) == {"BILINEAR", "BICUBIC"}
    assert abs(filters["BICUBIC"] / len(levels) - 0.5) < 5 * 0.5 / np.sqrt(len(levels))


def test_timms_magnitudes_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    _, arguments, _ = drawn(TimmRandAugment(magnitude=9.5, deviation=5, probability=1.0), monkeypatch, 1000)
    degrees = np.abs([degrees for degrees, _ in arguments["Rotate"]])
    assert degrees.max() == 30
    assert degrees.min() >= 0
    assert 0.3 < np.mean(degrees == 30) < 0.6


def test_posterize_to_no_bits_is_black_and_translations_are_to_the_right_and_down() -> None:
    """Posterize(0) is beyond the file; so are the directions of whole-pixel translations."""
    picture, nearest = Image.fromarray(PHOTOGRAPH), Sampling(Image.Resampling.NEAREST, (7, 8, 9))
    assert not np.asarray(OPERATIONS_BY_NAME["Posterize"](picture, 0, nearest)).any()
    for name, moved in (("TranslateX", PHOTOGRAPH[:, :-3]), ("TranslateY", PHOTOGRAPH[:-3])):
        result = np.asarray(OPERATIONS_BY_NAME[name](picture, 3, nearest))
        shown, filled = (result[:, 3:], result[:, :3]) if name == "TranslateX" else (result[3:], result[:3])
        np.testing.assert_array_equal(shown, moved)
        assert (filled == [7, 8, 9]).all()


def test_policies_are_functions_of_image_and_generator() -> None:
    for policy in (RandAugment(), TrivialAugment(), TimmRandAugment()):
        image = PHOTOGRAPH.copy()
        one, same, other = ([policy(image, rng) for _ in range(20)] for rng in map(np.random.default_rng, (1, 1, 2)))
        assert np.array_equal(one, same)
        assert not np.array_equal(one, other)
        assert np.array_equal(image, PHOTOGRAPH)
        assert all(result.dtype == np.uint8 and result.shape == image.shape for result in one)


def test_invalid_policies_are_rejected() -> None:
    for build, message in (
        (lambda: RandAugment(magnitude=31), r"magnitude must be in \[0, 30\], got 31"),
        (lambda: RandAugment(operations=-1), "operations must be at least 0"),
        (lambda: TimmRandAugment(probability=1.5), r"probability must be in \[0, 1\]"),
        (lambda: TrivialAugment()(PHOTOGRAPH[..., :1], np.random.default_rng(0)), "need RGB images, got 1 channels"),
    ):
        with pytest.raises(UserError, match=message):
            build()
