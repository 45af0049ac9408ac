"""Parameters, multiply-adds and projections against the papers' tables."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from resnet_jax.models import NETWORKS, Architecture, cifar_architecture, count, imagenet_architecture, wide_architecture
from resnet_jax.models.orders import FullPreactivation, Order
from resnet_jax.models.shortcuts import OPTIONS, Projection, ShortcutOnlyGating

counted = functools.cache(count)


# papers.md, marks C: parameters, and multiply-adds to the digits given there.
PAPERS: dict[str, tuple[int, str]] = {
    # A1, Table 1.
    "plain18": (11_515_688, "1.7948e9"),
    "resnet18": (11_689_512, "1.8141e9"),
    "plain34": (21_623_848, "3.6445e9"),
    "resnet34": (21_797_672, "3.6638e9"),
    "resnet50": (25_557_032, "3.8580e9"),
    "resnet101": (44_549_160, "7.5702e9"),
    "resnet152": (60_192_808, "11.2824e9"),
    "resnet200": (64_673_832, "14.776e9"),
    "resnet50_v15": (25_557_032, "4.0892e9"),
    "resnet101_v15": (44_549_160, "7.8014e9"),
    "resnet152_v15": (60_192_808, "11.5136e9"),
    "resnet200_v15": (64_673_832, "15.007e9"),
    "preresnet200": (64_666_280, "14.776e9"),
    # A2.
    "cifar_preresnet110": (1_730_522, ""),
    "cifar_preresnet164": (1_703_258, ""),
    "cifar_preresnet1001": (10_327_706, ""),
    "cifar_resnet164": (1_704_154, ""),
    "cifar_resnet1001": (10_328_602, ""),
    # A3.
    "wrn40_1": (563_930, ""),
    "wrn40_2": (2_243_546, ""),
    "wrn40_4": (8_949_210, ""),
    "wrn40_8": (35_748_314, ""),
    "wrn28_10": (36_479_194, ""),
    "wrn28_12": (52_517_850, ""),
    "wrn22_8": (17_158_106, ""),
    "wrn22_10": (26_797_914, ""),
    "wrn16_8": (10_961_370, ""),
    "wrn16_10": (17_116_634, ""),
    "wrn16_4": (2_748_890, ""),
    "wrn52_1": (758_362, ""),
    "wrn40_10": (55_841_754, ""),
    "wide_resnet50_2": (68_883_240, ""),
    # A4.
    "resnext50_32x4d": (25_028_904, "4.230e9"),
    "resnext101_32x4d": (44_177_704, ""),
    "resnext101_32x8d": (88_791_336, ""),
    "resnext101_64x4d": (83_455_272, ""),
    "resnext29_8x64d": (34_426_698, ""),
    "resnext29_16x64d": (68_155_210, ""),
    "resnext29_32x4d": (4_775_754, ""),
    # A1, Table 6.
    "cifar_plain20": (269_722, "40.55e6"),
    "cifar_resnet20": (269_722, "40.55e6"),
    "cifar_resnet32": (464_154, "68.86e6"),
    "cifar_resnet44": (658_586, "97.17e6"),
    "cifar_resnet56": (853_018, "125.49e6"),
    "cifar_resnet110": (1_727_962, "252.89e6"),
    "cifar_resnet1202": (19_421_274, "2829.24e6"),
    # A6.
    "cifar_densenet40_12": (1_019_722, ""),
    "cifar_densenet100_12": (6_979_642, ""),
    "cifar_densenet100_24": (27_249_082, ""),
    "cifar_densenet_bc100_12": (769_162, ""),
    "cifar_densenet_bc250_24": (15_324_406, ""),
    "cifar_densenet_bc190_40": (25_624_430, ""),
    "densenet121": (7_978_856, "2.834e9"),
    "densenet169": (14_149_480, ""),
    "densenet201": (20_013_928, ""),
    "densenet161": (28_681_000, ""),
    # A8.
    "seresnet50": (28_088_024, ""),
    "seresnet101": (49_326_872, ""),
    "seresnet152": (66_821_848, ""),
    # A9.
    "resnet50_d": (25_576_264, "4.329e9"),
}


# Networks outside of the catalog: parameters, and multiply-adds where papers.md has them.
VARIANTS: list[tuple[Architecture, int, str]] = [
    # A1, Table 6, option B; below it, CIFAR-100.
    *((cifar_architecture(d, shortcut=Projection), n, "") for d, n in ((20, 272_474), (110, 1_730_714))),
    (cifar_architecture(20, num_classes=100), 275_572, ""),
    # A2: "or 1,727,962 (A)"; He et al. 2016, Table 1, "1x1 conv on all blocks".
    (cifar_architecture(110, order=FullPreactivation), 1_727_962, ""),
    (cifar_architecture(110, shortcut=OPTIONS["C"]), 1_826_202, ""),
    # A3.
    (wide_architecture(28, 10, num_classes=100), 36_536_884, ""),
    # A1, Table 1. Option A has "no extra parameters compared to their plain counterparts" (Section 4.1). ResNet-34 C has
    # thirteen projections beside B's three, 56^2 * 64^2 multiply-adds each; papers.md adds rounded numbers: 3.8308.
    (imagenet_architecture(18, shortcut=OPTIONS["A"]), 11_515_688, "1.7948e9"),
    (imagenet_architecture(34, shortcut=OPTIONS["C"]), 22_716_840, "3.8307e9"),
]
QUICK = {"resnet34", "resnet50", "resnet50_d", "resnext50_32x4d", "cifar_resnet20", "cifar_resnet110", "cifar_resnet164", "wrn28_10"}


def rounded(value: int, like: str) -> str:
    """A count written with the decimals and the power of ten of another."""
    digits, power = like.split("e")
    return f"{value / 10 ** int(power):.{len(digits.partition('.')[2])}f}e{power}"


def are_the_papers(rows: Iterable[tuple[Architecture, int, str]]) -> None:
    for architecture, parameters, multiply_adds in rows:
        ours = counted(architecture)
        assert ours.parameters == parameters, architecture
        assert not multiply_adds or rounded(ours.multiply_adds, multiply_adds) == multiply_adds, architecture


def test_counts_of_common_networks_are_the_papers() -> None:
    are_the_papers((NETWORKS[name], *PAPERS[name]) for name in QUICK)
    are_the_papers(VARIANTS)


@pytest.mark.slow
def test_counts_of_other_networks_are_the_papers() -> None:
    are_the_papers((NETWORKS[name], *PAPERS[name]) for name in PAPERS.keys() - QUICK)


def test_rows_are_the_stem_the_stages_and_the_head() -> None:
    """He et al. 2015, Section 4.2, by hand: 3x3 convolutions, a scale and a bias per channel, 64 features times 10 classes."""
    assert [dataclasses.astuple(row) for row in counted(NETWORKS["cifar_resnet20"]).stages] == [
        ("stem", 0, (32, 32, 16), 27 * 16 + 2 * 16, 1024 * 27 * 16, 0),
        ("stage1", 3, (32, 32, 16), 6 * (9 * 16 * 16 + 2 * 16), 1024 * 6 * 9 * 16 * 16, 0),
        ("stage2", 3, (16, 16, 32), 9 * 32 * (16 + 5 * 32) + 6 * 2 * 32, 256 * 9 * 32 * (16 + 5 * 32), 0),
        ("stage3", 3, (8, 8, 64), 9 * 64 * (32 + 5 * 64) + 6 * 2 * 64, 64 * 9 * 64 * (32 + 5 * 64), 0),
        ("head", 0, (10,), 640 + 10, 640, 0),
    ]


def test_projections_are_where_resolution_or_width_changes() -> None:
    """A bottleneck's output is four times as wide as the stem, a Wide ResNet's first stage k times: these project in stage 1 too."""
    expected = {
        "resnet34": [0, 1, 1, 1],
        "resnet50": [1, 1, 1, 1],
        "cifar_resnet110": [0, 0, 0],
        "cifar_resnet164": [1, 1, 1],
        "wrn28_10": [1, 1, 1],
    }
    assert {name: [row.projections for row in counted(NETWORKS[name]).stages[1:-1]] for name in expected} == expected
    everywhere = counted(imagenet_architecture(34, shortcut=OPTIONS["C"]))
    assert [row.projections for row in everywhere.stages[1:-1]] == [3, 4, 6, 3]
    assert [row.output_shape[0] for row in everywhere.stages] == [56, 56, 28, 14, 7, 1000]  # He et al. 2015, Table 1, "output size"


TINY: dict[str, Any] = dict(stages=(3, 3), features=(4, 8), input_shape=(9, 9, 1))


def test_gate_counts_as_a_convolution_and_no_projection() -> None:
    """He et al. 2016, Section 3.2: "g(x) is realized by a 1x1 convolutional layer", W_g x + b_g."""
    plain, gated = (count(Architecture(**TINY, shortcut=shortcut)) for shortcut in (OPTIONS["A"], ShortcutOnlyGating))
    assert gated.parameters - plain.parameters == 3 * (4 * 4 + 4) + (4 * 8 + 8) + 2 * (8 * 8 + 8)
    assert gated.multiply_adds - plain.multiply_adds == 81 * 3 * 16 + 25 * (4 * 8 + 2 * 8 * 8)
    assert gated.projections == 0


def test_dilation_keeps_weights_and_multiplies_cost() -> None:
    """Section 3.2 of 1706.05587: the last two stages of an ImageNet network have 28x28 pixels at output stride 8: 4, 16 times as many."""
    plain, dilated = (count(imagenet_architecture(18, output_stride=stride)) for stride in (0, 8))
    assert dilated.parameters == plain.parameters
    assert [row.output_shape[0] for row in dilated.stages[:-1]] == [56, 56, 28, 28, 28]
    times = [ours.multiply_adds / theirs.multiply_adds for ours, theirs in zip(dilated.stages, plain.stages, strict=True)]
    assert times == [1, 1, 1, 4, 16, 1]


class Nested(nnx.Module):
    """A user's shortcut that owns a convolution, two levels down: 3x3, with bias."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.List([nnx.Conv(in_features, out_features, (3, 3), (stride, stride), padding=1, rngs=rngs)])])

    def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        return self.layers[0][0](x) + branch


class Subsampled(nnx.Module):
    """A user's branch without a convolution."""

    def __init__(self, in_features: int, features: int, stride: int, rngs: nnx.Rngs):
        self.out_features, self.stride = features, stride

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.zeros((*x[:, :: self.stride, :: self.stride].shape[:3], self.out_features))


def test_user_shortcut_with_a_convolution_counts_as_projection() -> None:
    """9 * 4 * 4 weights on 9x9 pixels, then 9 * 4 * 8 and 9 * 8 * 8 on 5x5."""
    fields: dict[str, Any] = TINY | dict(stages=(1, 2), branch=Subsampled, order=Order)
    plain, ours = (count(Architecture(**fields, shortcut=shortcut)) for shortcut in (OPTIONS["none"], Nested))
    assert ours.parameters - plain.parameters == 9 * (4 * 4 + 4 * 8 + 8 * 8) + (4 + 8 + 8)
    assert [row.multiply_adds for row in ours.stages[1:3]] == [9 * 81 * 4 * 4, 9 * 25 * (4 * 8 + 8 * 8)]
    assert [row.multiply_adds for row in plain.stages[1:3]] == [0, 0]
    assert [row.projections for row in ours.stages] == [0, 1, 2, 0]
