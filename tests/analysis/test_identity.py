"""Distances from the identity against blocks called one by one."""

import jax
import numpy as np
from resnet_jax.analysis import identity
from resnet_jax.analysis.identity import Options
from small_network import EXAMPLES, SMALL, SMALL_PLAIN, block_parts, normalized, weights_of


def norm(x: np.ndarray) -> np.ndarray:
    return np.linalg.norm(x, axis=1)


def test_identity_equals_blocks_called_one_by_one() -> None:
    weights = weights_of(SMALL)
    images = normalized(EXAMPLES.images)
    noise = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(3), 0), images.shape))
    noise = noise * (0.1 * norm(images.reshape(5, -1)) / norm(noise.reshape(5, -1))).reshape(5, 1, 1, 1)
    result = identity.measure(weights, EXAMPLES, Options(change=10.0, seed=3))
    for number, (clean, noisy) in enumerate(zip(block_parts(weights, images), block_parts(weights, images + noise), strict=True)):
        (x, branch, output), (_, noisy_branch, noisy_output) = clean, noisy
        shortcut = x if number < 2 else output - branch
        expected = {
            "distance": norm(branch) / norm(shortcut),
            "leverage": norm(output) / norm(branch),
            "branch_change": norm(noisy_branch - branch) / norm(branch),
            "output_change": norm(noisy_output - output) / norm(output),
        }
        for name, values in expected.items():
            np.testing.assert_allclose(getattr(result, name)[number], values.mean(), rtol=2e-3, err_msg=f"{name} of block {number}")
    np.testing.assert_allclose(identity.measure(weights, EXAMPLES, Options(batch_size=2)).distance, result.distance, rtol=1e-4)


def test_identity_of_plain_blocks_has_branch_as_output() -> None:
    weights = weights_of(SMALL_PLAIN)
    result = identity.measure(weights, EXAMPLES)
    np.testing.assert_allclose(result.leverage, np.ones(3), rtol=1e-6)
    np.testing.assert_allclose(result.branch_change, result.output_change, rtol=1e-6)
    for number, (x, _, output) in enumerate(block_parts(weights, normalized(EXAMPLES.images))[:2]):
        np.testing.assert_allclose(result.distance[number], (norm(output - x) / norm(x)).mean(), rtol=1e-3)
    assert np.isnan(result.distance[2]), "nothing resizes the input"
