"""Published numbers beside ours: joined, rejected with the differing fields, or neither."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from resnet_jax import cli, terminal
from resnet_jax.models import Architecture, Counts, StochasticDepth, cifar_architecture, wide_architecture
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm, GroupNorm
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.shortcuts import PooledZeroPad, Projection, Scaled
from resnet_jax.studies import comparison, ledger
from resnet_jax.studies import results as results_lib
from resnet_jax.studies.comparison import Comparison, compare
from resnet_jax.studies.ledger import Entry
from resnet_jax.studies.results import Run, VariantRuns
from resnet_jax.training import config
from resnet_jax.training.config import Data, Experiment, Optimizer, Start
from synthetic_runs import TABLE6, experiment, result

OURS = result(experiment("resnet20", 20), 0, 8.9)["protocol"]


def entry(paper: str, table: str, row: str, metric: str = "top1_error") -> Entry:
    (match,) = (e for e in ledger.load(paper).entries if (e.table, e.row, e.metric) == (table, row, metric))
    return match


def runs_of(recipe: Experiment, *values: float, **fields: Any) -> VariantRuns:
    """Runs of seeds 0, 1, ...; ``fields`` update the results."""
    return VariantRuns(recipe.name, [Run(seed, result(recipe, seed, value, **fields), Path()) for seed, value in enumerate(values)])


def of(model: Architecture, name: str = "ours", **fields: Any) -> Experiment:
    return dataclasses.replace(experiment(name, 20), model=model, **fields)


def differing(compared: Comparison) -> dict[str, tuple[Any, Any]]:
    """Differing fields of the only mismatch."""
    assert compared.ours == ()
    ((_, fields),) = compared.mismatches
    return fields


RESNET20 = entry("he2015", "Table 6", "ResNet-20")


def test_same_protocol_joins_published_and_ours() -> None:
    ours = runs_of(experiment("resnet20", 20), 8.9, 8.7, protocol=OURS)
    compared = compare(RESNET20, [ours, VariantRuns("open", [Run(0, None, Path())])])
    assert (compared.entry.value, compared.mismatches) == (8.75, ())
    ((same, spread),) = compared.ours
    assert same is ours
    assert spread.values == (8.9, 8.7)
    assert {name: OURS[name] for name in TABLE6} == TABLE6
    # papers.md A1: "final training on 45k or 50k" is ambiguous; unstated fields do not reject.
    for field, value in {"training_images": 45_000, "padding": "SAME", "batch_norm_statistics": "true average", "nesterov": True}.items():
        assert compare(RESNET20, [runs_of(experiment("resnet20", 20), 8.9, protocol=OURS | {field: value})]).ours, field


def test_every_stated_field_that_differs_rejects_and_is_named() -> None:
    for field, published in TABLE6.items():
        compared = compare(RESNET20, [runs_of(experiment("resnet20", 20), 8.9, protocol=OURS | {field: "other"})])
        assert differing(compared) == {field: (published, "other")}
        assert str(compared).startswith(f"resnet20 not comparable: {field} {published} there, other here\n")
    unstated = {field: value for field, value in OURS.items() if field not in TABLE6}
    every = compare(RESNET20, [runs_of(experiment("resnet20", 20), 8.9, protocol=unstated)])
    assert differing(every) == {field: (published, None) for field, published in TABLE6.items()}


def test_starts_averages_and_precisions_that_no_paper_states_are_rejected() -> None:
    """Papers draw their parameters, report those of the last step, and compute in float32 unless they state otherwise."""
    for fields, name, pair in (
        ({"model": cifar_architecture(20)}, "batch_norm_group", (64, 128)),
        ({"start": Start(file="weights.safetensors", digest="ab")}, "initial_weights", (None, "ab")),
        ({"optimizer": Optimizer(ema=0.999)}, "parameters", ("last step", "moving average, decay 0.999")),
        ({"model": dataclasses.replace(experiment("x", 20).model, dtype="bfloat16")}, "dtype", ("float32", "bfloat16")),
    ):
        ours = runs_of(dataclasses.replace(experiment("resnet20", 20), **fields), 8.9)
        assert differing(compare(RESNET20, [ours])) == {name: pair}
    half = runs_of(of(dataclasses.replace(experiment("x", 20).model, dtype="bfloat16", num_classes=100)), 8.9)
    assert compare(dataclasses.replace(RESNET20, protocol=RESNET20.protocol | {"dtype": "bfloat16"}), [half]).ours


def test_errors_are_selected_as_the_paper_selects() -> None:
    """Huang et al. 2016: test error at the lowest validation error, 6.41. akamaster: best epoch on test, 8.27 (A12, trap 1)."""
    data = Data(name="cifar10", validation_examples=5000, normalization="channel")
    model = cifar_architecture(110, shortcut=PooledZeroPad)
    stochastic = of(model, "constant-110", steps=500 * 352, data=data, optimizer=Optimizer(nesterov=True))
    huang = entry("huang2016", "CIFAR-10+", "constant depth")
    selected = compare(huang, [runs_of(stochastic, 7.0, 7.5, selected_on_validation=6.5, best_over_training=6.0)])
    assert (huang.value, [each.values for _, each in selected.ours]) == (6.41, [(6.5, 6.5)])
    some = runs_of(stochastic, 7.0, 7.0)
    some.results[0]["selected_on_validation"] = 6.5
    assert differing(compare(huang, [some])) == {"selection": ("validation error", "last step")}
    best = entry("reruns", "akamaster/pytorch_resnet_cifar10", "ResNet-20")
    ours = runs_of(experiment("resnet20", 20), 8.9, selected_on_validation=8.6, best_over_training=8.5)
    assert differing(compare(best, [ours])) == {"epochs": ("not stated", 163.84)}
    stated = dataclasses.replace(best, protocol=best.protocol | {"epochs": 164})
    assert [each.values for _, each in compare(stated, [ours]).ours] == [(8.5,)]
    assert [each.values for _, each in compare(RESNET20, [ours]).ours] == [(8.9,)]


def test_epochs_agree_to_a_hundredth() -> None:
    """Wide ResNets: 200 epochs of 50,000 images at 128 are 78,125 steps, or 78,200 with whole last batches."""
    published = entry("zagoruyko2016", "Wide networks, CIFAR-10, mean and standard deviation", "WRN-28-10")
    for steps, names in ((78_200, set()), (78_000, set()), (77_000, {"epochs"})):
        data = dataclasses.replace(experiment("wide", 20).data, normalization="channel")
        recipe = of(wide_architecture(28, 10), steps=steps, data=data, optimizer=Optimizer(nesterov=True, weight_decay=5e-4))
        compared = compare(published, [runs_of(recipe, 4.1)])
        assert {name for _, fields in compared.mismatches for name in fields} == names
        assert bool(compared.ours) == (not names)


def test_other_networks_are_neither_joined_nor_rejected() -> None:
    for model in (
        cifar_architecture(20, shortcut=Projection),
        cifar_architecture(20, order=FullPreactivation),
        cifar_architecture(20, features=(32, 64, 128)),
        cifar_architecture(20, stochastic_depth=StochasticDepth(survival=0.5)),
        cifar_architecture(20, norm=component(GroupNorm, num_groups=8)),
        cifar_architecture(32),
    ):
        compared = compare(RESNET20, [runs_of(experiment("other", 20), 8.9, model=config.resolve(model))])
        assert (compared.ours, compared.mismatches) == ((), ()), model
    # He et al. 2016, Table 1: 0.5 and 1 fails, 0.5 and 0.5 has 12.35.
    scaled = cifar_architecture(110, shortcut=component(Scaled, shortcut=0.5, branch=0.5), norm=component(BatchNorm, group_size=64))
    assert compare(entry("he2016", "Table 1", "constant scaling 0.5, 0.5"), [runs_of(of(scaled), 12.5)]).ours
    assert not compare(entry("he2016", "Table 1", "constant scaling 0.5, 1"), [runs_of(of(scaled), 12.5)]).ours


def test_counts_need_no_run_and_other_numbers_have_none_of_ours() -> None:
    """papers.md A1. Printed FLOPs are beside multiply-adds."""
    assert compare(entry("he2015", "Table 6, exact counts", "ResNet-20", "parameters"), []).counted == 269_722
    assert f"{compare(dataclasses.replace(RESNET20, metric='flops', value=40.6e6), []).counted:.3e}" == "4.055e+07"
    ours = [runs_of(experiment("resnet20", 20), 8.9), runs_of(experiment("resnet1202", 1202), 7.9)]
    for place, text in (
        (("he2015", "Table 6", "Maxout", "top1_error"), "no network of this codebase"),
        (("torchvision", "V1", "ResNet-50", "top1_accuracy"), "not measured here"),
    ):
        compared = compare(entry(*place), ours)
        assert (compared.counted, compared.ours, compared.mismatches, str(compared)) == (None, (), (), text)


def test_training_errors_are_those_of_all_training_images() -> None:
    """Figure 6: ResNet-1202 is below 0.1 %; an error of augmented batches is another number."""
    published = entry("he2015", "Figure 6", "ResNet-1202", "training_error")
    recipe = experiment("resnet1202", 1202)
    assert set(differing(compare(published, [runs_of(recipe, 7.9)]))) == {"training_error_of"}
    whole = runs_of(recipe, 7.9, training_error_percent=0.05, training_error_of="all training images, last step")
    assert [each.values for _, each in compare(published, [whole]).ours] == [(0.05,)]


def test_beside_compares_verified_errors_alone() -> None:
    """6.24 of ResNet-110 (ReZero), 6.61 (Fixup) and 6.37 (SE-Net) are from memory."""
    every = comparison.beside([runs_of(experiment("resnet110", 110), 6.5)])
    assert {("he2015", 6.43), ("he2015", 6.61), ("he2016", 6.61), ("reruns", 6.32)} <= {(e.entry.paper, e.entry.value) for e in every}
    assert {each.entry.paper for each in every} <= {"he2015", "he2016", "reruns"}
    assert all(each.entry.mark[0] in "VC" for each in every)
    published = comparison.published_beside(result(experiment("resnet20", 20), 3, 8.9))
    assert [(each.paper, each.value) for each in published] == [("he2015", 8.75)]
    assert comparison.published_beside(result(experiment("resnet20", 20, steps=2000), 0, 30.0)) == []


def test_report_of_a_paper_shows_committed_results_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scaling of both by 0.5 has 12.35 in He et al. 2016, Table 1. 12.2 and 12.4: mean 12.30, deviation 0.14."""

    def report(*arguments: str) -> str:
        cli.main(["report", "--paper", *arguments])
        return capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal.out, "width", 250)
    # Counting 1001 layers takes seconds.
    monkeypatch.setattr(comparison, "_counts", lambda architecture: Counts(parameters=1, multiply_adds=2, projections=3, stages=()))
    norm = component(BatchNorm, group_size=64)
    half = of(cifar_architecture(110, shortcut=component(Scaled, shortcut=0.5, branch=0.5), norm=norm), "scaled")
    results = [result(half, seed, value) for seed, value in ((0, 12.2), (1, 12.4))]
    results_lib.write(tmp_path / "experiments" / "results" / "scaled.json", results, command="x")
    (tmp_path / "experiments" / "results" / "finding.json").write_text('{"kind": "finding"}')
    text = report("he2016")
    rows = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert "12.30 ± 0.14, median 12.30, best 12.20, n=2 (scaled)" in rows["constant scaling 0.5, 0.5"]
    assert "fail (> 20) median" in rows["dropout shortcut"]
    assert "not run" in rows["1x1 conv shortcut"]
    assert "to run: resnet-jax study experiments/he2016_shortcuts.py:table1 --seeds 5 --workdir runs/he2016-table1" in text
    (joined,) = (each for each in json.loads(report("he2016", "--json")) if each["ours"])
    assert (joined["published"], joined["ours"][0]["values"]) == (12.35, [12.2, 12.4])
    results_lib.write(tmp_path / "short.json", [result(dataclasses.replace(half, steps=2000), 0, 30.0)], command="x")
    text = report("he2016", "short.json")
    assert "scaled not comparable: steps 64000 there, 2000 here" in text
    assert "30.00" not in text, "a rejected number is not beside the paper's"
    # papers.md A10: of ReZero's numbers 7.37 of ResNet-56 was read (akamaster #18), the others are from memory.
    text = report("bachlechner2020")
    assert "7.37 ± 0.06 mean" in text
    assert not [number for number in ("6.46", "6.24", "5.93", "5.43") if number in text]
    assert "7 more numbers are unverified" in text
