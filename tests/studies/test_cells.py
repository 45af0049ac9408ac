"""Spreads, paired differences and groups of runs, against arithmetic by hand."""

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import experiment, result, write_run

from resnet_jax.errors import UserError
from resnet_jax.studies import cells as cells_lib
from resnet_jax.studies import committed
from resnet_jax.studies.cells import Cell, Difference, Run, Spread, collect, difference, find

# Student's t, two-sided 95 %: a printed table, by degrees of freedom.
T95 = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764}


def made(value: float, seed: int, **fields: Any) -> dict[str, Any]:
    """What ``cells`` reads of a result."""
    given = {
        "seed": seed,
        "value": value,
        "top5_error_percent": value / 10,
        "best_over_training": value - 0.5,
        "selected_on_validation": None,
        "training_error_percent": 0.25,
        "diverged_at_step": None,
        "parameters": 269_722,
        "seconds": 600.0,
        "seeds_together": 1,
    }
    return given | fields


def cell(name: str, values: Mapping[int, float | None], **fields: Any) -> Cell:
    """Seed to error; None has not finished."""
    return Cell(name, [Run(seed, None if value is None else made(value, seed, **fields), Path()) for seed, value in values.items()])


# Spread.


def test_mean_deviation_median_and_best_by_hand() -> None:
    """(1, 2, 3, 6): mean 3, squares 4 + 1 + 0 + 9 = 14, deviation sqrt(14 / 3), median 2.5."""
    spread = Spread((6.0, 1.0, 3.0, 2.0))
    assert spread.mean == pytest.approx(3)
    assert spread.deviation == pytest.approx(2.160246899)
    assert spread.median == pytest.approx(2.5)
    assert spread.best == 1
    assert str(spread) == "3.00 ± 2.16"


def test_the_six_reruns_of_resnet_56() -> None:
    """papers.md, akamaster #18. Sum 45.35; the mean of the six is 7.56, not the issue's own 7.36."""
    spread = Spread((7.4, 7.29, 7.4, 6.89, 8.42, 7.95))
    assert f"{spread.mean:.4f}" == "7.5583"
    assert spread.median == pytest.approx(7.4)
    assert spread.best == 6.89


def test_one_value_has_no_deviation_and_none_has_nothing() -> None:
    one, none = Spread((8.75,)), Spread(())
    assert (one.mean, one.median, one.best, str(one)) == (8.75, 8.75, 8.75, "8.75")
    assert math.isnan(one.deviation)
    assert all(math.isnan(number) for number in (none.mean, none.deviation, none.median, none.best))
    assert str(none) == "–"


def test_equal_values_have_a_deviation_of_zero() -> None:
    assert str(Spread((7.5, 7.5, 7.5))) == "7.50 ± 0.00"


# A cell.


def test_results_are_in_the_order_of_seeds_and_unfinished_runs_are_left_out() -> None:
    found = cell("a", {2: 9.0, 0: 7.0, 3: None, 1: 8.0})
    assert [each["seed"] for each in found.results] == [0, 1, 2]
    assert found.error.values == (7.0, 8.0, 9.0)
    assert len(found.runs) == 4


def test_seeds_that_lack_a_field_are_left_out_of_its_spread() -> None:
    found = Cell("a", [Run(seed, made(8.0, seed, selected_on_validation=chosen), Path()) for seed, chosen in enumerate((7.5, None, 8.5))])
    assert found.spread("selected_on_validation").values == (7.5, 8.5)
    assert found.spread("value").values == (8.0, 8.0, 8.0)


@pytest.mark.parametrize(
    ("values", "failed"),
    [
        ((20.0,), False),
        ((20.01,), True),
        ((19.0, 100.0), True),  # the median, 59.5
        ((100.0, 6.5, 6.6, 6.7, 6.8), False),  # one of five
        ((100.0, 100.0, 6.6, 6.7, 6.8), False),  # two of five: mean 44, median 6.8
        ((100.0, 100.0, 100.0, 6.7, 6.8), True),
        ((), False),
    ],
)
def test_failed_is_a_median_above_20(values: tuple[float, ...], failed: bool) -> None:
    """He et al. 2016, Table 1: "we report 'fail' when the test error is higher than 20%"; errors are medians of five runs."""
    assert cell("a", dict(enumerate(values))).failed is failed


def test_diverged_seeds_are_counted() -> None:
    runs = [Run(0, made(100.0, 0, diverged_at_step=12), Path()), Run(1, made(7.0, 1), Path()), Run(2, None, Path())]
    runs.append(Run(3, made(100.0, 3, diverged_at_step=0), Path()))
    assert Cell("a", runs).diverged == 2


# Paired differences.


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((7.0, 8.0), (8.0, 8.5)),
        ((7.0, 8.0, 7.5), (8.0, 8.5, 9.0)),
        ((6.5, 7.0, 6.25, 7.5), (6.75, 7.0, 7.25, 7.0)),
        ((6.43, 6.61, 6.7, 6.5, 6.8), (6.97, 7.1, 6.9, 7.3, 7.0)),
    ],
)
def test_the_interval_is_that_of_students_t(ours: tuple[float, ...], theirs: tuple[float, ...]) -> None:
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(pairs) / len(pairs)
    deviation = math.sqrt(sum((pair - mean) ** 2 for pair in pairs) / (len(pairs) - 1))
    half = T95[len(pairs) - 1] * deviation / math.sqrt(len(pairs))
    found = difference(cell("ours", dict(enumerate(ours))), cell("theirs", dict(enumerate(theirs))))
    assert (found.baseline, found.seeds) == ("theirs", len(ours))
    assert found.mean == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), rel=1e-4, abs=1e-4)
    assert found.distinguishable == (abs(mean) > half)


def test_a_difference_by_hand() -> None:
    """Differences -1, -1, -1, -3: mean -1.5, deviation 1, half-width 3.1824 x 1 / 2 = 1.59: 0 is inside. With -2 for -3: mean -1.25,
    deviation 0.5, half-width 0.80: it is not.
    """
    baseline = cell("original", {0: 10.0, 1: 11.0, 2: 12.0, 3: 13.0})
    unclear = difference(cell("a", {0: 9.0, 1: 10.0, 2: 11.0, 3: 10.0}), baseline)
    assert str(unclear) == "-1.50 (-3.09 to +0.09): not distinguishable"
    clear = difference(cell("a", {0: 9.0, 1: 10.0, 2: 11.0, 3: 11.0}), baseline)
    assert str(clear) == "-1.25 (-2.05 to -0.45)"
    assert (unclear.distinguishable, clear.distinguishable) == (False, True)
    worse = difference(baseline, cell("a", {0: 9.0, 1: 10.0, 2: 11.0, 3: 11.0}))
    assert str(worse) == "+1.25 (+0.45 to +2.05)"
    assert worse.distinguishable


def test_seeds_are_paired_and_those_of_one_cell_only_are_left_out() -> None:
    """Seeds 1 and 3 are common: 5 - 7 and 6 - 4; whatever the order in which they lie."""
    ours = cell("a", {3: 6.0, 1: 5.0, 9: 100.0, 4: None})
    theirs = cell("b", {0: 50.0, 1: 7.0, 4: 8.0, 3: 4.0})
    found = difference(ours, theirs)
    assert found.seeds == 2
    assert found.mean == pytest.approx(0)
    # deviation of (-2, 2) is sqrt(8); 12.7062 x sqrt(8) / sqrt(2) = 25.4124
    assert (found.low, found.high) == pytest.approx((-25.4124, 25.4124), abs=1e-3)


def test_one_seed_and_no_common_seed_have_no_interval() -> None:
    one = difference(cell("a", {0: 7.0}), cell("b", {0: 8.5, 1: 9.0}))
    assert (one.seeds, one.mean) == (1, -1.5)
    assert str(one) == "-1.50, no interval (one seed)"
    none = difference(cell("a", {0: 7.0}), cell("b", {1: 9.0}))
    assert none.seeds == 0
    assert str(none) == "no interval (no common seed)"
    for each in (one, none):
        assert math.isnan(each.low)
        assert math.isnan(each.high)
        assert not each.distinguishable


def test_equal_differences_have_no_interval() -> None:
    """Of no spread nothing can be told: neither 'exactly' nor 'not distinguishable'."""
    same = difference(cell("a", {0: 7.0, 1: 8.0, 2: 9.0}), cell("b", {0: 7.5, 1: 8.5, 2: 9.5}))
    assert str(same) == "-0.50, no interval (the same in each of 3 seeds)"
    assert not same.distinguishable
    nothing = difference(cell("a", {0: 100.0, 1: 100.0}), cell("b", {0: 100.0, 1: 100.0}))
    assert str(nothing) == "+0.00, no interval (the same in each of 2 seeds)"


def test_differences_that_are_equal_but_for_the_rounding_of_floats_are_equal() -> None:
    """Errors of 10,000 images are hundredths: 8.75 - 8.55 and 7.30 - 7.10 are 0.20, in floats 0.1999999999999993 and 0.2000000000000002."""
    found = difference(cell("a", {0: 8.75, 1: 7.30}), cell("b", {0: 8.55, 1: 7.10}))
    assert str(found) == "+0.20, no interval (the same in each of 2 seeds)"
    assert not found.distinguishable


# Runs on disk.


def test_find_at_any_depth(tmp_path: Path) -> None:
    small = experiment("resnet20", 20)
    shallow = write_run(tmp_path / "one", small, 0, 8.75)
    deep = write_run(tmp_path / "a" / "b" / "c" / "seed-1", small, 1, 8.85)
    assert find(shallow) == [shallow]
    assert sorted(find(tmp_path)) == sorted([shallow, deep])
    assert find(tmp_path / "a") == [deep]
    (tmp_path / "nothing").mkdir()
    assert find(tmp_path / "nothing") == []


def test_find_keeps_the_order_of_a_study_and_of_beginning(tmp_path: Path) -> None:
    """Written as the study did not begin them; within a cell in the order begun; what the study does not know comes last."""
    cells = {"b": experiment("b", 20), "a": experiment("a", 32), "c": experiment("c", 44), "z": experiment("z", 56)}
    folders = {}
    for begun, (name, seed) in enumerate([("z", 0), ("c", 1), ("a", 1), ("b", 0), ("a", 0), ("c", 0)]):
        folders[name, seed] = write_run(tmp_path / name / f"seed-{seed}", cells[name], seed, 8.0)
        os.utime(folders[name, seed] / "experiment.json", ns=(10**18 + begun * 10**9,) * 2)
    committed.remember_study(tmp_path, command="x", cells=["c", "a", "b"], reduced="")
    order = [("c", 1), ("c", 0), ("a", 1), ("a", 0), ("b", 0), ("z", 0)]
    assert find(tmp_path) == [folders[each] for each in order]
    assert [each.name for each in collect([tmp_path])] == ["c", "a", "b", "z"]
    (tmp_path / "study.json").unlink()
    assert [each.name for each in collect([tmp_path])] == ["z", "c", "a", "b"]


def test_runs_that_differ_in_their_seed_are_one_cell(tmp_path: Path) -> None:
    for seed, value in ((1, 8.5), (0, 9.0), (2, None)):
        write_run(tmp_path / f"run-{seed}", experiment("resnet20", 20), seed, value)
    write_run(tmp_path / "other", experiment("resnet32", 32), 0, 7.5)
    found = {each.name: each for each in collect([tmp_path])}
    assert set(found) == {"resnet20", "resnet32"}
    assert found["resnet20"].error.values == (9.0, 8.5)
    assert found["resnet20"].error.mean == pytest.approx(8.75)
    assert sorted(run.seed for run in found["resnet20"].runs) == [0, 1, 2]
    assert {run.seed: run.source for run in found["resnet20"].runs}[2] == tmp_path / "run-2"


def test_different_experiments_of_one_name_are_not_averaged(tmp_path: Path) -> None:
    """One trained half as long: two cells, told apart by their names."""
    write_run(tmp_path / "long", experiment("resnet20", 20), 0, 8.0)
    write_run(tmp_path / "short", experiment("resnet20", 20, steps=32_000), 0, 10.0)
    write_run(tmp_path / "short-1", experiment("resnet20", 20, steps=32_000), 1, 12.0)
    found = collect([tmp_path])
    assert sorted(each.error.values for each in found) == [(8.0,), (10.0, 12.0)]
    names = [each.name for each in found]
    assert len(set(names)) == 2
    assert all(name.startswith("resnet20 (") for name in names)


def test_cells_that_compute_the_same_are_told_apart_by_their_names(tmp_path: Path) -> None:
    """By scan and by loop, say: a study may hold one beside the other."""
    write_run(tmp_path / "a", experiment("resnet20", 20), 0, 8.0)
    write_run(tmp_path / "b", experiment("original", 20), 1, 9.0)
    assert {each.name: each.error.values for each in collect([tmp_path])} == {"resnet20": (8.0,), "original": (9.0,)}


def test_a_run_given_twice_counts_once(tmp_path: Path) -> None:
    """As a folder, as the folder above it, and in a committed file."""
    small = experiment("resnet20", 20)
    folder = write_run(tmp_path / "runs" / "seed-0", small, 0, 8.0)
    write_run(tmp_path / "runs" / "seed-1", small, 1, 9.0)
    file = tmp_path / "results" / "r20.json"
    committed.write(file, [result(small, seed, value) for seed, value in ((0, 8.0), (1, 9.0), (2, 10.0))], command="x")
    (found,) = collect([folder, tmp_path / "runs", file, folder])
    assert found.error.values == (8.0, 9.0, 10.0)
    assert {run.seed: run.source for run in found.runs} == {0: folder, 1: tmp_path / "runs" / "seed-1", 2: file}
    (turned,) = collect([file, tmp_path / "runs"])
    assert turned.error.values == (8.0, 9.0, 10.0)


def test_a_result_wins_over_the_same_run_unfinished(tmp_path: Path) -> None:
    """A folder that was copied before the run had finished, and the committed result of the same seed: it has been run."""
    small = experiment("resnet20", 20)
    open_ = write_run(tmp_path / "runs" / "seed-0", small, 0, None)
    file = tmp_path / "r20.json"
    committed.write(file, [result(small, 0, 8.0)], command="x")
    for order in ([file, open_], [open_, file]):
        (found,) = collect(order)
        assert [run.seed for run in found.runs] == [0]
        assert found.error.values == (8.0,), order


def test_unfinished_runs_are_kept_and_have_their_records(tmp_path: Path) -> None:
    records = [{"step": 100, "split": "train", "error_percent": 50.0}, {"step": 200, "split": "train", "error_percent": 40.0}]
    folder = write_run(tmp_path / "open", experiment("resnet20", 20), 3, None, records=records)
    (found,) = collect([folder])
    assert found.results == []
    assert [(run.seed, run.result) for run in found.runs] == [(3, None)]
    assert found.runs[0].records() == records


def test_a_committed_result_has_no_records(tmp_path: Path) -> None:
    committed.write(tmp_path / "r.json", [result(experiment("resnet20", 20), 0, 8.0)], command="x")
    (found,) = collect([tmp_path / "r.json"])
    assert found.runs[0].records() == []


@pytest.mark.parametrize("what", ["missing", "empty folder", "foreign file"])
def test_a_path_without_runs_is_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "here"
    if what == "empty folder":
        path.mkdir()
    elif what == "foreign file":
        path.write_text("{}")
    write_run(tmp_path / "good", experiment("resnet20", 20), 0, 8.0)
    with pytest.raises(UserError, match=f"{path}"):
        collect([tmp_path / "good", path])


# The table as JSON.


def test_the_table_is_json_without_nan() -> None:
    """One seed, a diverged cell, a cell without common seeds, one that has not run."""
    cells = [
        cell("not run", {0: None}),
        cell("one seed", {0: 8.0}),
        cell("diverged", {0: 100.0, 1: 100.0}, diverged_at_step=5, seconds=None),
        cell("other seeds", {5: 7.0, 6: 7.5}),
    ]
    rows = json.loads(json.dumps(cells_lib.table(cells), allow_nan=False))
    assert [row["name"] for row in rows] == ["one seed", "diverged", "other seeds"]
    first, second, third = rows
    assert first["test_error"] == {"mean": 8.0, "deviation": None, "median": 8.0, "best": 8.0, "values": [8.0]}
    assert first["selected_on_validation"] == {"mean": None, "deviation": None, "median": None, "best": None, "values": []}
    assert first["difference"] is None
    assert (second["seeds"], second["diverged"], second["failed"], second["seconds"]) == (2, 2, True, None)
    assert second["difference"] == {
        "baseline": "one seed",
        "seeds": 1,
        "mean": 92.0,
        "low": None,
        "high": None,
        "distinguishable": False,
    }
    assert third["difference"]["seeds"] == 0
    assert third["difference"]["mean"] is None


def test_a_row_of_the_table_by_hand() -> None:
    """Errors 6, 7, 8.5, one to come; against 7, 8.5, 10: differences -1, -1.5, -1.5, mean -4/3."""
    baseline = cell("original", {0: 7.0, 1: 8.5, 2: 10.0}, seconds=300.0)
    ours = cell("scaled", {0: 6.0, 1: 7.0, 2: 8.5, 3: None}, selected_on_validation=7.25, parameters=1_727_962, seconds=1200.0)
    _, row = cells_lib.table([baseline, ours])
    assert (row["seeds"], row["unfinished"], row["diverged"], row["failed"]) == (3, 1, 0, False)
    assert (row["parameters"], row["seconds"]) == (1_727_962, 1200.0)
    assert row["test_error"]["mean"] == pytest.approx(21.5 / 3)
    assert row["test_error"]["deviation"] == pytest.approx(statistics.stdev([6.0, 7.0, 8.5]))
    assert (row["test_error"]["median"], row["test_error"]["best"]) == (7.0, 6.0)
    assert row["best_over_training"]["values"] == [5.5, 6.5, 8.0]
    assert row["selected_on_validation"]["values"] == [7.25] * 3
    assert row["training_error"]["mean"] == 0.25
    # The deviation of (-1, -1.5, -1.5) is 0.288675; 4.3027 x 0.288675 / sqrt(3) = 0.717117
    told = row["difference"]
    assert told["mean"] == pytest.approx(-4 / 3)
    assert (told["low"], told["high"]) == pytest.approx((-2.05045, -0.61622), abs=1e-4)
    assert told["distinguishable"] is True
    assert (told["baseline"], told["seeds"]) == ("original", 3)


def test_the_table_of_nothing_is_empty() -> None:
    assert cells_lib.table([]) == []
    assert cells_lib.table([cell("not run", {0: None})]) == []


def test_a_run_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Run(0, None, Path()).seed = 1  # type: ignore[misc]


def test_nothing_is_not_shown_as_negative() -> None:
    """-1e-16 is what rounding leaves of a difference of means."""
    assert str(Difference("first", 2, -1e-16, -3.534, 3.534)) == "+0.00 (-3.53 to +3.53): not distinguishable"
