"""Statistics of variants against arithmetic by hand and SciPy, grouping of runs, committed results."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from resnet_jax.errors import UserError
from resnet_jax.studies import results
from resnet_jax.studies.results import Difference, Run, VariantRuns, collect, difference, find, spread
from scipy import stats
from synthetic_runs import experiment, result, write_run


def runs_of(name: str, values: Mapping[int, float | None], **fields: Any) -> VariantRuns:
    """Seed to error; None is unfinished."""
    recipe = experiment(name, 20)
    results = {seed: None if value is None else result(recipe, seed, value, **fields) for seed, value in values.items()}
    return VariantRuns(name, [Run(seed, contents, Path()) for seed, contents in results.items()])


def test_spread_matches_arithmetic_by_hand() -> None:
    """(1, 2, 3, 6): mean 3, squares 4 + 1 + 0 + 9 = 14, deviation sqrt(14 / 3), median 2.5."""
    numbers, one, none = spread((6.0, 1.0, 3.0, 2.0)), spread((8.75,)), spread(())
    assert (numbers.mean, numbers.median, numbers.best, str(numbers)) == (3, 2.5, 1, "3.00 ± 2.16")
    assert (one.mean, one.median, one.best, str(one)) == (8.75, 8.75, 8.75, "8.75")
    assert all(map(math.isnan, (one.deviation, *none[:4])))
    assert runs_of("a", {2: 9.0, 0: 7.0, 3: None, 1: 8.0}).error.values == (7.0, 8.0, 9.0), "by seed"


def test_failed_means_a_median_above_20() -> None:
    """He et al. 2016, Table 1: "we report 'fail' when the test error is higher than 20%"; medians of five runs."""
    for values, failed in (((20.0,), False), ((20.01,), True), ((100.0, 100.0, 6.6, 6.7, 6.8), False), ((), False)):
        assert runs_of("a", dict(enumerate(values))).failed is failed, values


def test_difference_has_students_t_interval_over_common_seeds() -> None:
    """Seeds 1 and 3 are common: 5 - 7 and 6 - 4. Deviation sqrt(8); from a printed table 12.7062 x sqrt(8) / sqrt(2) = 25.4124."""
    paired = difference(runs_of("a", {3: 6.0, 1: 5.0, 9: 100.0, 4: None}), runs_of("b", {0: 50.0, 1: 7.0, 4: 8.0, 3: 4.0}))
    assert (paired.seeds, paired.mean) == (2, 0)
    assert (paired.low, paired.high) == pytest.approx((-25.4124, 25.4124), abs=1e-3)
    for ours, theirs in (((6.5, 7.0, 6.25, 7.5), (6.75, 7.0, 7.25, 7.0)), ((6.43, 6.61, 6.7, 6.5, 6.8), (6.97, 7.1, 6.9, 7.3, 7.0))):
        test: Any = stats.ttest_rel(ours, theirs)
        paired = difference(runs_of("ours", dict(enumerate(ours))), runs_of("theirs", dict(enumerate(theirs))))
        assert (paired.baseline, paired.seeds, paired.distinguishable) == ("theirs", len(ours), test.pvalue < 0.05)
        assert (paired.low, paired.high) == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_difference_states_interval_or_its_absence() -> None:
    """Differences -1, -1, -1, -3: mean -1.5, deviation 1, half-width 1.59: 0 is inside. With -2 for -3: -1.25 ± 0.80."""
    baseline = runs_of("original", {0: 10.0, 1: 11.0, 2: 12.0, 3: 13.0})
    for variant, text in (
        (runs_of("a", {0: 9.0, 1: 10.0, 2: 11.0, 3: 10.0}), "-1.50 (-3.09 to +0.09): not distinguishable"),
        (runs_of("a", {0: 9.0, 1: 10.0, 2: 11.0, 3: 11.0}), "-1.25 (-2.05 to -0.45)"),
        (runs_of("a", {0: 9.0}), "-1.00, no interval (one seed)"),
        (runs_of("a", {7: 9.0}), "no interval (no common seed)"),
        # In floats 8.75 - 8.55 is 0.1999999999999993 and 7.30 - 7.10 is 0.2000000000000002.
        (runs_of("a", {0: 10.2, 1: 11.2}), "+0.20, no interval (the same in each of 2 seeds)"),
    ):
        assert str(difference(variant, baseline)) == text
    assert str(Difference("first", 2, -1e-16, -3.534, 3.534)).startswith("+0.00 ("), "rounding is not negative"


def test_find_returns_runs_in_the_order_of_the_study(tmp_path: Path) -> None:
    folders = {}
    for begun, (name, seed) in enumerate([("z", 0), ("c", 1), ("a", 1), ("b", 0), ("a", 0), ("c", 0)]):
        recipe = experiment(name, {"b": 20, "a": 32, "c": 44, "z": 56}[name])
        folders[name, seed] = write_run(tmp_path / name / f"seed-{seed}", recipe, seed, 8.0)
        os.utime(folders[name, seed] / "experiment.json", ns=(10**18, 10**18 + begun * 10**9))
    results.remember_study(tmp_path, command="x", variants=["c", "a", "b"], reduced="")
    assert find(tmp_path) == [folders[run] for run in [("c", 1), ("c", 0), ("a", 1), ("a", 0), ("b", 0), ("z", 0)]]
    assert find(folders["z", 0]) == [folders["z", 0]]
    (tmp_path / "study.json").unlink()
    assert [variant.name for variant in collect([tmp_path])] == ["z", "c", "a", "b"], "by creation without a study"


def test_collect_groups_runs_that_differ_in_their_seed_alone(tmp_path: Path) -> None:
    """A run in a directory, its parent and a committed file counts once, with its result."""
    small = experiment("resnet20", 20)
    for seed, value in ((1, 8.5), (0, 9.0), (2, None)):
        write_run(tmp_path / "runs" / f"seed-{seed}", small, seed, value)
    # Equal apart from the name, as by scan and by loop; equal name, trained half as long.
    write_run(tmp_path / "runs" / "same", experiment("original", 20), 0, 7.5)
    write_run(tmp_path / "runs" / "short", experiment("original", 20, steps=32_000), 0, 10.0)
    variants = {variant.error.values: variant for variant in collect([tmp_path])}
    assert variants.keys() == {(9.0, 8.5), (7.5,), (10.0,)}
    assert variants[9.0, 8.5].name == "resnet20"
    assert sorted(run.seed for run in variants[9.0, 8.5].runs) == [0, 1, 2]
    assert variants[7.5,].name != variants[10.0,].name
    assert all(variants[error,].name.startswith("original (") for error in (7.5, 10.0))
    file = tmp_path / "committed.json"
    results.write(file, [result(small, seed, value) for seed, value in ((0, 9.0), (2, 10.0), (3, 11.0))], command="x")
    folder = tmp_path / "runs"
    for paths in ([folder / "seed-0", folder, file, folder / "seed-0"], [file, folder]):
        assert (9.0, 8.5, 10.0, 11.0) in {variant.error.values for variant in collect(paths)}
    assert collect([folder / "seed-2"])[0].results == []


def test_collect_rejects_paths_without_runs_and_incomplete_results(tmp_path: Path) -> None:
    contents = result(experiment("resnet20", 20), 0, 8.0)
    del contents["group"], contents["versions"]
    results.write(tmp_path / "r20.json", [contents], command="x")
    folder = write_run(tmp_path / "run", experiment("resnet20", 20), 0)
    (folder / "result.json").write_text(json.dumps(contents))
    write_run(tmp_path / "other", experiment("resnet20", 20), 0)
    (tmp_path / "other" / "experiment.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    cases = {
        **dict.fromkeys(("r20.json", "run"), "lacks group, versions: run it again"),
        "other": "/experiment.json lacks experiment, identity, seed",
        **dict.fromkeys(("missing", "empty"), ": 'resnet-jax train' writes run directories"),
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=f"{tmp_path / name}.*{message}"):
            collect([tmp_path / name])


def test_table_is_json_without_nan() -> None:
    baseline, ours = runs_of("baseline", {0: 8.0, 1: 9.5}), runs_of("ours", {0: 6.0, 1: 7.0, 2: None}, selected_on_validation=7.25)
    diverged = runs_of("diverged", {5: 100.0}, diverged_at_step=5)
    first, second, third = json.loads(json.dumps(results.table([runs_of("not run", {0: None}), baseline, ours, diverged]), allow_nan=False))
    assert first["difference"] is None
    assert (second["seeds"], second["unfinished"], second["diverged"], second["failed"], second["seconds"]) == (2, 1, 0, False, 605.0)
    assert (second["best_over_training"]["values"], second["selected_on_validation"]["values"]) == ([5.75, 6.75], [7.25] * 2)
    assert second["difference"] == {**difference(ours, baseline)._asdict(), "distinguishable": False}
    assert third["test_error"] == {"mean": 100.0, "deviation": None, "median": 100.0, "best": 100.0, "values": [100.0]}
    assert (third["diverged"], third["failed"], third["seconds"], third["difference"]["mean"]) == (1, True, None, None)


def test_committed_results_round_trip_exactly(tmp_path: Path) -> None:
    """A diff of two commits shows the runs that changed: one result per line, shared fields once."""
    file = tmp_path / "new" / "r.json"
    first, second = experiment("resnet20", 20), experiment("plain20", 20, plain=True)
    some = [result(first, 0, 0.1 + 0.2), result(first, 1, 26 / 3), result(second, 1, 100.0, diverged_at_step=17)]
    for contents in (some[:1], some):
        results.write(file, contents, command='resnet-jax study "a b.py:c"', reduced="4 steps.")
        assert results.read(file) == contents
    assert [path.name for path in file.parent.iterdir()] == ["r.json"], "no temporary file remains"
    text, written = file.read_text(), json.loads(file.read_text())
    assert (written["kind"], written["command"], written["reduced"]) == ("study", 'resnet-jax study "a b.py:c"', "4 steps.")
    assert written["common"].keys() >= {"metric", "split", "examples", "versions", "device", "commit", "steps", "protocol"}
    assert [json.loads(line.strip(" ,")) for line in text.splitlines() if line.strip().startswith('{"')] == written["results"]


def test_read_rejects_corrupt_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    study = b'{"kind": "study", "common": {}'
    for text in (b"[1, 2]", b"{}", b"\x80\xff", b"", study + b"}", study + b', "results": [1, 2]}', study):
        path.write_bytes(text)
        for file in (path, tmp_path / "missing.json"):
            with pytest.raises(UserError, match=f"{file}"):
                results.read(file)
    with pytest.raises(UserError, match=f"{path} is corrupt"):
        results.notes([path])


def test_notes_merge_several_studies(tmp_path: Path) -> None:
    for command, reduced in (("first", "Small."), ("again", ""), ("again", "")):
        results.remember_study(tmp_path / "one", command=command, variants=["a", "b"], reduced=reduced)
    results.write(tmp_path / "two.json", [result(experiment("a", 20), 0, 8.0)], command="second", reduced="4 steps.")
    notes = results.notes([tmp_path / "one", tmp_path / "two.json", tmp_path / "missing"])
    assert notes == {"command": "first; again; second", "variants": ["a", "b"], "reduced": "Small.; 4 steps."}
