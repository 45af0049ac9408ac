"""Error against depth, on synthetic results."""

import csv
import json
from pathlib import Path

import pytest
from matplotlib.text import Text
from resnet_jax import cli, models
from resnet_jax.analysis import depth
from resnet_jax.errors import UserError
from resnet_jax.models.shortcuts import NoShortcut
from resnet_jax.studies import results as results_lib
from resnet_jax.studies.figures import style
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


def families(folder: Path) -> list[depth.Family]:
    """Returns the families sorted by title."""
    return sorted(depth.families(results_lib.collect([folder])), key=depth.title)


def test_families_group_networks_that_differ_in_depth(tmp_path: Path) -> None:
    residual, plain = families(write(tmp_path))
    assert (depth.title(residual), depth.title(plain)) == ("ResNet", "plain")
    assert [depth.depth(variant) for variant in plain] == [20, 32, 44, 56]
    assert [variant.training_error.values for variant in plain] == list(PLAIN.values())
    assert [variant.error.mean for variant in residual] == pytest.approx([2.6, 2.2])


def test_families_separate_training_recipes(tmp_path: Path) -> None:
    for steps in (100, 200):
        for layers in (20, 32):
            write_run(tmp_path / f"{layers}-{steps}", experiment(f"plain-{layers}-{steps}", layers, plain=True, steps=steps), 0, 10.0)
    assert [[depth.depth(variant) for variant in family] for family in families(tmp_path)] == [[20, 32], [20, 32]]


def test_learning_stops_where_no_deeper_network_learns(tmp_path: Path) -> None:
    """By hand, of the medians 1, 35, 5 and 65.5."""
    residual, plain = families(write(tmp_path))
    assert [depth.stops_learning(plain, threshold) for threshold in (10, 4, 0.5, 70)] == [56, 32, 20, None]
    assert depth.stops_learning(residual) is None


def test_layers_are_counted_as_in_the_papers() -> None:
    for network, layers in (
        (models.cifar_architecture(110), 110),
        (models.cifar_architecture(164, branch=models.architecture("resnet50").branch), 164),
        (models.imagenet_architecture(34, shortcut=NoShortcut), 34),
        (models.imagenet_architecture(152), 152),
        (models.densenet_architecture(121, imagenet=True), 121),
        (models.densenet_architecture(40, 12, bottleneck=False), 40),
    ):
        assert depth.layers(config.resolve(network)) == layers


def test_figure_names_families_and_depths(tmp_path: Path) -> None:
    results = families(write(tmp_path))
    with style():
        figure = depth.draw(results, 10.0)
        figure.draw_without_rendering()
    texts = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    assert {"plain, training", "plain, test", "ResNet, training", "ResNet, test", "20", "32", "44", "56"} <= set(texts)


def test_depth_command_writes_beside_the_first_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path)
    cli.main(["analyze", "depth", str(tmp_path), "--threshold", "4"])
    assert "depth at which learning stops" in capsys.readouterr().out
    (folder,) = tmp_path.glob("*/*/analysis")
    assert folder.parent == results_lib.find(tmp_path)[0]
    result = json.loads((folder / "depth.json").read_text())
    assert {row[0]: row[2] for row in result["tables"][1]["rows"]} == {"plain": 32, "ResNet": "none"}
    with (folder / "depth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert [float(row["test error percent"]) for row in rows] == [float(row["training error percent"]) + 2 for row in rows]
    assert (folder / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert "layers with weights" in (folder / "depth.svg").read_text()


def test_depth_rejects_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_run(tmp_path / "run", experiment("plain-20", 20, plain=True), 0)
    with pytest.raises(UserError, match="no run is finished"):
        families(tmp_path)
    for options, message in (((), "at least one run directory"), (("nowhere",), "nowhere")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["analyze", "depth", *options])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
