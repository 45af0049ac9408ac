"""Gradients of single paths against the chain rule written out, the numbers of paths, and the command on a real run."""

import csv
import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from made_up_network import EXAMPLES, MANY, SMALL, SMALL_PLAIN, compilations, shown, units_of, weights_of
from scipy import stats

from resnet_jax import cli
from resnet_jax.data.sources import Examples
from resnet_jax.errors import UserError
from resnet_jax.lab import paths, switched
from resnet_jax.models import Architecture, configured
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.pretrained.loading import Pretrained
from resnet_jax.models.shortcuts import Concatenation, Projection, Scaled, ShortcutOnlyGating

SETTINGS = np.array(list(itertools.product((0, 1), repeat=3)), np.float32)
NETWORKS = {
    "padded": SMALL,
    "projected": replace(SMALL, shortcut=Projection),
    "scaled": replace(SMALL, shortcut=configured(Scaled, shortcut=0.7, branch=0.4)),
    "gated": replace(SMALL, shortcut=configured(ShortcutOnlyGating, bias=-1)),
    "pre-activated": replace(SMALL, shortcut=Projection, order=FullPreactivation),
    "dense": replace(SMALL, stages=(3,), features=(3,), shortcut=Concatenation),
}


def losses(logits: Any, labels: np.ndarray = EXAMPLES.labels) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def routed(network: Architecture) -> switched.Switched:
    return switched.network(network, switched.routed(network.shortcut))


@pytest.mark.quick(2)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_all_paths_add_up_to_that_of_the_network_and_its_answers_stay(name: str) -> None:
    """Jacobians of units are sums, so that of the network is the sum over 2^3 products of one summand each."""
    weights, images = weights_of(NETWORKS[name]), shown(EXAMPLES.images)
    apply, with_switches = weights.apply(), routed(NETWORKS[name])
    variables = weights.params, weights.batch_stats

    def slopes(answer: Callable[[Any], Any]) -> Any:
        def loss(images: Any) -> Any:
            logits = answer(images)
            return losses(logits).sum(), logits

        return jax.grad(loss, has_aux=True)(images)

    @functools.partial(jax.jit, compiler_options=quick_to_compile())
    def all_slopes(settings: Any) -> Any:
        whole = slopes(lambda images: apply(*variables, images, train=False)[0])
        return whole, jax.lax.map(lambda switches: slopes(lambda images: with_switches(*variables, images, switches)), settings)

    (whole, expected), (each, logits) = jax.device_get(all_slopes(SETTINGS))
    np.testing.assert_allclose(each.sum(0), whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
    np.testing.assert_allclose(logits, np.broadcast_to(expected, logits.shape), rtol=1e-5, atol=1e-6)
    # Of paths that differ, no two carry the same.
    assert len({found.round(7).tobytes() for found in each}) == 8


def by_hand(weights: Any) -> Callable[[Any], Any]:
    """Mean norm over images, units walked back one by one: through the branch alone or the shortcut alone; both are below the last ReLU."""
    model, units = units_of(weights)

    @functools.partial(jax.jit, compiler_options=quick_to_compile())
    def norm(switches: Any) -> Any:
        x, back_through_stem = jax.vjp(model.stem, shown(EXAMPLES.images))
        passed = []
        for unit in units:
            branch, back_through_branch = jax.vjp(unit.branch, x)
            carried, back_through_shortcut = jax.vjp(functools.partial(unit.shortcut.carry, train=False), x)
            passed.append((carried + branch > 0, back_through_branch, back_through_shortcut))
            x = jax.nn.relu(carried + branch)
        slope = jax.grad(lambda x: losses(model.head(x)).sum())(x)
        for switch, (positive, by_branch, by_shortcut) in zip(switches[::-1], passed[::-1], strict=True):
            below = jnp.where(positive, slope, 0)
            slope = jnp.where(switch == 1, *(back(below)[0] for back in (by_branch, by_shortcut)))
        (slope,) = back_through_stem(slope)
        return jnp.sqrt(jnp.square(slope).sum((1, 2, 3))).mean()

    return norm


def test_what_a_path_carries_is_that_of_its_units_one_by_one() -> None:
    weights = weights_of(SMALL)
    norm = by_hand(weights)
    expected = [[norm(switches) for switches in draw] for draw in paths.drawn(3, 2, seed=3)]
    found = paths.measure(weights, EXAMPLES, draws=2, seed=3)
    np.testing.assert_allclose(found.gradient, expected, rtol=2e-5)
    in_parts = paths.measure(weights, EXAMPLES, draws=2, batch_size=2, seed=3)
    np.testing.assert_allclose(in_parts.gradient, expected, rtol=2e-5)
    total = np.mean(expected, 0) * [1, 3, 3, 1]
    np.testing.assert_allclose(found.carried, total / total.sum(), rtol=2e-5)
    np.testing.assert_array_equal(found.lengths, range(4))
    np.testing.assert_allclose(found.share, np.array([1, 3, 3, 1]) / 8)


def with_kernel(factor: float) -> Pretrained:
    """With a classifier of which the kernel is so many times what it was."""
    head = weights_of(SMALL).params["head"]["linear"]
    return replace(weights_of(SMALL), params=weights_of(SMALL).params | {"head": {"linear": head | {"kernel": head["kernel"] * factor}}})


def test_norms_whose_squares_float32_does_not_hold_are_found() -> None:
    tiny, moderate = (paths.measure(with_kernel(factor), EXAMPLES, draws=1).gradient for factor in (1e-25, 1e-3))
    assert tiny.max() < 1e-22
    # Logits so small are all the same to the loss: its slopes by them are, and the rest is linear.
    np.testing.assert_allclose(tiny, moderate * 1e-22, rtol=0.02)


def test_paths_are_drawn_of_every_length_and_all_units_alike() -> None:
    drawn = paths.drawn(6, 3000, seed=1)
    assert drawn.shape == (3000, 7, 6)
    assert set(np.unique(drawn)) == {0, 1}
    np.testing.assert_array_equal(drawn.sum(2), np.broadcast_to(np.arange(7), (3000, 7)))
    p = np.arange(7)[:, None] / 6
    assert (np.abs(drawn.mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / 3000)).all()
    np.testing.assert_array_equal(drawn, paths.drawn(6, 3000, seed=1))
    assert (drawn != paths.drawn(6, 3000, seed=2)).any()


def test_lengths_of_paths_are_binomial() -> None:
    """papers.md A7: of 54 modules, 95 % of the paths pass 19 to 35, and those that pass 5 to 17 are 0.45 % of all."""
    np.testing.assert_allclose(paths.shares(4), np.array([1, 4, 6, 4, 1]) / 16)
    shares = paths.shares(54)
    assert shares[19:36].sum() > 0.95
    assert round(100 * shares[5:18].sum(), 2) == 0.45
    for units in (54, 600):
        np.testing.assert_allclose(paths.shares(units), stats.binom.pmf(np.arange(units + 1), units, 0.5), rtol=1e-9)


@pytest.mark.parametrize("units", [9, 54, 600])
@pytest.mark.parametrize("factor", [0.3, 1.0, 2.0])
def test_the_whole_of_a_gradient_that_falls_by_a_factor_a_unit_is_binomial_too(units: int, factor: float) -> None:
    """C(n, k) f^k over its sum (1 + f)^n is the probability of k successes, each of probability f / (1 + f)."""
    lengths = np.arange(units + 1)
    expected = stats.binom.pmf(lengths, units, factor / (1 + factor))
    # NumPy's powers reach down to 1e-308.
    gradient = np.where(factor**lengths > 1e-300, factor**lengths, 0)
    np.testing.assert_allclose(paths.carried(gradient), expected, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize(
    ("parts", "least", "expected"),
    [
        ([0.02, 0.03, 0.5, 0.4, 0.05], 0.95, range(2, 5)),
        ([0.02, 0.03, 0.5, 0.4, 0.05], 0.9, range(2, 4)),
        ([0.05, 0.9, 0.05, 0.0], 0.95, range(2)),
        ([0.1, 0.2, 0.3, 0.4], 0.95, range(4)),
        ([0.3, 0.35, 0.35], 0.6, range(1, 3)),
        ([0.0, 1.0], 0.95, range(1, 2)),
    ],
)
def test_the_effective_paths_are_the_shortest_run_of_lengths_that_carries_enough(parts: Any, least: float, expected: range) -> None:
    assert paths.shortest(np.array(parts), least) == expected


def test_all_draws_are_one_program() -> None:
    weights = weights_of(replace(SMALL, num_classes=5))
    paths.measure(weights, MANY, draws=1, batch_size=35)
    told: list[int] = []
    with compilations() as compiled:
        paths.measure(weights, MANY, draws=5, batch_size=35, seed=1, told=told.append)
        assert compiled == []
        # Of 70 images the last batch has 14: it is filled up.
        paths.measure(weights, MANY, draws=2, batch_size=28)
    assert len(compiled) == 1, "another size of the batches is the one that another program is for"
    assert told == list(range(1, 5 * 4 + 1))


@pytest.mark.parametrize(
    ("network", "given", "message"),
    [
        (lambda: weights_of(SMALL), {"examples": Examples(EXAMPLES.images[:0], EXAMPLES.labels[:0])}, "0 images, .*at least 1"),
        (lambda: weights_of(SMALL), {"draws": 0}, "0 draws .*at least 1"),
        (lambda: weights_of(SMALL_PLAIN), {}, "plain network, which has one path"),
        (lambda: with_kernel(0.0), {}, "no path through made up carries any gradient from 5 images"),
        (lambda: with_kernel(np.nan), {}, "paths of length 0 through made up carry a gradient that is not finite"),
    ],
    ids=["no images", "no draws", "plain", "dead", "diverged"],
)
def test_what_has_no_paths_or_no_gradient_is_refused(network: Callable[[], Pretrained], given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        paths.measure(network(), **{"examples": EXAMPLES, "draws": 1} | given)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command_writes_beside_the_run(short_run: Path, digits_dir: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cli.main(["lab", "paths", str(short_run), "--images", "20", "--draws", "2", "--data-dir", digits_dir, "--to", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "effective paths" in printed
    assert "by the length of paths" in printed
    found = json.loads((tmp_path / "paths.json").read_text())
    assert found["title"] == "Paths"
    assert "20 images" in found["caption"]
    with (tmp_path / "paths.csv").open() as file:
        rows = list(csv.DictReader(file))
    (each,) = found["data"].values()
    assert [int(row["length"]) for row in rows] == each["lengths"] == [0, 1, 2, 3]
    assert [float(row["of the gradient"]) for row in rows] == each["carried"]
    np.testing.assert_allclose([float(row["gradient of one"]) for row in rows], np.mean(each["gradient"], 0))
    effective = slice(each["effective"]["shortest"], each["effective"]["longest"] + 1)
    assert sum(each["carried"][effective]) >= 0.95
    assert each["effective"]["of_paths_percent"] == pytest.approx(100 * sum(each["share"][effective]))
    assert (tmp_path / "paths.png").read_bytes().startswith(b"\x89PNG")
    assert "share of the gradient (%)" in (tmp_path / "paths.svg").read_text()


def test_no_draws_are_refused(short_run: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["lab", "paths", str(short_run), "--draws", "0"])
    assert ended.value.code == 2
    assert "--draws is 0" in capsys.readouterr().err
