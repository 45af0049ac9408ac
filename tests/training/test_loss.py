"""The loss of each image, against the same arithmetic in NumPy."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.errors import UserError
from resnet_jax.training import loss
from resnet_jax.training.learning import Loss

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


def of(targets: np.ndarray, **fields: Any) -> np.ndarray:
    return np.asarray(loss.of(jnp.float32(LOGITS), jnp.float32(targets), Loss(**fields)))


@pytest.mark.parametrize("targets", [ONE_HOT, MIXED], ids=["one-hot", "mixed"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("kind", "expected"), [("softmax", softmax), ("binary", binary)])
def test_losses_are_numpys(kind: Any, expected: Any, smoothing: float, targets: np.ndarray) -> None:
    """Smoothing after mixing is mixing smoothed targets."""
    found = of(targets, kind=kind, smoothing=smoothing)
    assert found.shape == (6,)
    np.testing.assert_allclose(found, expected(timm_smoothed(targets, smoothing)), rtol=1e-5)


def test_smoothing_gives_every_class_its_share_of_it() -> None:
    """Szegedy et al. 2015, Section 7: (1 - e) q + e / K; with K = 5 and e = 0.1 the right class keeps 0.92."""
    targets = np.where(ONE_HOT == 1, 0.92, 0.02)
    np.testing.assert_allclose(of(ONE_HOT, smoothing=0.1), softmax(targets), rtol=1e-5)


@pytest.mark.parametrize(
    ("threshold", "both", "none"),
    [
        # Shares of 0.3/0.7, 0.85/0.15, 0.5/0.5, 0.1/0.9 and 0.75/0.25; the second image has both of one class.
        (0.0, [0, 2, 3, 4, 5], []),
        (0.2, [3, 5], []),
        (0.5, [], [3]),
    ],
)
def test_targets_above_the_threshold_count_as_one(threshold: float, both: list[int], none: list[int]) -> None:
    """Half a target is not above 0.5."""
    shares = MIXED.copy()
    shares[0] = 0.6 * np.eye(5)[0] + 0.4 * np.eye(5)[1] if threshold == 0.0 else np.eye(5)[0]
    expected = (shares > threshold).astype(float)
    ones = expected.sum(axis=1)
    assert [i for i in range(6) if ones[i] == 2] == both
    assert [i for i in range(6) if ones[i] == 0] == none
    np.testing.assert_allclose(of(shares, kind="binary", threshold=threshold), binary(expected), rtol=1e-5)


def test_the_threshold_holds_for_smoothed_targets() -> None:
    """timm smooths first: with e = 0.1 a share of 0.21 is 0.9 x 0.21 + 0.02 = 0.209."""
    targets = np.full((6, 5), 0.0)
    targets[:, 0], targets[:, 1] = 0.79, 0.21
    both = np.zeros((6, 5))
    both[:, :2] = 1
    np.testing.assert_allclose(of(targets, kind="binary", smoothing=0.1, threshold=0.2), binary(both), rtol=1e-5)
    np.testing.assert_allclose(of(targets, kind="binary", smoothing=0.1, threshold=0.2095), binary(np.eye(5)[[0] * 6]), rtol=1e-5)
    np.testing.assert_allclose(of(targets, kind="binary", threshold=0.2095), binary(both), rtol=1e-5)


def test_the_mean_over_classes_is_not_their_sum() -> None:
    """timm's default, where the sum would be as many times larger as there are classes."""
    found = loss.of(jnp.zeros((1, 1000)), jnp.zeros((1, 1000)), Loss(kind="binary"))
    np.testing.assert_allclose(found, [np.log(2)], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(smoothing=-0.1), r"^loss\.smoothing is -0\.1; "),
        (dict(smoothing=1.0), r"^loss\.smoothing is 1\.0; .*less than 1"),
        (dict(smoothing=float("nan")), r"^loss\.smoothing is nan; "),
        (dict(threshold=0.2), r"^loss\.threshold is 0\.2 and loss\.kind 'softmax': .*only for 'binary'"),
        (dict(kind="binary", threshold=1.0), r"^loss\.threshold is 1\.0 "),
        (dict(kind="binary", threshold=-0.5), r"^loss\.threshold is -0\.5 "),
    ],
)
def test_what_is_no_loss_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Loss(**fields).check()


@pytest.mark.parametrize("fields", [{}, {"smoothing": 0.1}, {"kind": "binary", "threshold": 0.0}, {"kind": "binary", "smoothing": 0.99}])
def test_losses_pass(fields: dict[str, Any]) -> None:
    Loss(**fields).check()
