"""Networks by depth and width against the papers' tables and rules; invalid depths are rejected in one sentence."""

import dataclasses
from typing import Any

import pytest
from resnet_jax.errors import UserError
from resnet_jax.models import (
    Architecture,
    StochasticDepth,
    cifar_architecture,
    densenet_architecture,
    imagenet_architecture,
    wide_architecture,
)
from resnet_jax.models.blocks import Basic, Bottleneck, BottleneckV15, Branch, SingleLayer
from resnet_jax.models.components import Factory, component
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import FullPreactivation, Original
from resnet_jax.models.shortcuts import Concatenation, NoShortcut, Projection, ProjectionEverywhere, ZeroPad
from resnet_jax.models.stems import DenseTransition, ImageNetStem, NoTransition, SmallImageStem

# He et al. 2015, Table 1; ResNet-200 is He et al. 2016's, Section 4.2.
TABLE_1: dict[int, tuple[Factory, tuple[int, ...]]] = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}
# Fields of every network whose paper does not state others.
PLAIN: dict[str, Any] = dict(
    stem_features=0,
    order=Original,
    norm=BatchNorm,
    transition=NoTransition,
    stochastic_depth=StochasticDepth(survival=1.0),
    output_stride=0,
    dtype="float32",
)
SMALL_IMAGES: dict[str, Any] = PLAIN | dict(stem=SmallImageStem, input_shape=(32, 32, 3), num_classes=10)


def test_branches_are_figure_5s() -> None:
    """He et al. 2015: two 3x3; 1x1, 3x3 and 1x1 to four times the width, the stride in the first 1x1, of v1.5 in the 3x3."""
    assert component(Branch, kernels=(3, 3)) == Basic
    assert component(Branch, kernels=(1, 3, 1), expansion=4) == Bottleneck
    assert component(Branch, kernels=(1, 3, 1), expansion=4, stride_at=1) == BottleneckV15
    assert component(Branch, kernels=(3,)) == SingleLayer


def test_cifar_networks_are_those_of_section_4_2() -> None:
    """6n+2 layers, 16, 32 and 64 filters, option A in all of them."""
    for depth, n in ((8, 1), (20, 3), (56, 9), (110, 18), (1202, 200)):
        assert cifar_architecture(depth) == Architecture(
            **SMALL_IMAGES,
            stages=(n, n, n),
            features=(16, 32, 64),
            branch=Basic,
            shortcut=ZeroPad,
        )


def test_depth_counts_the_branchs_convolutions() -> None:
    """9n+2 for bottlenecks (He et al. 2016, Section 5: 164, 1001), 3n+2 for single layers (Table 3)."""
    for depth, branch, n in (
        (164, Bottleneck, 18),
        (1001, Bottleneck, 111),
        (29, BottleneckV15, 3),
        (110, SingleLayer, 36),
        (8, Branch, 1),
    ):
        assert cifar_architecture(depth, branch=branch).stages == (n, n, n)


def test_imagenet_networks_are_those_of_table_1() -> None:
    """Option B by default (Section 4.1: ResNet-50/101/152 use it); the stride in the first 1x1 as in the paper."""
    for depth, (branch, stages) in TABLE_1.items():
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


def test_wide_networks_are_those_of_1605_07146() -> None:
    """Table 1: a stem of 16, groups of N = (depth - 4) / 6 blocks B(3, 3) of 16k, 32k and 64k; pre-activated, projected."""
    for depth, widen, n, features in ((40, 1, 6, (16, 32, 64)), (28, 10, 4, (160, 320, 640)), (10, 3, 1, (48, 96, 192))):
        assert wide_architecture(depth, widen) == Architecture(
            **SMALL_IMAGES | {"stem_features": 16, "order": FullPreactivation},
            stages=(n, n, n),
            features=features,
            branch=Basic,
            shortcut=Projection,
        )


def test_dense_networks_are_those_of_1608_06993() -> None:
    """Section 3: three equal stages; BC has 1x1 convolutions to 4k, halving transitions and a stem of 2k, the plain one a stem of 16."""
    for depth, growth, n, bottleneck in ((100, 12, 16, True), (40, 12, 12, False)):
        assert densenet_architecture(depth, growth, bottleneck=bottleneck) == Architecture(
            **SMALL_IMAGES
            | {
                "stem_features": 2 * growth if bottleneck else 16,
                "order": FullPreactivation,
                "transition": component(DenseTransition, compression=0.5 if bottleneck else 1.0),
            },
            stages=(n, n, n),
            features=(growth, growth, growth),
            branch=component(Branch, kernels=(1, 3), base_width=4 * 64) if bottleneck else component(Branch, kernels=(3,)),
            shortcut=Concatenation,
        )


def test_imagenet_dense_networks_are_those_of_table_1() -> None:
    for depth, stages, growth in (
        (121, (6, 12, 24, 16), 32),
        (169, (6, 12, 32, 32), 32),
        (201, (6, 12, 48, 32), 32),
        (161, (6, 12, 36, 24), 48),
    ):
        network = densenet_architecture(depth, imagenet=True)
        assert (network.stages, network.features, network.stem_features) == (stages, (growth,) * 4, 2 * growth)
        assert (network.stem, network.input_shape, network.num_classes) == (ImageNetStem, (224, 224, 3), 1000)
        assert network.transition == component(DenseTransition, compression=0.5)
        # Layers: the stem, two per block, three transitions, the classifier.
        assert 1 + 2 * sum(stages) + 3 + 1 == depth
    assert densenet_architecture(121, 16, imagenet=True).features == (16,) * 4


def test_further_fields_replace_the_papers() -> None:
    ours = cifar_architecture(14, shortcut=ProjectionEverywhere, num_classes=100, features=(4, 8, 8), input_shape=(8, 8, 1))
    assert (ours.stages, ours.shortcut, ours.num_classes) == ((2, 2, 2), ProjectionEverywhere, 100)
    assert (ours.features, ours.input_shape) == ((4, 8, 8), (8, 8, 1))
    theirs = imagenet_architecture(18, shortcut=NoShortcut, num_classes=7)
    assert (theirs.shortcut, theirs.num_classes, theirs.stages) == (NoShortcut, 7, (2, 2, 2, 2))
    wide = wide_architecture(16, 2, branch=component(Basic, dropout=0.3), shortcut=ZeroPad, features=(4, 8, 8))
    assert (wide.branch, wide.shortcut, wide.features) == (component(Branch, kernels=(3, 3), dropout=0.3), ZeroPad, (4, 8, 8))
    dense = densenet_architecture(40, 12, bottleneck=False, transition=component(DenseTransition, compression=0.25))
    assert dense.transition == component(DenseTransition, compression=0.25)
    with pytest.raises(TypeError, match="classes"):
        cifar_architecture(8, classes=3)


def test_invalid_depths_are_rejected_with_valid_ones() -> None:
    cases: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        *((cifar_architecture, (depth,), {}, rf"depth {depth} is not 6n\+2: .* 8, 14, 20, 26, ... layers") for depth in (-4, 2, 21)),
        (cifar_architecture, (1202,), {"branch": Bottleneck}, r"depth 1202 is not 9n\+2: .* 11, 20, 29, 38, ... layers"),
        (cifar_architecture, (111,), {"branch": SingleLayer}, r"depth 111 is not 3n\+2: .* 5, 8, 11, 14, ... layers"),
        (imagenet_architecture, (51,), {}, "depth 51: these networks have 18, 34, 50, 101, 152, 200 layers"),
        *((wide_architecture, (depth, 2), {}, rf"depth {depth} is not 6n\+4: .* 10, 16, 22, 28") for depth in (4, 20, 27)),
        (densenet_architecture, (39, 12), {"bottleneck": False}, r"depth 39 is not 3n\+4"),
        (densenet_architecture, (43, 12), {}, r"depth 43 is not 6n\+4"),
        (densenet_architecture, (100,), {}, "growth rate"),
        (densenet_architecture, (100,), {"imagenet": True}, "depth 100: these networks have 121, 161, 169, 201 layers"),
    ]
    for build, arguments, options, message in cases:
        with pytest.raises(UserError, match=message) as error:
            build(*arguments, **options)
        assert "\n" not in str(error.value)
