"""Slices of the loss against networks whose parameters are changed by hand, and the command on a real run."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from made_up_network import EXAMPLES, MANY, SMALL, SMALL_PLAIN, compilations, walk, weights_of
from matplotlib.contour import ContourSet
from matplotlib.text import Text

from resnet_jax import cli
from resnet_jax.configured import configured
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.lab import figures, landscape
from resnet_jax.lab.landscape import Landscape
from resnet_jax.models import Architecture
from resnet_jax.models.branches import Basic
from resnet_jax.models.pretrained.loading import Pretrained
from resnet_jax.models.shortcuts import Projection
from resnet_jax.studies.figures import style

# With 1x1 convolutions beside the branches, and linear layers inside them.
WEIGHING = replace(SMALL, shortcut=Projection, branch=configured(Basic, reduction=1))


def filters(tree: Any) -> dict[tuple[str, ...], np.ndarray]:
    """Every filter of a network by itself, flat."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        place = tuple(str(part.key) for part in path)
        if place[-1] != "kernel":
            continue
        for unit, kernel in enumerate(np.asarray(leaf) if "stacked" in place else np.asarray(leaf)[None]):
            for output in range(kernel.shape[-1]):
                found[(*place, str(unit), str(output))] = kernel[..., output].ravel()
    return found


@pytest.mark.parametrize(
    ("network", "seed"), [(SMALL, 0), (SMALL_PLAIN, 5), (WEIGHING, 0)], ids=["residual", "plain", "projections and linear layers"]
)
def test_filters_of_a_direction_have_the_norms_of_the_networks(network: Architecture, seed: int) -> None:
    """Li et al. 2018, Section 4; `ignore='biasbn'` in the authors' code."""
    weights = weights_of(network, seed=seed)
    found = landscape.directions(weights.params, 3, 0)
    theirs = filters(weights.params)
    for place, one in filters(found).items():
        np.testing.assert_allclose(math.sqrt(float(one @ one)), math.sqrt(float(theirs[place] @ theirs[place])), rtol=1e-5)
    others = [leaf for path, leaf in jax.tree.leaves_with_path(found) if path[-1].key != "kernel"]
    assert len(others) > 8
    assert not any(leaf.any() for leaf in others)


def test_a_direction_is_gaussian_but_for_its_length() -> None:
    kernel = np.random.default_rng(0).normal(size=(2, 3, 3, 64, 64)).astype(np.float32)
    found = landscape.directions({"stages": {0: {0: {"stacked": {"kernel": kernel}}}}}, 0, 0)
    unit = np.stack([one / math.sqrt(float(one @ one) / one.size) for one in filters(found).values()])
    np.testing.assert_allclose([unit.mean(), (unit**4).mean()], [0, 3], atol=0.05)
    assert len(np.unique(unit)) > 0.9 * unit.size, "every unit has numbers of its own"


def test_twins_go_the_same_way_whatever_else_one_of_them_has() -> None:
    theirs = filters(landscape.directions(weights_of(WEIGHING).params, 1, 1))
    for place, one in filters(landscape.directions(weights_of(SMALL_PLAIN, seed=5).params, 1, 1)).items():
        other = theirs[place]
        np.testing.assert_allclose(one / math.sqrt(float(one @ one)), other / math.sqrt(float(other @ other)), rtol=1e-4, atol=1e-6)


def by_hand(weights: Pretrained, first: float, second: float, seed: int = 0) -> tuple[float, float]:
    """Loss and error in percent of the units called one by one, their parameters changed."""
    one, other = (landscape.directions(weights.params, seed, number) for number in (0, 1))
    params = jax.tree.map(lambda leaf, d1, d2: leaf + first * d1 + second * d2, weights.params, one, other)
    logits = np.asarray(walk(replace(weights, params=params), MANY.images, lambda _, unit, x: unit(x)), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), MANY.labels]
    return float(losses.mean()), 100 * float(np.mean(logits.argmax(1) != MANY.labels))


@pytest.mark.quick(1)
@pytest.mark.parametrize(("network", "seed"), [(SMALL, 0), (SMALL_PLAIN, 5)], ids=["residual", "plain"])
def test_losses_are_those_of_the_network_with_its_parameters_changed(network: Architecture, seed: int) -> None:
    weights = weights_of(network, seed=seed)
    told: list[int] = []
    found = landscape.measure(weights, MANY, points=5, reach=0.5, seed=2, batch_size=32, told=told.append)
    assert told == list(range(1, 26))
    np.testing.assert_allclose(found.offsets, [-0.5, -0.25, 0, 0.25, 0.5])
    for place in ((0, 0), (0, 4), (4, 1), (1, 2), (2, 3)):
        expected = by_hand(weights, *found.offsets[list(place)], seed=2)
        np.testing.assert_allclose((found.loss[place], found.error_percent[place]), expected, rtol=1e-4)
    np.testing.assert_allclose(found.centre, by_hand(weights, 0, 0)[0], rtol=1e-5)
    assert found.loss[2, 2] == found.centre
    assert len(np.unique(found.loss.round(4))) > 20, "losses that are the same everywhere would show nothing"


def test_a_grid_of_any_size_is_one_program() -> None:
    landscape.measure(weights_of(SMALL), MANY, points=3, batch_size=35)  # what evaluation itself needs is compiled here
    with compilations() as compiled:
        landscape.measure(weights_of(SMALL), MANY, points=7, reach=2.0, seed=1, batch_size=35)
        assert compiled == []
        landscape.measure(weights_of(SMALL), MANY, points=5, batch_size=14)
    assert len(compiled) == 1, "another size of the batches is the one that another program is for"


def made_up(*lost: tuple[int, int]) -> Landscape:
    """A cone on 5 by 5 points."""
    offsets = np.linspace(-1, 1, 5)
    loss = np.hypot(offsets[:, None], offsets)
    for place in lost:
        loss[place] = np.nan
    return Landscape(offsets, loss, 10 * loss)


def test_summaries() -> None:
    """Around 0.5 within 0.25: four points at 0.5 and four at 0.71. Around 1: four at 1, eight at 1.12."""
    found = made_up()
    np.testing.assert_allclose([found.centre, found.highest], [0, math.sqrt(2)])
    np.testing.assert_allclose([found.at(0.5), found.at(1)], [(0.5 + math.sqrt(0.5)) / 2, math.sqrt(1.25)])
    np.testing.assert_allclose([found.percent_below(0.6), found.percent_below(1.2)], [100 * 5 / 25, 100 * 21 / 25])
    lost = made_up((0, 0), (2, 0))
    assert lost.highest == math.inf
    np.testing.assert_allclose([lost.at(1), lost.percent_below(1.2)], [math.sqrt(1.25), 100 * 20 / 25])


def drawn(found: dict[str, Landscape]) -> tuple[list[str], set[tuple[float, ...]]]:
    """Words and levels in the figure."""
    with style():
        figure = figures.landscape(found)
    shown = [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]
    return shown, {tuple(lines.levels) for lines in figure.findobj(ContourSet) if isinstance(lines, ContourSet)}


def test_the_figure_has_the_same_levels_for_all() -> None:
    steep = made_up()._replace(loss=0.03 * 1e6 ** made_up().loss)  # 0.03 to 9.2e6
    shown, levels = drawn({"flat": made_up(), "steep": steep, "gone": made_up((0, 0)), "one more": made_up()})
    assert {"flat", "steep", "gone", "one more", "0.1", "1e4", "direction 1, in norms of each filter"} <= set(shown)
    assert levels == {tuple(range(-1, 7))}, "logarithms"


def test_levels_are_less_round_where_losses_are_close() -> None:
    """Between 0.5 and 1.414, each 8 ** (1 / 8) = 1.297 times the one before; 1.09 is in the corners, without a label."""
    assert {"0.648", "0.841"} <= set(drawn({"alone": made_up()})[0])


def test_figures_of_what_has_no_levels_are_drawn() -> None:
    assert "even" in drawn({"even": made_up()._replace(loss=np.ones((5, 5)))})[0]
    assert "nothing" in drawn({"nothing": made_up()._replace(loss=np.full((5, 5), np.nan))})[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points": 1}, "1 points"),
        ({"points": 4}, "4 points .* odd"),
        ({"reach": 0.0}, "reach is 0"),
        ({"reach": math.nan}, "reach is nan"),
    ],
)
def test_grids_that_are_none_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        landscape.measure(weights_of(SMALL), EXAMPLES, **options)


def test_no_images_are_refused() -> None:
    with pytest.raises(UserError, match="no images"):
        landscape.measure(weights_of(SMALL), Examples(EXAMPLES.images[:0], EXAMPLES.labels[:0]))


def test_the_command_writes_table_data_and_figure(short_run: Path, digits_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = ["--points", "3", "--reach", "0.5", "--images", "40", "--data-dir", digits_dir, "--to", str(tmp_path)]
    cli.main(["lab", "landscape", str(short_run), *options])
    assert "loss around the network" in capsys.readouterr().out
    text = json.loads((tmp_path / "landscape.json").read_text())
    (found,) = text["data"].values()
    assert (found["images"], found["offsets"]) == (40, [-0.5, 0, 0.5])
    with (tmp_path / "landscape.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [loss for line in found["loss"] for loss in line]
    assert text["tables"][0]["rows"][0][1:4] == [40, found["error_percent"][1][1], found["loss"][1][1]]
    assert (tmp_path / "landscape.png").read_bytes().startswith(b"\x89PNG")
    assert "direction 2" in (tmp_path / "landscape.svg").read_text()


def test_the_command_refuses_a_grid_without_a_centre(short_run: Path, digits_dir: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lab", "landscape", str(short_run), "--points", "2", "--data-dir", digits_dir])
    assert ended.value.code == 2
    assert "give an odd number" in capsys.readouterr().err
