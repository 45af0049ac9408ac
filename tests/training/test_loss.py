"""The loss of each image, against the same arithmetic in NumPy."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from resnet_jax.training import step
from resnet_jax.training.config import Loss
from resnet_jax.training.step import Batch

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(scale=3, size=(6, 5))
LABELS, OTHERS = np.array([0, 1, 2, 3, 4, 0]), np.array([1, 1, 0, 4, 2, 3])
ONE_HOT = np.eye(5)[LABELS]
# As mixing makes them: shares of two classes, or all of one where an image met its own class.
SHARES = np.array([1.0, 0.3, 0.85, 0.5, 0.1, 0.75])[:, None]
MIXED = SHARES * ONE_HOT + (1 - SHARES) * np.eye(5)[OTHERS]


def softmax(targets: np.ndarray) -> np.ndarray:
    """- sum t log p."""
    exponentials = np.exp(LOGITS)
    return -(targets * np.log(exponentials / exponentials.sum(axis=1, keepdims=True))).sum(axis=1)


def binary(targets: np.ndarray) -> np.ndarray:
    """- mean of t log s + (1 - t) log (1 - s)."""
    yes = 1 / (1 + np.exp(-LOGITS))
    return -(targets * np.log(yes) + (1 - targets) * np.log(1 - yes)).mean(axis=1)


def timm_smoothed(targets: np.ndarray, smoothing: float) -> np.ndarray:
    """timm's ``mixup_target``: the shares of two one-hot targets with these values for on and off."""
    off = smoothing / 5
    return targets * (1 - smoothing + off) + (1 - targets) * off


def of(targets: np.ndarray | None, **fields: Any) -> np.ndarray:
    batch = Batch(jnp.zeros((6, 1, 1, 1)), jnp.int32(LABELS), None if targets is None else jnp.float32(targets))
    return np.asarray(step.losses(jnp.float32(LOGITS), batch, Loss(**fields)))


def test_losses_equal_numpy() -> None:
    """Labels and mixed targets; smoothing after mixing is mixing smoothed targets."""
    for (kind, expected), smoothing in itertools.product((("softmax", softmax), ("binary", binary)), (0.0, 0.1)):
        for targets, shares in ((None, ONE_HOT), (ONE_HOT, ONE_HOT), (MIXED, MIXED)):
            found = of(targets, kind=kind, smoothing=smoothing)
            assert found.shape == (6,)
            np.testing.assert_allclose(found, expected(timm_smoothed(shares, smoothing)), rtol=1e-5)


def test_smoothing_is_shared_by_all_classes() -> None:
    """Szegedy et al. 2015, Section 7: (1 - e) q + e / K; with K = 5 and e = 0.1 the right class keeps 0.92."""
    np.testing.assert_allclose(of(None, smoothing=0.1), softmax(np.where(ONE_HOT == 1, 0.92, 0.02)), rtol=1e-5)


def test_targets_above_the_threshold_count_as_one() -> None:
    """Half a target is not above 0.5. timm smooths first: with e = 0.1 a share of 0.21 is 0.9 x 0.21 + 0.02 = 0.209."""
    for threshold in (0.0, 0.2, 0.5):
        expected = np.where(threshold < MIXED, 1.0, 0.0)
        np.testing.assert_allclose(of(MIXED, kind="binary", threshold=threshold), binary(expected), rtol=1e-5)
    assert (MIXED > 0.2).sum(axis=1).tolist() == [1, 1, 1, 2, 1, 2]
    assert (MIXED > 0.5).sum(axis=1).tolist() == [1, 1, 1, 0, 1, 1]
    targets = np.zeros((6, 5))
    targets[:, 0], targets[:, 1] = 0.79, 0.21
    both = np.zeros((6, 5))
    both[:, :2] = 1
    np.testing.assert_allclose(of(targets, kind="binary", smoothing=0.1, threshold=0.2), binary(both), rtol=1e-5)
    np.testing.assert_allclose(of(targets, kind="binary", smoothing=0.1, threshold=0.2095), binary(np.eye(5)[[0] * 6]), rtol=1e-5)
    np.testing.assert_allclose(of(targets, kind="binary", threshold=0.2095), binary(both), rtol=1e-5)
