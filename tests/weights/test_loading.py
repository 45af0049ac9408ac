"""Loading weights: logits of torch, and files that do not fit rejected as a whole."""

import dataclasses
import json
import sys
import types
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from others import COUNTER, GOLDEN, apart, convention_of, filled, golden, identical, inputs_of, logits, metadata, shapes, stored, written
from resnet_jax import weights as weights_lib
from resnet_jax.errors import UserError
from resnet_jax.models.catalog import variant
from resnet_jax.models.components import component
from resnet_jax.models.norms import GroupNorm
from resnet_jax.models.shortcuts import ZeroPad
from resnet_jax.models.stems import DeepStem, ImageNetStem
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


def test_blocks_keep_their_order_across_stacks(tmp_path: Path) -> None:
    """layer1.0 to layer1.10: the first block, which may have a projection, has a stack of its own."""
    file = written(tmp_path / "deep.safetensors", filled(shapes((11, 2), (4, 8), bottleneck=True)))
    ours = {row.source: row.name for row in weights_lib.load_pretrained(file, "torchvision").rows}
    assert ours["layer1.0.conv2.weight"] == "stages/0/0/stacked/branch/convs/1/kernel[0]"
    for block in range(1, 11):
        assert ours[f"layer1.{block}.conv2.weight"] == f"stages/0/1/stacked/branch/convs/1/kernel[{block - 1}]"


def test_public_resnet20_is_loaded_completely(published_resnet20: Path) -> None:
    weights = weights_lib.load_pretrained(published_resnet20, "cifar-torch")
    # 19 convolutions, 19 normalizations of four tensors, a classifier of two.
    assert len(weights.rows) == 19 + 19 * 4 + 2
    assert sum(leaf.size for leaf in jax.tree.leaves(weights.params)) == 269_722
    assert weights.architecture == dataclasses.replace(variant("cifar_resnet20"), shortcut=component(ZeroPad, resize="pad-both"))
    assert (weights.card.prefix, weights.card.source) == ("module.", published_resnet20.name)
    assert weights.card.sha256.startswith("12fca82f"), "torch's model zoo names files by their hash"


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
    assert "--allow-new-head" not in message
    message = rejection(file_of(tmp_path, **{f"more{n}": np.ones(1, np.float32) for n in range(100)}), "torchvision")
    assert "because 100 tensors do not fit" in message
    assert message.count("\n") == 20


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


def test_prefix_of_every_name_is_removed(tmp_path: Path) -> None:
    for prefix in ("module.", "_orig_mod.", "module.encoder.", ""):
        file = written(tmp_path / "x.safetensors", {prefix + name: array for name, array in TINY.items()})
        weights = weights_lib.load_pretrained(file, "torchvision")
        assert (weights.card.prefix, weights.rows[0].source) == (prefix, f"{prefix}fc.bias")
    queued = {f"encoder.{name}": array for name, array in TINY.items()} | {"queue": np.ones(3, np.float32)}
    assert "\nqueue: (3,), expected none" in rejection(written(tmp_path / "x.safetensors", queued), "torchvision")
    two = {side + name: array for side in ("query.", "key.") for name, array in TINY.items()}
    assert "several networks, under key., query." in rejection(written(tmp_path / "x.safetensors", two), "torchvision")


def test_names_of_another_convention_are_rejected(tmp_path: Path) -> None:
    akamaster = {name.replace("fc.", "linear.").replace("downsample", "shortcut"): shape for name, shape in shapes(kernel=3).items()}
    for theirs, names, reason in (
        (akamaster, "timm", "linear.bias: (3,), expected none"),
        (shapes(), "cifar-torch", "fc.bias: (3,), expected none"),
        (shapes(), "", "give the convention of its names, not ''; there is cifar-torch"),
        ({"a.b": (3,)}, "timm", "there is no convolution conv1.weight"),
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
    small = weights_lib.load_pretrained(written(tmp_path / "small.safetensors", filled(shapes(kernel=3))), "torchvision").card.view
    assert small == dataclasses.replace(IMAGENET_VIEW, resize=0, crop=0), "images of 32x32 pixels stay as they are"
    card = weights_lib.load_pretrained(file, "torchvision", view={"mean": [0.5, 0.5, 0.5], "crop": 192}, data="cifar10").card
    assert (card.view, card.data) == (dataclasses.replace(IMAGENET_VIEW, mean=(0.5, 0.5, 0.5), crop=192), "cifar10")
    assert "expected mean: 3 numbers" in rejection(file, "torchvision", view={"mean": (0.5, 0.5)})
    assert "claimed_error: 0 to 100 percent" in rejection(file, "torchvision", claimed_error=108.27)
    gray = written(tmp_path / "gray.safetensors", filled(shapes(kernel=3, channels=1)))
    assert "mean: 1 numbers" in rejection(gray, "torchvision")
    assert weights_lib.load_pretrained(gray, "torchvision", view={"mean": (0.13,), "deviation": (0.3,)}).card.view.mean == (0.13,)


def test_unbuildable_network_raises_user_error() -> None:
    for fields in ({"stages": (1,)}, {"norm": ImageNetStem}, {"branch": DeepStem}, {"shortcut": GroupNorm}):
        with pytest.raises(UserError):
            loading.abstract(dataclasses.replace(variant("resnet18"), **fields))


TIMM = {"mean": [0.5, 0.25, 0.125], "std": [0.5, 0.5, 0.25], "input_size": [3, 224, 224], "crop_pct": 0.95, "interpolation": "bicubic"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of every repository; the file `downloads` beside it lists downloads."""
    (tmp_path / "hub").mkdir()

    def hf_hub_download(repo_id: str, filename: str) -> str:
        with (tmp_path / "downloads").open("a") as file:
            file.write(f"{repo_id} {filename}\n")
        if not (tmp_path / "hub" / filename).exists():
            raise ConnectionError(f"404 for {filename}")
        return str(tmp_path / "hub" / filename)

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=hf_hub_download))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def test_weights_and_view_come_from_the_hub(hub: Path) -> None:
    """timm resizes to floor(224 / 0.95) = 235 before it crops."""
    assert "ConnectionError('404" in rejection("a/b", "timm")
    written(hub / "model.safetensors", filled(shapes()))
    assert weights_lib.load_pretrained("a/b", "timm").card.view == IMAGENET_VIEW
    for config in ("no JSON", "[1]", "{}"):
        (hub / "config.json").write_text(config)
        assert weights_lib.load_pretrained("a/b", "timm").card.view == IMAGENET_VIEW
    (hub / "config.json").write_text(json.dumps({"pretrained_cfg": TIMM | {"std": [0] * 3}}))
    assert "deviation" in rejection("a/b", "timm")
    (hub / "config.json").write_text(json.dumps({"pretrained_cfg": TIMM}))
    expected = weights_lib.View(mean=(0.5, 0.25, 0.125), deviation=(0.5, 0.5, 0.25), resize=235, crop=224, interpolation="bicubic")
    for source in ("timm/resnet18.a1_in1k", "hf://timm/resnet18.a1_in1k"):
        assert weights_lib.load_pretrained(source, "timm").card.view == expected
    assert (hub.parent / "downloads").read_text().endswith("timm/resnet18.a1_in1k model.safetensors\ntimm/resnet18.a1_in1k config.json\n")
    assert weights_lib.load_pretrained(source, "timm", view={"crop": 200}).card.view == dataclasses.replace(expected, crop=200)
    saving.export(weights_lib.load_pretrained("a/b", "timm", view={"crop": 100}), "timm", hub / "model.safetensors")
    assert weights_lib.load_pretrained("a/b", "timm").card.view.crop == 100, "the file itself goes before its repository"


def test_paths_are_not_hub_names(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = ["runs/x.safetensors", "runs/x.pth", "x", "a/b/c", "./a/b", "../a", "/a/b", "~/b", "a/b.npz", "a/b.pth.tar", "a/", "/b"]
    for source in (*sources, "", "a/b\n", "x" * 5000, Path("timm/resnet18")):
        assert not loading.is_hub_name(source)
    assert "does not exist" in rejection("a/b.npz", "timm")
    folder = hub.parent / "timm" / "resnet18"
    folder.mkdir(parents=True)
    written(folder / "model.safetensors", filled(shapes()))
    assert weights_lib.load_pretrained("timm/resnet18", "timm").card.source == "resnet18"
    assert not (hub.parent / "downloads").exists()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'resnet-jax-lab[hub]'" in rejection("a/b", "timm")
