"""Tensors of a network in names of other code bases: complete, in torch's shapes, and back bit for bit."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from others import COUNTER, Shapes, convention_of, filled, golden, identical, norm, shapes, stored, written
from resnet_jax import models
from resnet_jax import weights as weights_lib
from resnet_jax.errors import UserError
from resnet_jax.models.catalog import variant
from resnet_jax.weights import names as names_lib
from resnet_jax.weights import saving
from resnet_jax.weights.inference import infer
from resnet_jax.weights.loading import abstract
from resnet_jax.weights.names import CONVENTIONS


def places(architecture: models.Architecture) -> list[names_lib.Place]:
    return names_lib.torch_places(architecture, names_lib.leaves(*abstract(architecture)[1:]))


def test_places_are_the_state_dicts_of_torch() -> None:
    # Every part of torch's networks; the logits of all golden networks are compared in test_loading.
    for name in ("cifar_resnet20", "cifar_resnet20_b", "timm_seresnet50", "timm_resnet18d"):
        chosen = CONVENTIONS[convention_of(name)]
        theirs = {key: shape for key, shape in golden(name)[1].items() if not key.endswith(COUNTER)}
        network_places = places(infer({chosen.rename(key): shape for key, shape in theirs.items()}, chosen))
        ours = {chosen.rename(place.name): place.shape for place in network_places}
        assert len(ours) == len(network_places)
        assert ours == theirs, name


def test_every_array_is_filled_once_and_whole() -> None:
    network = variant("resnet50", stages=(2, 4), features=(4, 8), num_classes=3)
    _, params, batch_stats = abstract(network)
    arrays = names_lib.leaves(params, batch_stats)
    counts = dict.fromkeys(arrays, 0)
    for place in names_lib.torch_places(network, arrays):
        target = np.zeros(arrays[place.path].shape)[place.index]
        values = np.arange(np.prod(place.shape)).reshape(place.shape)
        target[...] = place.from_file(values)
        np.testing.assert_array_equal(place.to_file(target), values)
        counts[place.path] += 1
    assert counts == {path: leaf.shape[0] if path[1] == "stages" else 1 for path, leaf in arrays.items()}
    assert len(names_lib.own_places(arrays)) == len(jax.tree.leaves((params, batch_stats)))


def test_blocks_keep_their_order_across_stacks() -> None:
    """torchvision's layer1.0 to layer1.10: the first block, which may have a projection, has a stack of its own."""
    by_name = {place.name: place for place in places(variant("resnet50", stages=(11, 2), features=(4, 8)))}
    assert by_name["layer1.0.conv2.weight"].ours == "stages/0/0/stacked/branch/convs/1/kernel[0]"
    ours = [by_name[f"layer1.{block}.conv2.weight"].ours for block in range(1, 11)]
    assert ours == [f"stages/0/1/stacked/branch/convs/1/kernel[{block}]" for block in range(10)]
    blocks = [name.split(".")[1] for name in by_name if name.startswith("layer1.")]
    assert list(dict.fromkeys(blocks)) == [str(block) for block in range(11)]


def test_layouts_are_converted() -> None:
    """torch: (out, in, height, width) and (out, in); ours: (height, width, in, out) and (in, out)."""
    network = variant("resnet18", stages=(1, 2), features=(4, 8), num_classes=3)
    by_name = {place.name: place for place in places(network)}
    kernel, dense = by_name["conv1.weight"], by_name["fc.weight"]
    values = np.random.default_rng(0).standard_normal(kernel.shape)
    assert kernel.shape == (4, 3, 7, 7)
    assert kernel.from_file(values)[5, 6, 2, 3] == values[3, 2, 5, 6]
    assert dense.from_file(np.arange(24).reshape(3, 8))[7, 2] == 23
    frozen = places(dataclasses.replace(network, norm=variant("resnet18", norm="FrozenBatchNorm").norm))
    assert {p.name: p.shape for p in frozen} == {p.name: p.shape for p in by_name.values()}
    assert {p.path[0] for p in frozen if p.name.startswith("bn1.")} == {"batch_stats"}


def test_layers_that_torch_lacks_are_rejected_by_name() -> None:
    for fields, layer in (
        ({"shortcut": "ExclusiveGating"}, "shortcut/gate"),
        ({"shortcut": "ReZero"}, "shortcut/alpha"),
        ({"order": "FullPreactivation"}, "head/before"),
    ):
        with pytest.raises(UserError, match=f"{layer}.* has no counterpart in torch"):
            places(variant("resnet18", stages=(1, 1), features=(4, 8), **fields))


def test_import_and_export_are_the_identity_bit_for_bit(tmp_path: Path) -> None:
    """Also through this project's format."""
    stages = (2, 1)
    basic = filled(shapes((2, 2), (4, 8), kernel=3, projected=False))
    files = {
        "torchvision": filled(shapes(stages, (4, 8), bottleneck=True)),
        "timm": filled(deep(stages)),
        "cifar-torch": {"module." + name.replace("fc.", "linear."): array for name, array in basic.items()},
    }
    assert files.keys() == CONVENTIONS.keys()
    for (names, tensors), (dtype, counted) in itertools.product(files.items(), ((np.float32, False), (ml_dtypes.bfloat16, True))):
        file = {n: a if n.endswith(COUNTER) else a.astype(dtype) for n, a in tensors.items() if counted or not n.endswith(COUNTER)}
        weights = weights_lib.load_pretrained(written(tmp_path / "given.safetensors", file), names)
        saving.export(weights, names, tmp_path / "out.safetensors")
        identical(file, stored(tmp_path / "out.safetensors"))
        again = weights_lib.load_pretrained(saving.save(weights, tmp_path / "own.safetensors"))
        assert again.card == weights.card
        saving.export(again, names, tmp_path / "again.safetensors")
        identical(file, stored(tmp_path / "again.safetensors"))


def deep(stages: Sequence[int]) -> Shapes:
    """timm's names for a deep stem, pooled projections and squeeze-and-excitation."""
    plain = shapes(stages, (8, 16), bottleneck=True)
    del plain["conv1.weight"]
    state: Shapes = {}
    for place, (inputs, outputs) in zip((0, 3, 6), itertools.pairwise((3, 4, 4, 8)), strict=True):
        state[f"conv1.{place}.weight"] = (outputs, inputs, 3, 3)
    state |= norm("conv1.1", 4) | norm("conv1.4", 4)
    for name, shape in plain.items():
        state[name.replace(".downsample.1", ".downsample.2").replace(".downsample.0", ".downsample.1")] = shape
        if name.endswith(".bn3.bias"):
            (wide,), block = shape, name.removesuffix("bn3.bias")
            state |= {f"{block}se.fc1.weight": (wide // 4, wide, 1, 1), f"{block}se.fc1.bias": (wide // 4,)}
            state |= {f"{block}se.fc2.weight": (wide, wide // 4, 1, 1), f"{block}se.fc2.bias": (wide,)}
    return state
