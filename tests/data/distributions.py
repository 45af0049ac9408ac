"""Statistical assertions about random draws, within five standard deviations."""

import math
from typing import Any

import numpy as np


def uniform(values: np.ndarray, low: float = 0, high: float = 1, ends: float = 0.03) -> None:
    """The mean, the standard deviation within 1.5 %, and both ends reached."""
    assert abs(values.mean() - (low + high) / 2) < 5 * (high - low) / math.sqrt(12 * len(values))
    assert abs(values.std() / (high - low) - 1 / math.sqrt(12)) < 0.015
    np.testing.assert_allclose([values.min(), values.max()], [low, high], atol=ends)


def frequency(occurred: np.ndarray, probability: float) -> None:
    assert abs(occurred.mean() - probability) <= 5 * math.sqrt(probability * (1 - probability) / len(occurred))


def uncorrelated(*values: Any) -> None:
    assert np.abs(np.corrcoef(values) - np.eye(len(values))).max() < 5 / math.sqrt(len(values[0]))
