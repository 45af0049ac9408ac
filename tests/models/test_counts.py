"""Parameters, multiply-adds and projections against the papers' tables and against an arithmetic of its own, exactly."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import pytest
from flax import nnx

from resnet_jax.models import Architecture, Execution, cifar_architecture, count, counts, imagenet_architecture
from resnet_jax.models.blocks import BasicBlock, Bottleneck, BottleneckV15
from resnet_jax.models.shortcuts import OPTIONS
from resnet_jax.models.stems import ImageNetStem

counted = functools.cache(count)

# Kernel, width (in units of the stage's) and stride of each convolution of a unit with stride s. He et al. 2015, Figure 5;
# v1.5 as in torchvision.
UNITS = {
    BasicBlock: lambda s: [(3, 1, s), (3, 1, 1)],
    Bottleneck: lambda s: [(1, 1, s), (3, 1, 1), (1, 4, 1)],
    BottleneckV15: lambda s: [(1, 1, 1), (3, 1, s), (1, 4, 1)],
}


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

    def convolve(self, kernel: int, width: int, stride: int) -> None:
        """A convolution without bias, padded by (kernel - 1) / 2, and the scale and bias of its normalisation."""
        self.side = (self.side + 2 * ((kernel - 1) // 2) - kernel) // stride + 1
        weights = kernel * kernel * self.width * width
        self.parameters += weights + 2 * width
        self.multiply_adds += self.side**2 * weights
        self.width = width


def arithmetic(architecture: Architecture) -> list[Row]:
    """Counts by loops over the layers as Table 1 and Section 4.2 of He et al. 2015 list them."""
    option = {shortcut: name for name, shortcut in OPTIONS.items()}[architecture.shortcut]
    side, _, channels = architecture.input_shape
    stem = Row("stem", 0, side, channels)
    if architecture.stem is ImageNetStem:
        stem.convolve(7, architecture.features[0], 2)
        stem.side = (stem.side + 2 - 3) // 2 + 1  # 3x3 max-pooling at stride 2
    else:
        stem.convolve(3, architecture.features[0], 1)
    rows = [stem]
    for stage, (units, wide) in enumerate(zip(architecture.stages, architecture.features, strict=True)):
        row = Row(f"stage{stage + 1}", units, rows[-1].side, rows[-1].width)
        for unit in range(units):
            stride = 2 if stage > 0 and unit == 0 else 1
            beside = dataclasses.replace(row)
            for kernel, times, step in UNITS[architecture.block](stride):
                row.convolve(kernel, times * wide, step)
            if option == "C" or (option == "B" and (stride, beside.width) != (1, row.width)):
                before = dataclasses.replace(beside)
                beside.convolve(1, row.width, stride)
                row.parameters += beside.parameters - before.parameters
                row.multiply_adds += beside.multiply_adds - before.multiply_adds
                row.projections += 1
        rows.append(row)
    width, classes = rows[-1].width, architecture.num_classes
    return [*rows, Row("head", 0, 1, classes, parameters=width * classes + classes, multiply_adds=width * classes)]


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


@pytest.mark.parametrize(
    ("depth", "option"),
    [
        # Seconds each at depth 1202.
        pytest.param(depth, option, marks=[pytest.mark.slow] if depth == 1202 and option != "A" else [])
        for depth, option in itertools.product(CIFAR, ("none", "A", "B"))
    ],
)
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


@pytest.mark.parametrize(("stride_in_1x1", "multiply_adds"), [(True, 14.776), pytest.param(False, 15.007, marks=pytest.mark.slow)])
def test_resnet_200_which_is_not_in_the_catalog_is_counted_too(stride_in_1x1: bool, multiply_adds: float) -> None:
    """papers.md A1, Table 1: stages 3, 24, 36, 3 and 64,673,832 parameters."""
    ours = exactly(imagenet_architecture(152, stages=(3, 24, 36, 3), stride_in_1x1=stride_in_1x1))
    assert (ours.parameters, round(ours.multiply_adds / 1e9, 3)) == (64_673_832, multiply_adds)


TINY: dict[str, Any] = dict(stages=(3, 3), features=(4, 8), input_shape=(9, 9, 1))


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("block", UNITS)
def test_odd_sizes_and_grey_images_are_counted(block: type[nnx.Module], option: str) -> None:
    if option != "A" or block is BasicBlock:
        exactly(Architecture(**TINY, block=block, shortcut=OPTIONS[option]))


@pytest.mark.parametrize(("blocks", "gradients"), [("loop", "plain"), ("loop", "explicit"), ("scan", "explicit")])
def test_counts_do_not_depend_on_the_execution(blocks: Any, gradients: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scan's body counts as often as it runs; a 1x1 convolution counts the same as a matrix product."""
    architecture = Architecture(**TINY, block=Bottleneck, shortcut=OPTIONS["B"])
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
