"""Weights written: this project's own format, and others' where they have such a network."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from others import COUNTER, apart, filled, golden, identical, logits, metadata, shapes, stored, written

from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models import Card, Pretrained
from resnet_jax.models.names import variant
from resnet_jax.models.norms import FrozenBatchNorm, freeze
from resnet_jax.models.pretrained import saving
from resnet_jax.models.pretrained.card import IMAGENET_VIEW
from resnet_jax.models.pretrained.loading import abstract

TINY = filled(shapes())


def imported(tmp_path: Path, **options: Any) -> Pretrained:
    return models.load_pretrained(written(tmp_path / "tiny.safetensors", TINY), "torchvision", **options)


def trained(name: str, **fields: Any) -> Pretrained:
    """As of a run, with drawn numbers."""
    made = variant(name, **fields)
    _, *trees = abstract(made)
    rng = np.random.default_rng(0)
    params, batch_stats = (jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), tree) for tree in trees)
    return Pretrained(Card(architecture=made, view=IMAGENET_VIEW, source="run, step 7", counters={"": 7.0}), params, batch_stats)


def test_a_file_or_a_folder_of_ones_own_is_read_back(tmp_path: Path) -> None:
    weights = imported(tmp_path, data="imagenet2012", claimed_error=30.0)
    for to, file in (("a/b/x.safetensors", "a/b/x.safetensors"), ("folder", "folder/model.safetensors")):
        assert saving.save(weights, tmp_path / to) == tmp_path / file
        again = models.load_pretrained(tmp_path / to)
        assert again.card == weights.card
        jax.tree.map(np.testing.assert_array_equal, (again.params, again.batch_stats), (weights.params, weights.batch_stats))
        assert not list((tmp_path / file).parent.glob("*.part"))
    assert metadata(tmp_path / "folder/model.safetensors").keys() == {"resnet_jax"}


def test_a_network_that_others_do_not_have_is_kept_in_ones_own_format(tmp_path: Path) -> None:
    weights = trained("cifar_densenet40_12", stages=(1, 2, 1))
    again = models.load_pretrained(saving.save(weights, tmp_path))
    assert again.card == weights.card
    jax.tree.map(np.testing.assert_array_equal, (again.params, again.batch_stats), (weights.params, weights.batch_stats))


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/x.safetensors cannot be written"):
        saving.save(imported(tmp_path), tmp_path / "file" / "x.safetensors")
    with pytest.raises(UserError, match="x.pth does not end in .safetensors"):
        saving.export(imported(tmp_path), "torchvision", tmp_path / "x.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "tiny.safetensors"]


# Under others' names.


def test_a_run_is_written_as_torch_counts(tmp_path: Path) -> None:
    weights = trained("resnet50_v15", stages=(2, 1), features=(4, 8), num_classes=3)
    rows = saving.export(weights, "torchvision", tmp_path / "x.safetensors")
    found = stored(tmp_path / "x.safetensors")
    described = shapes((2, 1), (4, 8), bottleneck=True)
    assert {name: array.shape for name, array in found.items()} == described
    counters = {name: array for name, array in found.items() if name.endswith(COUNTER)}
    assert {(array.dtype.name, int(array)) for array in counters.values()} == {("int64", 7)}
    assert {row.source for row in rows} == found.keys() - counters.keys()
    np.testing.assert_array_equal(found["fc.weight"], np.asarray(weights.params["head"]["linear"]["kernel"]).T)
    assert metadata(tmp_path / "x.safetensors")["format"] == "pt"


def test_the_view_travels_there_and_back(tmp_path: Path) -> None:
    view = models.View(mean=(0.5, 0.25, 0.125), deviation=(0.5, 0.25, 0.25), resize=235, crop=200, interpolation="bicubic")
    weights = imported(tmp_path, view=dataclasses.asdict(view), data="cifar10", claimed_error=8.25)
    assert weights.card.view == view
    for names in ("torchvision", "timm"):
        saving.export(weights, names, tmp_path / "x.safetensors")
        card = models.load_pretrained(tmp_path / "x.safetensors", names).card
        assert (card.view, card.data, card.claimed_error) == (view, "cifar10", 8.25)
    assert models.load_pretrained(saving.save(weights, tmp_path / "own")).card.view == view


def test_a_mean_of_every_pixel_travels_too(tmp_path: Path) -> None:
    mean = tuple(tuple((0.1 * x, 0.2 * y, 0.3) for x in range(2)) for y in range(3))
    weights = imported(tmp_path, view={"mean": mean})
    assert models.load_pretrained(saving.save(weights, tmp_path / "own")).card.view.mean == mean
    saving.export(weights, "torchvision", tmp_path / "x.safetensors")
    assert models.load_pretrained(tmp_path / "x.safetensors", "torchvision").card.view.mean == mean


def test_a_prefix_goes_out_as_it_came_in_or_as_asked(tmp_path: Path) -> None:
    given = {f"module.{name}": array.astype(np.float16) if array.dtype == np.float32 else array for name, array in TINY.items()}
    weights = models.load_pretrained(written(tmp_path / "given.safetensors", given), "torchvision")
    saving.export(weights, "torchvision", tmp_path / "x.safetensors")
    identical(given, stored(tmp_path / "x.safetensors"))
    saving.export(weights, "torchvision", tmp_path / "x.safetensors", prefix="")
    identical({name.removeprefix("module."): array for name, array in given.items()}, stored(tmp_path / "x.safetensors"))
    saving.export(weights, "timm", tmp_path / "x.safetensors", prefix="backbone.")
    found = stored(tmp_path / "x.safetensors")
    assert all(name.startswith("backbone.") for name in found)
    assert {array.dtype.name for array in found.values()} == {"float32", "int64"}
    assert int(found["backbone.bn1.num_batches_tracked"]) == int(TINY["bn1.num_batches_tracked"])


def test_a_new_head_is_not_rounded_to_the_old_ones_dtype(tmp_path: Path) -> None:
    given = {name: array.astype(np.float16) if array.dtype == np.float32 else array for name, array in TINY.items()}
    file = written(tmp_path / "given.safetensors", given)
    weights = models.load_pretrained(file, "torchvision", num_classes=5, allow_new_head=True)
    saving.export(weights, "torchvision", tmp_path / "x.safetensors")
    found = stored(tmp_path / "x.safetensors")
    assert (found["fc.weight"].dtype, found["conv1.weight"].dtype) == (np.float32, np.float16)


def test_double_precision_comes_back_rounded(tmp_path: Path) -> None:
    given = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in TINY.items()}
    given["fc.bias"] = np.float64([0.1, 0.2, 0.3])
    weights = models.load_pretrained(written(tmp_path / "given.safetensors", given), "torchvision")
    saving.export(weights, "torchvision", tmp_path / "x.safetensors")
    found = stored(tmp_path / "x.safetensors")
    assert found["fc.bias"].dtype == np.float64
    np.testing.assert_array_equal(found["fc.bias"], np.float32([0.1, 0.2, 0.3]))


def test_from_one_convention_to_another_the_function_stays(tmp_path: Path) -> None:
    """Caffe's names to torchvision's as converted for torch, and back; akamaster's option B to torchvision's names."""
    described = {k: v for k, v in shapes((2, 1), (4, 8), bottleneck=True).items() if not k.endswith(COUNTER)}
    weights = models.load_pretrained(written(tmp_path / "a.safetensors", filled(described)), "caffe-torch")
    saving.export(weights, "caffe", tmp_path / "b.safetensors")
    found = stored(tmp_path / "b.safetensors")
    assert found["bn_conv1/2"].tolist() == [1.0]
    np.testing.assert_array_equal(found["conv1/0"], filled(described)["conv1.weight"], "both take blue first")
    again = models.load_pretrained(tmp_path / "b.safetensors", "caffe")
    jax.tree.map(np.testing.assert_array_equal, (again.params, again.batch_stats), (weights.params, weights.batch_stats))
    saving.export(again, "caffe-torch", tmp_path / "c.safetensors")
    c = stored(tmp_path / "c.safetensors")
    identical(filled(described), {name: array for name, array in c.items() if not name.endswith(COUNTER)})
    assert {int(array) for name, array in c.items() if name.endswith(COUNTER)} == {0}, "divisors count nothing"


def test_frozen_statistics_are_exported_as_what_they_were(tmp_path: Path) -> None:
    weights = imported(tmp_path)
    params, batch_stats = freeze(weights.params, weights.batch_stats)
    card = dataclasses.replace(weights.card, architecture=dataclasses.replace(weights.architecture, norm=FrozenBatchNorm))
    frozen = Pretrained(card, params, batch_stats)
    saving.export(frozen, "torchvision", tmp_path / "x.safetensors")
    identical(TINY, stored(tmp_path / "x.safetensors"))
    again = models.load_pretrained(saving.save(frozen, tmp_path / "own"))
    assert again.architecture.norm is FrozenBatchNorm
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    assert apart(logits(again, x), logits(weights, x)) < 1e-5
    asked = models.load_pretrained(tmp_path / "tiny.safetensors", "torchvision", network=card.architecture)
    jax.tree.map(np.testing.assert_array_equal, (asked.params, asked.batch_stats), (params, batch_stats))


@pytest.mark.quick(6)
@pytest.mark.parametrize(
    ("name", "fields", "names", "reason"),
    [
        ("resnet50", {}, "torchvision", r"branch: Bottleneck here, BottleneckV15 there"),
        ("resnet50", {}, "timm", r"branch: Bottleneck here, BottleneckV15 there"),
        ("resnet50", {}, "caffe", r"stem: ImageNetStem here, CeilPooledStem there"),
        ("resnet50_v15", {"stem": "CeilPooledStem"}, "caffe", r"branch: BottleneckV15 here, Bottleneck there"),
        ("cifar_resnet8", {}, "torchvision", r"shortcut: ZeroPad here, Projection there"),
        ("cifar_resnet8", {}, "cifar-torch", r"shortcut: ZeroPad here, ZeroPad\(resize='pad-both'\) there"),
        ("resnet18", {"shortcut": "none"}, "torchvision", r"shortcut: NoShortcut here"),
        ("resnet18", {"shortcut": "Scaled(shortcut=0.5)"}, "torchvision", r"shortcut: Scaled\(shortcut=0.5\) here"),
        ("preresnet18", {}, "torchvision", r"order: FullPreactivation"),
        ("resnet18", {"order": "ReluBeforeAddition"}, "torchvision", r"order: ReluBeforeAddition here, Original there"),
        ("resnet18", {"shortcut": "ExclusiveGating"}, "torchvision", r"shortcut: ExclusiveGating"),
        ("resnet18", {"shortcut": "ReZero"}, "torchvision", r"shortcut: LearnedScalar"),
        ("resnet18", {"norm": "GroupNorm(num_groups=4)"}, "torchvision", r"norm: GroupNorm\(num_groups=4\) here, BatchNorm there"),
        ("resnet18", {"norm": "BatchNorm(epsilon=0.001)"}, "torchvision", r"norm: BatchNorm\(epsilon=0.001\) here"),
        ("resnet18", {"norm": "NoNorm"}, "torchvision", r"norm: NoNorm"),
        ("resnet18_d", {}, "torchvision", r"shortcut: PooledProjection.*torchvision has no deep stem: those are timm's"),
        ("resnet18", {"shortcut": "D"}, "caffe-torch", r"shortcut: PooledProjection.*no pooled projection"),
        ("resnet18", {"branch": "Basic(reduction=4)"}, "torchvision", r"no squeeze-and-excitation"),
        ("resnet18", {"branch": "Basic(reduction=4)"}, "timm", r"multiples of 8 channels, this network to 1 \(branch: reduction\)"),
        ("resnet18", {"branch": "Branch(kernels=(5, 3))"}, "torchvision", r"branch: .* here, Basic there"),
        ("resnet18", {"output_stride": 4}, "torchvision", r"output_stride: 4 here, 0 there"),
        ("resnet18", {"stochastic_depth": models.StochasticDepth(survival=0.5)}, "torchvision", r"stochastic_depth scales the branches"),
        ("cifar_densenet40_12", {}, "torchvision", r"order: FullPreactivation; shortcut: Concatenation; transition: DenseTransition"),
        ("resnet18", {}, "keras", r"'keras' is no naming of weights"),
    ],
)
def test_a_network_that_others_do_not_have_is_refused_with_what_differs(
    name: str, fields: dict[str, Any], names: str, reason: str, tmp_path: Path
) -> None:
    small = {"stages": (1, 1), "features": (4, 8)} if "cifar" not in name else {"stages": (1, 1, 1)}
    with pytest.raises(UserError, match=reason):
        saving.export(trained(name, **small, **fields), names, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_caffe_has_four_stages(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="caffe has no name for layer5"):
        saving.export(trained("resnet50", stages=(1,) * 5, features=(4,) * 5, stem="CeilPooledStem"), "caffe", tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "fields",
    [
        {"stem_features": 4},
        {"stochastic_depth": models.StochasticDepth(survival=0.5, scaled="training")},
        {"dtype": "bfloat16"},
        {"norm": "BatchNorm(momentum=0.99, group_size=32)"},
        {"branch": "Basic(dropout=0.25)"},
    ],
)
def test_what_only_matters_while_training_does_not_keep_a_network_from_others(fields: dict[str, Any], tmp_path: Path) -> None:
    weights = trained("resnet18", stages=(1, 1), features=(4, 8), num_classes=3, **fields)
    saving.export(weights, "torchvision", tmp_path / "x.safetensors")
    assert {name: array.shape for name, array in stored(tmp_path / "x.safetensors").items()} == shapes()


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("theirs", "network", "fields"),
    [("timm_seresnet50", "resnet50_v15", {"branch": "BottleneckV15(reduction=16)"}), ("timm_resnet50d", "resnet50_d", {})],
)
def test_our_networks_have_timms_names_and_shapes(theirs: str, network: str, fields: dict[str, Any], tmp_path: Path) -> None:
    saving.export(trained(network, **fields), "timm", tmp_path / "x.safetensors")
    assert {name: array.shape for name, array in stored(tmp_path / "x.safetensors").items()} == golden(theirs)[1]


def test_what_a_card_claims_of_dtypes_makes_no_weights_whole_numbers(tmp_path: Path) -> None:
    weights = imported(tmp_path)
    card = dataclasses.replace(weights.card, dtypes={"fc.bias": "int64", "fc.weight": "object", "bn1.weight": "nonsense"})
    saving.export(dataclasses.replace(weights, card=card), "torchvision", tmp_path / "x.safetensors")
    identical(TINY, stored(tmp_path / "x.safetensors"))
