"""The tensors of a network under torch's names: none left over, none missing, and the right numbers in each."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from others import COUNTER, GOLDEN, convention_of, golden, shapes

from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models.names import variant
from resnet_jax.models.pretrained import naming
from resnet_jax.models.pretrained.conventions import CONVENTIONS
from resnet_jax.models.pretrained.inference import infer
from resnet_jax.models.pretrained.loading import abstract

NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def places(architecture: models.Architecture) -> list[naming.Place]:
    return naming.torch_places(architecture, *abstract(architecture)[1:])


@pytest.mark.quick(4)
@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_torchs_network_has_its_place_and_every_place_its_tensor(name: str) -> None:
    """Against the state dicts of torchvision, timm and the networks of write_torch_golden.py."""
    chosen = CONVENTIONS[convention_of(name)]
    theirs = {key: shape for key, shape in golden(name)[1].items() if not key.endswith(COUNTER)}
    architecture = infer({chosen.to_torchvision(key) or key: shape for key, shape in theirs.items()}, chosen)
    found = places(architecture)
    ours = {chosen.from_torchvision(place.name, architecture.stages): place.shape for place in found}
    assert len(ours) == len(found)
    assert ours == theirs


def test_there_are_goldens_of_every_kind() -> None:
    assert {convention_of(name) for name in NAMES} == {"torchvision", "timm", "cifar-torch", "caffe-torch"}
    assert len(NAMES) == 15


@pytest.mark.parametrize("bottleneck", [False, True])
def test_every_array_of_ours_is_filled_once_and_whole(bottleneck: bool) -> None:
    """Places written with a number each: every element of every array of the network has exactly one."""
    made = dataclasses.replace(
        variant("resnet18", stages=(2, 4), features=(4, 8), num_classes=3), branch=variant("resnet50" if bottleneck else "resnet18").branch
    )
    _, params, batch_stats = abstract(made)
    trees = {"params": params, "batch_stats": batch_stats}
    counts = {(part, path): 0 for part, tree in trees.items() for path, _ in leaves(tree)}
    whole = {(part, path): leaf.shape for part, tree in trees.items() for path, leaf in leaves(tree)}
    for place in naming.torch_places(made, params, batch_stats):
        target = np.zeros(whole[place.part, place.path] if place.unit is None else whole[place.part, place.path][1:])
        given = np.arange(np.prod(place.shape)).reshape(place.shape)
        target[...] = place.from_file(given)
        np.testing.assert_array_equal(place.to_file(target), given)
        counts[place.part, place.path] += 1
    assert counts == {key: shape[0] if key[1][0] == "stages" else 1 for key, shape in whole.items()}


def test_units_keep_their_order_across_stacks() -> None:
    """torchvision's layer1.0 to layer1.3: our first unit, which may have a projection, lies in a stack of its own."""
    found = {place.name: place for place in places(variant("resnet50", stages=(4, 2), features=(4, 8)))}
    written = [found[f"layer1.{unit}.conv2.weight"].ours for unit in range(4)]
    assert written[0] == "stages/0/0/stacked/branch/convs/1/kernel[0]"
    assert written[1:] == [f"stages/0/1/stacked/branch/convs/1/kernel[{unit}]" for unit in range(3)]


def test_layouts_are_turned_round() -> None:
    """torch: (out, in, height, width) and (out, in); ours: (height, width, in, out) and (in, out)."""
    found = {place.name: place for place in places(variant("resnet18", stages=(1, 1), features=(4, 8), num_classes=3))}
    kernel, dense = found["conv1.weight"], found["fc.weight"]
    assert kernel.shape == (4, 3, 7, 7)
    given = np.random.default_rng(0).standard_normal(kernel.shape)
    assert kernel.from_file(given)[5, 6, 2, 3] == given[3, 2, 5, 6]
    assert dense.from_file(np.arange(24).reshape(3, 8))[7, 2] == 23
    assert found["fc.weight"].is_head
    assert not kernel.is_head


def test_the_order_is_that_of_the_network() -> None:
    names = [place.name for place in places(variant("resnet18", stages=(11, 1), features=(4, 8)))]
    assert names[0] == "conv1.weight"
    assert names[-2:] == ["fc.bias", "fc.weight"]
    units = [name.split(".")[1] for name in names if name.startswith("layer1.")]
    assert list(dict.fromkeys(units)) == [str(unit) for unit in range(11)]


def test_frozen_statistics_have_the_same_names() -> None:
    usual, frozen = (variant("resnet18", stages=(1, 2), features=(4, 8), norm=norm) for norm in ("BatchNorm", "FrozenBatchNorm"))
    assert {p.name: p.shape for p in places(usual)} == {p.name: p.shape for p in places(frozen)}
    assert {p.part for p in places(frozen) if p.name.startswith("bn1.")} == {"batch_stats"}


def test_our_own_names_are_the_paths_of_our_arrays() -> None:
    _, params, batch_stats = abstract(variant("resnet18", stages=(2, 1), features=(4, 8)))
    found = {place.name: place for place in naming.own_places(params, batch_stats)}
    assert found["params/stages/0/0/stacked/branch/convs/0/kernel"].shape == (2, 3, 3, 4, 4)
    assert len(found) == len(jax.tree.leaves((params, batch_stats)))


@pytest.mark.parametrize(
    ("fields", "layer"),
    [
        ({"shortcut": "ExclusiveGating"}, "shortcut/gate"),
        ({"shortcut": "ReZero"}, "shortcut/alpha"),
        ({"order": "FullPreactivation"}, "head/before"),
        ({"order": "NormAfterAddition"}, "after/layers"),
    ],
)
def test_a_layer_that_torchs_networks_do_not_have_is_refused_by_name(fields: dict[str, Any], layer: str) -> None:
    with pytest.raises(UserError, match=f"{layer}.* has no counterpart in torch"):
        places(variant("resnet18", stages=(1, 1), features=(4, 8), **fields))


def test_the_shapes_of_these_tests_are_torchvisions() -> None:
    """`others.shapes` against the state dicts of torchvision: what other tests build upon."""
    stages, widths = (3, 4, 6, 3), (64, 128, 256, 512)
    assert shapes(stages, widths, bottleneck=True, classes=1000) == golden("resnet50")[1]
    assert shapes(stages, widths, classes=1000) == golden("resnet34")[1]


def leaves(tree: Any) -> list[tuple[tuple[Any, ...], Any]]:
    return [(tuple(step.key for step in path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
