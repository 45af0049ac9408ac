"""Names and habits of other code bases, their rules written down here a second time."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from others import COUNTER, Tensors, apart, filled, golden, identical, logits, shapes, shown, stored, written

from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models.pretrained import saving
from resnet_jax.models.pretrained.conventions import CONVENTIONS, convention


def caffe_units(stages: Sequence[int]) -> list[tuple[str, str]]:
    """Units as the released prototxts call them, and as torchvision does. ResNet-50 (3, 4, 6, 3): a to f. ResNet-101 (3, 4, 23, 3):
    res3a, res3b1 to res3b3, res4a, res4b1 to res4b22. ResNet-152 (3, 8, 36, 3): res3b1 to res3b7, res4b1 to res4b35.
    """
    long = max(stages) > 6
    found = []
    for stage, units in enumerate(stages):
        numbered = long and stage in (1, 2)
        written = ["a", *(f"b{n}" for n in range(1, units))] if numbered else list("abcdef"[:units])
        found += [(f"{stage + 2}{text}", f"layer{stage + 1}.{unit}") for unit, text in enumerate(written)]
    return found


def caffe_names(stages: Sequence[int]) -> dict[str, str]:
    """LAYER/BLOB to torchvision's name. BatchNorm layers hold mean, variance and a divisor, Scale layers factor and bias."""
    found = {"conv1/0": "conv1.weight", "fc1000/0": "fc.weight", "fc1000/1": "fc.bias"}

    def normalised(suffix: str, module: str) -> None:
        leaves = {"bn": ("running_mean", "running_var", COUNTER), "scale": ("weight", "bias")}
        found.update({f"{kind}{suffix}/{blob}": f"{module}.{leaf}" for kind, row in leaves.items() for blob, leaf in enumerate(row)})

    normalised("_conv1", "bn1")
    for written_as, unit in caffe_units(stages):
        for number, letter in enumerate("abc", 1):
            found[f"res{written_as}_branch2{letter}/0"] = f"{unit}.conv{number}.weight"
            normalised(f"{written_as}_branch2{letter}", f"{unit}.bn{number}")
        if unit.endswith(".0"):
            found[f"res{written_as}_branch1/0"] = f"{unit}.downsample.0.weight"
            normalised(f"{written_as}_branch1", f"{unit}.downsample.1")
    return found


def caffe(tensors: Tensors, stages: Sequence[int], divisor: float = 1.0) -> Tensors:
    """torchvision's tensors as Caffe's: the first convolution takes blue first, and running averages are multiplied by their divisor."""
    found = {}
    for name, theirs in caffe_names(stages).items():
        array = tensors[theirs]
        if theirs == "conv1.weight":
            array = array[:, [2, 1, 0]]
        elif theirs.endswith(COUNTER):
            array = np.full(1, divisor, np.float32)
        elif "running" in theirs:
            array = array * np.float32(divisor)
        found[name] = array
    return found


STAGES = [(3, 4, 6, 3), (3, 4, 23, 3), (3, 8, 36, 3)]


@pytest.mark.parametrize("stages", STAGES, ids=["50", "101", "152"])
def test_caffes_names_are_those_of_the_released_models(stages: tuple[int, ...]) -> None:
    names, chosen = caffe_names(stages), CONVENTIONS["caffe"]
    assert set(names.values()) == set(shapes(stages, (4, 8, 8, 8), bottleneck=True))
    for name, theirs in names.items():
        assert chosen.to_torchvision(name) == theirs
        assert chosen.from_torchvision(theirs, stages) == name


def test_the_names_of_these_tests_are_caffes() -> None:
    """A few that everybody knows, of the released prototxts."""
    assert {"bn_conv1/0", "scale_conv1/1", "res2a_branch1/0", "bn2a_branch2a/2", "res4f_branch2c/0"} <= caffe_names(STAGES[0]).keys()
    assert {"res3b3_branch2a/0", "res4b22_branch2b/0", "scale5c_branch2c/0"} <= caffe_names(STAGES[1]).keys()
    assert {"res3b7_branch2a/0", "res4b35_branch2b/0", "bn5a_branch1/0"} <= caffe_names(STAGES[2]).keys()


@pytest.mark.parametrize(
    "name",
    [
        *("", "conv1", "conv1/2", "conv1.weight", "bn_conv1/3", "scale_conv1/2", "fc1000/2", "res1a_branch1/0", "res6a_branch1/0"),
        *("res2a_branch2d/0", "res2a_branch2a/1", "bn2a_branch2a/3", "scale2a_branch1/2", "res2A_branch1/0", "res4b_branch2a/0x"),
        f"res4b{'9' * 5000}_branch2a/0",
    ],
)
def test_what_is_no_name_of_caffes_is_none(name: str) -> None:
    assert CONVENTIONS["caffe"].to_torchvision(name) is None


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("linear.weight", "fc.weight"),
        ("linear.bias", "fc.bias"),
        ("layer2.0.shortcut.0.weight", "layer2.0.downsample.0.weight"),
        ("layer2.0.shortcut.1.running_var", "layer2.0.downsample.1.running_var"),
        ("layer1.2.bn1.weight", "layer1.2.bn1.weight"),
        ("conv1.weight", "conv1.weight"),
        ("fc.weight", None),
        ("layer2.0.downsample.0.weight", None),
    ],
)
def test_akamasters_names(theirs: str, ours: str | None) -> None:
    chosen = CONVENTIONS["cifar-torch"]
    assert chosen.to_torchvision(theirs) == ours
    if ours is not None:
        assert chosen.from_torchvision(ours, (3, 3, 3)) == theirs


def test_caffes_resnet50_under_its_own_names_has_the_logits_of_torch(tmp_path: Path) -> None:
    """The golden network is torch's, fed with blue, green, red; ours takes red, green, blue."""
    theirs, described = golden("caffe_resnet50")
    # Drawn are weights of a network that takes blue first, as Caffe's are: nothing is turned round on the way into the file.
    drawn = filled(described)
    tensors = {name: drawn[key] for name, key in caffe_names(STAGES[0]).items() if not key.endswith(COUNTER)}
    weights = models.load_pretrained(written(tmp_path / "caffe.safetensors", tensors), "caffe")
    assert apart(logits(weights, shown("caffe_resnet50")), theirs) < 1e-5


TINY = filled(shapes((3, 2, 1, 1), (4, 4, 8, 8), bottleneck=True))


def test_divisors_and_the_bias_of_the_first_convolution_are_taken_into_the_averages(tmp_path: Path) -> None:
    """Caffe's BatchNorm: mean = blob0 / blob2, variance = blob1 / blob2. BN(conv + b) with mean m is BN(conv) with mean m - b."""
    stages = (3, 2, 1, 1)
    bias = np.float32([0.5, -1, 2, 0.25])
    given = caffe(TINY, stages, divisor=999.982) | {"conv1/1": bias}
    weights = models.load_pretrained(written(tmp_path / "caffe.safetensors", given), "caffe")
    # conv1/1 is there and no row of its own.
    assert "conv1/1" not in {row.source for row in weights.rows}
    stem = weights.batch_stats["stem"]["after"]["layers"][0]
    np.testing.assert_allclose(stem["mean"], given["bn_conv1/0"].astype(np.float64) / 999.982 - bias, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stem["var"], TINY["bn1.running_var"], rtol=1e-5)
    plain = models.load_pretrained(written(tmp_path / "plain.safetensors", caffe(TINY, stages)), "caffe")
    x = np.random.default_rng(0).standard_normal((2, 33, 32, 3)).astype(np.float32)
    unbiased = models.load_pretrained(written(tmp_path / "d.safetensors", caffe(TINY, stages, divisor=999.982)), "caffe")
    assert apart(logits(unbiased, x), logits(plain, x)) < 1e-5
    assert apart(logits(weights, x), logits(plain, x)) > 1e-3
    # The divisors come back, the numbers to rounding.
    saving.export(unbiased, "caffe", tmp_path / "again.safetensors")
    again = stored(tmp_path / "again.safetensors")
    assert again.keys() == given.keys() - {"conv1/1"}
    for name in again:
        np.testing.assert_allclose(again[name], given[name], rtol=1e-6)


def test_a_divisor_of_zero_makes_averages_of_zero(tmp_path: Path) -> None:
    """Caffe's batch_norm_layer.cpp: ``scale_factor = blobs_[2] == 0 ? 0 : 1 / blobs_[2]``."""
    given = caffe(TINY, (3, 2, 1, 1)) | {"bn_conv1/2": np.zeros(1, np.float32)}
    stem = models.load_pretrained(written(tmp_path / "x.safetensors", given), "caffe").batch_stats["stem"]["after"]["layers"][0]
    assert not np.any(stem["mean"])
    assert not np.any(stem["var"])


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("bn_conv1/2", np.full(1, -2, np.float32), "bn_conv1/1 is a variance"),
        ("bn_conv1/2", np.full(1, 1e-44, np.float32), "bn_conv1/[01] has .* not finite"),
        ("bn_conv1/2", np.full(1, np.inf, np.float32), "bn_conv1/2 is inf"),
        ("bn_conv1/2", np.ones(4, np.float32), "bn_conv1/2 has shape"),
        ("conv1/1", np.full(4, np.nan, np.float32), "conv1/1 has 4 of 4 values that are not finite"),
        ("conv1/1", np.ones(1, np.float32), "1 unexpected:\n  conv1/1"),
        ("conv1/1", np.ones(4, np.int32), "conv1/1 holds int32"),
    ],
)
def test_damaged_divisors_and_biases_are_refused_by_name(name: str, array: np.ndarray, reason: str, tmp_path: Path) -> None:
    file = written(tmp_path / "x.safetensors", caffe(TINY, (3, 2, 1, 1)) | {name: array})
    with pytest.raises(UserError, match=reason):
        models.load_pretrained(file, "caffe")


@pytest.mark.quick(5)
@pytest.mark.parametrize(("dtype", "counted"), [(np.float32, False), (np.float16, True), (ml_dtypes.bfloat16, True)])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_import_and_export_are_the_identity_bit_for_bit(name: str, dtype: type, counted: bool, tmp_path: Path) -> None:
    """And import, this project's own format, and export from there."""
    stages = (3, 2, 1, 1)
    if name == "cifar-torch":
        basic = filled(shapes((2, 2), (4, 8), kernel=3, projected=False))
        given = {"module." + key.replace("fc.", "linear."): array for key, array in basic.items()}
    elif name == "caffe":
        given = caffe(TINY, stages)
    elif name == "timm":
        given = filled(deep(stages))
    else:
        given = dict(TINY)
    is_counter = {key: key.endswith((COUNTER, "/2")) for key in given}
    given = {key: array if is_counter[key] else array.astype(dtype) for key, array in given.items() if counted or not is_counter[key]}
    weights = models.load_pretrained(written(tmp_path / "given.safetensors", given), name)
    saving.export(weights, name, tmp_path / "out.safetensors")
    identical(given, stored(tmp_path / "out.safetensors"))
    again = models.load_pretrained(saving.save(weights, tmp_path / "own.safetensors"))
    assert again.card == weights.card
    saving.export(again, name, tmp_path / "once_more.safetensors")
    identical(given, stored(tmp_path / "once_more.safetensors"))


def deep(stages: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """timm's names for a deep stem, pooled projections and squeeze-and-excitation: of the golden networks, narrower."""
    found = shapes(stages, (8, 8, 16, 16), bottleneck=True)
    del found["conv1.weight"]
    for place, (comes, goes) in zip((0, 3, 6), itertools.pairwise((3, 4, 4, 8)), strict=True):
        found[f"conv1.{place}.weight"] = (goes, comes, 3, 3)
    for place in (1, 4):
        found |= {f"conv1.{place}.{leaf}": (4,) for leaf in ("weight", "bias", "running_mean", "running_var")} | {
            f"conv1.{place}.{COUNTER}": ()
        }
    for key in [key for key in found if ".downsample." in key]:
        unit, _, rest = key.partition(".downsample.")
        found[f"{unit}.downsample.{'+' if rest[0] == '0' else '++'}{rest[1:]}"] = found.pop(key)
    found = {key.replace(".++.", ".2.").replace(".+.", ".1."): shape for key, shape in found.items()}
    for key in [key for key in found if key.endswith(".bn3.bias")]:
        unit, wide = key.removesuffix(".bn3.bias"), found[key][0]
        found |= {f"{unit}.se.fc1.weight": (wide // 4, wide, 1, 1), f"{unit}.se.fc1.bias": (wide // 4,)}
        found |= {f"{unit}.se.fc2.weight": (wide, wide // 4, 1, 1), f"{unit}.se.fc2.bias": (wide,)}
    return found


def test_habits_that_no_name_shows() -> None:
    assert [(name, each.stride_at, each.blue_first) for name, each in CONVENTIONS.items()] == [
        ("torchvision", 1, False),
        ("timm", 1, False),
        ("cifar-torch", 1, False),
        ("caffe", 0, True),
        ("caffe-torch", 0, True),
    ]
    view = CONVENTIONS["caffe"].view
    # Caffe subtracts the mean of ImageNet, blue 103.939, green 116.779, red 123.68, of 0 to 255, and divides by nothing.
    image = np.float64([200, 100, 50])
    np.testing.assert_allclose((image / 255 - np.array(view.mean)) / np.array(view.deviation), image - [123.68, 116.779, 103.939])
    assert (CONVENTIONS["cifar-torch"].view.resize, CONVENTIONS["cifar-torch"].view.crop) == (0, 0)


def test_an_unknown_convention_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'cafe' is no naming of weights that is known; did you mean caffe"):
        convention("cafe")
