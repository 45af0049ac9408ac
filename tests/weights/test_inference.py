"""Inference of a network from names and shapes, and comparison of networks."""

import dataclasses
from typing import Any

import pytest
from others import GOLDEN, convention_of, golden, shapes
from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models.blocks import Basic, BottleneckV15
from resnet_jax.models.catalog import variant
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm
from resnet_jax.models.orders import ReluBeforeAddition
from resnet_jax.models.shortcuts import NoShortcut, Projection, ProjectionEverywhere, ZeroPad
from resnet_jax.models.stems import DeepStem, ImageNetStem, SmallImageStem
from resnet_jax.weights.inference import differing, infer, known_as
from resnet_jax.weights.names import CONVENTIONS

KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("resnet18", "resnet34", "resnext50_32x4d", "resnext101_64x4d", "wide_resnet50_2")},
    **{name: (f"{name}_v15", {}) for name in ("resnet50", "resnet101", "resnet152")},
    "timm_resnet18d": ("resnet18_d", {}),
    "timm_resnet50d": ("resnet50_d", {}),
    "timm_seresnet50": ("resnet50_v15", {"branch": component(BottleneckV15, reduction=16)}),
    "timm_resnext50_32x4d": ("resnext50_32x4d", {}),
    "timm_densenet121": ("densenet121", {}),
    "transformers_resnet18": ("resnet18", {}),
    "transformers_resnet50": ("resnet50_v15", {}),
    "cifar_resnet20": ("cifar_resnet20", {"shortcut": component(ZeroPad, resize="pad-both")}),
    "cifar_resnet20_b": ("cifar_resnet20", {"shortcut": Projection}),
}


def test_golden_networks_are_those_of_the_catalog() -> None:
    assert KNOWN.keys() == {path.stem for path in GOLDEN.glob("*.npz")}
    for name, (network, fields) in KNOWN.items():
        chosen = CONVENTIONS[convention_of(name)]
        inferred = infer({str(chosen.standard(key)): shape for key, shape in golden(name)[1].items()})
        assert differing(inferred, dataclasses.replace(variant(network), **fields)) == {}, name
        assert fields or known_as(inferred) == network
    assert known_as(variant("cifar_resnet20", shortcut="C")) == "cifar_resnet20, shortcut ProjectionEverywhere"


def test_sizes_come_from_the_shapes() -> None:
    network = infer(shapes((2, 3, 1), (4, 8, 6), bottleneck=True, classes=7, channels=4))
    assert (network.stages, network.features, network.num_classes) == ((2, 3, 1), (4, 8, 6), 7)
    assert (network.input_shape, network.stem, network.branch) == ((224, 224, 4), ImageNetStem, BottleneckV15)
    small = infer(shapes((2, 2), (4, 8), kernel=3, channels=1))
    assert (small.input_shape, small.stem, small.branch) == ((32, 32, 1), SmallImageStem, Basic)
    stem = shapes() | {"conv1.weight": (6, 3, 7, 7), "layer1.0.conv1.weight": (4, 6, 3, 3)}
    assert (infer(stem).stem_features, infer(shapes()).stem_features) == (6, 0)


def test_projections_are_where_they_are_stored() -> None:
    for stages, where, expected in (
        ((2, 2), ("layer2.0",), Projection),
        ((2, 2), ("layer1.0", "layer1.1", "layer2.0", "layer2.1"), ProjectionEverywhere),
        ((1, 1), ("layer1.0", "layer2.0"), ProjectionEverywhere),  # the first block changes nothing
    ):
        tensors = shapes(stages, (4, 8), projected=False)
        tensors |= {f"{block}.downsample.0.weight": (8 if block[5] == "2" else 4, 4, 1, 1) for block in where}
        assert infer(tensors).shortcut is expected
    assert infer(shapes((1, 1), (4, 8), bottleneck=True)).shortcut is Projection


def test_tensors_of_no_network_are_rejected() -> None:
    for changed, reason in (
        ({"conv1.weight": None}, "there is no convolution conv1.weight"),
        ({"conv1.weight": (0, 3, 7, 7)}, "there is no convolution conv1.weight"),
        ({"conv1.0.weight": (4, 3, 3, 3)}, "there is no convolution conv1.6.weight"),
        ({"layer1.0.conv1.weight": None}, "there is no convolution layer1.0.conv1.weight"),
        ({"layer1.0.conv2.weight": (4, 4)}, "there is no convolution layer1.0.conv2.weight"),
        ({"layer1.0.se.fc1.weight": ()}, "there is no convolution layer1.0.se.fc1.weight"),
        ({"layer4.0.conv1.weight": (4, 4, 3, 3)}, "there is no convolution layer3.0.conv2.weight"),
        ({f"layer{'1' * 5000}.0.conv1.weight": (4, 4, 3, 3)}, "there is no convolution layer3.0.conv2.weight"),
    ):
        tensors = {name: shape for name, shape in (shapes() | changed).items() if shape is not None}
        with pytest.raises(UserError) as caught:
            infer(tensors)
        assert reason in str(caught.value), changed


def test_networks_differ_in_what_scores_them() -> None:
    base = variant("resnet50_v15")
    for fields, expected in (
        ({"input_shape": (64, 64, 3), "dtype": "bfloat16", "stochastic_depth": models.StochasticDepth(survival=0.5)}, []),
        ({"norm": FrozenBatchNorm, "stem_features": 64, "shortcut": component(base.shortcut)}, []),
        ({"norm": component(BatchNorm, momentum=0.99, group_size=4, epsilon=1e-5)}, []),
        ({"branch": component(BottleneckV15, dropout=0.1, reduction=0, base_width=64, zero_scale=True)}, []),
        ({"stem_features": 32}, ["stem_features"]),
        ({"norm": component(FrozenBatchNorm, epsilon=1e-3)}, ["norm"]),
        ({"norm": component(GroupNorm, num_groups=8)}, ["norm"]),
        ({"order": ReluBeforeAddition, "shortcut": NoShortcut}, ["order", "shortcut"]),
        ({"output_stride": 8, "stem": DeepStem}, ["stem", "output_stride"]),
        ({"num_classes": 3, "stages": (3, 4, 6, 4)}, ["stages", "num_classes"]),
    ):
        other = dataclasses.replace(base, **fields)
        assert list(differing(base, other)) == list(differing(other, base)) == expected, fields
    assert differing(base, variant("resnet50")) == {"branch": "branch: BottleneckV15 here, Bottleneck there"}
