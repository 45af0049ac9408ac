"""Saving weights in this project's format, and exporting them to code bases that have such a network."""

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from others import COUNTER, Tensors, apart, filled, golden, identical, logits, metadata, norm, renamed, shapes, stored, written
from resnet_jax import models
from resnet_jax import weights as weights_lib
from resnet_jax.errors import UserError
from resnet_jax.models.catalog import variant
from resnet_jax.models.norms import FrozenBatchNorm, freeze
from resnet_jax.weights import Card, Pretrained, saving
from resnet_jax.weights.card import IMAGENET_VIEW
from resnet_jax.weights.loading import abstract

TINY = filled(shapes())


def imported(tmp_path: Path, **options: Any) -> Pretrained:
    return weights_lib.load_pretrained(written(tmp_path / "tiny.safetensors", TINY), "torchvision", **options)


def trained(name: str, **fields: Any) -> Pretrained:
    """Weights as of a run, with drawn numbers."""
    network = variant(name, **fields)
    _, *trees = abstract(network)
    rng = np.random.default_rng(0)
    params, batch_stats = (jax.tree.map(lambda leaf: rng.uniform(0.5, 1, leaf.shape).astype(np.float32), tree) for tree in trees)
    return Pretrained(Card(architecture=network, view=IMAGENET_VIEW, source="run, step 7", counters={"": 7.0}), params, batch_stats)


def equal(first: Pretrained, second: Pretrained) -> None:
    assert first.card == second.card
    jax.tree.map(np.testing.assert_array_equal, (first.params, first.batch_stats), (second.params, second.batch_stats))


def test_saved_weights_are_read_back(tmp_path: Path) -> None:
    weights = imported(tmp_path, data="imagenet2012", claimed_error=30.0)
    for to, file in (("a/b/x.safetensors", "a/b/x.safetensors"), ("folder", "folder/model.safetensors")):
        assert saving.save(weights, tmp_path / to) == tmp_path / file
        equal(weights_lib.load_pretrained(tmp_path / to), weights)
        assert [path.name for path in (tmp_path / file).parent.iterdir()] == [Path(file).name]
    dense = trained("cifar_densenet40_12", stages=(1, 2, 1))
    equal(weights_lib.load_pretrained(saving.save(dense, tmp_path / "dense")), dense)
    # Another network may have the same shapes.
    plain = trained("cifar_plain20", stages=(1, 1, 1))
    file = saving.save(plain, tmp_path / "plain")
    with pytest.raises(UserError, match=r"another network: shortcut: ZeroPad here"):
        weights_lib.load_pretrained(file, network=variant("cifar_resnet20", stages=(1, 1, 1)))
    equal(weights_lib.load_pretrained(file, network=plain.architecture), plain)


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = imported(tmp_path)
    file = saving.save(weights, tmp_path / "x.safetensors")
    before = file.read_bytes()

    def full(path: Path, data: bytes) -> None:
        with path.open("wb") as part:
            part.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"x\.safetensors cannot be written \(No space left"):
        saving.save(weights, file)
    with pytest.raises(UserError, match="x.safetensors/model.safetensors cannot be written"):
        saving.save(weights, file / "model.safetensors")
    assert file.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.safetensors", "x.safetensors"]


def first_blocks(name: str, width: int) -> Tensors:
    """A golden network with one block in each of its first two stages, and a classifier of seven classes."""
    kept = {key: shape for key, shape in golden(name)[1].items() if not re.match(r"layer([34]|\d\.[1-9])", key)}
    return filled(kept | {"fc.weight": (7, width), "fc.bias": (7,)})


def test_import_and_export_are_the_identity_bit_for_bit(tmp_path: Path) -> None:
    """Also through this project's format. timm: a deep stem and pooled projections; squeeze-and-excitation."""
    basic = filled(shapes((2, 2), (4, 8), kernel=3, projected=False))
    layers = {
        name: shape
        for name, shape in golden("timm_densenet121")[1].items()
        if not re.search(r"block[2-4]|transition|layer([3-9]|1\d)", name)
    }
    # 64 channels and two layers of growth 32.
    dense = layers | norm("features.norm5", 128) | {"classifier.weight": (7, 128), "classifier.bias": (7,)}
    files = (
        ("torchvision", filled(shapes((2, 1), (4, 8), bottleneck=True))),
        ("torchvision", filled(dense)),
        ("sequential", renamed(filled(shapes()), "sequential")),
        ("transformers", renamed(filled(shapes()), "transformers")),
        ("timm", first_blocks("timm_resnet18d", 128)),
        ("timm", first_blocks("timm_seresnet50", 512)),
        ("cifar-torch", {"module." + name.replace("fc.", "linear."): array for name, array in basic.items()}),
    )
    for (names, tensors), (dtype, counted) in itertools.product(files, ((np.float32, False), (ml_dtypes.bfloat16, True))):
        file = {n: a if n.endswith(COUNTER) else a.astype(dtype) for n, a in tensors.items() if counted or not n.endswith(COUNTER)}
        view = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
        weights = weights_lib.load_pretrained(written(tmp_path / "given.safetensors", file), view=view)
        assert weights.card.convention == names
        again = weights_lib.load_pretrained(saving.save(weights, tmp_path / "own.safetensors"))
        assert again.card == weights.card
        for exported in (weights, again):
            saving.export(exported, names, tmp_path / "out.safetensors")
            identical(file, stored(tmp_path / "out.safetensors"))


def test_exported_run_has_the_tensors_of_torch(tmp_path: Path) -> None:
    """Options of training alone do not prevent an export."""
    options = {"stem_features": 4, "stochastic_depth": models.StochasticDepth(survival=0.5, scaled="training"), "dtype": "bfloat16"}
    options |= {"norm": "BatchNorm(momentum=0.99, group_size=32)", "branch": "BottleneckV15(dropout=0.25, zero_scale=True)"}
    weights = trained("resnet50_v15", stages=(2, 1), features=(4, 8), num_classes=3, **options)
    rows = saving.export(weights, "torchvision", tmp_path / "x.safetensors")
    tensors = stored(tmp_path / "x.safetensors")
    assert {name: array.shape for name, array in tensors.items()} == shapes((2, 1), (4, 8), bottleneck=True)
    counters = {name: array for name, array in tensors.items() if name.endswith(COUNTER)}
    assert {(array.dtype.name, int(array)) for array in counters.values()} == {("int64", 7)}
    assert {row.source for row in rows} == tensors.keys() - counters.keys()
    np.testing.assert_array_equal(tensors["fc.weight"], np.asarray(weights.params["head"]["linear"]["kernel"]).T)
    assert metadata(tmp_path / "x.safetensors")["format"] == "pt"


def test_exported_weights_keep_their_view(tmp_path: Path) -> None:
    whole = weights_lib.View(mean=(0.5, 0.25, 0.125), deviation=(0.5, 0.25, 0.25), resize=235, crop=200, interpolation="bicubic")
    image = dataclasses.replace(whole, mean=tuple(tuple((0.1 * x, 0.2 * y, 0.3) for x in range(2)) for y in range(3)))
    for view in (whole, image):
        weights = imported(tmp_path, view=dataclasses.asdict(view), data="cifar10", claimed_error=8.25)
        for names in ("torchvision", "timm"):
            saving.export(weights, names, tmp_path / "x.safetensors")
            card = weights_lib.load_pretrained(tmp_path / "x.safetensors", names).card
            assert (card.view, card.data, card.claimed_error) == (view, "cifar10", 8.25)
    tensors = stored(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="its card is"):
        weights_lib.load_pretrained(written(tmp_path / "y.safetensors", tensors, {"resnet_jax_exported": '{"view": 3}'}), "timm")


def test_prefix_and_dtypes_of_an_imported_file_are_kept(tmp_path: Path) -> None:
    half = {f"module.{name}": array.astype(np.float16) if array.dtype == np.float32 else array for name, array in TINY.items()}
    path, out = written(tmp_path / "imported.safetensors", half), tmp_path / "x.safetensors"
    weights = weights_lib.load_pretrained(path, "torchvision")
    saving.export(weights, "torchvision", out)
    identical(half, stored(out))
    saving.export(weights, "timm", out, prefix="backbone.")
    tensors = stored(out)
    assert all(name.startswith("backbone.") for name in tensors)
    assert {array.dtype.name for array in tensors.values()} == {"float32", "int64"}
    assert int(tensors["backbone.bn1.num_batches_tracked"]) == int(TINY["bn1.num_batches_tracked"])
    # Double precision comes back rounded; a card cannot make integers of weights.
    double = TINY | {"fc.bias": np.float64([0.1, 0.2, 0.3])}
    weights = weights_lib.load_pretrained(written(path, double), "torchvision")
    saving.export(weights, "torchvision", out)
    np.testing.assert_array_equal(stored(out)["fc.bias"], np.float32([0.1, 0.2, 0.3]).astype(np.float64), strict=True)
    card = dataclasses.replace(weights.card, dtypes={"fc.bias": "int64", "fc.weight": "object", "bn1.weight": "nonsense"})
    saving.export(dataclasses.replace(weights, card=card), "torchvision", out)
    assert {stored(out)[name].dtype for name in card.dtypes} == {np.dtype(np.float32)}


def test_frozen_statistics_are_exported_as_batch_norm(tmp_path: Path) -> None:
    weights = imported(tmp_path)
    params, batch_stats = freeze(weights.params, weights.batch_stats)
    card = dataclasses.replace(weights.card, architecture=dataclasses.replace(weights.architecture, norm=FrozenBatchNorm))
    frozen = Pretrained(card, params, batch_stats)
    saving.export(frozen, "torchvision", tmp_path / "x.safetensors")
    identical(TINY, stored(tmp_path / "x.safetensors"))
    again = weights_lib.load_pretrained(saving.save(frozen, tmp_path / "own"))
    equal(again, frozen)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    assert apart(logits(again, x), logits(weights, x)) < 1e-5
    loaded = weights_lib.load_pretrained(tmp_path / "tiny.safetensors", "torchvision", network=card.architecture)
    jax.tree.map(np.testing.assert_array_equal, (loaded.params, loaded.batch_stats), (params, batch_stats))


def test_export_rejects_networks_that_a_convention_lacks(tmp_path: Path) -> None:
    small: dict[str, Any] = {"stages": (1, 1), "features": (4, 8)}
    cases: list[tuple[str, dict[str, Any], str, str]] = [
        ("resnet50", small, "torchvision", "branch: Bottleneck here, BottleneckV15 there"),
        ("cifar_resnet8", {"stages": (1, 1, 1)}, "cifar-torch", "shortcut: ZeroPad here, ZeroPad(resize='pad-both') there"),
        ("preresnet18", small, "torchvision", "head/before"),
        ("resnet18", small | {"shortcut": "ExclusiveGating"}, "torchvision", "shortcut/gate"),
        ("resnet18", small | {"shortcut": "ReZero"}, "torchvision", "shortcut/alpha"),
        ("resnet18", small | {"norm": "GroupNorm(num_groups=4)"}, "torchvision", "norm: GroupNorm(num_groups=4) here, BatchNorm there"),
        ("resnet18_d", small, "torchvision", "torchvision has no conv1.0"),
        ("resnet18", small | {"branch": "Basic(reduction=4)"}, "torchvision", "torchvision has no layer1.0.se.fc1"),
        ("resnet18", small | {"branch": "Basic(reduction=4)"}, "timm", "multiples of 8 channels"),
        ("resnet18", small | {"stochastic_depth": models.StochasticDepth(survival=0.5)}, "timm", "does not scale branches at test time"),
        ("resnet18", small, "keras", "no convention of names is called 'keras'"),
    ]
    for name, fields, names, reason in cases:
        with pytest.raises(UserError) as caught:
            saving.export(trained(name, **fields), names, tmp_path / "x.safetensors")
        assert reason in str(caught.value), (name, fields)
    assert not list(tmp_path.iterdir())
