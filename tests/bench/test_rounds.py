"""Contestants take turns; the ratio is that of rounds."""

from resnet_jax.bench import rounds


def test_contestants_take_turns_and_the_first_rounds_do_not_count() -> None:
    order: list[str] = []
    found = rounds.interleaved([lambda: order.append("a"), lambda: order.append("b")], 3, warm=1)
    assert order == ["a", "b"] * 4
    assert [len(each) for each in found] == [3, 3]


def test_the_ratio_is_the_median_over_the_rounds() -> None:
    """1/2, 2/1, 30/10: the median is 2, the ratio of the medians 1."""
    assert rounds.ratio([1, 2, 30], [2, 1, 10]) == 2
    assert rounds.spread([1, 2, 30]) == {"seconds": 2, "seconds_least": 1, "seconds_most": 30, "rounds": 3}
