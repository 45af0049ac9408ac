"""Loss slices against networks whose parameters are changed by hand."""

import math
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from matplotlib.contour import ContourSet
from resnet_jax.analysis import landscape
from resnet_jax.analysis.landscape import Landscape, Options
from resnet_jax.models.blocks import Basic
from resnet_jax.models.components import component
from resnet_jax.models.shortcuts import Projection
from resnet_jax.studies.figures import style
from resnet_jax.weights.loading import Pretrained
from small_network import MANY, SMALL, SMALL_PLAIN, walk, weights_of

# 1x1 convolutions in shortcuts, and linear layers in branches.
PROJECTED = replace(SMALL, shortcut=Projection, branch=component(Basic, reduction=1))


def filters(tree: Any) -> dict[tuple[str, ...], np.ndarray]:
    """Returns every filter of a network, flat."""
    flat = {}
    for path, leaf in jax.tree.leaves_with_path(tree):
        keys = tuple(str(part.key) for part in path)
        if keys[-1] == "kernel":
            for block, kernel in enumerate(np.asarray(leaf) if "stacked" in keys else np.asarray(leaf)[None]):
                for output in range(kernel.shape[-1]):
                    flat[(*keys, str(block), str(output))] = kernel[..., output].ravel()
    return flat


def test_directions_have_the_filter_norms_of_the_network() -> None:
    """Li et al. 2018, Section 4; `ignore='biasbn'` in the authors' code."""
    for network, seed in ((SMALL, 0), (SMALL_PLAIN, 5), (PROJECTED, 0)):
        weights = weights_of(network, seed=seed)
        direction = landscape.directions(weights.params, 3, 0)
        norms, expected = ({key: np.linalg.norm(kernel) for key, kernel in filters(tree).items()} for tree in (direction, weights.params))
        assert norms == pytest.approx(expected, rel=1e-5)
        assert not any(leaf.any() for path, leaf in jax.tree.leaves_with_path(direction) if path[-1].key != "kernel")


def test_directions_are_gaussian_and_shared_by_twins() -> None:
    kernel = np.random.default_rng(0).normal(size=(2, 3, 3, 64, 64)).astype(np.float32)
    direction = landscape.directions({"stages": {0: {0: {"stacked": {"kernel": kernel}}}}}, 0, 0)
    block = np.stack([values / math.sqrt(float(values @ values) / values.size) for values in filters(direction).values()])
    np.testing.assert_allclose([block.mean(), (block**4).mean()], [0, 3], atol=0.05)
    assert len(np.unique(block)) > 0.9 * block.size, "blocks must not share numbers"
    projected = filters(landscape.directions(weights_of(PROJECTED).params, 1, 1))
    for key, values in filters(landscape.directions(weights_of(SMALL_PLAIN, seed=5).params, 1, 1)).items():
        other = projected[key]
        np.testing.assert_allclose(values / np.linalg.norm(values), other / np.linalg.norm(other), rtol=1e-4, atol=1e-6)


def by_hand(weights: Pretrained, first: float, second: float, seed: int = 0) -> tuple[float, float]:
    """Returns loss and error in percent of the blocks called one by one with changed parameters."""
    one, other = (landscape.directions(weights.params, seed, number) for number in (0, 1))
    params = jax.tree.map(lambda leaf, d1, d2: leaf + first * d1 + second * d2, weights.params, one, other)
    logits = np.asarray(walk(replace(weights, params=params), MANY.images, lambda _, block, x: block(x)), np.float64)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), MANY.labels]
    return float(losses.mean()), 100 * float(np.mean(logits.argmax(1) != MANY.labels))


def test_losses_equal_those_of_changed_parameters_in_one_program(caplog: pytest.LogCaptureFixture) -> None:
    weights = weights_of(SMALL)
    result = landscape.measure(weights, MANY, Options(points=5, reach=0.5, seed=2, batch_size=35))
    np.testing.assert_allclose(result.offsets, [-0.5, -0.25, 0, 0.25, 0.5])
    for index in ((0, 4), (4, 1), (2, 2)):
        expected = by_hand(weights, *result.offsets[list(index)], seed=2)
        np.testing.assert_allclose((result.loss[index], result.error_percent[index]), expected, rtol=1e-4)
    assert len(np.unique(result.loss.round(4))) > 20, "a constant loss would show nothing"
    with jax.log_compiles():
        landscape.measure(weights, MANY, Options(points=7, reach=2.0, seed=1, batch_size=35))
    assert "Finished XLA compilation" not in caplog.text


def cone(*infinite: tuple[int, int]) -> Landscape:
    """A cone on 5 by 5 points."""
    offsets = np.linspace(-1, 1, 5)
    loss = np.hypot(offsets[:, None], offsets)
    for index in infinite:
        loss[index] = np.inf
    return Landscape(offsets, loss, 10 * loss, 3)


def test_summaries_of_a_cone() -> None:
    """Around 0.5 within 0.25: four points at 0.5 and four at 0.71. Around 1: four at 1, eight at 1.12; log(3) is 1.10."""
    error, *losses, below = cone().summary().values()
    np.testing.assert_allclose(losses, [0, (0.5 + math.sqrt(0.5)) / 2, math.sqrt(1.25), math.sqrt(2)])
    assert (error, below) == (0, 100 * 13 / 25)
    *_, at_reach, highest, below = cone((0, 0), (2, 0)).summary().values()
    np.testing.assert_allclose([at_reach, highest, below], [math.sqrt(1.25), math.inf, 100 * 12 / 25])


def test_figure_shares_contour_levels_and_survives_flat_losses() -> None:
    steep = cone()._replace(loss=0.03 * 1e6 ** cone().loss)
    with style():
        figure = landscape.draw({"flat": cone(), "steep": steep, "nan": cone((0, 0))})
        (levels,) = {tuple(lines.levels) for lines in figure.findobj(ContourSet) if isinstance(lines, ContourSet)}
        assert 2 <= len(levels) <= 10
        for loss in (np.ones((5, 5)), np.full((5, 5), np.nan)):
            landscape.draw({"flat": cone()._replace(loss=loss)}).draw_without_rendering()
