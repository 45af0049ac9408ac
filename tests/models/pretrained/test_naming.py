"""Tensors of a network in torch's names: complete, in torch's shapes, with the right numbers."""

import dataclasses

import jax
import numpy as np
import pytest
from others import COUNTER, convention_of, golden, shapes
from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models.catalog import variant
from resnet_jax.weights import names as names_lib
from resnet_jax.weights.inference import infer
from resnet_jax.weights.loading import abstract
from resnet_jax.weights.names import CONVENTIONS

# Every part of torch's networks; the logits of all golden networks are compared in test_loading.
NAMES = ("cifar_resnet20", "cifar_resnet20_b", "resnet18", "timm_seresnet50", "timm_resnet18d")


def places(architecture: models.Architecture) -> list[names_lib.Place]:
    return names_lib.torch_places(architecture, *abstract(architecture)[1:])


def test_places_are_the_state_dicts_of_torch() -> None:
    for name in NAMES:
        chosen = CONVENTIONS[convention_of(name)]
        theirs = {key: shape for key, shape in golden(name)[1].items() if not key.endswith(COUNTER)}
        network_places = places(infer({chosen.to_torchvision(key) or key: shape for key, shape in theirs.items()}, chosen))
        ours = {chosen.from_torchvision(place.name): place.shape for place in network_places}
        assert len(ours) == len(network_places)
        assert ours == theirs, name


def test_every_array_is_filled_once_and_whole() -> None:
    for branch in ("resnet18", "resnet50"):
        network = variant("resnet18", stages=(2, 4), features=(4, 8), num_classes=3)
        network = dataclasses.replace(network, branch=variant(branch).branch)
        _, params, batch_stats = abstract(network)
        arrays = {
            (part, path): leaf for part, tree in (("params", params), ("batch_stats", batch_stats)) for path, leaf in names_lib.leaves(tree)
        }
        counts = dict.fromkeys(arrays, 0)
        for place in names_lib.torch_places(network, params, batch_stats):
            shape = arrays[place.part, place.path].shape
            target = np.zeros(shape if place.block is None else shape[1:])
            values = np.arange(np.prod(place.shape)).reshape(place.shape)
            target[...] = place.from_file(values)
            np.testing.assert_array_equal(place.to_file(target), values)
            counts[place.part, place.path] += 1
        assert counts == {key: leaf.shape[0] if key[1][0] == "stages" else 1 for key, leaf in arrays.items()}
        assert len(names_lib.own_places(params, batch_stats)) == len(jax.tree.leaves((params, batch_stats)))


def test_blocks_keep_their_order_across_stacks() -> None:
    """torchvision's layer1.0 to layer1.10: the first block, which may have a projection, has a stack of its own."""
    by_name = {place.name: place for place in places(variant("resnet50", stages=(11, 2), features=(4, 8)))}
    assert by_name["layer1.0.conv2.weight"].ours == "stages/0/0/stacked/branch/convs/1/kernel[0]"
    ours = [by_name[f"layer1.{block}.conv2.weight"].ours for block in range(1, 11)]
    assert ours == [f"stages/0/1/stacked/branch/convs/1/kernel[{block}]" for block in range(10)]
    names = list(by_name)
    assert (names[0], names[-2:]) == ("conv1.weight", ["fc.bias", "fc.weight"])
    blocks = [name.split(".")[1] for name in names if name.startswith("layer1.")]
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
    assert (dense.is_head, kernel.is_head) == (True, False)
    frozen = places(dataclasses.replace(network, norm=variant("resnet18", norm="FrozenBatchNorm").norm))
    assert {p.name: p.shape for p in frozen} == {p.name: p.shape for p in by_name.values()}
    assert {p.part for p in frozen if p.name.startswith("bn1.")} == {"batch_stats"}


def test_layers_that_torch_lacks_are_rejected_by_name() -> None:
    for fields, layer in (
        ({"shortcut": "ExclusiveGating"}, "shortcut/gate"),
        ({"shortcut": "ReZero"}, "shortcut/alpha"),
        ({"order": "FullPreactivation"}, "head/before"),
    ):
        with pytest.raises(UserError, match=f"{layer}.* has no counterpart in torch"):
            places(variant("resnet18", stages=(1, 1), features=(4, 8), **fields))


def test_shapes_helper_matches_torchvision() -> None:
    stages, widths = (3, 4, 6, 3), (64, 128, 256, 512)
    assert shapes(stages, widths, bottleneck=True, classes=1000) == golden("resnet50")[1]
    assert shapes(stages, widths, classes=1000) == golden("resnet34")[1]
