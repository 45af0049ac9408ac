"""Names of other code bases: round trips bit for bit, and defaults that no name shows."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from others import COUNTER, Shapes, filled, identical, norm, shapes, stored, written
from resnet_jax import weights as weights_lib
from resnet_jax.errors import UserError
from resnet_jax.weights import saving
from resnet_jax.weights.names import CONVENTIONS, convention


def test_akamaster_names() -> None:
    chosen = CONVENTIONS["cifar-torch"]
    for theirs, ours in {
        "linear.weight": "fc.weight",
        "linear.bias": "fc.bias",
        "layer2.0.shortcut.0.weight": "layer2.0.downsample.0.weight",
        "layer2.0.shortcut.1.running_var": "layer2.0.downsample.1.running_var",
        "layer1.2.bn1.weight": "layer1.2.bn1.weight",
        "conv1.weight": "conv1.weight",
    }.items():
        assert (chosen.rename(theirs), chosen.rename(ours)) == (ours, theirs)


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


def test_unknown_convention_names_the_nearest() -> None:
    with pytest.raises(UserError, match="not 'torchvison'; did you mean torchvision"):
        convention("torchvison")
