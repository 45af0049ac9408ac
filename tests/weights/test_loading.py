"""Loading weights: logits of torch, and files that do not fit rejected as a whole."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import resnet_jax
from others import COUNTER, GOLDEN, apart, convention_of, filled, golden, identical, inputs_of, logits, metadata, shapes, stored, written
from resnet_jax import weights as weights_lib
from resnet_jax.errors import UserError
from resnet_jax.models.catalog import variant
from resnet_jax.models.norms import GroupNorm
from resnet_jax.models.stems import DeepStem, ImageNetStem, SmallImageStem
from resnet_jax.weights import loading, saving
from resnet_jax.weights.card import IMAGENET_VIEW

QUICK = ("cifar_resnet20", "resnet18")
NAMES = [pytest.param(p.stem, marks=[] if p.stem in QUICK else pytest.mark.slow) for p in sorted(GOLDEN.glob("*.npz"))]


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_torch_and_export_is_the_identity(name: str, tmp_path: Path) -> None:
    """float32 in torch is within 1e-5 of float64 (``write_torch_golden.py``)."""
    theirs, described = golden(name)
    tensors, chosen = filled(described), convention_of(name)
    weights = weights_lib.load_pretrained(written(tmp_path / "theirs.safetensors", tensors), chosen)
    assert apart(logits(weights, inputs_of(name)), theirs) < 1e-5
    assert len(weights.rows) == len({row.source for row in weights.rows}) == sum(not n.endswith(COUNTER) for n in tensors)
    saving.export(weights, chosen, tmp_path / "again.safetensors")
    identical(tensors, stored(tmp_path / "again.safetensors"))


TINY = filled(shapes())


def file_of(tmp_path: Path, *without: str, **more: Any) -> Path:
    """torchvision's tiny network with tensors left out, replaced or added."""
    tensors = {name: array for name, array in TINY.items() if name not in without}
    return written(tmp_path / "tiny.safetensors", tensors | more)


def rejection(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        weights_lib.load_pretrained(*args, **kwargs)
    return str(caught.value)


def test_tensors_that_do_not_fit_are_listed_at_once(tmp_path: Path) -> None:
    wrong = {"layer1.0.bn1.weight": np.ones(5, np.float32), "surprise\x1b[2J": np.ones((2, 3), np.float32)}
    file = file_of(tmp_path, "layer2.0.bn2.bias", "bn1.bias", **{"bn1.biass": TINY["bn1.bias"]}, **wrong)
    message = rejection(file, "torchvision")
    assert message.startswith(f"{file}: nothing was loaded")
    for line in (
        "bn1.bias: missing, expected (4,)",
        "layer2.0.bn2.bias: missing, expected (8,)",
        "layer1.0.bn1.weight: (5,), expected (4,)",
        "bn1.biass: (4,), expected none",
        "'surprise\\x1b[2J': (2, 3), expected none",
    ):
        assert f"\n{line}" in message
    message = rejection(file_of(tmp_path, **{f"more{n}": np.ones(1, np.float32) for n in range(100)}), "torchvision")
    assert "because 100 tensors do not fit" in message
    assert message.count("\n") == 21
    assert message.endswith("The network fits without them: --no-head")


def test_new_head_excuses_only_the_classifier(tmp_path: Path) -> None:
    ones = np.ones(5, np.float32)
    for without, more in ((["layer1.0.bn1.weight"], {}), ([], {"surprise": ones}), ([], {"layer1.0.bn1.weight": ones})):
        assert "nothing was loaded" in rejection(file_of(tmp_path, *without, **more), "torchvision", num_classes=5, allow_new_head=True)
    message = rejection(file_of(tmp_path), "torchvision", num_classes=5)
    assert "fc.bias: (3,), expected (5,)\nfc.weight: (3, 8), expected (5, 8)" in message
    assert "Only the classifier does not fit: --allow-new-head draws a new one" in message


def test_new_head_is_drawn_as_a_whole(tmp_path: Path) -> None:
    """He et al. 2015b: normal with variance 2 / fan-in; biases are zero."""
    for without, classes in (((), 500), (("fc.weight", "fc.bias"), 500), (("fc.bias",), 3)):
        options: dict[str, Any] = {"num_classes": classes, "allow_new_head": True, "claimed_error": 20.0}
        weights = weights_lib.load_pretrained(file_of(tmp_path, *without), "torchvision", **options)
        head = {name: np.asarray(array) for name, array in weights.params["head"]["linear"].items()}
        assert (head["kernel"].shape, head["bias"].any()) == ((8, classes), np.False_)
        assert not np.array_equal(head["kernel"][:, :3], TINY["fc.weight"].T)
        assert classes == 3 or head["kernel"].std() == pytest.approx(0.5, rel=0.05)
        assert sorted(row.name for row in weights.rows if not row.source) == ["head/linear/bias", "head/linear/kernel"]
        assert weights.card.claimed_error is None, "it was claimed of the old one"
        np.testing.assert_array_equal(np.asarray(weights.params["stem"]["conv"]["kernel"]).transpose(3, 2, 0, 1), TINY["conv1.weight"])
    kept = weights_lib.load_pretrained(file_of(tmp_path), "torchvision", allow_new_head=True)
    np.testing.assert_array_equal(kept.params["head"]["linear"]["bias"], TINY["fc.bias"])


def test_create_model_keeps_the_weights_or_names_the_field_that_changes_them(tmp_path: Path) -> None:
    file, images = str(file_of(tmp_path)), jax.numpy.ones((1, 8, 8, 3))
    whole, tuned, trunk = (resnet_jax.create_model(file, pretrained=True, num_classes=n, rngs=1) for n in (None, 7, 0))
    assert (whole(images).shape, tuned(images).shape) == ((1, 3), (1, 7))
    np.testing.assert_array_equal(whole.head.linear.bias[...], TINY["fc.bias"])
    for model in (tuned, trunk):
        np.testing.assert_array_equal(model.embed(images), whole.embed(images))
    np.testing.assert_array_equal(trunk(images), trunk.embed(images))
    with pytest.raises(UserError, match="do not fit with in_features"):
        resnet_jax.create_model(file, pretrained=True, in_features=1)
    network = weights_lib.load_pretrained(file).architecture
    assert resnet_jax.create_model(network, pretrained=file)(images).shape == (1, 3)
    with pytest.raises(UserError, match="pretrained must be their source"):
        resnet_jax.create_model(network, pretrained=True)
    # Images of small networks are not resized, whatever the shape that the network names.
    small = dataclasses.replace(network, stem=SmallImageStem, input_shape=(8, 8, 3))
    stem = {"conv1.weight": np.ones((4, 3, 3, 3), np.float32)}
    constants = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    view = weights_lib.load_pretrained(file_of(tmp_path, **stem), network=small, view=constants).card.view
    assert (view.resize, view.crop) == (0, 0)
    view = weights_lib.load_pretrained(file_of(tmp_path), network=dataclasses.replace(network, input_shape=(112, 112, 3))).card.view
    assert (view.resize, view.crop) == (128, 112)


def test_file_without_classifier_is_a_network_without_one(tmp_path: Path) -> None:
    weights = weights_lib.load_pretrained(file_of(tmp_path, "fc.weight", "fc.bias"))
    assert (weights.architecture.num_classes, weights.card.data) == (0, "")
    assert [note for note in weights.notes if note.startswith("no classifier: --allow-new-head")]
    again = weights_lib.load_pretrained(saving.save(weights, tmp_path / "own"))
    for network, size in ((again.build(), 8), (again.build(num_classes=5), 5)):
        assert jax.eval_shape(network, jax.ShapeDtypeStruct((2, 64, 64, 3), np.float32)).shape == (2, size)
    with pytest.raises(UserError, match="has no classifier"):
        again.predict(np.zeros((64, 64, 3), np.uint8))
    missing = "fc.bias: missing, expected (1000,)"
    for network, given, text in (("resnet18", {}, missing), ("resnet18", {"no_head": True}, "layer1.1.bn1.weight: missing")):
        message = rejection(tmp_path / "tiny.safetensors", network=network, **given)
        assert text in message
        assert (missing in message) == (not given)


def test_invalid_values_are_rejected_by_name(tmp_path: Path) -> None:
    for name, array, reason in (
        ("layer1.0.conv1.weight", np.full((4, 4, 3, 3), np.nan, np.float32), "has 144 non-finite values of 144"),
        ("bn1.bias", np.float32([1, np.inf, 0, -np.inf]), "has 2 non-finite values of 4"),
        ("fc.bias", np.float64([1e300, 0, 0]), "has 1 non-finite values of 3"),
        ("layer2.0.bn1.running_var", np.float32([1, 1, 1, -0.25, 1, 1, 1, 1]), "is a variance and has negative values"),
        ("conv1.weight", np.ones((4, 3, 7, 7), np.int8), "is int8, not floating point"),
        ("bn1.num_batches_tracked", np.ones(3), "(3,), expected none"),
        ("bn1.num_batches_tracked", np.asarray(np.nan), "counters: numbers"),
    ):
        message = rejection(file_of(tmp_path, **{name: array}), "torchvision")
        assert reason in message
        assert name in message or "counters" in reason
    for dtype in (np.float16, np.float64, ml_dtypes.bfloat16):
        weights = weights_lib.load_pretrained(file_of(tmp_path, **{"fc.bias": np.array([0.5, -2, 0], dtype)}), "torchvision")
        np.testing.assert_array_equal(weights.params["head"]["linear"]["bias"], np.float32([0.5, -2, 0]))


def test_names_of_another_convention_are_rejected(tmp_path: Path) -> None:
    akamaster = {name.replace("fc.", "linear.").replace("downsample", "shortcut"): shape for name, shape in shapes(kernel=3).items()}
    for theirs, names, reason in (
        (akamaster, "timm", "linear.bias: (3,), expected none"),
        (shapes(), "cifar-torch", "fc.bias: (3,), expected none"),
        (shapes(), "resnet-jax", "not a file of this project"),
        ({"a.b": (3,)}, "timm", "has no network in the names of timm, but a.b"),
        (shapes(), "torchvison", "did you mean torchvision"),
    ):
        tensors = {name: np.ones(shape, np.float32) for name, shape in theirs.items()}
        assert reason in rejection(written(tmp_path / "x.safetensors", tensors), names)
    assert "layer1.1.bn1.weight: missing" in rejection(file_of(tmp_path), "torchvision", network="resnet18")
    assert "no network is called 'resnet35x'" in rejection(file_of(tmp_path), "torchvision", network="resnet35x")


def test_file_of_this_project_needs_no_convention(tmp_path: Path) -> None:
    file = saving.save(weights_lib.load_pretrained(file_of(tmp_path), "torchvision"), tmp_path / "folder")
    np.testing.assert_array_equal(weights_lib.load_pretrained(str(file.parent)).params["head"]["linear"]["bias"], TINY["fc.bias"])
    assert "this project wrote it: leave out --as torchvision" in rejection(file, "torchvision")
    assert weights_lib.load_pretrained(file, num_classes=7, allow_new_head=True).params["head"]["linear"]["kernel"].shape == (8, 7)
    tensors = stored(file)
    del tensors["params/head/linear/bias"], tensors["batch_stats/stem/after/layers/0/var"]
    message = rejection(written(tmp_path / "less.safetensors", tensors, metadata(file)))
    assert "params/head/linear/bias: missing, expected (3,)\nbatch_stats/stem/after/layers/0/var: missing, expected (4,)" in message


def test_view_is_the_conventions_except_for_given_fields(tmp_path: Path) -> None:
    file = file_of(tmp_path)
    assert weights_lib.load_pretrained(file, "torchvision").card.view == IMAGENET_VIEW
    card = weights_lib.load_pretrained(file, "torchvision", view={"mean": [0.5, 0.5, 0.5], "crop": 192}, data="cifar10").card
    assert (card.view, card.data) == (dataclasses.replace(IMAGENET_VIEW, mean=(0.5, 0.5, 0.5), crop=192), "cifar10")
    assert "mean: 3 numbers (--mean)" in rejection(file, "torchvision", view={"mean": (0.5, 0.5)})
    assert "claimed_error must be in [0, 100], got 108.27" in rejection(file, "torchvision", claimed_error=108.27)


def test_unbuildable_network_raises_user_error() -> None:
    for fields in ({"stages": (1,)}, {"norm": ImageNetStem}, {"branch": DeepStem}, {"shortcut": GroupNorm}):
        with pytest.raises(UserError):
            loading.abstract(dataclasses.replace(variant("resnet18"), **fields))
