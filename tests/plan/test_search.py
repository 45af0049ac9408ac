"""The largest batch, on memories that are known."""

import pytest

from resnet_jax.plan import search


class Memory:
    """Bytes of a batch, and which were asked for."""

    def __init__(self, constant: float, each: float, bend: float = 0.0, refuses_above: int | None = None):
        self.constant, self.each, self.bend, self.refuses_above, self.asked = constant, each, bend, refuses_above, []

    def __call__(self, batch: int) -> int | None:
        self.asked.append(batch)
        return self.of(batch)

    def of(self, batch: int) -> int | None:
        exact = int(self.constant + self.each * batch + self.bend * batch**2)
        return exact if self.refuses_above is None or exact <= self.refuses_above else None


def test_a_line_is_met_with_two_programs_more() -> None:
    """(10,000 - 100) / 10 = 990, which is 30 groups of 32 and a bit: 960."""
    memory = Memory(100, 10)
    found = search.largest(memory, 10_000, 32, (64, memory.of(64)))
    assert (found.batch, memory.asked) == (960, [128, 960])
    assert found.predicted == 990
    assert found.compiled == {64: 740, 128: 1380, 960: 9700}


@pytest.mark.parametrize("bend", [0.002, -0.002])
def test_what_bends_is_looked_at_again(bend: float) -> None:
    memory = Memory(100, 10, bend)
    found = search.largest(memory, 10_000, 8, (64, memory.of(64)))
    best = max(batch for batch in range(8, 2000, 8) if 100 + 10 * batch + bend * batch**2 <= 10_000)
    assert 0.9 * best <= found.batch <= best
    assert len(memory.asked) <= 4


def test_a_refusal_says_no_number_and_is_approached() -> None:
    """(1,000 - 100) / 10 = 90, which is 88 in eights. 64 fits, 96 does not; 80 fits, and two numbers make a line."""
    memory = Memory(100, 10, refuses_above=1000)
    found = search.largest(memory, 1000, 8, (128, memory.of(128)))
    assert (found.batch, memory.asked) == (88, [64, 96, 80, 88])
    assert found.compiled == {128: None, 64: 740, 96: None, 80: 900, 88: 980}


def test_where_nothing_fits_there_is_none() -> None:
    memory = Memory(5000, 10)
    found = search.largest(memory, 1000, 8, (8, memory.of(8)))
    assert (found.batch, memory.asked) == (0, [])


def test_constant_memory_has_no_end_to_find() -> None:
    memory = Memory(100, 0)
    found = search.largest(memory, 1000, 8, (8, 100))
    assert (found.batch, memory.asked) == (16, [16])
