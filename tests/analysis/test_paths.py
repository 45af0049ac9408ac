"""Gradients of single paths against the chain rule, the number of paths."""

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from resnet_jax.analysis import paths, subjects
from resnet_jax.analysis.paths import Options, Paths
from resnet_jax.errors import UserError
from resnet_jax.kernels import quick_to_compile
from resnet_jax.models import Architecture, component
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.shortcuts import Concatenation, Projection, Scaled, ShortcutOnlyGating
from resnet_jax.weights.loading import Pretrained
from scipy import stats
from small_network import EXAMPLES, SMALL, SMALL_PLAIN, blocks_of, normalized, weights_of

SETTINGS = np.array(list(itertools.product((0, 1), repeat=3)), np.float32)
OTHERS = [
    replace(SMALL, shortcut=component(ShortcutOnlyGating, bias=-1)),
    replace(SMALL, shortcut=component(Scaled, shortcut=0.7, branch=0.4)),
    replace(SMALL, shortcut=Projection, order=FullPreactivation),
    replace(SMALL, stages=(3,), features=(3,), shortcut=Concatenation),
]


def losses(logits: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, EXAMPLES.labels)


@pytest.mark.parametrize("network", [SMALL, *(pytest.param(network, marks=pytest.mark.slow) for network in OTHERS)])
def test_path_gradients_sum_to_the_gradient_of_the_network(network: Architecture) -> None:
    """The Jacobian of a block is a sum, so that of three blocks is the sum of 2^3 products."""
    weights, images = weights_of(network), normalized(EXAMPLES.images)
    switched = subjects.switched(weights, network.shortcut, paths.route)

    def gradient(network: subjects.Network) -> Any:
        return jax.grad(lambda images: losses(network.apply(network.params, network.batch_stats, images, train=False)[0]).sum())(images)

    @functools.partial(jax.jit, compiler_options=quick_to_compile())
    def all_gradients(settings: Any) -> Any:
        return gradient(subjects.network(weights)), jax.lax.map(lambda switches: gradient(switched(switches)), settings)

    whole, by_path = jax.device_get(all_gradients(SETTINGS))
    np.testing.assert_allclose(by_path.sum(0), whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())
    assert len({path.round(7).tobytes() for path in by_path}) == 8, "paths must differ"


def norms_by_hand(weights: Any) -> Callable[[Any], Any]:
    """Mean norm over images; blocks are differentiated one by one, through the branch or the shortcut alone."""
    model, blocks = blocks_of(weights)

    @functools.partial(jax.jit, compiler_options=quick_to_compile())
    def norm(switches: Any) -> Any:
        x, stem_vjp = jax.vjp(model.stem, normalized(EXAMPLES.images))
        passed = []
        for block in blocks:
            branch, branch_vjp = jax.vjp(block.branch, x)
            carried, shortcut_vjp = jax.vjp(functools.partial(block.shortcut.carry, train=False), x)
            passed.append((carried + branch > 0, branch_vjp, shortcut_vjp))
            x = jax.nn.relu(carried + branch)
        gradient = jax.grad(lambda x: losses(model.head(x)).sum())(x)
        for switch, (positive, *vjps) in zip(switches[::-1], passed[::-1], strict=True):
            gradient = jnp.where(switch == 1, *(vjp(jnp.where(positive, gradient, 0))[0] for vjp in vjps))
        return jnp.sqrt(jnp.square(stem_vjp(gradient)[0]).sum((1, 2, 3))).mean()

    return norm


def test_path_gradient_equals_the_chain_rule(caplog: pytest.LogCaptureFixture) -> None:
    weights = weights_of(SMALL)
    norm = norms_by_hand(weights)
    expected = [[norm(switches) for switches in draw] for draw in paths.draw_paths(3, 2, seed=3)]
    # Of 5 images the last batch holds one.
    result = paths.measure(weights, EXAMPLES, Options(draws=2, batch_size=2, seed=3))
    np.testing.assert_allclose(result.gradient, expected, rtol=2e-5)
    total = np.mean(expected, 0) * [1, 3, 3, 1]
    np.testing.assert_allclose(result.carried, total / total.sum(), rtol=2e-5)
    np.testing.assert_allclose(result.share, np.array([1, 3, 3, 1]) / 8)
    with jax.log_compiles():
        paths.measure(weights, EXAMPLES, Options(draws=3, batch_size=2, seed=1))
    assert "Finished XLA compilation" not in caplog.text, "all paths share one program"


def test_paths_are_drawn_uniformly_for_every_length() -> None:
    drawn = paths.draw_paths(6, 3000, seed=1)
    np.testing.assert_array_equal(drawn.sum(2), np.broadcast_to(np.arange(7), (3000, 7)))
    p = np.arange(7)[:, None] / 6
    assert (np.abs(drawn.mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / 3000)).all()
    np.testing.assert_array_equal(drawn, paths.draw_paths(6, 3000, seed=1))
    assert (drawn != paths.draw_paths(6, 3000, seed=2)).any()


def test_path_and_gradient_shares_are_binomial_and_effective_paths_the_shortest_range() -> None:
    """Of 54 blocks, 95 % of the paths pass 19 to 35, and 0.45 % pass 5 to 17 (papers.md A7).

    If each branch multiplies the gradient by f, C(n, k) f^k / (1 + f)^n is binomial with p = f / (1 + f).
    """
    shares = Paths(np.ones((1, 55))).share
    assert shares[19:36].sum() > 0.95
    assert round(100 * shares[5:18].sum(), 2) == 0.45
    for blocks, factor in itertools.product((4, 54, 600), (0.3, 1.0, 2.0)):
        lengths = np.arange(blocks + 1)
        # NumPy's powers underflow below 1e-308.
        result = Paths(np.where(factor**lengths > 1e-300, factor**lengths, 0)[None])
        np.testing.assert_allclose(result.share, [math.comb(blocks, length) / 2**blocks for length in lengths.tolist()], rtol=1e-9)
        np.testing.assert_allclose(result.carried, stats.binom.pmf(lengths, blocks, factor / (1 + factor)), rtol=1e-8, atol=1e-15)
    for parts, expected in (([0.02, 0.03, 0.5, 0.4, 0.05], slice(2, 5)), ([0.1, 0.2, 0.3, 0.4], slice(0, 4))):
        assert paths.shortest_range(np.array(parts), 0.95) == expected


def test_paths_measure_tiny_gradients_and_reject_networks_without() -> None:
    def with_scaled_classifier(factor: float) -> Pretrained:
        weights = weights_of(SMALL)
        linear = weights.params["head"]["linear"]
        return replace(weights, params=weights.params | {"head": {"linear": linear | {"kernel": linear["kernel"] * factor}}})

    tiny, moderate = (paths.measure(with_scaled_classifier(factor), EXAMPLES, Options(draws=1)).gradient for factor in (1e-25, 1e-3))
    # The loss is linear in logits this small.
    np.testing.assert_allclose(tiny, moderate * 1e-22, rtol=0.02)
    for weights, message in (
        (weights_of(SMALL_PLAIN), "plain network, which has a single path"),
        (with_scaled_classifier(0.0), "carry are all 0, or some are non-finite"),
        (with_scaled_classifier(np.nan), "carry are all 0, or some are non-finite"),
    ):
        with pytest.raises(UserError, match=message):
            paths.measure(weights, EXAMPLES, Options(draws=1))
