"""Every experiment: its resolved configuration has not drifted, its page says what a reader needs, its recipe and size are the paper's."""

import ast
import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from write_golden import GOLDEN, changed, public_experiments, resolved_experiments

from resnet_jax import models, references
from resnet_jax.configured import configured, parts
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Original
from resnet_jax.models.shortcuts import NoShortcut, ZeroPad
from resnet_jax.training import optimizer
from resnet_jax.training.experiment import Experiment

ROOT = Path(__file__).parents[1]
STUDIES: dict[str, tuple[Experiment, ...]] = {
    f"{path.stem}.{name}": found
    for path in sorted((ROOT / "experiments").glob("*.py"))
    for name, found in public_experiments(path).items()
    if isinstance(found, tuple)
}

counted = functools.cache(models.count)


def load(reference: str) -> Any:
    return references.load(f"{ROOT}/experiments/{reference}")()


def test_resolved_experiments_are_the_golden_ones() -> None:
    resolved = resolved_experiments()
    assert resolved.keys() == {path.name for path in GOLDEN.glob("*.json")}, "run `make golden` and read the difference"
    for name, text in resolved.items():
        assert text == (GOLDEN / name).read_text(), f"{name} changed; where that is meant, run `make golden` and read the difference"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments").glob("*.py")), ids=lambda p: p.name)
def test_docstrings_say_how_to_run_it_and_what_to_expect(path: Path) -> None:
    tree = ast.parse(path.read_text())
    text = ast.get_docstring(tree) or ""
    assert all(word in text for word in ("Command:", "Recipe:", "Hardware:", "arXiv"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}:{node.name} has no docstring"


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110, 1202])
@pytest.mark.parametrize("kind", ["resnet", "plain"])
def test_cifar10_recipe_is_section_4_2(kind: str, depth: int) -> None:
    """He et al. 2015, Section 4.2: 64k iterations, 0.1 divided by 10 at 32k and 48k, batch 128, weight decay 1e-4, momentum 0.9."""
    experiment = load(f"he2015_cifar10.py:{kind}{depth}")
    assert (experiment.steps, experiment.batch_size) == (64_000, 128)
    assert (experiment.schedule.learning_rate, experiment.schedule.decay_steps) == (0.1, (32_000, 48_000))
    assert (experiment.optimizer.momentum, experiment.optimizer.weight_decay) == (0.9, 1e-4)
    assert (experiment.data.pad, experiment.data.flip, experiment.data.normalization) == (4, True, "pixel_mean")
    assert experiment.schedule.warmup_until_error == (0.8 if depth >= 110 else 1.0)
    assert experiment.model.norm == configured(BatchNorm, group_size=64), "batch 128 on two GPUs (papers.md A1)"
    assert experiment.model.shortcut is (ZeroPad if kind == "resnet" else NoShortcut)
    assert sum(experiment.model.stages) * 2 + 2 == depth


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_plain_twins_differ_in_the_shortcut_alone(depth: int) -> None:
    """Table 2: the plain net is the residual net of option A without its shortcuts, with the same number of parameters."""
    residual, plain = load(f"he2015_imagenet.py:resnet{depth}").model, load(f"he2015_imagenet.py:plain{depth}").model
    assert residual.norm == configured(BatchNorm, group_size=32), "batch 256 on eight GPUs (papers.md A1)"
    assert dataclasses.replace(residual, shortcut=NoShortcut) == plain
    if depth < 50:
        assert models.count(residual).parameters == models.count(plain).parameters


def test_the_demo_gives_all_four_networks_one_recipe() -> None:
    cells = load("degradation.py:figure1")
    assert [cell.name for cell in cells] == ["plain-20", "plain-56", "ResNet-20", "ResNet-56"]
    assert len({dataclasses.replace(cell, name="", model=cells[0].model) for cell in cells}) == 1


@pytest.mark.parametrize("name", STUDIES)
def test_cells_of_a_study_have_folders_of_their_own(name: str) -> None:
    names = [cell.name for cell in STUDIES[name]]
    # Two names that differ in case alone are one folder on some machines.
    assert len({name.lower() for name in names}) == len(names)
    allowed = "[A-Za-z0-9.-]+" if name.startswith("degradation.") else "[a-z0-9.-]+"
    assert all(re.fullmatch(allowed, name) for name in names), names


def a_set(name: str, classes: int, shape: tuple[int | None, ...], **examples: int) -> DatasetInfo:
    return DatasetInfo(name=name, version="0.0.0", directory=Path(name), examples=examples, image_shape=shape, num_classes=classes)


SETS = {
    "digits": a_set("digits", 10, (8, 8, 1), train=1437, test=360),
    "cifar10": a_set("cifar10", 10, (32, 32, 3), train=50_000, test=10_000),
    "cifar100": a_set("cifar100", 100, (32, 32, 3), train=50_000, test=10_000),
    "imagenet2012": a_set("imagenet2012", 1000, (None, None, 3), train=1_281_167, validation=50_000),
}


@pytest.mark.parametrize("name", STUDIES)
def test_cells_fit_their_data(name: str) -> None:
    for cell in STUDIES[name]:
        cell.check(SETS[cell.data.name])


# papers.md A1 to A6: steps, decay steps, factor, steps of warm-up at 0.01, batch, images that BatchNorm sees together (0: the batch),
# weight decay, whether Nesterov. Epochs by hand: 50,000 images at 128 are 391 steps, at 64 are 782; 45,000 at 128 are 352; 1,281,167 at
# 256 are 5005.
TABLES_1_TO_4 = (64_000, (32_000, 48_000), 0.1, 400, 128, 64, 1e-4, False)
TABLE_5 = (450_450, (150_150, 300_300), 0.1, 0, 256, 32, 1e-4, False)
WIDE = (78_200, (23_460, 46_920, 62_560), 0.2, 0, 128, 0, 5e-4, True)
RESNEXT_CIFAR = (117_300, (58_650, 87_975), 0.1, 0, 128, 16, 5e-4, False)
RESNEXT = (500_500, (150_150, 300_300, 450_450), 0.1, 0, 256, 32, 1e-4, False)
STOCHASTIC = (176_000, (88_000, 132_000), 0.1, 0, 128, 0, 1e-4, True)
DENSE = (234_600, (117_300, 175_950), 0.1, 0, 64, 0, 1e-4, True)
RECIPES = {
    "he2015_cifar10.table6": None,
    "he2015_cifar10.figure6": None,
    "he2015_imagenet.table2": (600_000, (150_150, 300_300), 0.1, 0, 256, 32, 1e-4, False),
    "he2015_imagenet.table3": (600_000, (150_150, 300_300), 0.1, 0, 256, 32, 1e-4, False),
    "he2016_shortcuts.table1": TABLES_1_TO_4,
    "he2016_orders.table2": TABLES_1_TO_4,
    "he2016_orders.table3": TABLES_1_TO_4,
    "he2016_orders.table4": TABLES_1_TO_4,
    "he2016_imagenet.table5": TABLE_5,
    "he2016_imagenet.orders101": TABLE_5,
    "zagoruyko2016_wide.cifar10": WIDE,
    "zagoruyko2016_wide.cifar100": WIDE,
    "zagoruyko2016_wide.deepening": WIDE,
    "zagoruyko2016_wide.imagenet": (*TABLE_5[:-1], True),
    "xie2017_resnext.cifar10": RESNEXT_CIFAR,
    "xie2017_resnext.cifar100": RESNEXT_CIFAR,
    "xie2017_resnext.table3": RESNEXT,
    "xie2017_resnext.table4": RESNEXT,
    "xie2017_resnext.without_residual": RESNEXT,
    "huang2016_stochastic_depth.cifar10": STOCHASTIC,
    "huang2016_stochastic_depth.cifar100": STOCHASTIC,
    "huang2016_stochastic_depth.cifar10_plain_images": STOCHASTIC,
    "huang2016_stochastic_depth.cifar100_plain_images": STOCHASTIC,
    "huang2016_stochastic_depth.layers1202": (105_600, (52_800, 79_200), 0.1, 3520, 128, 0, 1e-4, True),
    "huang2017_densenet.cifar10": DENSE,
    "huang2017_densenet.cifar100": DENSE,
    "huang2017_densenet.cifar10_plain_images": DENSE,
    "huang2017_densenet.cifar100_plain_images": DENSE,
    "huang2017_densenet.imagenet": (*TABLE_5[:-1], True),
    "veit2016_paths.table": TABLES_1_TO_4,
}
# Table 4 of He et al. 2016 changes the batch: as many images, so twice the steps.
BATCH_64 = (128_000, (64_000, 96_000), 0.1, 400, 64, 32, 1e-4, False)


# Recipes that are not the residual papers' own have tests of their own below.
OTHERS = ("degradation.", "torchvision_imagenet.", "goyal2017_large_batch.", "he2018_bag_of_tricks.", "hu2018_senet.")


@pytest.mark.parametrize("name", [name for name in STUDIES if not name.startswith(OTHERS)])
def test_recipes_are_the_papers(name: str) -> None:
    for cell in STUDIES[name]:
        assert cell.optimizer.momentum == 0.9
        assert (cell.schedule.learning_rate, cell.schedule.warmup_learning_rate) == (0.1, 0.01)
        if RECIPES[name] is None:
            continue  # by test_cifar10_recipe_is_section_4_2, depth by depth
        assert cell.schedule.warmup_until_error == 1
        recipe = (
            cell.steps,
            cell.schedule.decay_steps,
            cell.schedule.decay_factor,
            cell.schedule.warmup_steps,
            cell.batch_size,
            parts(cell.model.norm)[1].get("group_size", 0),
            cell.optimizer.weight_decay,
            cell.optimizer.nesterov,
        )
        assert recipe == (BATCH_64 if cell.name.endswith("batch-64") else RECIPES[name]), cell.name


@pytest.mark.parametrize("name", [name for name in STUDIES if not name.startswith(OTHERS)])
def test_data_are_the_papers(name: str) -> None:
    """papers.md A1 to A6: which images, how many are for validation, what is subtracted, cropped, flipped and scored."""
    for cell in STUDIES[name]:
        # Batches are of 256 on ImageNet, and nowhere else.
        imagenet, plain = RECIPES[name] is not None and RECIPES[name][4] == 256, "plain_images" in name
        assert (cell.data.name == "imagenet2012") == imagenet
        assert (cell.data.name == "cifar100") == cell.name.startswith("cifar100-")
        assert cell.data.test_split == ("validation" if imagenet else "test")
        assert (cell.data.pad, cell.data.flip) == ((0, False) if plain else (0, True) if imagenet else (4, True))
        assert cell.data.validation_examples == (5000 if name.startswith("huang2016") else 0)
        if not imagenet:
            assert cell.data.normalization == ("pixel_mean" if name.startswith(("he20", "veit2016")) else "channel")
        else:
            # Table 5's crops of 320 pixels have no mean image of 224.
            known = {"he2015_imagenet": "pixel_mean", "he2016_imagenet": "channel"}
            assert cell.data.normalization == known.get(name.partition(".")[0], "imagenet")
            assert cell.evaluation.protocol == ("320/320" if name == "he2016_imagenet.table5" else "256/224")
        assert cell.evaluation.training_images == name.startswith(("he2016_shortcuts", "he2016_orders", "veit2016"))


@pytest.mark.parametrize("depth", [20, 110])
def test_table1_changes_the_shortcut_alone(depth: int) -> None:
    """papers.md A2, Table 1: eleven rows, the shortcut on all 54 units, ReLU after the addition."""
    cells = load_function("he2016_shortcuts.py:table1")(depth)
    assert len(cells) == 11
    assert sum(cells[0].model.stages) == (depth - 2) // 2
    assert (cells[0].model.order, cells[0].model.shortcut) == (Original, ZeroPad)
    assert len({cell.model.shortcut for cell in cells}) == 11
    for cell in cells[1:]:
        assert differing(cells[0], cell) == {"name", "model.shortcut"}


@pytest.mark.parametrize("depth", [20, 110])
def test_table2_changes_the_order_alone(depth: int) -> None:
    """papers.md A2, Table 2: five orders of 110 layers and of 164, which are as many units."""
    cells = load_function("he2016_orders.py:table2")(depth)
    assert len(cells) == 10
    for five, layers in ((cells[:5], 2), (cells[5:], 3)):
        assert five[0].model.stages == ((depth - 2) // 6,) * 3
        assert {cell.name.rpartition("-")[2] for cell in five} == {str(layers * sum(five[0].model.stages) + 2)}
        assert len({cell.model.order for cell in five}) == 5
        assert five[0].model.order is Original
        for cell in five[1:]:
            assert differing(five[0], cell) == {"name", "model.order"}


def load_function(reference: str) -> Callable[..., tuple[Experiment, ...]]:
    return references.load(f"{ROOT}/experiments/{reference}")


def differing(first: Any, second: Any, path: str = "") -> set[str]:
    """Names of the fields in which two experiments differ."""
    if not dataclasses.is_dataclass(first) or type(first) is not type(second) or path == "model.shortcut":
        return set() if first == second else {path}
    names = {f.name: f"{path}.{f.name}" if path else f.name for f in dataclasses.fields(first)}
    return set().union(*(differing(getattr(first, name), getattr(second, name), at) for name, at in names.items()))


def test_every_row_of_table1_can_be_trained_by_itself() -> None:
    found = public_experiments(ROOT / "experiments" / "he2016_shortcuts.py")
    assert [value for value in found.values() if isinstance(value, Experiment)] == list(STUDIES["he2016_shortcuts.table1"])


def test_stochastic_depth_is_all_that_differs_from_constant_depth() -> None:
    for name, cells in STUDIES.items():
        if name.startswith("huang2016"):
            constant, stochastic = cells
            assert differing(constant, stochastic) == {"name", "model.stochastic_depth.survival"}
            assert (constant.model.stochastic_depth.survival, stochastic.model.stochastic_depth.survival) == (1, 0.5)


def test_veits_networks_are_he2016s_and_differ_in_the_units_kept_alone() -> None:
    """papers.md A7: 23 of the 54 modules for each batch."""
    full, effective = STUDIES["veit2016_paths.table"]
    (theirs,) = (cell for cell in STUDIES["he2016_orders.table2"] if cell.name == "pre-activation-110")
    assert differing(theirs, full) == {"name"}
    assert differing(full, effective) == {"name", "model.stochastic_depth.kept"}
    assert (effective.model.stochastic_depth.kept, sum(effective.model.stages)) == (23, 54)


def test_dropout_thins_the_dense_branches_of_plain_images_alone() -> None:
    """papers.md A6: dropout 0.2 without augmentation."""
    for augmented, plain in (("cifar10", "cifar10_plain_images"), ("cifar100", "cifar100_plain_images")):
        for first, second in zip(STUDIES[f"huang2017_densenet.{augmented}"], STUDIES[f"huang2017_densenet.{plain}"], strict=True):
            assert differing(first, second) == {"name", "model.branch.arguments", "data.pad", "data.flip"}
            assert parts(second.model.branch)[1] == parts(first.model.branch)[1] | {"dropout": 0.2}
    cell = STUDIES["huang2017_densenet.cifar10_plain_images"][0]
    branch = cell.model.branch(200, 12, 1, order=cell.model.order, rngs=nnx.Rngs(0))
    images = jnp.ones((1, 4, 4, 200))
    scored, first, second = branch(images), *(branch(images, train=True, key=jax.random.key(seed)) for seed in (1, 2))
    assert not jnp.allclose(first, second)
    assert not jnp.allclose(first, scored)


def test_a_golden_study_holds_what_differs() -> None:
    assert changed({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 2, "d": 4}}) == {"b": {"d": 4}}
    assert changed({"a": [1, 2]}, {"a": [1]}) == {"a": [1]}


def of_100_classes(parameters: int, width: int) -> int:
    """With a classifier of 100 classes for one of 10: 90 more columns and biases."""
    return parameters + 90 * (width + 1)


def bottlenecks(stages: tuple[int, ...], groups: int, width: int) -> int:
    """Parameters of a network of ResNeXt's Table 1, its bottlenecks ``groups * width`` wide in the first stage; of ResNet with 1 and 64."""
    total, came = 7 * 7 * 3 * 64 + 2 * 64, 64
    for stage, units in enumerate(stages):
        inner, out = groups * width * 2**stage, 256 * 2**stage
        total += came * out + 2 * out  # the projection
        for _ in range(units):
            total += came * inner + 9 * inner * inner // groups + inner * out + 2 * (inner + inner + out)
            came = out
    return total + came * 1000 + 1000


def gates(units: int) -> int:
    """A 1x1 convolution and its bias on every unit of a CIFAR network. He et al. 2016, Section 3.1."""
    widths = [(16, 16), *[(16, 16)] * (units - 1), (16, 32), *[(32, 32)] * (units - 1), (32, 64), *[(64, 64)] * (units - 1)]
    return sum(came * out + out for came, out in widths)


LAYERS_50, LAYERS_101 = (3, 4, 6, 3), (3, 4, 23, 3)
# The projections of an ImageNet bottleneck network, option B: 1x1 convolutions and their normalisations.
PROJECTIONS = sum(came * out + 2 * out for came, out in ((64, 256), (256, 512), (512, 1024), (1024, 2048)))

TABLE_6 = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018, 110: 1_727_962, 1202: 19_421_274}
WRN = {
    "wrn40-1": 563_930,
    "wrn40-2": 2_243_546,
    "wrn40-4": 8_949_210,
    "wrn28-10": 36_479_194,
    "wrn28-10-dropout": 36_479_194,
    "wrn28-12": 52_517_850,
    "wrn22-8": 17_158_106,
    "wrn22-10": 26_797_914,
    "wrn16-8": 10_961_370,
    "wrn16-10": 17_116_634,
    "wrn16-4": 2_748_890,
    "wrn16-4-dropout": 2_748_890,
    "wrn52-1": 758_362,
    "wrn52-1-dropout": 758_362,
    "wrn40-10-dropout": 55_841_754,
}
DENSENETS = {
    "densenet-40-12": 1_019_722,
    "densenet-100-12": 6_979_642,
    "densenet-100-24": 27_249_082,
    "densenet-bc-100-12": 769_162,
    "densenet-bc-250-24": 15_324_406,
    "densenet-bc-190-40": 25_624_430,
}

# What the last dense block gives out: 16 + 3 x 12 x 12 for 40-12; with compression half of what came, and what the block adds, three times.
DENSE_WIDTHS = {
    "densenet-40-12": 16 + 3 * 12 * 12,
    "densenet-100-12": 16 + 3 * 32 * 12,
    "densenet-100-24": 16 + 3 * 32 * 24,
    "densenet-bc-100-12": 342,  # 24 + 192, 108 + 192, 150 + 192
    "densenet-bc-250-24": 1734,  # 48 + 984, 516 + 984, 750 + 984
    "densenet-bc-190-40": 2190,  # 80 + 1240, 660 + 1240, 950 + 1240
}
DENSENETS_OF_100 = {f"cifar100-{name}": of_100_classes(DENSENETS[name], width) for name, width in DENSE_WIDTHS.items()}

# papers.md A1 to A6, marks C, and arithmetic beside them.
PARAMETERS: dict[str, dict[str, int]] = {
    "he2015_cifar10.table6": {f"resnet{depth}": count for depth, count in TABLE_6.items()},
    "he2015_cifar10.figure6": {f"plain{depth}": count for depth, count in TABLE_6.items() if depth < 1202}
    | {f"resnet{depth}": count for depth, count in TABLE_6.items()},
    "he2015_imagenet.table2": {"plain18": 11_515_688, "resnet18": 11_515_688, "plain34": 21_623_848, "resnet34": 21_623_848},
    "he2015_imagenet.table3": {
        "plain34": 21_623_848,
        "resnet34": 21_623_848,
        "resnet34-b": 21_797_672,
        "resnet34-c": 22_716_840,
        "resnet50": 25_557_032,
        "resnet101": 44_549_160,
        "resnet152": 60_192_808,
    },
    "he2016_shortcuts.table1": {
        "original": 1_727_962,
        "scaled-0-1": 1_727_962,
        "scaled-0.5-1": 1_727_962,
        "scaled-0.5-0.5": 1_727_962,
        "exclusive-gating-bias-0": 1_727_962 + gates(18),
        "exclusive-gating-bias-minus-6": 1_727_962 + gates(18),
        "exclusive-gating-bias-minus-7": 1_727_962 + gates(18),
        "shortcut-only-gating-bias-0": 1_727_962 + gates(18),
        "shortcut-only-gating-bias-minus-6": 1_727_962 + gates(18),
        "1x1-convolution": 1_826_202,
        "dropout-0.5": 1_727_962,
    },
    "he2016_orders.table2": {
        "original-110": 1_727_962,
        "norm-after-addition-110": 1_727_962,
        "relu-before-addition-110": 1_727_962,
        "relu-only-pre-activation-110": 1_727_962,
        "pre-activation-110": 1_727_962,
        "original-164": 1_704_154,
        "norm-after-addition-164": 1_704_154,
        "relu-before-addition-164": 1_704_154,
        "relu-only-pre-activation-164": 1_704_154,
        "pre-activation-164": 1_703_258,
    },
    "he2016_orders.table3": {
        # The layers of ResNet-110, with a shortcut round each.
        "original-110-single": 1_727_962,
        "pre-activation-110-single": 1_727_962,
        "original-110": 1_727_962,
        "pre-activation-110": 1_727_962,
        "original-164": 1_704_154,
        "pre-activation-164": 1_703_258,
        "original-1001": 10_328_602,
        "pre-activation-1001": 10_327_706,
        "cifar100-original-164": of_100_classes(1_704_154, 256),
        "cifar100-pre-activation-164": of_100_classes(1_703_258, 256),
        "cifar100-original-1001": of_100_classes(10_328_602, 256),
        "cifar100-pre-activation-1001": of_100_classes(10_327_706, 256),
    },
    "he2016_orders.table4": {
        "pre-activation-164": 1_703_258,
        "pre-activation-1001": 10_327_706,
        "pre-activation-1001-batch-64": 10_327_706,
        "cifar100-pre-activation-164": of_100_classes(1_703_258, 256),
        "cifar100-pre-activation-1001": of_100_classes(10_327_706, 256),
    },
    "he2016_imagenet.table5": {
        "original-152": 60_192_808,
        "pre-activation-152": 60_192_808 - (64_673_832 - 64_666_280),  # as at 200 layers: the units between cost the same,
        "original-200": 64_673_832,
        "pre-activation-200": 64_666_280,
        "pre-activation-200-aspect-ratio": 64_666_280,
    },
    "he2016_imagenet.orders101": {"original-101": 44_549_160, "norm-after-addition-101": 44_549_160},
    "zagoruyko2016_wide.cifar10": WRN | {"wrn40-8": 35_748_314},
    "zagoruyko2016_wide.cifar100": {f"cifar100-{name}": of_100_classes(count, 64 * int(name.split("-")[1])) for name, count in WRN.items()}
    | {"cifar100-wrn28-10": 36_536_884},
    # Twelve convolutions a stage, each with its normalisation, and one projection, however they are grouped.
    "zagoruyko2016_wide.deepening": dict.fromkeys(("wrn40-2-l1", "wrn40-2-l2", "wrn40-2-l3", "wrn40-2-l4"), 2_243_546),
    "zagoruyko2016_wide.imagenet": {"wrn50-2": 68_883_240},
    "xie2017_resnext.cifar10": {"resnext29-8x64d": 34_426_698, "resnext29-16x64d": 68_155_210},
    "xie2017_resnext.cifar100": {
        "cifar100-resnext29-8x64d": of_100_classes(34_426_698, 1024),
        "cifar100-resnext29-16x64d": of_100_classes(68_155_210, 1024),
    },
    "xie2017_resnext.table3": {
        "resnet50": 25_557_032,
        "resnext50-2x40d": bottlenecks(LAYERS_50, 2, 40),
        "resnext50-4x24d": bottlenecks(LAYERS_50, 4, 24),
        "resnext50-8x14d": bottlenecks(LAYERS_50, 8, 14),
        "resnext50-32x4d": 25_028_904,
        "resnet101": 44_549_160,
        "resnext101-2x40d": bottlenecks(LAYERS_101, 2, 40),
        "resnext101-4x24d": bottlenecks(LAYERS_101, 4, 24),
        "resnext101-8x14d": bottlenecks(LAYERS_101, 8, 14),
        "resnext101-32x4d": 44_177_704,
    },
    "xie2017_resnext.table4": {
        "resnet101": 44_549_160,
        "resnext101-32x4d": 44_177_704,
        "resnet200": 64_673_832,
        "resnet101-1x100d": bottlenecks(LAYERS_101, 1, 100),
        "resnext101-2x64d": bottlenecks(LAYERS_101, 2, 64),
        "resnext101-64x4d": 83_455_272,
    },
    "xie2017_resnext.without_residual": {
        "resnet50": 25_557_032,
        "resnet50-without-residual": 25_557_032 - PROJECTIONS,
        "resnext50-32x4d": 25_028_904,
        "resnext50-32x4d-without-residual": 25_028_904 - PROJECTIONS,
    },
    "huang2016_stochastic_depth.cifar10": {"constant-110": 1_727_962, "stochastic-110": 1_727_962},
    "huang2016_stochastic_depth.cifar100": {"cifar100-constant-110": 1_733_812, "cifar100-stochastic-110": 1_733_812},
    "huang2016_stochastic_depth.cifar10_plain_images": {
        "constant-110-plain-images": 1_727_962,
        "stochastic-110-plain-images": 1_727_962,
    },
    "huang2016_stochastic_depth.cifar100_plain_images": {
        "cifar100-constant-110-plain-images": 1_733_812,
        "cifar100-stochastic-110-plain-images": 1_733_812,
    },
    "huang2016_stochastic_depth.layers1202": {"constant-1202": 19_421_274, "stochastic-1202": 19_421_274},
    "huang2017_densenet.cifar10": DENSENETS,
    "huang2017_densenet.cifar100": DENSENETS_OF_100,
    "huang2017_densenet.cifar10_plain_images": {f"{name}-plain-images": count for name, count in DENSENETS.items()},
    "huang2017_densenet.cifar100_plain_images": {f"{name}-plain-images": count for name, count in DENSENETS_OF_100.items()},
    "huang2017_densenet.imagenet": {
        "densenet121": 7_978_856,
        "densenet161": 28_681_000,
        "densenet169": 14_149_480,
        "densenet201": 20_013_928,
    },
}


def test_the_arithmetic_gives_the_published_counts() -> None:
    """papers.md A1 and A4, marks C."""
    assert bottlenecks(LAYERS_50, 1, 64) == 25_557_032
    assert bottlenecks(LAYERS_101, 1, 64) == 44_549_160
    assert bottlenecks(LAYERS_50, 32, 4) == 25_028_904
    assert bottlenecks(LAYERS_101, 64, 4) == 83_455_272
    assert of_100_classes(1_727_962, 64) == 1_733_812


@pytest.mark.parametrize("name", PARAMETERS)
def test_studies_have_the_papers_cells(name: str) -> None:
    assert {cell.name for cell in STUDIES[name]} == PARAMETERS[name].keys()


def slowly(name: str, cell: Experiment) -> Any:
    # A count takes a second, of a dense network (which is not repetitive) many: two studies and a cell of each are enough for every time.
    quick = name.startswith(("he2016_shortcuts", "he2015_cifar10"))
    more = pytest.mark.slow if cell.name == STUDIES[name][0].name else pytest.mark.exhaustive
    return pytest.param(name, cell, id=f"{name}:{cell.name}", marks=[] if quick else [more])


@pytest.mark.quick(8)
@pytest.mark.parametrize(("name", "cell"), [slowly(name, cell) for name, cells in STUDIES.items() if name in PARAMETERS for cell in cells])
def test_cells_have_the_papers_number_of_parameters(name: str, cell: Experiment) -> None:
    assert counted(cell.model).parameters == PARAMETERS[name][cell.name]


def rates(experiment: Any, *epochs: float) -> list[float]:
    """The learning rate at the beginning of some epochs, by the very transformation that trains."""
    per_epoch = -(-1_281_167 // experiment.batch_size)
    transformation = optimizer.scale_by_papers_schedule(experiment.schedule)
    params = {"w": jnp.ones(1)}
    state = transformation.init(params)

    def at(step: float) -> float:
        begun = state._replace(step=jnp.int32(round(step)), warming=jnp.bool(True))
        return float(transformation.update(params, begun, params, error=0.9)[1].learning_rate)

    return [at(epoch * per_epoch) for epoch in epochs]


@pytest.mark.slow
def test_torchvision_v1() -> None:
    """papers.md A11: 90 epochs, batch 256, 0.1 every 30 epochs a tenth, weight decay 1e-4; 8 GPUs of 32 images."""
    v1 = load("torchvision_imagenet.py:v1")
    assert (v1.steps, v1.batch_size, v1.optimizer.weight_decay, v1.optimizer.decay) == (90 * 5005, 256, 1e-4, "all")
    assert rates(v1, 0, 29.99, 30, 60, 89) == pytest.approx([0.1, 0.1, 0.01, 0.001, 0.001])
    assert v1.model.norm == configured(BatchNorm, group_size=32)
    assert counted(v1.model).parameters == 25_557_032
    networks = {cell.name: counted(cell.model).parameters for cell in load("torchvision_imagenet.py:networks_v1")}
    assert networks["resnet18"] == 11_689_512
    assert networks["wide-resnet50-2"] == 68_883_240


def test_torchvision_v2() -> None:
    """papers.md A11: 600 epochs, batch 1024, lr 0.5 cosine, 5 warm-up, wd 2e-5, LS 0.1, mixup 0.2, cutmix 1, train 176, RA x4."""
    v2 = load("torchvision_imagenet.py:v2")
    assert (v2.steps, v2.batch_size, v2.optimizer.weight_decay, v2.optimizer.decay) == (600 * 1252, 1024, 2e-5, "kernels")
    # A cosine over 595 epochs behind the warm-up: half way at epoch 302.5.
    assert rates(v2, 0, 5, 302.5, 600) == pytest.approx([0.005, 0.5, 0.25, 0.0], abs=1e-6)
    # By hand: 2e-5 x 1024 x 32 / 600 = 1.0923e-3 of the average is new every 32 steps.
    assert v2.optimizer.ema**32 == pytest.approx(1 - 1.0923e-3, abs=1e-7)
    assert (v2.loss.smoothing, v2.data.repeats, v2.model.input_shape, v2.evaluation.protocol) == (0.1, 4, (176, 176, 3), "232/224")


@pytest.mark.parametrize(
    ("name", "epochs", "peak", "decay", "smoothing", "mixup", "repeats", "side", "magnitude"),
    [
        ("a1", 600, 5e-3, 0.01, 0.1, 0.2, 3, 224, 7),
        ("a2", 300, 5e-3, 0.02, 0.0, 0.1, 3, 224, 7),
        ("a3", 100, 8e-3, 0.02, 0.0, 0.1, 1, 160, 6),
    ],
)
def test_resnet_strikes_back(
    name: str, epochs: int, peak: float, decay: float, smoothing: float, mixup: float, repeats: int, side: int, magnitude: int
) -> None:
    """papers.md A11: LAMB, batch 2048, BCE, cosine with 5 epochs of warm-up; timm's cosine runs over all epochs."""
    found = load(f"wightman2021_strikes_back.py:{name}")
    assert (found.steps, found.batch_size) == (epochs * 626, 2048)
    assert (found.optimizer.rule, found.optimizer.weight_decay, found.loss.kind, found.loss.smoothing) == (
        "lamb",
        decay,
        "binary",
        smoothing,
    )
    assert (found.optimizer.decay, found.optimizer.clip) == ("kernels", 1.0), "timm's Lamb: max_grad_norm=1.0, always_adapt=False"
    assert parts(found.data.mix)[1] == {"mixup": mixup, "cutmix": 1.0, "group": 512}
    assert (found.data.repeats, found.model.input_shape[0], parts(found.data.policy)[1]["magnitude"]) == (repeats, side, magnitude)
    assert rates(found, epochs / 2, epochs) == pytest.approx([(peak + 1e-6) / 2, 1e-6], rel=1e-3)
    assert found.model.stochastic_depth.survival == (1.0 if name == "a3" else 0.95)
    assert found.evaluation.protocol == "235/224-bicubic", "timm: the floor of 224 / 0.95 = 235.8"


def test_linear_scaling() -> None:
    """Goyal et al. 2017: 0.1 kn / 256 after 5 epochs that begin at 0.1, BatchNorm over 32 images whatever the batch is."""
    cells = load("goyal2017_large_batch.py:scaling")
    assert [cell.batch_size for cell in cells] == [256, 512, 1024, 2048, 4096, 8192]
    for cell in cells:
        full = 0.1 * cell.batch_size / 256
        assert rates(cell, 0, 2.5, 5, 30, 60, 80) == pytest.approx(
            [0.1, (0.1 + full) / 2, full, full / 10, full / 100, full / 1000], rel=2e-3
        )
        assert cell.model.norm == configured(BatchNorm, group_size=32)
        assert parts(cell.model.branch)[1]["zero_scale"] is True


def test_the_bag_of_tricks_adds_one_at_a_time() -> None:
    """He et al. 2018; parameters of D from papers.md A9."""
    cells = {cell.name: cell for cell in load("he2018_bag_of_tricks.py:architectures") + load("he2018_bag_of_tricks.py:refinements")}
    assert counted(cells["resnet50-d"].model).parameters == 25_576_264
    assert rates(cells["cosine"], 0, 5, 62.5, 120) == pytest.approx([0.0, 0.4, 0.2, 0.0], abs=1e-6)
    assert dataclasses.replace(cells["label-smoothing"], name="cosine", loss=cells["cosine"].loss) == cells["cosine"]
    assert cells["mixup"].steps == 200 * 1252
    assert all(parts(cell.model.branch)[1]["zero_scale"] for cell in cells.values())


@pytest.mark.slow
def test_squeeze_and_excitation_networks_have_their_counts() -> None:
    """papers.md A8; the authors' networks have the stride in the first 1x1."""
    found = {cell.name: counted(cell.model).parameters for cell in load("hu2018_senet.py:imagenet")}
    assert [found[f"seresnet{depth}"] for depth in (50, 101, 152)] == [28_088_024, 49_326_872, 66_821_848]
