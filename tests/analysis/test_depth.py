"""Error against depth, on synthetic results."""

import itertools
import json
from pathlib import Path

import pytest
from resnet_jax import cli, models
from resnet_jax.analysis import depth
from resnet_jax.models.shortcuts import NoShortcut
from resnet_jax.studies import results as results_lib
from resnet_jax.training import config

from studies.synthetic_runs import experiment, write_run

# Training errors in percent by depth, one per seed.
PLAIN = {20: (0.5, 1.5), 32: (30.0, 40.0), 44: (2.0, 8.0), 56: (60.0, 71.0)}
RESIDUAL = {20: (0.5, 0.7), 56: (0.1, 0.3)}


def write(folder: Path) -> Path:
    """Writes runs of both kinds; the test error is 2 % higher."""
    for kind, errors in (("plain", PLAIN), ("ResNet", RESIDUAL)):
        for layers, values in errors.items():
            recipe = experiment(f"{kind}-{layers}", layers, plain=kind == "plain")
            for seed, value in enumerate(values):
                write_run(folder / recipe.name / f"seed-{seed}", recipe, seed, value + 2, training_error_percent=value)
    return folder


def test_families_group_networks_that_differ_in_depth_alone(tmp_path: Path) -> None:
    """By hand, of the medians 1, 35, 5 and 65.5 of plain networks."""
    residual, plain = sorted(depth.families(results_lib.collect([write(tmp_path / "two kinds")])), key=depth.title)
    assert (depth.title(residual), depth.title(plain)) == ("ResNet", "plain")
    assert {depth.depth(variant): variant.training_error.values for variant in plain} == PLAIN
    assert [variant.error.mean for variant in residual] == pytest.approx([2.6, 2.2])
    assert [depth.stops_learning(plain, threshold) for threshold in (10, 4, 0.5, 70)] == [56, 32, 20, None]
    assert depth.stops_learning(residual) is None
    for layers, steps in itertools.product((20, 32), (100, 200)):
        recipe = experiment(f"plain-{layers}-{steps}", layers, plain=True, steps=steps)
        write_run(tmp_path / "recipes" / recipe.name, recipe, 0, 10.0)
    recipes = depth.families(results_lib.collect([tmp_path / "recipes"]))
    assert [[depth.depth(variant) for variant in family] for family in recipes] == [[20, 32], [20, 32]]


def test_layers_are_counted_as_in_the_papers() -> None:
    for network, layers in (
        (models.cifar_architecture(110), 110),
        (models.cifar_architecture(164, branch=models.architecture("resnet50").branch), 164),
        (models.imagenet_architecture(34, shortcut=NoShortcut), 34),
        (models.densenet_architecture(121, imagenet=True), 121),
    ):
        assert depth.layers(config.resolve(network)) == layers


def test_depth_command_writes_beside_the_first_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    cli.main(["analyze", "depth", str(tmp_path), "--threshold", "4"])
    assert "depth at which learning stops" in capsys.readouterr().out
    folder = results_lib.find(tmp_path)[0] / "analysis"
    result = json.loads((folder / "depth.json").read_text())
    assert {row[0]: row[2] for row in result["tables"][1]["rows"]} == {"plain": 32, "ResNet": "none"}
    assert len(result["rows"]) == 12
    assert all(row["test error percent"] == row["training error percent"] + 2 for row in result["rows"])
    svg = (folder / "depth.svg").read_text()
    assert all(text in svg for text in ("plain, training", "plain, test", "ResNet, training", "ResNet, test", ">20<", ">56<"))
