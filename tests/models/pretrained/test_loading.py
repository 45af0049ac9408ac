"""Weights of others in our networks: logits as torch gives them, and what does not fit refused as a whole."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from others import COUNTER, GOLDEN, apart, convention_of, filled, golden, identical, logits, metadata, shapes, shown, stored, written

from resnet_jax import models
from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models.branches import Bottleneck
from resnet_jax.models.names import variant
from resnet_jax.models.norms import GroupNorm
from resnet_jax.models.pooling import max_pool
from resnet_jax.models.pretrained import saving
from resnet_jax.models.pretrained.conventions import CONVENTIONS
from resnet_jax.models.pretrained.inference import infer
from resnet_jax.models.pretrained.loading import abstract
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.models.stems import CeilPooledStem, ImageNetStem, SmallImageStem

# The same parts as others, at more cost.
SLOW = ("resnet34", "resnet101", "resnet152", "resnext101_64x4d", "timm_resnet50d", "timm_resnext50_32x4d", "wide_resnet101_2")
NAMES = [pytest.param(p.stem, marks=[pytest.mark.slow] if p.stem in SLOW else []) for p in sorted(GOLDEN.glob("*.npz"))]


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_torch_and_what_came_in_goes_out(name: str, tmp_path: Path) -> None:
    """float32 in torch is within 1e-5 of float64 (write_torch_golden.py); asked for are 1e-4."""
    theirs, described = golden(name)
    tensors, chosen = filled(described), convention_of(name)
    weights = models.load_pretrained(written(tmp_path / "theirs.safetensors", tensors), chosen)
    assert apart(logits(weights, shown(name)), theirs) < 1e-5
    assert len(weights.rows) == len({row.source for row in weights.rows}) == sum(not n.endswith(COUNTER) for n in tensors)
    saving.export(weights, chosen, tmp_path / "again.safetensors")
    identical(tensors, stored(tmp_path / "again.safetensors"))


class SamePadded(ImageNetStem):
    """TensorFlow's padding of a stride of 2: one pixel fewer before the image than behind it."""

    def __call__(self, x: Any, *, train: bool = False) -> Any:
        x = lax.conv_general_dilated(x, self.conv.kernel[...], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return max_pool(self.after(x, train=train), self.pooled)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("resnet50", {"branch": Bottleneck}),
        ("resnet18", {"stem": SamePadded}),
        ("resnet18", {"stem": CeilPooledStem}),
        ("cifar_resnet20", {"shortcut": ZeroPad}),
    ],
)
def test_a_mistake_that_no_name_and_no_shape_shows_changes_the_logits(name: str, mistake: dict[str, Any], tmp_path: Path) -> None:
    theirs, described = golden(name)
    file = written(tmp_path / "theirs.safetensors", filled(described))
    right = infer(described, CONVENTIONS[convention_of(name)])
    wrong = dataclasses.replace(right, num_classes=len(theirs[0]), **mistake)
    assert wrong != right
    wrongly = models.load_pretrained(file, convention_of(name), network=wrong)
    assert apart(logits(wrongly, shown(name)), theirs) > 1e-3


def test_the_module_that_is_built_gives_the_same_logits(tmp_path: Path) -> None:
    theirs, described = golden("cifar_resnet20")
    weights = models.load_pretrained(written(tmp_path / "x.safetensors", filled(described)), "cifar-torch")
    model = weights.build()
    assert apart(np.asarray(jax.jit(lambda x: model(x))(shown("cifar"))), theirs) < 1e-5
    assert (weights.card.architecture.num_classes, weights.card.convention) == (10, "cifar-torch")


def test_the_real_resnet20_is_read_without_a_remainder(published_resnet20: Path) -> None:
    weights = models.load_pretrained(published_resnet20, "cifar-torch", data="cifar10", claimed_error=8.27)
    # 19 convolutions, 19 normalisations of four tensors, a classifier of two.
    assert len(weights.rows) == 19 + 19 * 4 + 2
    assert sum(leaf.size for leaf in jax.tree.leaves(weights.params)) == 269_722
    assert weights.architecture == dataclasses.replace(variant("cifar_resnet20"), shortcut=configured(ZeroPad, resize="pad-both"))
    card = weights.card
    assert (card.prefix, card.data, card.claimed_error, card.source) == ("module.", "cifar10", 8.27, published_resnet20.name)
    assert card.sha256.startswith("12fca82f"), "torch's model zoo names files by their hash"


# What does not fit.

TINY = filled(shapes())


def file_of(tmp_path: Path, *without: str, rename: dict[str, str] | None = None, **more: Any) -> Path:
    """The tiny network of torchvision, some tensors left out, renamed, or added; underscores of ``more`` are dots where doubled."""
    tensors = {(rename or {}).get(name, name): array for name, array in TINY.items() if name not in without}
    return written(tmp_path / "tiny.safetensors", tensors | {name.replace("__", "."): array for name, array in more.items()})


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        models.load_pretrained(*args, **kwargs)
    return str(caught.value)


def test_everything_that_does_not_fit_is_listed_at_once(tmp_path: Path) -> None:
    file = file_of(
        tmp_path,
        "layer2.0.bn2.bias",
        rename={"bn1.bias": "bn1.biass"},
        layer1__0__bn1__weight=np.ones(5, np.float32),
        surprise=np.ones((2, 3), np.float32),
    )
    said = refused(file, "torchvision")
    assert said.startswith(f"{file}: ")
    assert "nothing was loaded" in said
    assert "2 missing:\n  bn1.bias (4,) (is it bn1.biass?)\n  layer2.0.bn2.bias (8,)" in said
    assert "2 unexpected:\n  bn1.biass (4,)\n  surprise (2, 3)" in said
    assert "1 mis-shaped:\n  layer1.0.bn1.weight (5,), expected (4,)" in said
    assert "--allow-new-head" not in said


@pytest.mark.parametrize(
    "fault",
    [
        {"without": ("layer1.0.bn1.weight",)},
        {"without": ("conv1.weight",)},
        {"more": {"surprise": np.ones(3, np.float32)}},
        {"more": {"fc2__weight": np.ones((3, 8), np.float32)}},
        {"more": {"layer1__0__bn1__weight": np.ones(5, np.float32)}},
        {"more": {"layer7__0__bn1__num_batches_tracked": np.asarray(1)}},
        {"more": {"surprise__num_batches_tracked": np.asarray(1)}},
    ],
)
def test_a_new_head_excuses_nothing_but_the_classifier(fault: dict[str, Any], tmp_path: Path) -> None:
    said = refused(file_of(tmp_path, *fault.get("without", ()), **fault.get("more", {})), "torchvision", num_classes=5, allow_new_head=True)
    assert re.search("missing|unexpected|mis-shaped|no first convolution|stages", said)


@pytest.mark.parametrize(
    ("without", "classes"),
    [((), 5), (("fc.weight", "fc.bias"), 5), (("fc.bias",), 3), (("fc.weight",), 3)],
    ids=["other classes", "no classifier", "no bias", "no kernel"],
)
def test_a_new_head_is_drawn_whole(without: tuple[str, ...], classes: int, tmp_path: Path) -> None:
    """He et al. 2015 initialise fully connected layers as convolutions: normal, variance 2 over the inputs; biases are zero."""
    file = file_of(tmp_path, *without, **({} if without else {"fc__weight": np.full((3, 8), 9.0, np.float32)}))
    assert "fc." in refused(file, "torchvision", num_classes=classes)
    weights = models.load_pretrained(file, "torchvision", num_classes=classes, allow_new_head=True, seed=1, claimed_error=20.0)
    head = {name: np.asarray(array) for name, array in weights.params["head"]["linear"].items()}
    assert not head["bias"].any()
    assert head["kernel"].shape == (8, classes)
    assert 0.2 < head["kernel"].std() < 0.9, "sqrt(2/8) = 0.5, of 24 to 40 numbers"
    assert sorted(row.name for row in weights.rows if not row.source) == ["head/linear/bias", "head/linear/kernel"]
    assert weights.card.claimed_error is None, "which was claimed of the old one"
    again, other = (
        models.load_pretrained(file, "torchvision", num_classes=classes, allow_new_head=True, seed=seed).params["head"]["linear"]["kernel"]
        for seed in (1, 2)
    )
    np.testing.assert_array_equal(head["kernel"], again)
    assert not np.array_equal(head["kernel"], other)
    np.testing.assert_array_equal(np.asarray(weights.params["stem"]["conv"]["kernel"]).transpose(3, 2, 0, 1), TINY["conv1.weight"])


def test_a_new_head_is_he_normal(tmp_path: Path) -> None:
    kernel = models.load_pretrained(file_of(tmp_path), "torchvision", num_classes=4000, allow_new_head=True).params["head"]["linear"][
        "kernel"
    ]
    assert float(jnp.std(kernel)) == pytest.approx(np.sqrt(2 / 8), rel=0.02)
    assert float(jnp.abs(jnp.mean(kernel))) < 0.01


def test_a_head_that_fits_is_kept_though_a_new_one_would_be_allowed(tmp_path: Path) -> None:
    weights = models.load_pretrained(file_of(tmp_path), "torchvision", allow_new_head=True)
    np.testing.assert_array_equal(weights.params["head"]["linear"]["bias"], TINY["fc.bias"])
    assert all(row.source for row in weights.rows)


def test_other_classes_without_leave_for_a_new_head_say_how_to_ask(tmp_path: Path) -> None:
    said = refused(file_of(tmp_path), "torchvision", num_classes=5)
    assert "2 mis-shaped:\n  fc.bias (3,), expected (5,)\n  fc.weight (3, 8), expected (5, 8)" in said
    assert "--allow-new-head" in said
    assert "at least 1" in refused(file_of(tmp_path), "torchvision", num_classes=0, allow_new_head=True)


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("layer1.0.conv1.weight", np.full((4, 4, 3, 3), np.nan, np.float32), "144 of 144 values that are not finite"),
        ("bn1.bias", np.float32([1, np.inf, 0, -np.inf]), "2 of 4 values that are not finite"),
        ("fc.bias", np.float64([1e300, 0, 0]), "1 of 3 values that are not finite"),
        ("layer2.0.bn1.running_var", np.float32([1, 1, 1, -0.25, 1, 1, 1, 1]), "is a variance .* down to -0.25"),
        ("conv1.weight", np.ones((4, 3, 7, 7), np.int8), "holds int8.*quantised"),
        ("fc.bias", np.ones(3, np.int64), "holds int64"),
        ("bn1.weight", np.ones(4, np.bool_), "holds bool"),
    ],
)
def test_values_that_are_no_weights_are_refused_by_name(name: str, array: np.ndarray, reason: str, tmp_path: Path) -> None:
    said = refused(file_of(tmp_path, **{name.replace(".", "__"): array}), "torchvision")
    assert re.search(f"{re.escape(name)} .*{reason}|{re.escape(name)} {reason}", said)


@pytest.mark.parametrize(("count", "reason"), [(np.ones(3), r"has shape \(3,\)"), (np.float32(np.nan), "is nan")])
def test_a_counter_is_one_number(count: Any, reason: str, tmp_path: Path) -> None:
    assert re.search(reason, refused(file_of(tmp_path, bn1__num_batches_tracked=np.asarray(count)), "torchvision"))


def test_without_a_convention_the_message_says_which_fit(tmp_path: Path) -> None:
    said = refused(file_of(tmp_path))
    assert re.search(r"say whose names its tensors have: they fit --as torchvision or timm", said)
    strange = refused(written(tmp_path / "strange.safetensors", {"a.b": np.ones(3, np.float32)}))
    assert "they fit none of torchvision, timm, cifar-torch, caffe, caffe-torch" in strange


AKAMASTER = {name.replace("fc.", "linear.").replace("downsample", "shortcut"): shape for name, shape in shapes(kernel=3).items()}
OPTION_A = {name: shape for name, shape in AKAMASTER.items() if ".shortcut." not in name}


@pytest.mark.parametrize(
    ("theirs", "asked", "fitting"),
    [
        (OPTION_A, "torchvision", "cifar-torch"),
        (OPTION_A, "caffe", "cifar-torch"),
        (AKAMASTER, "timm", "cifar-torch"),
        (shapes(), "cifar-torch", "torchvision or timm"),
        (shapes(), "caffe", "torchvision or timm"),
        (golden("timm_resnet18d")[1], "caffe-torch", "timm"),
    ],
    ids=["A as torchvision", "A as caffe", "B as timm", "torchvision as cifar-torch", "torchvision as caffe", "D as caffe-torch"],
)
def test_the_wrong_convention_is_told_the_right_one(theirs: dict[str, Any], asked: str, fitting: str, tmp_path: Path) -> None:
    said = refused(written(tmp_path / "x.safetensors", filled(theirs)), asked)
    assert f"fit --as {fitting}" in said


def test_an_unknown_convention_is_answered_with_the_nearest(tmp_path: Path) -> None:
    assert "'torchvison' is no naming of weights that is known; did you mean torchvision" in refused(file_of(tmp_path), "torchvison")


def test_another_network_than_the_one_asked_for_is_named(tmp_path: Path) -> None:
    said = refused(written(tmp_path / "x.safetensors", filled(golden("resnet18")[1])), "torchvision", network="resnet34")
    assert "missing" in said
    assert "They are those of resnet18, 1000 classes" in said
    assert "no network is called 'resnet35x'" in refused(file_of(tmp_path), "torchvision", network="resnet35x")


def test_names_may_mean_one_tensor_only_once(tmp_path: Path) -> None:
    tensors = {"conv1/0": np.ones((4, 3, 7, 7), np.float32), "res2b_branch2a/0": np.ones(3, np.float32), "res2b1_branch2a/0": np.ones(3)}
    said = refused(written(tmp_path / "x.safetensors", tensors), "caffe")
    assert re.search("tensors res2b1?_branch2a/0 and res2b1?_branch2a/0 mean the same", said)


# This project's own files.


def own(tmp_path: Path, **view: Any) -> Path:
    weights = models.load_pretrained(file_of(tmp_path), "torchvision", view=view)
    return saving.save(weights, tmp_path / "own.safetensors")


def test_a_file_of_ones_own_needs_no_convention_and_refuses_one(tmp_path: Path) -> None:
    weights = models.load_pretrained(own(tmp_path))
    np.testing.assert_array_equal(weights.params["head"]["linear"]["bias"], TINY["fc.bias"])
    assert re.search("this project's own.*leave out --as torchvision", refused(own(tmp_path), "torchvision"))


def test_a_folder_stands_for_the_file_in_it(tmp_path: Path) -> None:
    saving.save(models.load_pretrained(file_of(tmp_path), "torchvision"), tmp_path / "folder")
    assert models.load_pretrained(tmp_path / "folder").architecture == models.load_pretrained(str(tmp_path / "folder")).architecture
    assert "does not exist" in refused(tmp_path)


def test_a_file_of_ones_own_may_get_a_new_head(tmp_path: Path) -> None:
    weights = models.load_pretrained(own(tmp_path), num_classes=7, allow_new_head=True)
    assert weights.params["head"]["linear"]["kernel"].shape == (8, 7)
    assert weights.architecture.num_classes == 7
    assert "--allow-new-head" in refused(own(tmp_path), num_classes=7)


def test_a_file_of_ones_own_is_not_read_as_a_network_of_the_same_shapes(tmp_path: Path) -> None:
    file = own(tmp_path)
    same = models.load_pretrained(file).architecture
    assert models.load_pretrained(file, network=same).architecture == same
    said = refused(file, network=dataclasses.replace(same, stem=CeilPooledStem))
    assert "of another network than the one given: stem: CeilPooledStem here, ImageNetStem there" in said


def test_a_tensor_missing_in_a_file_of_ones_own_is_named(tmp_path: Path) -> None:
    file = own(tmp_path)
    tensors = stored(file)
    del tensors["params/head/linear/bias"], tensors["batch_stats/stem/after/layers/0/var"]
    said = refused(written(tmp_path / "less.safetensors", tensors, metadata(file)))
    assert "2 missing:\n  params/head/linear/bias (3,)\n  batch_stats/stem/after/layers/0/var (4,)" in said


# How images are shown.


def test_the_view_is_the_conventions_but_for_what_is_given(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    usual = models.load_pretrained(file, "torchvision").card.view
    assert (usual.mean, usual.deviation, usual.resize, usual.crop) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 256, 224)
    given = models.load_pretrained(file, "torchvision", view={"mean": [0.5, 0.5, 0.5], "crop": 192}, data="cifar10").card
    assert given.view == dataclasses.replace(usual, mean=(0.5, 0.5, 0.5), crop=192)
    assert given.data == "cifar10"


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        ({"meen": (0.5,) * 3}, "view has no field 'meen'; did you mean mean"),
        ({"mean": (0.5, 0.5)}, "expected are mean: 3 numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "expected are mean"),
        ({"deviation": (0.5, 0.0, 0.5)}, "expected are deviation: 3 numbers above 0"),
        ({"crop": -1}, "expected are resize and crop"),
    ],
)
def test_a_view_that_makes_no_sense_is_refused(view: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert reason in refused(file_of(tmp_path), "torchvision", view=view)


def test_what_is_claimed_is_a_percentage(tmp_path: Path) -> None:
    assert "claimed_error: 0 to 100 percent" in refused(file_of(tmp_path), "torchvision", claimed_error=108.27)
    assert models.load_pretrained(file_of(tmp_path), "torchvision", claimed_error=0.0).card.claimed_error == 0.0


def test_other_channels_need_a_view_of_as_many(tmp_path: Path) -> None:
    file = written(tmp_path / "grey.safetensors", filled(shapes(kernel=3, channels=1)))
    assert "mean: 1 numbers" in refused(file, "torchvision")
    weights = models.load_pretrained(file, "torchvision", view={"mean": (0.13,), "deviation": (0.3,)})
    assert weights.architecture.input_shape == (32, 32, 1)
    assert weights.architecture.stem is SmallImageStem


def test_a_network_that_cannot_be_built_is_an_error_of_the_user() -> None:
    for fields in ({"stages": (1,)}, {"norm": ImageNetStem}, {"branch": SamePadded}, {"shortcut": GroupNorm}):
        with pytest.raises(UserError):
            abstract(dataclasses.replace(variant("resnet18"), **fields))
