"""Stochastic depth (Huang et al. 2016, arXiv 1603.09382): probabilities, draws, and logits of networks."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_jax.errors import UserError
from resnet_jax.kernels import quick_to_compile
from resnet_jax.models import Architecture, Execution, ResNet, StochasticDepth
from resnet_jax.models.shortcuts import ZeroPad

from oracle import close, filled, network, random, variables

STAGES = (2, 1)
NETWORK: dict[str, Any] = dict(stages=STAGES, features=(3, 4), shortcut=ZeroPad, num_classes=3, input_shape=(5, 4, 2))


def model_with(depth: StochasticDepth, blocks: Any = "loop") -> ResNet:
    execution = Execution(blocks=blocks)
    return filled(lambda rngs: ResNet(Architecture(**NETWORK, stochastic_depth=depth), execution=execution, rngs=rngs))


def test_survival_is_linear_or_uniform() -> None:
    """Eq. 4, p_l = 1 - l/L (1 - p_L); Figure 2: "from p_0 = 1 to p_L = 0.5". By hand for L = 4."""
    np.testing.assert_allclose(StochasticDepth(survival=0.5).probabilities(4), [0.875, 0.75, 0.625, 0.5], rtol=1e-6)
    np.testing.assert_allclose(StochasticDepth(survival=0.8, rule="uniform").probabilities(3), [0.8] * 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("rule", "drops", "scaled"),
    [("linear", "batch", "test"), ("linear", "image", "training"), ("uniform", "batch", "training"), ("uniform", "image", "test")],
)
def test_branches_are_kept_independently_with_their_probability(rule: Any, drops: Any, scaled: Any) -> None:
    depth, num_blocks, images, draws = StochasticDepth(survival=0.4, rule=rule, drops=drops, scaled=scaled), 3, 5, 2000
    draw = jax.jit(jax.vmap(lambda key: depth.multipliers(num_blocks, images, train=True, key=key)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), draws)))
    p = np.array([0.8, 0.6, 0.4]) if rule == "linear" else np.full(3, 0.4)
    if scaled == "training":
        np.testing.assert_allclose(drawn.mean((0, 2)), np.ones(3), atol=5 * np.sqrt(1 / 0.4 / draws))
        drawn = np.round(drawn * p[:, None], 5)
    assert drawn.shape == (draws, num_blocks, images if drops == "image" else 1)
    assert set(np.unique(drawn)) == {0, 1}
    columns = drawn.transpose(1, 2, 0).reshape(-1, draws)
    np.testing.assert_array_less(np.abs(columns.mean(1) - np.repeat(p, drawn.shape[2])), 5 * np.sqrt(p * (1 - p) / draws).max())
    # No block and no image follows another one.
    correlated = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlated).max() < 5 / np.sqrt(draws)


@pytest.mark.parametrize(
    ("depth", "factors"),
    [
        (StochasticDepth(survival=0.5), [0.5 + 0.5 * 2 / 3, 0.5 + 0.5 / 3, 0.5]),
        (StochasticDepth(survival=0.5, scaled="training"), None),
        (StochasticDepth(kept=2), [2 / 3] * 3),
    ],
)
def test_evaluation_scales_branches_unless_training_does(depth: StochasticDepth, factors: Any) -> None:
    """Eq. 5; "drop path" scales in training. No key is needed. Multipliers of a lesion, one per image, are applied beside."""
    model, x, lesion = model_with(depth, "scan"), random(2, 5, 4, 2), np.array([[1, 0], [0.5, 1], [1, 1]])
    close(model(jnp.asarray(x)), network(variables(model), x, STAGES, multipliers=factors)[1])
    combined = lesion if factors is None else lesion * np.array(factors)[:, None]
    close(model(jnp.asarray(x), multipliers=np.float32(lesion)), network(variables(model), x, STAGES, multipliers=combined)[1])


@pytest.mark.parametrize(("drops", "scaled"), [("batch", "test"), ("image", "training")])
def test_training_draws_subnetworks_with_their_probability(drops: Any, scaled: Any) -> None:
    """Section 3: "training an ensemble" of 2^L networks; here all 8, or 64 pairs of them for two images, in NumPy.

    Batch statistics are those of the subnetwork.
    """
    model = model_with(StochasticDepth(survival=0.4, drops=drops, scaled=scaled), "scan")
    graphdef, state = nnx.split(model)
    x, draws, p = random(2, 5, 4, 2), 400, np.array([[0.8], [0.6], [0.4]])

    def run(key: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state, copy=True)(jnp.asarray(x), train=True, key=key)

    compiled = jax.jit(lambda keys: jax.lax.map(run, keys), compiler_options=quick_to_compile())
    drawn = np.asarray(compiled(jax.random.split(jax.random.key(1), draws)))
    seen, columns = 0, 2 if drops == "image" else 1
    for values in itertools.product((0, 1), repeat=3 * columns):
        kept = np.reshape(values, (3, columns))
        factors = kept / p if scaled == "training" else kept
        expected = network(variables(model), x, STAGES, multipliers=factors, train=True)[1]
        share = np.isclose(drawn, expected, rtol=0, atol=2e-5 * np.abs(expected).max()).all((1, 2)).mean()
        probability = np.prod(np.where(kept, p, 1 - p))
        assert abs(share - probability) < 5 * np.sqrt(probability * (1 - probability) / draws)
        seen += share
    assert seen == pytest.approx(1)


def test_kept_draws_a_fixed_number_of_blocks_uniformly() -> None:
    """Veit et al. 2016, Section 4.3: a fixed number of modules for each batch. Of 5 blocks 2: each with probability 0.4, and of any two
    both with 2/5 x 1/4 = 0.1.
    """
    test, training = (StochasticDepth(kept=2, scaled=scaled) for scaled in ("test", "training"))
    keys, draws = jax.random.split(jax.random.key(0), 4000), 4000
    drawn, scaled = (
        np.asarray(jax.jit(jax.vmap(lambda key, d=depth: d.multipliers(5, 3, train=True, key=key)))(keys)) for depth in (test, training)
    )
    assert drawn.shape == (draws, 5, 1)
    np.testing.assert_allclose(scaled, drawn / 0.4, rtol=1e-6)
    drawn = drawn[..., 0]
    assert set(np.unique(drawn)) == {0, 1}
    np.testing.assert_array_equal(drawn.sum(1), np.full(draws, 2))
    together = drawn.T @ drawn / draws
    expected = np.where(np.eye(5), 0.4, 0.1)
    np.testing.assert_array_less(np.abs(together - expected), 5 * np.sqrt(expected * (1 - expected) / draws))


def test_invalid_values_are_rejected_in_one_sentence() -> None:
    for arguments, message in (
        *(({"survival": survival}, r"survival must be in \(0, 1\]") for survival in (0.0, -0.5, 1.01, float("nan"))),
        ({"kept": -1}, "kept must be at least 0, got -1"),
        ({"kept": 4}, "kept must be 0 to 3, got 4"),
        *(({"kept": 2} | other, "kept must be 0 to 3, got 2; it excludes") for other in ({"survival": 0.5}, {"drops": "image"})),
    ):
        with pytest.raises(UserError, match=message):
            Architecture(**NETWORK, stochastic_depth=StochasticDepth(**arguments)).stochastic_depth.check(3)
    for name in ("rule", "drops", "scaled"):
        with pytest.raises((UserError, TypeError), match=name):  # TypeError: of checked annotations
            Architecture(**NETWORK, stochastic_depth=StochasticDepth(**{name: "x"}))
