"""What is put beside a published number, what is refused, and with which reasons."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from made_up_runs import experiment, result

from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models import NETWORKS, Architecture, StochasticDepth, cifar_architecture, wide_architecture
from resnet_jax.models.norms import BatchNorm, GroupNorm
from resnet_jax.models.orders import FullPreactivation, NormAfterAddition
from resnet_jax.models.shortcuts import NoShortcut, PooledZeroPad, Projection, Scaled
from resnet_jax.studies import comparison, ledger
from resnet_jax.studies.cells import Cell, Run
from resnet_jax.studies.comparison import Comparison, compare
from resnet_jax.studies.ledger import Entry
from resnet_jax.training import resolved
from resnet_jax.training.experiment import Data, Experiment, Optimizer, Start

# papers.md A1, A12: what He et al. 2015 say of Table 6. Typed here, so that neither the ledger's file nor `result.protocol` is the judge.
TABLE6 = {
    "dataset": "cifar10",
    "test_images": 10_000,
    "steps": 64_000,
    "batch_size": 128,
    "normalisation": "BatchNorm",
    "batch_norm_group": 64,
    "preprocessing": "pixel_mean",
    "augmentation": "pad 4, random crop, random flip",
    "view": "single 32x32",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
}
# Of ours it is not stated by the paper; none of it may decide.
UNSTATED = {
    "dataset_version": "3.0.2",
    "training_images": 50_000,
    "validation_images": 0,
    "batch_norm_statistics": "moving average",
    "padding": "explicit symmetric",
    "selection": "last step",
    "dtype": "float32",
    "parameters": "last step",
}


def entry(paper: str, table: str, row: str, metric: str = "top1_error") -> Entry:
    (found,) = (e for e in ledger.load(paper).entries if (e.table, e.row, e.metric) == (table, row, metric))
    return found


def cell(made: Experiment, *values: float, **fields: Any) -> Cell:
    """Runs of seeds 0, 1, ... of an experiment; ``fields`` are those of the results."""
    return Cell(made.name, [Run(seed, result(made, seed, value, **fields), Path()) for seed, value in enumerate(values)])


def of(model: Architecture, name: str = "ours", **fields: Any) -> Experiment:
    return dataclasses.replace(experiment(name, 20), model=model, **fields)


def pairs(found: Comparison) -> dict[str, tuple[Any, Any]]:
    """Differing fields of the only refusal."""
    assert found.ours == ()
    (refusal,) = found.refused
    return refusal.differing


# Put together.


def test_resnet_20_under_the_papers_circumstances_stands_beside_8_75() -> None:
    ours = cell(experiment("resnet20", 20), 8.9, 8.7, protocol=TABLE6 | UNSTATED)
    found = compare(entry("he2015", "Table 6", "ResNet-20"), [ours])
    assert found.entry.value == 8.75
    assert found.refused == ()
    ((same, spread),) = found.ours
    assert same is ours
    assert spread.values == (8.9, 8.7)


def test_the_papers_experiment_has_the_papers_circumstances() -> None:
    """With the protocol that `result.json` says of the made-up run of experiments/he2015_cifar10.py's recipe."""
    ours = cell(experiment("resnet20", 20), 8.9)
    assert {name: ours.results[0]["protocol"][name] for name in TABLE6} == TABLE6
    assert len(compare(entry("he2015", "Table 6", "ResNet-20"), [ours]).ours) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("training_images", 45_000),
        ("validation_images", 5000),
        ("padding", "SAME"),
        ("batch_norm_statistics", "true average"),
        ("dataset_version", "3.1.0"),
        ("nesterov", True),
    ],
)
def test_what_the_paper_does_not_state_does_not_refuse(field: str, value: Any) -> None:
    """papers.md A1: "final training on 45k or 50k" is ambiguous."""
    ours = cell(experiment("resnet20", 20), 8.9, protocol=TABLE6 | UNSTATED | {field: value})
    found = compare(entry("he2015", "Table 6", "ResNet-20"), [ours])
    assert len(found.ours) == 1
    assert found.refused == ()


def test_a_cell_without_results_is_neither_beside_nor_refused() -> None:
    open_ = Cell("open", [Run(0, None, Path())])
    found = compare(entry("he2015", "Table 6", "ResNet-20"), [open_])
    assert (found.ours, found.refused) == ((), ())


# Refused.

OTHERWISE = {
    "dataset": "cifar100",
    "test_images": 9984,
    "steps": 32_000,
    "batch_size": 256,
    "normalisation": "GroupNorm",
    "batch_norm_group": 128,
    "preprocessing": "channel",
    "augmentation": "random flip",
    "view": "single 32x32 of 40",
    "learning_rate": 1e-4,
    "momentum": 0.8,
    "weight_decay": 0.0,
}


@pytest.mark.parametrize(("field", "value"), OTHERWISE.items())
def test_any_one_field_that_differs_refuses_and_is_named_with_both_values(field: str, value: Any) -> None:
    ours = cell(experiment("resnet20", 20), 8.9, protocol=TABLE6 | UNSTATED | {field: value})
    found = compare(entry("he2015", "Table 6", "ResNet-20"), [ours])
    assert pairs(found) == {field: (TABLE6[field], value)}
    assert str(found.refused[0]) == f"resnet20 not comparable: {field} {TABLE6[field]} there, {value} here"


def test_a_run_that_began_with_weights_is_not_beside_a_published_number() -> None:
    """The papers' networks were drawn; nothing says so in their tables."""
    tuned = dataclasses.replace(experiment("resnet20", 20), start=Start(file="weights.safetensors", digest="ab"))
    found = compare(entry("he2015", "Table 6", "ResNet-20"), [cell(tuned, 5.0)])
    assert pairs(found) == {"initial_weights": (None, "ab")}


def test_all_that_differ_are_named() -> None:
    ours = cell(experiment("resnet20", 20), 8.9, protocol=OTHERWISE | UNSTATED)
    found = compare(entry("he2015", "Table 6", "ResNet-20"), [ours])
    assert pairs(found) == {name: (TABLE6[name], OTHERWISE[name]) for name in TABLE6}
    for name in TABLE6:
        assert f"{name} {TABLE6[name]} there, {OTHERWISE[name]} here" in str(found.refused[0])


def test_a_field_that_our_result_lacks_refuses() -> None:
    """What the paper states and we do not know is not the same."""
    protocol = {name: value for name, value in (TABLE6 | UNSTATED).items() if name != "batch_norm_group"}
    found = compare(entry("he2015", "Table 6", "ResNet-20"), [cell(experiment("resnet20", 20), 8.9, protocol=protocol)])
    assert pairs(found) == {"batch_norm_group": (64, None)}


@pytest.mark.parametrize(
    ("fields", "differing"),
    [
        ({"steps": 2000}, {"steps": (64_000, 2000)}),
        ({"batch_size": 64}, {"batch_size": (128, 64)}),
        ({"data": Data(name="cifar10", pad=0, flip=False)}, {"augmentation": ("pad 4, random crop, random flip", "none")}),
        ({"data": Data(name="cifar10", flip=False)}, {"augmentation": ("pad 4, random crop, random flip", "pad 4, random crop")}),
        ({"data": Data(name="cifar10", pad=2)}, {"augmentation": ("pad 4, random crop, random flip", "pad 2, random crop, random flip")}),
        ({"data": Data(name="cifar10", normalization="channel")}, {"preprocessing": ("pixel_mean", "channel")}),
        ({"model": cifar_architecture(20)}, {"batch_norm_group": (64, 128)}),
        ({"model": cifar_architecture(20, norm=configured(BatchNorm, group_size=32))}, {"batch_norm_group": (64, 32)}),
    ],
    ids=str,
)
def test_an_experiment_of_another_recipe_is_refused(fields: dict[str, Any], differing: dict[str, tuple[Any, Any]]) -> None:
    """From the experiment to the refusal."""
    ours = cell(dataclasses.replace(experiment("resnet20", 20), **fields), 8.9)
    assert pairs(compare(entry("he2015", "Table 6", "ResNet-20"), [ours])) == differing


def test_a_result_of_cifar_100_is_not_beside_the_row_of_cifar_10() -> None:
    """He et al. 2016, Table 3 has ResNet-164 on both: each row finds its own and refuses the other."""
    model = NETWORKS["cifar_resnet164"]
    ten = cell(of(model, "ten"), 6.0, protocol=TABLE6 | UNSTATED)
    hundred = cell(of(dataclasses.replace(model, num_classes=100), "hundred"), 25.0, protocol=TABLE6 | UNSTATED | {"dataset": "cifar100"})
    for dataset, mine, other, error in (("CIFAR-10", ten, hundred, 5.93), ("CIFAR-100", hundred, ten, 25.16)):
        found = compare(entry("he2016", f"Table 3, {dataset}", "164, baseline"), [ten, hundred])
        assert found.entry.value == error
        assert [each.name for each, _ in found.ours] == [mine.name]
        assert [refusal.cell.name for refusal in found.refused] == [other.name]
        assert set(found.refused[0].differing) == {"dataset"}


# How the step was chosen.

STOCHASTIC = of(
    cifar_architecture(110, shortcut=PooledZeroPad),
    "constant-110",
    steps=500 * 352,
    data=Data(name="cifar10", validation_examples=5000, normalization="channel"),
    optimizer=Optimizer(nesterov=True),
)


def test_a_val_selected_error_is_compared_with_ours_selected_on_validation() -> None:
    """Huang et al. 2016: test error at the epoch of the lowest validation error, 6.41; not ours of the last step, nor the best."""
    ours = cell(STOCHASTIC, 7.0, 7.5, selected_on_validation=6.5, best_over_training=6.0)
    found = compare(entry("huang2016", "CIFAR-10+", "constant depth"), [ours])
    assert found.entry.value == 6.41
    assert found.refused == ()
    assert [spread.values for _, spread in found.ours] == [(6.5, 6.5)]


def test_a_val_selected_error_is_refused_where_ours_was_not_selected() -> None:
    found = compare(entry("huang2016", "CIFAR-10+", "constant depth"), [cell(STOCHASTIC, 7.0)])
    assert pairs(found) == {"selection": ("validation error", "last step")}
    assert "selection validation error there, last step here" in str(found.refused[0])


def test_a_val_selected_error_is_refused_where_some_seed_lacks_it() -> None:
    some = Cell("some", [Run(seed, result(STOCHASTIC, seed, 7.0, selected_on_validation=v), Path()) for seed, v in enumerate((6.5, None))])
    assert set(pairs(compare(entry("huang2016", "CIFAR-10+", "constant depth"), [some]))) == {"selection"}


def test_a_test_selected_error_is_compared_with_our_best_over_training() -> None:
    """akamaster's README, 8.27: the best epoch on the test images (papers.md A12, trap 1). Its length is not stated: given here."""
    ours = cell(experiment("resnet20", 20), 8.9, 8.8, best_over_training=8.5)
    told = entry("reruns", "akamaster/pytorch_resnet_cifar10", "ResNet-20")
    assert told.value == 8.27
    assert compare(told, [ours]).refused[0].differing == {"epochs": ("not stated", 163.84)}
    found = compare(dataclasses.replace(told, protocol=told.protocol | {"epochs": 164}), [ours])
    assert [spread.values for _, spread in found.ours] == [(8.5, 8.5)]


def test_an_error_of_the_last_step_stays_ours_where_we_selected_too() -> None:
    ours = cell(experiment("resnet20", 20), 8.9, selected_on_validation=8.5, best_over_training=8.25)
    found = compare(entry("he2015", "Table 6", "ResNet-20"), [ours])
    assert [spread.values for _, spread in found.ours] == [(8.9,)]


# What is the same network.


@pytest.mark.parametrize(
    "model",
    [
        cifar_architecture(20, shortcut=Projection),
        cifar_architecture(20, shortcut=NoShortcut),
        cifar_architecture(20, shortcut=configured(Scaled, shortcut=0.5)),
        cifar_architecture(20, order=NormAfterAddition),
        cifar_architecture(20, order=FullPreactivation),
        cifar_architecture(20, features=(32, 64, 128)),
        cifar_architecture(20, stochastic_depth=StochasticDepth(survival=0.5)),
        cifar_architecture(20, norm=configured(GroupNorm, num_groups=8)),
        cifar_architecture(32),
    ],
    ids=lambda model: str(resolved.fingerprint(resolved.resolve(model)))[:6],
)
def test_another_network_is_not_even_refused(model: Architecture) -> None:
    ours = Cell("other", [Run(0, result(experiment("other", 20), 0, 8.9) | {"model": resolved.resolve(model)}, Path())])
    found = compare(entry("he2015", "Table 6", "ResNet-20"), [ours])
    assert (found.ours, found.refused) == ((), ())


@pytest.mark.parametrize(
    "fields",
    [{"dtype": "bfloat16"}, {"num_classes": 100}, {"input_shape": (40, 40, 3)}, {"norm": configured(BatchNorm, momentum=0.99)}],
    ids=str,
)
def test_dtype_classes_size_and_the_norms_arguments_are_no_structure(fields: dict[str, Any]) -> None:
    base = cifar_architecture(20)
    assert comparison.structure(resolved.resolve(dataclasses.replace(base, **fields))) == comparison.structure(resolved.resolve(base))


def test_half_precision_and_averaged_parameters_are_refused_unless_stated() -> None:
    """No paper of the ledger speaks of them; who averages or computes in bfloat16 says so."""
    told = entry("he2015", "Table 6", "ResNet-20")
    ours = cell(of(dataclasses.replace(experiment("x", 20).model, dtype="bfloat16"), "half"), 8.9)
    assert pairs(compare(told, [ours])) == {"dtype": ("float32", "bfloat16")}
    assert len(compare(dataclasses.replace(told, protocol=told.protocol | {"dtype": "bfloat16"}), [ours]).ours) == 1
    averaged = cell(dataclasses.replace(experiment("x", 20), optimizer=Optimizer(ema=0.999)), 8.9)
    assert pairs(compare(told, [averaged])) == {"parameters": ("last step", "moving average, decay 0.999")}


def test_residual_scaling_is_told_apart_by_its_arguments() -> None:
    """He et al. 2016, Table 1: 0.5 and 1 fails, 0.5 and 0.5 has 12.35."""
    model = cifar_architecture(110, shortcut=configured(Scaled, shortcut=0.5, branch=0.5), norm=configured(BatchNorm, group_size=64))
    ours = cell(of(model), 12.5)
    assert len(compare(entry("he2016", "Table 1", "constant scaling 0.5, 0.5"), [ours]).ours) == 1
    assert compare(entry("he2016", "Table 1", "constant scaling 0.5, 1"), [ours]).ours == ()


# Counts, and numbers without a network.


@pytest.mark.parametrize(
    ("place", "counted"),
    [
        (("he2015", "Table 6, exact counts", "ResNet-20", "parameters"), 269_722),
        (("he2015", "Table 6, parameters", "ResNet-20", "parameters"), 269_722),
        (("he2015", "Projections of ResNet-34", "ResNet-34 (C)", "projections"), 16),
        (("he2015", "Projections of ResNet-34", "ResNet-34 (B)", "projections"), 3),
        (("he2016", "Exact counts", "Pre-110", "parameters"), 1_730_522),
    ],
)
def test_a_count_needs_no_run(place: tuple[str, str, str, str], counted: int) -> None:
    found = compare(entry(*place), [])
    assert (found.counted, found.ours, found.refused) == (counted, (), ())


def test_flops_as_printed_stand_beside_multiply_adds() -> None:
    """papers.md: 3.8e9 of Table 1 is 3.8580e9 multiply-adds of the network with its stride in the first 1x1."""
    found = compare(entry("he2015", "Table 1", "ResNet-50", "flops"), [])
    assert found.counted is not None
    assert f"{found.counted:.4e}" == "3.8580e+09"


@pytest.mark.parametrize(
    "place",
    [
        ("he2015", "Table 6", "Maxout", "top1_error"),
        ("he2015", "Table 3", "ResNet-34 B", "top5_error"),
        ("he2015", "Cost of one run", "ResNet-20", "petaflop"),
        ("torchvision", "V1", "ResNet-50", "top1_accuracy"),
    ],
)
def test_what_we_do_not_measure_has_nothing_beside_it(place: tuple[str, str, str, str]) -> None:
    ours = [cell(experiment("resnet20", 20), 8.9), cell(experiment("resnet1202", 1202), 7.9)]
    found = compare(entry(*place), ours)
    assert (found.counted, found.ours, found.refused) == (None, (), ())


def test_a_training_error_is_compared_with_that_of_all_training_images() -> None:
    """Figure 6: ResNet-1202 is below 0.1 %; an error of augmented batches is another number."""
    told = entry("he2015", "Figure 6", "ResNet-1202", "training_error")
    batches = cell(experiment("resnet1202", 1202), 7.9)
    assert set(pairs(compare(told, [batches]))) == {"training_error_of"}
    whole = cell(experiment("resnet1202", 1202), 7.9, training_error_percent=0.05, training_error_of="all training images, last step")
    assert [spread.values for _, spread in compare(told, [whole]).ours] == [(0.05,)]


# What would run it.


def test_the_command_of_an_entry_is_its_studys_and_the_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = compare(entry("he2015", "Table 6", "ResNet-56"), [])
    assert found.only == "resnet56"
    assert found.study_command == "resnet-jax study experiments/he2015_cifar10.py:table6 --seeds 5 --workdir runs/he2015-table6"
    assert found.command == f"{found.study_command} --only resnet56"


def test_without_the_experiments_the_command_is_that_of_the_whole_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    found = compare(entry("he2015", "Table 6", "ResNet-56"), [])
    assert found.only is None
    assert found.command == found.study_command != ""


def test_an_entry_without_study_has_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = compare(entry("reruns", "akamaster/pytorch_resnet_cifar10", "ResNet-20"), [])
    assert (found.study_command, found.command, found.only) == ("", "", None)


@pytest.mark.parametrize(
    ("place", "data", "batch_size"),
    [
        (("he2016", "Table 3, CIFAR-10", "1001, pre-activation"), "cifar10", 128),
        (("he2016", "Table 3, CIFAR-100", "1001, pre-activation"), "cifar100", 128),
        (("he2016", "Table 4, CIFAR-10", "ResNet-1001"), "cifar10", 128),
        (("he2016", "Table 4, CIFAR-10", "ResNet-1001, batch of 64"), "cifar10", 64),
        (("he2016", "Table 4, CIFAR-100", "ResNet-1001"), "cifar100", 128),
    ],
)
def test_the_cell_that_is_named_is_the_entrys(
    monkeypatch: pytest.MonkeyPatch, place: tuple[str, str, str], data: str, batch_size: int
) -> None:
    """One network stands in these studies several times: the data set and the batch tell which is meant."""
    monkeypatch.chdir(ROOT)
    found = compare(entry(*place), [])
    study = found.entry.study
    assert study is not None
    (named,) = (each for each in comparison.study_cells(study) if each.name == found.only)
    assert (named.data.name, named.batch_size) == (data, batch_size)
    assert named.model.stages == (111, 111, 111)
    assert named.model.order is FullPreactivation


# Everything beside some cells.


def test_resnet_20_has_the_papers_error_beside_it() -> None:
    """8.75 of the last step; not 8.27 of a best epoch, after a time that is not stated."""
    found = comparison.published_beside(result(experiment("resnet20", 20), 3, 8.9))
    assert {(each.paper, each.value) for each in found} == {("he2015", 8.75)}


def test_a_short_run_has_nothing_beside_it() -> None:
    assert comparison.published_beside(result(experiment("resnet20", 20, steps=2000), 0, 30.0)) == []


@pytest.mark.parametrize(("steps", "refused"), [(78_200, False), (78_000, False), (77_000, True), (2000, True)])
def test_epochs_agree_to_a_hundredth(steps: int, refused: bool) -> None:
    """Wide ResNets: 200 epochs of 50,000 images at 128 are 78,125 steps, or 78,200 where the last of an epoch is made full."""
    made = dataclasses.replace(experiment("wide", 20), model=wide_architecture(28, 10), steps=steps)
    recipe = Optimizer(nesterov=True, weight_decay=5e-4)
    made = dataclasses.replace(made, data=dataclasses.replace(made.data, normalization="channel"), optimizer=recipe)
    found = compare(entry("zagoruyko2016", "Wide networks, CIFAR-10, mean and standard deviation", "WRN-28-10"), [cell(made, 4.1)])
    assert found.entry.value == 4.0
    assert bool(found.refused) == refused
    if refused:
        assert set(found.refused[0].differing) == {"epochs"}


def test_a_network_of_no_paper_has_nothing_beside_it() -> None:
    model = cifar_architecture(20, features=(24, 48, 96))
    given = result(experiment("wider", 20), 0, 8.0) | {"model": resolved.resolve(model)}
    assert comparison.published_beside(given) == []


def test_unverified_numbers_are_never_beside_ours() -> None:
    """6.24 of ResNet-110 (ReZero's paper) and 6.61 (Fixup's), 6.37 (SE-Net's) are remembered only."""
    found = comparison.beside([cell(experiment("resnet110", 110), 6.5)])
    assert {each.entry.paper for each in found} <= {"he2015", "he2016", "reruns"}
    assert {("he2015", 6.43), ("he2015", 6.61), ("he2016", 6.61), ("reruns", 6.32)} <= {(e.entry.paper, e.entry.value) for e in found}
    assert all(each.entry.mark[0] in "VC" for each in found)


def test_beside_keeps_what_is_refused() -> None:
    found = {(e.entry.paper, e.entry.value): e for e in comparison.beside([cell(experiment("resnet20", 20, steps=2000), 30.0)])}
    assert set(found) == {("he2015", 8.75), ("reruns", 8.27)}
    assert set(found["he2015", 8.75].refused[0].differing) == {"steps"}
    assert found["reruns", 8.27].refused[0].differing["epochs"] == ("not stated", 5.12)


def test_a_failed_cell_stands_beside_a_fail() -> None:
    shortcut = configured(Scaled, shortcut=0.0, branch=1.0)
    ours = cell(of(cifar_architecture(110, shortcut=shortcut, norm=configured(BatchNorm, group_size=64))), 62.0)
    (found,) = comparison.beside([ours])
    assert (found.entry.row, found.entry.failed, ours.failed) == ("constant scaling 0, 1", True, True)


def test_a_comparison_as_json() -> None:
    """One seed, no validation, one refused: no NaN, no class."""
    ours = [cell(experiment("long", 20), 8.9), cell(experiment("short", 20, steps=2000), 30.0)]
    told = json.loads(json.dumps(comparison.plain(compare(entry("he2015", "Table 6", "ResNet-20"), ours)), allow_nan=False))
    assert (told["paper"], told["table"], told["row"], told["metric"]) == ("he2015", "Table 6", "ResNet-20", "top1_error")
    assert (told["published"], told["relation"], told["statistic"], told["mark"], told["counted"]) == (8.75, "=", "single", "V:S1", None)
    assert told["ours"] == [{"cell": "long", "values": [8.9], "mean": 8.9, "median": 8.9, "best": 8.9}]
    assert told["refused"] == [{"cell": "short", "differing": {"steps": [64_000, 2000]}}]


# Studies.

STUDIES = """
import dataclasses
from resnet_jax.models import cifar_architecture
from resnet_jax.training.experiment import Data, Experiment

one = Experiment(name="one", model=cifar_architecture(20), data=Data(name="cifar10"))


def good(depth=20):
    return [dataclasses.replace(one, model=cifar_architecture(depth)), dataclasses.replace(one, name="two")]


def nothing():
    pass


def empty():
    return []


def single():
    return one


def mixed():
    return [one, "two"]


def by_name():
    return {"one": one}


def doubled():
    return [one, dataclasses.replace(one, steps=3), dataclasses.replace(one, name="two")]


def slashed():
    return [dataclasses.replace(one, name="a/b")]


def hidden():
    return [dataclasses.replace(one, name="..")]


def broken(depth):
    return 1 + "a"


def broken_within(depth):
    return int(None)


value = 3
"""


@pytest.fixture
def studies(tmp_path: Path) -> str:
    (tmp_path / "made.py").write_text(STUDIES)
    return f"{tmp_path}/made.py"


def test_a_study_is_called_with_its_arguments(studies: str) -> None:
    assert [each.name for each in comparison.study_cells(f"{studies}:good")] == ["one", "two"]
    assert [sum(each.model.stages) for each in comparison.study_cells(f"{studies}:good", depth=56)] == [27, 9]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "returned no sequence of experiments"),
        ("empty", "returned no sequence of experiments"),
        ("single", "returned no sequence of experiments; 'resnet-jax train' takes"),
        ("mixed", "returned no sequence of experiments"),
        ("by_name", "returned no sequence of experiments"),
        ("doubled", "has several cells called one: cells are told apart by their names"),
        ("slashed", "a cell is called 'a/b'; its name becomes that of a folder"),
        ("hidden", "a cell is called '..'; its name becomes that of a folder"),
        ("value", "is no function; a study is a function that returns experiments"),
        ("goood", "has no 'goood'; did you mean good"),
    ],
)
def test_what_is_no_study_is_refused(studies: str, name: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"made.py.*{reason}"):
        comparison.study_cells(f"{studies}:{name}")


def test_an_argument_that_a_study_does_not_take_is_refused(studies: str) -> None:
    with pytest.raises(UserError, match="made.py:empty takes no depth"):
        comparison.study_cells(f"{studies}:empty", depth=20)


@pytest.mark.parametrize("name", ["broken", "broken_within"])
def test_a_mistake_inside_a_study_is_not_taken_for_its_arguments(studies: str, name: str) -> None:
    """It takes the depth: what it does with it is at fault, and its traceback says where. `int(None)` says "argument" too."""
    with pytest.raises(TypeError):
        comparison.study_cells(f"{studies}:{name}", depth=20)
