"""Curves: means and bands over seeds, windows, families, common axes."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_runs import experiment, records, write_run

from resnet_jax.studies import curves
from resnet_jax.studies.cells import collect
from resnet_jax.studies.curves import Curve, Member


def run(split: str, errors: dict[int, float]) -> list[dict[str, Any]]:
    return [{"step": step, "split": split, "error_percent": error} for step, error in errors.items()]


def test_mean_least_and_most_over_seeds_by_hand() -> None:
    runs = [run("test", {10: 4.0, 20: 2.0}), run("test", {10: 8.0, 20: 3.0}), run("train", {10: 99.0})]
    found = curves.curve(runs, "test")
    assert found is not None
    np.testing.assert_allclose(found.steps, [10, 20])
    np.testing.assert_allclose(found.mean, [6, 2.5])
    np.testing.assert_allclose(found.low, [4, 2])
    np.testing.assert_allclose(found.high, [8, 3])


def test_a_seed_that_ended_early_counts_as_far_as_it_came() -> None:
    found = curves.curve([run("train", {1: 4.0}), run("train", {1: 8.0, 2: 5.0})], "train")
    assert found is not None
    np.testing.assert_allclose(found.mean, [6, 5])


def test_many_records_are_averaged_within_windows() -> None:
    """1,000 steps in 200 windows of 5: 1 to 5 have mean 3, 6 to 10 have mean 8. An error equal to its step stays on the diagonal."""
    found = curves.curve([run("train", {step: float(step) for step in range(1, 1001)})], "train")
    assert found is not None
    np.testing.assert_allclose(found.steps, np.arange(3, 1001, 5))
    np.testing.assert_allclose(found.mean, found.steps)


def test_no_records_are_no_curve() -> None:
    assert curves.curve([run("train", {1: 4.0})], "test") is None
    assert curves.curve([], "test") is None


@pytest.mark.parametrize(
    ("names", "title", "labels"),
    [
        (["plain-20", "plain-56"], "plain", ["20", "56"]),
        (["resnet110", "resnet1202"], "resnet", ["110", "1202"]),
        (["resnet-20-wide", "resnet-56-wide"], "resnet-…-wide", ["20", "56"]),
        (["plain20 (3fa9c1)", "plain56 (77ab01)"], "plain", ["20 (3fa9c1)", "56 (77ab01)"]),
        (["shallow", "deep"], "shallow, deep", ["shallow", "deep"]),
        (["resnet", "resnet-56"], "resnet, resnet-56", ["resnet", "resnet-56"]),
        (["alone-20"], "alone-20", [""]),
    ],
)
def test_what_names_have_in_common(names: list[str], title: str, labels: list[str]) -> None:
    assert curves.common(names) == (title, labels)


def write(
    base: Path, name: str, depth: int, *, plain: bool = False, steps: int = 40, seeds: int = 1, test: float = 8.0, **fields: Any
) -> None:
    made = experiment(name, depth, plain=plain, steps=steps, **fields)
    for seed in range(seeds):
        found = records(steps, 1.0, test, every=max(1, steps // 20), scored=max(1, steps // 8), seed=seed)
        write_run(base / name / f"seed-{seed}", made, seed, test, records=found)


def test_a_family_is_what_differs_in_depth_alone_from_the_shallowest(tmp_path: Path) -> None:
    for name, depth, plain in (("resnet-56", 56, False), ("plain-20", 20, True), ("resnet-20", 20, False), ("plain-56", 56, True)):
        write(tmp_path, name, depth, plain=plain)
    found = {family.title: [(member.name, member.label) for member in family.members] for family in curves.families(collect([tmp_path]))}
    assert found == {"plain": [("plain-20", "20"), ("plain-56", "56")], "resnet": [("resnet-20", "20"), ("resnet-56", "56")]}


def test_one_depth_trained_in_two_ways_takes_two_panels(tmp_path: Path) -> None:
    for batch in (64, 128):
        for depth in (20, 56):
            write(tmp_path, f"batch {batch}, {depth} layers", depth, batch_size=batch)
    assert [family.title for family in curves.families(collect([tmp_path]))] == ["batch 64, … layers", "batch 128, … layers"]


def test_runs_without_records_have_no_panel(tmp_path: Path) -> None:
    write_run(tmp_path / "a", experiment("a", 20), 0, 8.0)
    assert curves.panels(collect([tmp_path])) == []


def test_an_unfinished_cell_has_curves(tmp_path: Path) -> None:
    write_run(tmp_path / "a", experiment("a", 20), 0, records=records(100, 1.0, 8.0, every=10, scored=50))
    assert [title for title, _ in curves.panels(collect([tmp_path]))] == ["a"]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_panels_share_axes_and_depths_their_colours(tmp_path: Path) -> None:
    write(tmp_path, "plain-20", 20, plain=True, test=30.0, steps=64_000)
    write(tmp_path, "plain-56", 56, plain=True, test=35.0, steps=64_000)
    write(tmp_path, "resnet-56", 56, test=8.0, steps=32_000)
    panels = dict(curves.panels(collect([tmp_path])))
    plain, resnet = panels["plain"], panels["resnet-56"]
    assert {"20", "56", "iter. (1e4)", "error (%)"} <= set(texts(plain))
    assert [text for text in texts(plain) if text not in ("20", "56")] == [text for text in texts(resnet) if text not in ("20", "56")]
    # Sorted by depth: 20 layers the first colour, 56 the second, where they stand alone too.
    assert "--c1" in resnet
    assert "--c0" not in resnet


@pytest.mark.parametrize(("steps", "unit"), [(40, "step"), (3000, "iter. (1e3)"), (64_000, "iter. (1e4)")])
def test_steps_are_told_in_numbers_that_can_be_read(steps: int, unit: str, tmp_path: Path) -> None:
    write(tmp_path, "a", 20, steps=steps)
    ((_, svg),) = curves.panels(collect([tmp_path]))
    assert unit in texts(svg)


def test_a_curve_is_at_most_200_points(tmp_path: Path) -> None:
    made = experiment("a", 20)
    for seed in range(2):
        write_run(tmp_path / f"seed-{seed}", made, seed, 8.0, records=records(64_000, 1.0, 8.0, every=20, seed=seed))
    ((_, svg),) = curves.panels(collect([tmp_path]))
    lengths = [path.count("L") + 1 for path in re.findall(r' d="([^"]*)"[^>]*stroke: var', svg)]
    assert len(lengths) == 2, "training and test"
    # 64 test scores; of 3,200 training records 200 windows. Points on one straight line may be left out.
    assert 100 < max(lengths) <= 200
    assert min(lengths) <= 64


def member(train: list[float], test: list[float]) -> Member:
    made = [Curve(np.linspace(1, 100, len(errors)), *(np.array(errors),) * 3) for errors in (train, test)]
    return Member("a", "", (3,), made[0], made[1])


def test_the_axis_ends_above_what_follows_the_first_quarter() -> None:
    """8 everywhere after a beginning of 90: 1.1 x 8 = 8.8, and the next whole number."""
    early = [90.0] * 10 + [8.0] * 90
    assert curves.error_limit([member(early, early)], 100) == 9


def test_no_test_curve_is_hidden() -> None:
    """1 network of 60 among 29 of 5: the 95th percentile is 5, the axis reaches 1.1 x 60."""
    ordinary = member([5.0] * 100, [5.0] * 100)
    assert curves.error_limit([ordinary] * 29 + [member([5.0] * 100, [60.0] * 100)], 100) >= 66


def test_the_axis_ends_at_100_and_never_at_0() -> None:
    assert curves.error_limit([member([100.0] * 9, [100.0] * 9)], 100) == 100
    assert curves.error_limit([member([0.0] * 9, [0.0] * 9)], 100) > 0


def test_legends_fill_rows_evenly() -> None:
    """Six depths do not fit into one row of a panel of 3.4 inches: two of three."""
    blank = member([1.0], [1.0])
    names = ["20", "32", "44", "56", "110", "1202"]
    family = curves.Family("resnet", tuple(Member(name, name, (n,), blank.train, blank.test) for n, name in enumerate(names)))
    assert curves._columns(family) == 3
