"""Parameters, multiply-adds and projections against the papers' tables and against independent arithmetic, exactly."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import pytest
from flax import nnx
from resnet_jax.models import (
    NETWORKS,
    Architecture,
    StochasticDepth,
    cifar_architecture,
    count,
    counts,
    imagenet_architecture,
    wide_architecture,
)
from resnet_jax.models.blocks import Basic, Bottleneck, BottleneckV15, Branch
from resnet_jax.models.components import Factory, component, parts
from resnet_jax.models.orders import (
    Fixup,
    FullPreactivation,
    NormAfterAddition,
    Order,
    Original,
    ReluBeforeAddition,
    ReluOnlyPreactivation,
)
from resnet_jax.models.shortcuts import OPTIONS, Concatenation, Projection, Scaled, ShortcutOnlyGating
from resnet_jax.models.stems import DeepStem, ImageNetStem, SmallImageStem

counted = functools.cache(count)


@dataclasses.dataclass(frozen=True)
class Places:
    """Parameters of an order: n is a normalization (scale and bias per channel), 1 a scalar. He et al. 2016, Figure 4."""

    before: str = ""
    after: str = ""
    after_last: str = ""
    after_addition: str = ""
    stem: str = ""
    pooled_stem: str = "n"
    head: str = ""

    @staticmethod
    def cost(layers: str, width: int) -> int:
        return 2 * width * layers.count("n") + layers.count("1")


PLACES: dict[type[Order], Places] = {
    Original: Places(after="n", after_last="n", stem="n"),
    NormAfterAddition: Places(after="n", after_addition="n", stem="n"),
    ReluBeforeAddition: Places(after="n", after_last="n", stem="n"),
    ReluOnlyPreactivation: Places(after="n", after_last="n", stem="n"),
    FullPreactivation: Places(before="n", head="n"),
    # Zhang et al. 2019, Figure 1: a bias before each convolution, ReLU and addition, a multiplier before the last bias.
    Fixup: Places(before="1", after="1", after_last="11", stem="1", pooled_stem="1", head="1"),
}

# Blocks that own a projection, by option; scalars of a block's shortcut.
PROJECTS = {"B": "changes", "D": "changes", "SkipInit": "changes", "C": "always"}
SCALARS = {"ReZero": 1, "SkipInit": 1}


@dataclasses.dataclass
class Row:
    """As ``counts.StageCounts``; ``side`` and ``width`` are those of the map that flows through."""

    name: str
    num_blocks: int
    side: int
    width: int
    parameters: int = 0
    multiply_adds: int = 0
    projections: int = 0

    def convolve(self, kernel: int, width: int, stride: int, groups: int = 1) -> None:
        """A convolution without bias, padded by (kernel - 1) / 2."""
        self.side = (self.side + 2 * ((kernel - 1) // 2) - kernel) // stride + 1
        weights = kernel * kernel * self.width // groups * width
        self.parameters += weights
        self.multiply_adds += self.side**2 * weights
        self.width = width

    def has(self, layers: str) -> None:
        self.parameters += Places.cost(layers, self.width)

    def beside(self, other: "Row", before: "Row") -> None:
        """Adds the increase of ``other`` since ``before``."""
        self.parameters += other.parameters - before.parameters
        self.multiply_adds += other.multiply_adds - before.multiply_adds


def convolutions(branch: Factory, wide: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """Kernel, width, stride and groups of each convolution. He et al. 2015, Figure 5; ResNeXt (1611.05431), Figure 3 (c)."""
    options = parts(branch)[1]
    kernels, groups = options["kernels"], options.get("groups", 1)
    inner = wide * options.get("base_width", 64) * groups // 64
    for index, kernel in enumerate(kernels):
        width = wide * options.get("expansion", 1) if index == len(kernels) - 1 else inner
        yield kernel, width, stride if index == options.get("stride_at", 0) else 1, groups if kernel > 1 else 1


def stem_of(architecture: Architecture, places: Places) -> Row:
    side, _, channels = architecture.input_shape
    width = architecture.stem_features or architecture.features[0]
    row = Row("stem", 0, side, channels)
    if architecture.stem is SmallImageStem:
        row.convolve(3, width, 1)
        row.has(places.stem)
        return row
    deep, plain = [(3, width // 2, 2), (3, width // 2, 1), (3, width, 1)], [(7, width, 2)]
    assert architecture.stem in (DeepStem, ImageNetStem)
    for kernel, wide, stride in deep if architecture.stem is DeepStem else plain:
        row.convolve(kernel, wide, stride)
        row.has(places.pooled_stem)
    row.side = (row.side + 2 - 3) // 2 + 1  # 3x3 max-pooling at stride 2
    return row


def arithmetic(architecture: Architecture) -> list[Row]:
    """Counts by loops over the layers as the papers' tables list them."""
    dense = architecture.shortcut is Concatenation
    option = {shortcut: name for name, shortcut in OPTIONS.items()}.get(architecture.shortcut, "A")
    places = PLACES[architecture.order]
    rows = [stem_of(architecture, places)]
    for stage, (num_blocks, wide) in enumerate(zip(architecture.stages, architecture.features, strict=True)):
        row = Row(f"stage{stage + 1}", num_blocks, rows[-1].side, rows[-1].width)
        if dense and stage:  # Huang et al. 2017, Section 3: norm, 1x1 convolution, 2x2 pooling
            row.has("n")
            row.convolve(1, int(row.width * parts(architecture.transition)[1]["compression"]), 1)
            row.side //= 2
        for block in range(num_blocks):
            stride = 2 if stage > 0 and block == 0 and not dense else 1
            beside = dataclasses.replace(row)
            for index, (kernel, width, step, groups) in enumerate(branch := list(convolutions(architecture.branch, wide, stride))):
                row.has(places.before)
                row.convolve(kernel, width, step, groups)
                row.has(places.after_last if index == len(branch) - 1 else places.after)
            reduction = parts(architecture.branch)[1].get("reduction", 0)
            if reduction:  # Hu et al. 2018, Section 3: two layers with biases
                hidden = row.width // reduction
                row.parameters += 2 * row.width * hidden + row.width + hidden
                row.multiply_adds += 2 * row.width * hidden
            rule = PROJECTS.get(option, "never")
            if rule == "always" or (rule == "changes" and (stride, beside.width) != (1, row.width)):
                before = dataclasses.replace(beside)
                beside.convolve(1, row.width, stride)
                normalized = "n" in places.after_last + places.after_addition and "n" not in places.before
                beside.has("n" if normalized else "")
                row.beside(beside, before)
                row.projections += 1
            row.parameters += SCALARS.get(option, 0)
            row.width += beside.width if dense else 0
            row.has(places.after_addition)
        rows.append(row)
    last = rows[-1]
    head = Row("head", 0, 1, last.width)
    head.has(places.head)
    head.convolve(1, architecture.num_classes, 1)
    head.parameters += architecture.num_classes
    return [*rows, head]


def totals(rows: Any) -> tuple[int, int, int]:
    return sum(r.parameters for r in rows), sum(r.multiply_adds for r in rows), sum(r.projections for r in rows)


def exactly(architecture: Architecture) -> counts.Counts:
    """Counts an architecture, and compares every row with the arithmetic."""
    ours, expected = counted(architecture), arithmetic(architecture)
    for ours_row, row in zip(ours.stages, expected, strict=True):
        shape = (row.width,) if row.name == "head" else (row.side, row.side, row.width)
        wanted = (row.name, row.num_blocks, shape, row.parameters, row.multiply_adds, row.projections)
        assert dataclasses.astuple(ours_row) == wanted
    assert (ours.parameters, ours.multiply_adds, ours.projections) == totals(expected)
    return ours


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
    "wrn40_10_dropout": (55_841_754, ""),
    "wrn28_10_dropout": (36_479_194, ""),
    "wrn16_8_dropout": (10_961_370, ""),
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
    # A5: the networks of option A.
    "cifar_stochastic110": (1_727_962, "252.89e6"),
    "cifar_stochastic1202": (19_421_274, "2829.24e6"),
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


def are_the_papers(names: Iterable[str]) -> None:
    for name in names:
        parameters, multiply_adds = PAPERS[name]
        ours = exactly(NETWORKS[name])
        assert ours.parameters == parameters, name
        assert not multiply_adds or rounded(ours.multiply_adds, multiply_adds) == multiply_adds, name


def test_counts_of_common_networks_are_the_papers() -> None:
    are_the_papers(PAPERS.keys() & QUICK)


@pytest.mark.slow
def test_counts_of_other_networks_are_the_papers_and_the_arithmetic() -> None:
    are_the_papers(PAPERS.keys() - QUICK)
    for architecture in NETWORKS.values():
        exactly(architecture)


def test_counts_of_variants_are_the_papers() -> None:
    for architecture, parameters, multiply_adds in VARIANTS:
        ours = exactly(architecture)
        assert ours.parameters == parameters
        assert not multiply_adds or rounded(ours.multiply_adds, multiply_adds) == multiply_adds


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


@pytest.mark.parametrize("option", OPTIONS)
def test_options_are_counted(option: str) -> None:
    """At odd sizes, of gray images."""
    for branch in (Basic, BottleneckV15):
        exactly(Architecture(**TINY, branch=branch, shortcut=OPTIONS[option]))


@pytest.mark.parametrize("order", PLACES)
def test_orders_and_stems_are_counted(order: type[Order]) -> None:
    """He et al. 2016, Figure 4: only full pre-activation normalizes before the first convolution and before the classifier."""
    exactly(Architecture(**TINY, order=order, stem=ImageNetStem, shortcut=OPTIONS["A"]))
    exactly(Architecture(**TINY, order=order, stem=DeepStem, shortcut=Projection))


def test_branches_of_any_kernels_are_counted() -> None:
    """Wide ResNet (arXiv 1605.07146), Section 2: B(3, 1, 3) and the like; groups, widths, squeeze-and-excitation."""
    for branch in (
        component(Branch, kernels=(3, 1, 3)),
        component(Branch, kernels=(1, 3, 1), expansion=2, stride_at=2),
        component(Branch, kernels=(5, 3), groups=2, base_width=64),
        component(Bottleneck, groups=4, base_width=32),
        component(Basic, reduction=2, dropout=0.5),
    ):
        exactly(Architecture(**TINY | {"input_shape": (9, 9, 2)}, branch=branch, shortcut=Projection))


def test_free_options_change_no_count() -> None:
    """Stochastic depth, constant scaling, another dtype."""
    plain = Architecture(**TINY, shortcut=OPTIONS["A"])
    for fields in (
        {"stochastic_depth": StochasticDepth(survival=0.5)},
        {"shortcut": component(Scaled, shortcut=0.5, branch=0.5)},
        {"dtype": "bfloat16"},
    ):
        assert count(dataclasses.replace(plain, **fields)) == count(plain)


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


class Subsampled(nnx.Module):
    """A user's branch without a convolution."""

    def __init__(self, in_features: int, features: int, stride: int, rngs: nnx.Rngs):
        self.out_features, self.stride = features, stride

    def __call__(self, x: jax.Array) -> jax.Array:
        return x[:, :: self.stride, :: self.stride]


def test_stage_without_a_convolution_costs_nothing() -> None:
    ours = count(Architecture(**TINY | {"features": (4, 4)}, branch=Subsampled, shortcut=OPTIONS["none"], order=Order))
    assert [row.multiply_adds for row in ours.stages[1:3]] == [0, 0]


class Nested(nnx.Module):
    """A user's shortcut that owns a convolution, two levels down: 3x3, with bias."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.List([nnx.Conv(in_features, out_features, (3, 3), (stride, stride), padding=1, rngs=rngs)])])

    def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        return self.layers[0][0](x) + branch


def test_user_shortcut_with_a_convolution_counts_as_projection() -> None:
    """Beside the plain network: 9 * 4 * 4 weights on 9x9 pixels, then 9 * 4 * 8 and 9 * 8 * 8 on 5x5."""
    plain, ours = (count(Architecture(**{**TINY, "stages": (1, 2)}, shortcut=s)) for s in (OPTIONS["none"], Nested))
    assert ours.parameters - plain.parameters == 9 * (4 * 4 + 4 * 8 + 8 * 8) + (4 + 8 + 8)
    assert ours.multiply_adds - plain.multiply_adds == 9 * (81 * 4 * 4 + 25 * 4 * 8 + 25 * 8 * 8)
    assert [row.projections for row in ours.stages] == [0, 1, 2, 0]
