"""Depth, width and variant to a network, as the papers' tables and rules say it; what is none of them is answered in one sentence."""

import dataclasses
from typing import Any

import pytest

from resnet_jax.configured import Factory, configured
from resnet_jax.errors import UserError
from resnet_jax.models import (
    Architecture,
    StochasticDepth,
    cifar_architecture,
    densenet_architecture,
    imagenet_architecture,
    wide_architecture,
)
from resnet_jax.models.branches import Basic, Bottleneck, BottleneckV15, Branch, SingleLayer
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import FullPreactivation, Original
from resnet_jax.models.shortcuts import Concatenation, NoShortcut, Projection, ProjectionEverywhere, ZeroPad
from resnet_jax.models.stems import ImageNetStem, SmallImageStem
from resnet_jax.models.transitions import DenseTransition, NoTransition

# He et al. 2015, Table 1; ResNet-200 is He et al. 2016's, Section 4.2.
TABLE_1: dict[int, tuple[Factory, tuple[int, ...]]] = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}
# What every network has where its paper says nothing else.
PLAIN: dict[str, Any] = dict(
    stem_features=0,
    order=Original,
    norm=BatchNorm,
    transition=NoTransition,
    stochastic_depth=StochasticDepth(survival=1.0),
    output_stride=0,
    dtype="float32",
)


def test_branches_are_figure_5s() -> None:
    """He et al. 2015: two 3x3; 1x1, 3x3 and 1x1 to four times the width, the stride in the first 1x1, of v1.5 in the 3x3."""
    assert configured(Branch, kernels=(3, 3)) == Basic
    assert configured(Branch, kernels=(1, 3, 1), expansion=4) == Bottleneck
    assert configured(Branch, kernels=(1, 3, 1), expansion=4, stride_at=1) == BottleneckV15
    assert configured(Branch, kernels=(3,)) == SingleLayer


@pytest.mark.parametrize(("depth", "n"), [(8, 1), (20, 3), (32, 5), (44, 7), (56, 9), (110, 18), (1202, 200)])
def test_cifar_networks_are_those_of_section_4_2(depth: int, n: int) -> None:
    """6n+2 layers, 16, 32 and 64 filters, option A in all of them."""
    assert cifar_architecture(depth) == Architecture(
        **PLAIN,
        stages=(n, n, n),
        features=(16, 32, 64),
        branch=Basic,
        shortcut=ZeroPad,
        stem=SmallImageStem,
        input_shape=(32, 32, 3),
        num_classes=10,
    )


@pytest.mark.parametrize(
    ("depth", "branch", "n"),
    [
        (164, Bottleneck, 18),
        (1001, Bottleneck, 111),
        (29, BottleneckV15, 3),
        (110, SingleLayer, 36),
        (11, Bottleneck, 1),
        (5, SingleLayer, 1),
        (14, configured(Branch, kernels=(3, 1, 3, 1)), 1),
        (8, Branch, 1),
    ],
    ids=str,
)
def test_depth_counts_the_branchs_convolutions(depth: int, branch: Factory, n: int) -> None:
    """9n+2 for bottlenecks (He et al. 2016, Section 5: 164, 1001), 3n+2 for single layers (Table 3), two for a branch that says nothing."""
    assert cifar_architecture(depth, branch=branch).stages == (n, n, n)


@pytest.mark.parametrize("depth", TABLE_1)
def test_imagenet_networks_are_those_of_table_1(depth: int) -> None:
    """Option B where nothing else is said (Section 4.1: ResNet-50/101/152 use it); the stride in the first 1x1 as in the paper."""
    branch, stages = TABLE_1[depth]
    assert imagenet_architecture(depth) == Architecture(
        **PLAIN,
        stages=stages,
        features=(64, 128, 256, 512),
        branch=branch,
        shortcut=Projection,
        stem=ImageNetStem,
        input_shape=(224, 224, 3),
        num_classes=1000,
    )
    v15 = BottleneckV15 if branch is Bottleneck else Basic
    assert imagenet_architecture(depth, stride_in_1x1=False) == dataclasses.replace(imagenet_architecture(depth), branch=v15)


@pytest.mark.parametrize(
    ("depth", "widen", "n", "features"),
    [
        (40, 1, 6, (16, 32, 64)),
        (40, 4, 6, (64, 128, 256)),
        (28, 10, 4, (160, 320, 640)),
        (16, 8, 2, (128, 256, 512)),
        (52, 1, 8, (16, 32, 64)),
        (10, 3, 1, (48, 96, 192)),
    ],
)
def test_wide_networks_are_those_of_1605_07146(depth: int, widen: int, n: int, features: tuple[int, ...]) -> None:
    """Table 1: a stem of 16, groups of N = (depth - 4) / 6 units B(3, 3) of 16k, 32k and 64k; pre-activated, projected."""
    assert wide_architecture(depth, widen) == Architecture(
        **PLAIN | {"stem_features": 16, "order": FullPreactivation},
        stages=(n, n, n),
        features=features,
        branch=Basic,
        shortcut=Projection,
        stem=SmallImageStem,
        input_shape=(32, 32, 3),
        num_classes=10,
    )


@pytest.mark.parametrize(("depth", "growth", "n", "bottleneck"), [(100, 12, 16, True), (250, 24, 41, True), (40, 12, 12, False)])
def test_dense_networks_are_those_of_1608_06993(depth: int, growth: int, n: int, bottleneck: bool) -> None:
    """Section 3: three equal blocks; BC has 1x1 convolutions to 4k, halving transitions and a stem of 2k, the plain one a stem of 16."""
    assert densenet_architecture(depth, growth, bottleneck=bottleneck) == Architecture(
        **PLAIN
        | {
            "stem_features": 2 * growth if bottleneck else 16,
            "order": FullPreactivation,
            "transition": configured(DenseTransition, compression=0.5 if bottleneck else 1.0),
        },
        stages=(n, n, n),
        features=(growth, growth, growth),
        branch=configured(Branch, kernels=(1, 3), base_width=4 * 64) if bottleneck else configured(Branch, kernels=(3,)),
        shortcut=Concatenation,
        stem=SmallImageStem,
        input_shape=(32, 32, 3),
        num_classes=10,
    )


@pytest.mark.parametrize(
    ("depth", "stages", "growth"),
    [(121, (6, 12, 24, 16), 32), (169, (6, 12, 32, 32), 32), (201, (6, 12, 48, 32), 32), (161, (6, 12, 36, 24), 48)],
)
def test_imagenet_dense_networks_are_those_of_table_1(depth: int, stages: tuple[int, ...], growth: int) -> None:
    found = densenet_architecture(depth, imagenet=True)
    assert (found.stages, found.features, found.stem_features) == (stages, (growth,) * 4, 2 * growth)
    assert (found.stem, found.input_shape, found.num_classes) == (ImageNetStem, (224, 224, 3), 1000)
    assert found.transition == configured(DenseTransition, compression=0.5)
    assert densenet_architecture(depth, 16, imagenet=True).features == (16,) * 4
    # Layers: the stem, two a unit, three transitions, the classifier.
    assert 1 + 2 * sum(stages) + 3 + 1 == depth


def test_further_fields_replace_the_papers() -> None:
    ours = cifar_architecture(
        14, shortcut=ProjectionEverywhere, num_classes=100, features=(4, 8, 8), input_shape=(8, 8, 1), dtype="bfloat16"
    )
    assert (ours.stages, ours.shortcut, ours.num_classes) == ((2, 2, 2), ProjectionEverywhere, 100)
    assert (ours.features, ours.input_shape, ours.dtype) == ((4, 8, 8), (8, 8, 1), "bfloat16")
    theirs = imagenet_architecture(18, shortcut=NoShortcut, num_classes=7)
    assert (theirs.shortcut, theirs.num_classes, theirs.stages) == (NoShortcut, 7, (2, 2, 2, 2))
    wide = wide_architecture(16, 2, branch=configured(Basic, dropout=0.3), shortcut=ZeroPad, features=(4, 8, 8))
    assert (wide.branch, wide.shortcut, wide.features) == (configured(Branch, kernels=(3, 3), dropout=0.3), ZeroPad, (4, 8, 8))
    dense = densenet_architecture(40, 12, bottleneck=False, num_classes=100, transition=configured(DenseTransition, compression=0.25))
    assert (dense.num_classes, dense.transition) == (100, configured(DenseTransition, compression=0.25))


def said(build: Any, *args: Any, **kwargs: Any) -> str:
    """What a refusal says: one sentence, one line."""
    with pytest.raises(UserError) as error:
        build(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 9, 21, 1000])
def test_a_cifar_depth_that_is_not_6n_plus_2_is_refused_with_those_that_are(depth: int) -> None:
    assert said(cifar_architecture, depth) == (f"depth {depth} is not 6n+2: CIFAR networks of this branch have 8, 14, 20, 26, ... layers")


@pytest.mark.parametrize(
    ("depth", "branch", "message"),
    [
        (1202, Bottleneck, "depth 1202 is not 9n+2: CIFAR networks of this branch have 11, 20, 29, 38, ... layers"),
        (2, Bottleneck, "depth 2 is not 9n+2: CIFAR networks of this branch have 11, 20, 29, 38, ... layers"),
        (111, SingleLayer, "depth 111 is not 3n+2: CIFAR networks of this branch have 5, 8, 11, 14, ... layers"),
    ],
    ids=["bottleneck", "no unit", "single layer"],
)
def test_a_cifar_depth_that_does_not_fit_the_branch_is_refused(depth: int, branch: Factory, message: str) -> None:
    assert said(cifar_architecture, depth, branch=branch) == message


@pytest.mark.parametrize("depth", [0, 20, 51, 1202])
def test_an_imagenet_depth_that_is_not_in_table_1_is_refused_with_those_that_are(depth: int) -> None:
    assert said(imagenet_architecture, depth) == f"depth {depth}: the ImageNet networks have 18, 34, 50, 101, 152, 200 layers"


@pytest.mark.parametrize("depth", [-2, 4, 9, 20, 27, 29])
def test_a_wide_depth_that_is_not_6n_plus_4_is_refused(depth: int) -> None:
    assert said(wide_architecture, depth, 2) == f"depth {depth} is not 6n+4: Wide ResNets have 10, 16, 22, 28, 34, 40, ... layers"


@pytest.mark.parametrize("widen", [0, -1])
def test_a_network_less_than_once_as_wide_is_refused(widen: int) -> None:
    assert f"widen={widen}" in said(wide_architecture, 16, widen)


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((39, 12), {"bottleneck": False}, ("depth 39", "DenseNet for", "3n+4")),
        ((4, 12), {"bottleneck": False}, ("depth 4", "3n+4")),
        ((43, 12), {}, ("depth 43", "DenseNet-BC", "6n+4")),
        ((4, 12), {}, ("depth 4", "6n+4")),
        ((100,), {}, ("growth None", "growth rate")),
        ((100,), {"imagenet": True}, ("depth 100: the ImageNet DenseNets have 121, 161, 169, 201 layers",)),
    ],
)
def test_a_dense_depth_or_growth_that_is_none_is_refused(arguments: Any, options: Any, words: tuple[str, ...]) -> None:
    message = said(densenet_architecture, *arguments, **options)
    assert all(word in message for word in words), message


def test_a_field_that_no_architecture_has_is_refused() -> None:
    with pytest.raises(TypeError, match="classes"):
        cifar_architecture(8, classes=3)
