"""Errors against depth, of runs whose numbers are made up."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.text import Text
from studies.made_up_runs import experiment, write_run

from resnet_jax import cli, models
from resnet_jax.errors import UserError
from resnet_jax.lab import depth, figures
from resnet_jax.models.shortcuts import NoShortcut
from resnet_jax.studies import cells
from resnet_jax.studies.figures import style
from resnet_jax.training import resolved

# Training errors in percent by depth, a number a seed.
PLAIN = {20: (0.5, 1.5), 32: (30.0, 40.0), 44: (2.0, 8.0), 56: (60.0, 71.0)}
RESIDUAL = {20: (0.5, 0.7), 56: (0.1, 0.3)}


def write(folder: Path) -> Path:
    """Of both kinds; the test error is 2 % more."""
    for kind, errors in (("plain", PLAIN), ("ResNet", RESIDUAL)):
        for layers, values in errors.items():
            made = experiment(f"{kind}-{layers}", layers, plain=kind == "plain")
            for seed, value in enumerate(values):
                write_run(folder / made.name / f"seed-{seed}", made, seed, value + 2, training_error_percent=value)
    return folder


def families(folder: Path) -> list[depth.Family]:
    """By title."""
    return sorted(depth.families(cells.collect([folder])), key=lambda family: family.title)


def test_networks_that_differ_in_depth_alone_are_a_family(tmp_path: Path) -> None:
    residual, plain = families(write(tmp_path))
    assert (residual.title, plain.title) == ("ResNet", "plain")
    assert [each.layers for each in plain.depths] == [20, 32, 44, 56]
    assert [each.training.values for each in plain.depths] == list(PLAIN.values())
    assert [each.test.mean for each in residual.depths] == pytest.approx([2.6, 2.2])


def test_networks_that_were_trained_otherwise_are_another(tmp_path: Path) -> None:
    for steps in (100, 200):
        for layers in (20, 32):
            write_run(tmp_path / f"{layers}-{steps}", experiment(f"plain-{layers}-{steps}", layers, plain=True, steps=steps), 0, 10.0)
    assert [[each.layers for each in family.depths] for family in families(tmp_path)] == [[20, 32], [20, 32]]


def test_learning_stops_where_no_deeper_network_learns(tmp_path: Path) -> None:
    """By hand, of the medians 1, 35, 5 and 65.5."""
    residual, plain = families(write(tmp_path))
    assert [depth.stops_learning(plain, threshold) for threshold in (10, 4, 0.5, 70)] == [56, 32, 20, None]
    assert depth.stops_learning(residual) is None


@pytest.mark.parametrize(
    ("network", "layers"),
    [
        (models.cifar_architecture(110), 110),
        (models.cifar_architecture(164, branch=models.architecture("resnet50").branch), 164),
        (models.imagenet_architecture(34, shortcut=NoShortcut), 34),
        (models.imagenet_architecture(152), 152),
        (models.densenet_architecture(121, imagenet=True), 121),
        (models.densenet_architecture(40, 12, bottleneck=False), 40),
    ],
)
def test_layers_are_as_many_as_the_papers_call_networks_by(network: models.Architecture, layers: int) -> None:
    assert depth.layers(resolved.resolve(network)) == layers


def test_runs_that_have_not_finished_have_no_errors(tmp_path: Path) -> None:
    write_run(tmp_path / "run", experiment("plain-20", 20, plain=True), 0)
    with pytest.raises(UserError, match="no run has finished"):
        families(tmp_path)


def test_the_figure_names_families_and_shows_every_depth(tmp_path: Path) -> None:
    found = families(write(tmp_path))
    with style():
        figure = figures.depth(found, 10.0)
        figure.draw_without_rendering()
    shown = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    assert {"plain, training", "plain, test", "ResNet, training", "ResNet, test", "20", "32", "44", "56"} <= set(shown)


def test_the_command_writes_beside_the_first_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path)
    cli.main(["lab", "depth", str(tmp_path), "--threshold", "4"])
    assert "where learning stops" in capsys.readouterr().out
    (folder,) = tmp_path.glob("*/*/lab")
    assert folder.parent == cells.find(tmp_path)[0]
    found = json.loads((folder / "depth.json").read_text())
    told = {family["networks"]: family["stops_learning_at_layers"] for family in found["data"]["families"]}
    assert told == {"plain": 32, "ResNet": None}
    with (folder / "depth.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert [float(row["test error percent"]) for row in rows] == [float(row["training error percent"]) + 2 for row in rows]
    assert (folder / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert "layers with weights" in (folder / "depth.svg").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [((), "at least one folder"), (("RUNS", "--threshold", "100"), "--threshold is 100"), (("nowhere",), "no run in nowhere")],
)
def test_bad_input_is_refused(options: tuple[Any, ...], message: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lab", "depth", *options])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
