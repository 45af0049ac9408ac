"""Which numbers pass, and what is said of others."""

import math

import pytest

from resnet_jax.data import intervals
from resnet_jax.errors import UserError


@pytest.mark.parametrize("value", [(0.1, 0.5), (1, 1), (0.5, 1)])
def test_pairs_within_the_bounds_pass(value) -> None:
    intervals.check("area", value, most=1)


@pytest.mark.parametrize(
    "value", [(0.0, 1.0), (0.5, 0.1), (0.5, 1.5), (-1, 1), 0.5, (0.1, 0.2, 0.3), [0.1, 0.2], ("a", "b"), (True, 1), (math.nan, 1.0)]
)
def test_other_pairs_are_refused_by_name(value) -> None:
    with pytest.raises(UserError, match=r"^area is .*with 0 < low <= high <= 1$"):
        intervals.check("area", value, most=1)


def test_whole_numbers_are_asked_for_where_needed() -> None:
    intervals.check("shorter_side", (256, 480), whole=True)
    intervals.check_at_least("bins", 31, 2, whole=True)
    with pytest.raises(UserError, match=r"shorter_side is \(256.0, 480\); it is a pair of integers"):
        intervals.check("shorter_side", (256.0, 480), whole=True)
    with pytest.raises(UserError, match="bins is 31.0; it is one of the integers from 2 on"):
        intervals.check_at_least("bins", 31.0, 2, whole=True)


@pytest.mark.parametrize("value", [0, 0.5, 1])
def test_numbers_on_and_within_bounds_pass(value: float) -> None:
    intervals.check_at_least("probability", value, 0, 1)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, "0.5", None, True])
def test_other_numbers_are_refused_by_name(value) -> None:
    with pytest.raises(UserError, match="^probability is .*one of the numbers from 0 to 1$"):
        intervals.check_at_least("probability", value, 0, 1)
