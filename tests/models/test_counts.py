"""Parameters, multiply-adds and projections against the papers' tables and against an arithmetic of its own, exactly."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import pytest
from flax import nnx

from resnet_jax.configured import Factory, configured, parts
from resnet_jax.models import (
    NETWORKS,
    Architecture,
    Execution,
    StochasticDepth,
    cifar_architecture,
    count,
    counts,
    densenet_architecture,
    imagenet_architecture,
    wide_architecture,
)
from resnet_jax.models.branches import Basic, Bottleneck, BottleneckV15, Branch, SingleLayer
from resnet_jax.models.orders import (
    Fixup,
    FullPreactivation,
    NormAfterAddition,
    Order,
    Original,
    ReluBeforeAddition,
    ReluOnlyPreactivation,
)
from resnet_jax.models.shortcuts import OPTIONS, Concatenation, ExclusiveGating, Projection, Scaled, ShortcutOnlyGating
from resnet_jax.models.stems import DeepStem, ImageNetStem, SmallImageStem

counted = functools.cache(count)


@dataclasses.dataclass(frozen=True)
class Places:
    """What of an order has parameters: n is a normalisation, a scale and a bias a channel; 1 is one number. He et al. 2016, Figure 4."""

    before: str = ""
    after: str = ""
    after_last: str = ""
    after_addition: str = ""
    stem: str = ""
    pooled_stem: str = "n"
    head: str = ""

    @staticmethod
    def cost(what: str, width: int) -> int:
        return 2 * width * what.count("n") + what.count("1")


PLACES: dict[type[Order], Places] = {
    Original: Places(after="n", after_last="n", stem="n"),
    NormAfterAddition: Places(after="n", after_addition="n", stem="n"),
    ReluBeforeAddition: Places(after="n", after_last="n", stem="n"),
    ReluOnlyPreactivation: Places(after="n", after_last="n", stem="n"),
    FullPreactivation: Places(before="n", head="n"),
    # Zhang et al. 2019, Figure 1: a bias before each convolution, ReLU and addition, a multiplier before the last bias.
    Fixup: Places(before="1", after="1", after_last="11", stem="1", pooled_stem="1", head="1"),
}

# Which units of a network own a projection, by option; what a unit's shortcut has beside it.
PROJECTS = {"B": "changes", "D": "changes", "SkipInit": "changes", "C": "always"}
SCALARS = {"ReZero": 1, "SkipInit": 1}


@dataclasses.dataclass
class Row:
    """As ``counts.StageCounts``; ``side`` and ``width`` are those of the map that flows through."""

    name: str
    units: int
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

    def has(self, what: str) -> None:
        self.parameters += Places.cost(what, self.width)

    def beside(self, other: "Row", before: "Row") -> None:
        """Adds what ``other`` has come to since it was ``before``."""
        self.parameters += other.parameters - before.parameters
        self.multiply_adds += other.multiply_adds - before.multiply_adds


def convolutions(branch: Factory, wide: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """Kernel, width, stride and groups of each convolution. He et al. 2015, Figure 5; ResNeXt (1611.05431), Figure 3 (c)."""
    given = parts(branch)[1]
    kernels, groups = given["kernels"], given.get("groups", 1)
    inner = wide * given.get("base_width", 64) * groups // 64
    for index, kernel in enumerate(kernels):
        width = wide * given.get("expansion", 1) if index == len(kernels) - 1 else inner
        yield kernel, width, stride if index == given.get("stride_at", 0) else 1, groups if kernel > 1 else 1


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
    for stage, (units, wide) in enumerate(zip(architecture.stages, architecture.features, strict=True)):
        row = Row(f"stage{stage + 1}", units, rows[-1].side, rows[-1].width)
        if dense and stage:  # Huang et al. 2017, Section 3: norm, 1x1 convolution, 2x2 pooling
            row.has("n")
            row.convolve(1, int(row.width * parts(architecture.transition)[1]["compression"]), 1)
            row.side //= 2
        for unit in range(units):
            stride = 2 if stage > 0 and unit == 0 and not dense else 1
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
                normalised = "n" in places.after_last + places.after_addition and "n" not in places.before
                beside.has("n" if normalised else "")
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
        wanted = (row.name, row.units, shape, row.parameters, row.multiply_adds, row.projections)
        assert dataclasses.astuple(ours_row) == wanted
    assert (ours.parameters, ours.multiply_adds, ours.projections) == totals(expected)
    return ours


# Seconds each: every unit of a DenseNet has another width, and is traced by itself.
DENSE = [name for name in NETWORKS if "densenet" in name]
QUICK_DENSE = {"densenet121", "cifar_densenet40_12", "cifar_densenet_bc100_12"}


def slowly(name: str, *values: Any) -> Any:
    return pytest.param(name, *values, marks=[pytest.mark.exhaustive] if name in DENSE and name not in QUICK_DENSE else [])


# What is counted for a paper's number anyway costs nothing more.
ALSO_COUNTED = {*("resnet18", "resnet50", "resnet50_d", "cifar_preresnet110", "wrn16_4", "cifar_densenet40_12")}


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.exhaustive] * (name not in ALSO_COUNTED)) for name in NETWORKS])
def test_every_row_of_every_network_is_the_arithmetics(name: str) -> None:
    exactly(NETWORKS[name])


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


def rounded(value: int, like: str) -> str:
    """A count written with the decimals and the power of ten of another."""
    digits, power = like.split("e")
    return f"{value / 10 ** int(power):.{len(digits.partition('.')[2])}f}e{power}"


@pytest.mark.quick(10)
@pytest.mark.parametrize(("name", "parameters", "multiply_adds"), [slowly(name, *counts) for name, counts in PAPERS.items()])
def test_counts_are_those_of_the_papers(name: str, parameters: int, multiply_adds: str) -> None:
    ours = counted(NETWORKS[name])
    assert ours.parameters == parameters
    assert not multiply_adds or rounded(ours.multiply_adds, multiply_adds) == multiply_adds


def stages_of(name: str) -> list[int]:
    """Projections in each stage."""
    return [row.projections for row in counted(NETWORKS[name]).stages[1:-1]]


@pytest.mark.quick(4)
@pytest.mark.parametrize(
    ("name", "projections"),
    [
        ("resnet34", [0, 1, 1, 1]),
        ("resnet50", [1, 1, 1, 1]),
        ("resnet50_v15", [1, 1, 1, 1]),
        ("resnet18_d", [0, 1, 1, 1]),
        ("resnet50_d", [1, 1, 1, 1]),
        ("preresnet18", [0, 1, 1, 1]),
        ("preresnet200", [1, 1, 1, 1]),
        ("seresnet50", [1, 1, 1, 1]),
        ("resnext50_32x4d", [1, 1, 1, 1]),
        ("plain50", [0, 0, 0, 0]),
        ("densenet121", [0, 0, 0, 0]),
        ("cifar_resnet110", [0, 0, 0]),
        ("cifar_stochastic110", [0, 0, 0]),
        ("cifar_resnet164", [1, 1, 1]),
        ("cifar_preresnet164", [1, 1, 1]),
        ("cifar_preresnet110", [0, 1, 1]),
        ("wrn40_1", [0, 1, 1]),
        ("wrn28_10", [1, 1, 1]),
        ("resnext29_8x64d", [1, 1, 1]),
    ],
)
def test_projections_stand_where_size_or_width_changes(name: str, projections: list[int]) -> None:
    """A bottleneck's output is four times as wide as the stem, a Wide ResNet's first stage k times: these project in stage 1 too."""
    assert stages_of(name) == projections


# papers.md A1, Table 6. Depth: the paper's parameters in millions and their decimals, exact parameters of option A and of option B,
# multiply-adds of option A in millions. plain-n has the counts of option A.
CIFAR = {
    20: (0.27, 2, 269_722, 272_474, 40.55),
    32: (0.46, 2, 464_154, 466_906, 68.86),
    44: (0.66, 2, 658_586, 661_338, 97.17),
    56: (0.85, 2, 853_018, 855_770, 125.49),
    110: (1.7, 1, 1_727_962, 1_730_714, 252.89),
    1202: (19.4, 1, 19_421_274, 19_424_026, 2829.24),
}


@pytest.mark.quick(4)
@pytest.mark.parametrize(("depth", "option"), [*itertools.product(CIFAR, ("none", "A", "B"))])
def test_cifar_networks_have_the_counts_of_table_6(depth: int, option: str) -> None:
    """Plain networks and option A have no projection, option B has one where each of the later stages begins."""
    paper, digits, parameters_a, parameters_b, multiply_adds = CIFAR[depth]
    ours = exactly(cifar_architecture(depth, shortcut=OPTIONS[option]))
    assert ours.parameters == (parameters_b if option == "B" else parameters_a)
    assert [row.projections for row in ours.stages] == ([0, 0, 1, 1, 0] if option == "B" else [0, 0, 0, 0, 0])
    assert [row.output_shape for row in ours.stages] == [(32, 32, 16), (32, 32, 16), (16, 16, 32), (8, 8, 64), (10,)]
    if option != "B":
        assert round(ours.multiply_adds / 1e6, 2) == multiply_adds
        assert round(ours.parameters / 1e6, digits) == paper


@pytest.mark.parametrize("depth", [20, 32])
def test_option_c_projects_in_every_unit_of_a_cifar_network(depth: int) -> None:
    n = (depth - 2) // 6
    assert [row.projections for row in exactly(cifar_architecture(depth, shortcut=OPTIONS["C"])).stages] == [0, n, n, n, 0]


def test_projections_everywhere_in_resnet110_cost_what_he_2016_spends_on_1x1_shortcuts() -> None:
    """papers.md A2: Table 1 of He et al. 2016, "1x1 conv on all units", has 1,826,202 parameters."""
    assert exactly(cifar_architecture(110, shortcut=OPTIONS["C"])).parameters == 1_826_202


@pytest.mark.parametrize(("depth", "parameters"), [(20, 275_572), (110, 1_733_812)])
def test_a_cifar_100_head_adds_5850_parameters(depth: int, parameters: int) -> None:
    """papers.md A1, below Table 6."""
    ours = exactly(cifar_architecture(depth, num_classes=100))
    assert ours.parameters == parameters == counted(cifar_architecture(depth)).parameters + 5_850


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        (cifar_architecture(110, order=FullPreactivation), 1_727_962),  # A2: "or 1,727,962 (A)"
        (wide_architecture(28, 10, num_classes=100), 36_536_884),  # A3
    ],
    ids=["pre-activation, option A", "WRN-28-10, CIFAR-100"],
)
def test_counts_of_the_papers_outside_the_catalog(architecture: Architecture, parameters: int) -> None:
    assert exactly(architecture).parameters == parameters


@pytest.mark.parametrize("depth", [18, 34])
def test_option_a_of_the_catalogs_plain_twins(depth: int) -> None:
    """He et al. 2015, Section 4.1: option A has "no extra parameters compared to their plain counterparts"."""
    ours = counted(imagenet_architecture(depth, shortcut=OPTIONS["A"]))
    assert dataclasses.astuple(ours) == dataclasses.astuple(counted(NETWORKS[f"plain{depth}"]))


@pytest.mark.slow
def test_densenet_without_bottleneck_or_compression_is_wider() -> None:
    """A6: "DenseNet-100 k=12 has 4.07M" in S14 because it compresses; the paper's plain one has 7.0M, its BC 0.8M."""
    sizes = [counted(densenet_architecture(40, 12, bottleneck=bottleneck)).parameters for bottleneck in (False, True)]
    assert sizes[0] == 1_019_722
    assert sizes[1] == totals(arithmetic(densenet_architecture(40, 12)))[0] < 200_000


# papers.md A1, Table 1. Depth, option, stride in the first 1x1, parameters, multiply-adds in 1e9 (or None), projections of each stage.
# ResNet-34 C has "thirteen" projections beside B's three (Section 4.1), 56^2 * 64^2 = 12,845,056 multiply-adds each, so 3,663,761,408 of B
# become 3,830,747,136; papers.md adds up what it had rounded and prints 3.8308.
IMAGENET = [
    (18, "none", True, 11_515_688, 1.7948, (0, 0, 0, 0)),
    (18, "A", True, 11_515_688, 1.7948, (0, 0, 0, 0)),
    (18, "B", True, 11_689_512, 1.8141, (0, 1, 1, 1)),
    (34, "none", True, 21_623_848, 3.6445, (0, 0, 0, 0)),
    (34, "A", True, 21_623_848, 3.6445, (0, 0, 0, 0)),
    (34, "B", True, 21_797_672, 3.6638, (0, 1, 1, 1)),
    (34, "C", True, 22_716_840, 3.8307, (3, 4, 6, 3)),
    (50, "B", True, 25_557_032, 3.8580, (1, 1, 1, 1)),
    (50, "B", False, 25_557_032, 4.0892, (1, 1, 1, 1)),
    (50, "A", True, None, None, (0, 0, 0, 0)),
    (50, "C", True, None, None, (3, 4, 6, 3)),
    (101, "B", True, 44_549_160, 7.5702, (1, 1, 1, 1)),
    (101, "B", False, 44_549_160, 7.8014, (1, 1, 1, 1)),
    (152, "B", True, 60_192_808, 11.2824, (1, 1, 1, 1)),
    (152, "B", False, 60_192_808, 11.5136, (1, 1, 1, 1)),
]


@pytest.mark.parametrize(("depth", "option", "stride_in_1x1", "parameters", "multiply_adds", "projections"), IMAGENET)
def test_imagenet_networks_have_the_counts_of_table_1(
    depth: int, option: str, stride_in_1x1: bool, parameters: int | None, multiply_adds: float | None, projections: tuple[int, ...]
) -> None:
    ours = exactly(imagenet_architecture(depth, shortcut=OPTIONS[option], stride_in_1x1=stride_in_1x1))
    if parameters is not None:
        assert ours.parameters == parameters
        assert round(ours.multiply_adds / 1e9, 4) == multiply_adds
    assert tuple(row.projections for row in ours.stages[1:-1]) == projections
    assert [row.output_shape[0] for row in ours.stages] == [56, 56, 28, 14, 7, 1000]  # Table 1, "output size"
    widest = 512 if depth < 50 else 2048
    assert [row.output_shape[-1] for row in ours.stages[1:-1]] == [widest // 8, widest // 4, widest // 2, widest]


TINY: dict[str, Any] = dict(stages=(3, 3), features=(4, 8), input_shape=(9, 9, 1))


@pytest.mark.quick(6)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("branch", [Basic, Bottleneck, BottleneckV15, SingleLayer], ids=["basic", "bottleneck", "v1.5", "single"])
def test_odd_sizes_and_grey_images_are_counted(branch: Factory, option: str) -> None:
    exactly(Architecture(**TINY, branch=branch, shortcut=OPTIONS[option]))


@pytest.mark.quick(4)
@pytest.mark.parametrize("stem", [SmallImageStem, ImageNetStem, DeepStem])
@pytest.mark.parametrize("order", PLACES)
def test_every_order_is_counted_behind_every_stem(order: type[Order], stem: Factory) -> None:
    """He et al. 2016, Figure 4: only full pre-activation normalises before the first convolution and before the classifier."""
    exactly(Architecture(**TINY, order=order, stem=stem, shortcut=OPTIONS["A"]))
    exactly(Architecture(**TINY, order=order, stem=stem, shortcut=Projection))


@pytest.mark.parametrize(
    "branch",
    [
        configured(Branch, kernels=(3, 1, 3)),
        configured(Branch, kernels=(1, 3, 1), expansion=2, stride_at=2),
        configured(Branch, kernels=(3, 3, 3, 3), stride_at=3),
        configured(Branch, kernels=(5, 3), groups=2, base_width=64),
        configured(Bottleneck, groups=4, base_width=32),
        configured(Bottleneck, reduction=4),
        configured(Basic, reduction=2, dropout=0.5),
    ],
    ids=str,
)
def test_branches_of_any_kernels_are_counted(branch: Factory) -> None:
    """Wide ResNet (1605.07146), Section 2: B(3, 1, 3) and the like; groups, widths, squeeze-and-excitation; dropout costs nothing."""
    exactly(Architecture(**TINY | {"input_shape": (9, 9, 2)}, branch=branch, shortcut=Projection))


def test_what_costs_nothing_changes_no_count() -> None:
    """Stochastic depth, constant scaling, another dtype."""
    plain = Architecture(**TINY, shortcut=OPTIONS["A"])
    for fields in (
        {"stochastic_depth": StochasticDepth(survival=0.5)},
        {"shortcut": configured(Scaled, shortcut=0.5, branch=0.5)},
        {"dtype": "bfloat16"},
    ):
        assert count(dataclasses.replace(plain, **fields)) == count(plain)


@pytest.mark.parametrize("gate", [ExclusiveGating, ShortcutOnlyGating])
def test_a_gate_costs_a_1x1_convolution_with_bias_and_is_no_projection(gate: type[nnx.Module]) -> None:
    """He et al. 2016, Section 3.2: "g(x) is realized by a 1x1 convolutional layer", W_g x + b_g."""
    plain, gated = (count(Architecture(**TINY, shortcut=shortcut)) for shortcut in (OPTIONS["A"], gate))
    assert gated.parameters - plain.parameters == 3 * (4 * 4 + 4) + (4 * 8 + 8) + 2 * (8 * 8 + 8)
    assert gated.multiply_adds - plain.multiply_adds == 81 * 3 * 16 + 25 * (4 * 8 + 2 * 8 * 8)
    assert gated.projections == 0


def test_dilation_keeps_weights_and_multiplies_what_larger_maps_cost() -> None:
    """Section 3.2 of 1706.05587: the last two stages of an ImageNet network have 28x28 pixels at output stride 8: 4, 16 times as many."""
    plain, dilated = (count(imagenet_architecture(18, output_stride=stride)) for stride in (0, 8))
    assert dilated.parameters == plain.parameters
    assert [row.output_shape[0] for row in dilated.stages[:-1]] == [56, 56, 28, 28, 28]
    times = [ours.multiply_adds / theirs.multiply_adds for ours, theirs in zip(dilated.stages, plain.stages, strict=True)]
    assert times == [1, 1, 1, 4, 16, 1]


@pytest.mark.parametrize(("blocks", "gradients"), [("loop", "plain"), ("loop", "explicit"), ("scan", "explicit")])
def test_counts_do_not_depend_on_the_execution(blocks: Any, gradients: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan's body counts as often as it runs; a 1x1 convolution counts the same as a matrix product."""
    architecture = Architecture(**TINY, branch=Bottleneck, shortcut=OPTIONS["B"])
    seen = []

    def execution(**_: Any) -> Execution:
        seen.append(Execution(blocks=blocks, convolution=gradients))
        return seen[-1]

    monkeypatch.setattr(counts, "Execution", execution)
    ours = count(architecture)
    assert len(seen) == 1
    assert (ours.parameters, ours.multiply_adds, ours.projections) == totals(arithmetic(architecture))


class Nested(nnx.Module):
    """A user's shortcut that owns a convolution, two levels down: 3x3, with bias."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        self.layers = nnx.List([nnx.List([nnx.Conv(in_features, out_features, (3, 3), (stride, stride), padding=1, rngs=rngs)])])

    def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        return self.layers[0][0](x) + branch


class Mixing(nnx.Module):
    """A user's shortcut with weights but without a convolution."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        self.stride = stride
        self.mix = nnx.Linear(in_features, out_features, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        return self.mix(x[:, :: self.stride, :: self.stride]) + branch


@pytest.mark.parametrize(("shortcut", "taps", "bias", "projections"), [(Nested, 9, 1, 3), (Mixing, 1, 0, 0)])
def test_a_users_shortcut_is_counted_and_projects_where_it_owns_a_convolution(
    shortcut: type[nnx.Module], taps: int, bias: int, projections: int
) -> None:
    """Beside the plain network: taps * 4 * 4 weights on 9x9 pixels, then taps * 4 * 8 and taps * 8 * 8 on 5x5."""
    plain, ours = (count(Architecture(**{**TINY, "stages": (1, 2)}, shortcut=s)) for s in (OPTIONS["none"], shortcut))
    assert ours.parameters - plain.parameters == taps * (4 * 4 + 4 * 8 + 8 * 8) + bias * (4 + 8 + 8)
    assert ours.multiply_adds - plain.multiply_adds == taps * (81 * 4 * 4 + 25 * 4 * 8 + 25 * 8 * 8)
    assert [row.projections for row in ours.stages] == ([0, 1, 2, 0] if projections else [0, 0, 0, 0])
    assert ours.projections == projections
