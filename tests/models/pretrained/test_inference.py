"""Which network names and shapes make, and what is said of it."""

import dataclasses
from typing import Any

import pytest
from others import GOLDEN, convention_of, golden, shapes

from resnet_jax import models
from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models.branches import Basic, Bottleneck, BottleneckV15
from resnet_jax.models.names import variant
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm
from resnet_jax.models.pretrained.conventions import CONVENTIONS
from resnet_jax.models.pretrained.inference import compared, differing, infer, known_as, said
from resnet_jax.models.shortcuts import PooledProjection, Projection, ProjectionEverywhere, ZeroPad
from resnet_jax.models.stems import CeilPooledStem, DeepStem, ImageNetStem, SmallImageStem

TORCHVISION = CONVENTIONS["torchvision"]


def inferred(name: str) -> models.Architecture:
    chosen = CONVENTIONS[convention_of(name)]
    return infer({chosen.to_torchvision(key) or key: shape for key, shape in golden(name)[1].items()}, chosen)


@pytest.mark.parametrize(
    ("name", "network", "fields"),
    [
        ("resnet18", "resnet18", {}),
        ("resnet34", "resnet34", {}),
        ("resnet50", "resnet50_v15", {}),
        ("resnet101", "resnet101_v15", {}),
        ("resnet152", "resnet152_v15", {}),
        ("resnext50_32x4d", "resnext50_32x4d", {}),
        ("resnext101_64x4d", "resnext101_64x4d", {}),
        ("wide_resnet50_2", "wide_resnet50_2", {}),
        ("timm_resnet18d", "resnet18_d", {}),
        ("timm_resnet50d", "resnet50_d", {}),
        ("timm_seresnet50", "resnet50_v15", {"branch": configured(BottleneckV15, reduction=16)}),
        ("timm_resnext50_32x4d", "resnext50_32x4d", {}),
        ("caffe_resnet50", "resnet50", {"stem": CeilPooledStem}),
        ("cifar_resnet20", "cifar_resnet20", {"shortcut": configured(ZeroPad, resize="pad-both")}),
        ("cifar_resnet20_b", "cifar_resnet20", {"shortcut": Projection}),
    ],
)
def test_the_golden_networks_are_those_of_the_catalog(name: str, network: str, fields: dict[str, Any]) -> None:
    assert differing(inferred(name), dataclasses.replace(variant(network), **fields)) == []
    assert (GOLDEN / f"{name}.npz").exists()


def test_sizes_come_from_the_shapes() -> None:
    found = infer(shapes((2, 3, 1), (4, 8, 6), bottleneck=True, classes=7, channels=4), TORCHVISION)
    assert (found.stages, found.features, found.num_classes) == ((2, 3, 1), (4, 8, 6), 7)
    assert (found.input_shape, found.stem, found.branch) == ((224, 224, 4), ImageNetStem, BottleneckV15)
    small = infer(shapes((2, 2), (4, 8), kernel=3, channels=1), TORCHVISION)
    assert (small.input_shape, small.stem, small.branch) == ((32, 32, 1), SmallImageStem, Basic)


@pytest.mark.parametrize(
    ("stages", "where", "expected"),
    [
        ((2, 2), ("layer2.0",), Projection),
        ((2, 2), ("layer1.0", "layer1.1", "layer2.0", "layer2.1"), ProjectionEverywhere),
        # A first unit that changes nothing and has a projection all the same.
        ((1, 1), ("layer1.0", "layer2.0"), ProjectionEverywhere),
        ((1, 1), ("layer2.0",), Projection),
    ],
)
def test_projections_are_where_they_are_stored(stages: tuple[int, ...], where: tuple[str, ...], expected: Any) -> None:
    found = {name: shape for name, shape in shapes(stages, (4, 8)).items() if ".downsample." not in name}
    found |= {f"{unit}.downsample.0.weight": (8 if unit[5] == "2" else 4, 4, 1, 1) for unit in where}
    assert infer(found, TORCHVISION).shortcut is expected


def test_bottlenecks_of_one_unit_a_stage_have_one_projection_each_whatever_it_is_called() -> None:
    assert infer(shapes((1, 1), (4, 8), bottleneck=True), TORCHVISION).shortcut is Projection


def test_a_stem_of_another_width_is_said() -> None:
    found = shapes((1, 1), (4, 8))
    found |= {"conv1.weight": (6, 3, 7, 7), "layer1.0.conv1.weight": (4, 6, 3, 3)}
    assert infer(found, TORCHVISION).stem_features == 6
    assert infer(shapes((1, 1), (4, 8)), TORCHVISION).stem_features == 0


def test_what_timm_alone_has_is_told_to_be_timms() -> None:
    for name, what in (("timm_resnet18d", "deep stem"), ("timm_seresnet50", "squeeze-and-excitation")):
        with pytest.raises(UserError, match=rf"torchvision has no {what}: those are timm's names \(--as timm\)"):
            infer(golden(name)[1], TORCHVISION)
    assert inferred("timm_resnet18d").stem is DeepStem
    assert inferred("timm_resnet18d").shortcut is PooledProjection


HUGE = 2**60


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"conv1.weight": None}, r"no first convolution \(conv1.weight\)"),
        ({"conv1.weight": (4,)}, "no first convolution"),
        ({"conv1.weight": (0, 3, 7, 7)}, "no first convolution"),
        ({"conv1.0.weight": (4, 3, 3, 3)}, "no first convolution"),
        ({"layer1.0.conv1.weight": None}, "layer1.0.conv1.weight and layer1.0.conv2.weight are not both there"),
        ({"layer1.0.conv2.weight": (4, 4)}, "not both there"),
        ({"layer1.0.conv2.weight": (4, 0, 3, 3)}, "every size is at least 1"),
        ({"layer2.0.conv2.weight": None}, r"channels wide: conv2.weight is missing in one"),
        ({"layer2.0.conv2.weight": ()}, "missing in one|channels wide"),
        ({"layer4.0.conv1.weight": (4, 4, 3, 3)}, r"stages \[1, 2, 4\] are not 1, 2"),
        ({"layer0.0.conv1.weight": (4, 4, 3, 3)}, r"stages \[0, 1, 2\] are not 1, 2"),
        ({"layer9999.0.conv1.weight": (4, 4, 3, 3)}, "are not 1, 2"),
        ({"layer1.7.conv1.weight": (4, 4, 3, 3)}, "units are missing: layer1.1"),
        ({"layer1.999999.conv1.weight": (4, 4, 3, 3)}, "units are missing: layer1.1"),
    ],
)
def test_what_makes_no_network_is_refused(changed: dict[str, Any], reason: str) -> None:
    found = {name: shape for name, shape in (shapes() | changed).items() if shape is not None}
    with pytest.raises(UserError, match=reason):
        infer(found, TORCHVISION)


def test_a_scalar_where_squeeze_and_excitation_is_expected_is_no_crash() -> None:
    found = infer(shapes() | {"layer1.0.se.fc1.weight": ()}, CONVENTIONS["timm"])
    assert found.branch == configured(Basic, reduction=4)


def test_nothing_at_all_makes_no_network() -> None:
    with pytest.raises(UserError, match="no stages layer1, layer2"):
        infer({}, TORCHVISION)


def test_names_with_more_digits_than_any_network_has_are_not_read_as_numbers() -> None:
    found = infer(shapes() | {f"layer{'1' * 5000}.0.conv1.weight": (4, 4, 3, 3), f"layer1.{'0' * 5000}.x": ()}, TORCHVISION)
    assert found == infer(shapes(), TORCHVISION)


# What makes two networks one.

BASE = variant("resnet50_v15")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"input_shape": (64, 64, 3)}, []),
        ({"dtype": "bfloat16"}, []),
        ({"stochastic_depth": models.StochasticDepth(survival=0.5)}, []),
        ({"norm": FrozenBatchNorm}, []),
        ({"norm": configured(BatchNorm, momentum=0.99, group_size=4, epsilon=1e-5)}, []),
        ({"branch": configured(BottleneckV15, dropout=0.1, reduction=0, base_width=64)}, []),
        ({"stem_features": 64}, []),
        ({"stem_features": 32}, ["stem_features"]),
        ({"norm": configured(BatchNorm, epsilon=1e-3)}, ["norm"]),
        ({"norm": configured(FrozenBatchNorm, epsilon=1e-3)}, ["norm"]),
        ({"norm": configured(GroupNorm, num_groups=8)}, ["norm"]),
        ({"branch": Bottleneck}, ["branch"]),
        ({"output_stride": 8, "stem": CeilPooledStem}, ["stem", "output_stride"]),
        ({"num_classes": 3}, ["num_classes"]),
        ({"stages": (3, 4, 6, 4)}, ["stages"]),
    ],
)
def test_networks_differ_in_what_scores_them(fields: dict[str, Any], expected: list[str]) -> None:
    other = dataclasses.replace(BASE, **fields)
    assert differing(BASE, other) == differing(other, BASE) == expected


def test_a_class_without_arguments_is_that_class() -> None:
    assert differing(BASE, dataclasses.replace(BASE, shortcut=configured(BASE.shortcut))) == []


def test_fields_are_said_as_the_command_line_takes_them() -> None:
    assert said(BASE, "stages") == "3 4 6 3"
    assert said(BASE, "branch") == "BottleneckV15"
    assert said(BASE, "num_classes") == "1000"
    assert compared(BASE, variant("resnet50"), ["branch"]) == "branch: BottleneckV15 here, Bottleneck there"


@pytest.mark.parametrize(
    ("architecture", "expected"),
    [
        (variant("resnet50"), "resnet50"),
        (variant("resnet50_v15", num_classes=7), "resnet50_v15"),
        (variant("resnet50", stem="CeilPooledStem"), "resnet50, stem CeilPooledStem"),
        (variant("cifar_resnet20", shortcut="C"), "cifar_resnet20, shortcut ProjectionEverywhere"),
        (variant("resnet18", stem_features=32), "resnet18, stem_features 32"),
        (variant("resnet18", output_stride=8), "resnet18, output_stride 8"),
        (variant("resnet18", stages=(1, 2, 3, 4)), "a network of (1, 2, 3, 4) units, (64, 128, 256, 512) wide"),
    ],
)
def test_a_network_is_called_by_its_nearest_name(architecture: models.Architecture, expected: str) -> None:
    assert known_as(architecture) == expected
