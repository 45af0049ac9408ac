"""Contestants take turns; the ratio is that of rounds."""

import pytest

from resnet_jax.bench import rounds


def test_contestants_take_turns_and_neither_the_first_rounds_nor_the_first_call_of_a_turn_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """a takes 5 seconds, then 1 in the call after its own; b always 2. The first round takes a hundred more."""
    now, order = [0.0], [""]
    monkeypatch.setattr(rounds.time, "perf_counter", lambda: now[0])

    def run(name: str, cold: float, settled: float) -> None:
        now[0] += (settled if order[-1] == name else cold) + 100 * (len(order) <= 4)
        order.append(name)

    contestants = [lambda: run("a", 5, 1), lambda: run("b", 2, 2)]
    assert rounds.interleaved(contestants, 3, warm=1) == [[1] * 3, [2] * 3]
    assert "".join(order) == "aabb" * 4
    assert rounds.interleaved(contestants, 2, warm=0, settling=0) == [[5] * 2, [2] * 2]


def test_one_alone_needs_no_settling() -> None:
    order: list[str] = []
    found = rounds.interleaved([lambda: order.append("a")], 3, warm=1)
    assert len(order) == 4
    assert [len(each) for each in found] == [3]


def test_the_ratio_is_the_median_over_the_rounds() -> None:
    """1/2, 2/1, 30/10: the median is 2, the ratio of the medians 1."""
    assert rounds.ratio([1, 2, 30], [2, 1, 10]) == 2
    assert rounds.spread([1, 2, 30]) == {"seconds": 2, "seconds_least": 1, "seconds_most": 30, "rounds": 3}
