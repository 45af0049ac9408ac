"""Which steps stay, of many."""

import itertools
import types
from typing import Any

import pytest

from resnet_jax.training.retention import Retention, best_first

NAN, INF = float("nan"), float("inf")


def kept(retention: Retention, errors: dict[int, float | None]) -> list[int]:
    infos: list[Any] = [types.SimpleNamespace(step=step, metrics=None) for step in errors]
    answers = retention.policy(errors.get).should_preserve(infos, context=None)  # pyright: ignore[reportArgumentType]
    return [step for step, answer in zip(errors, answers, strict=True) if answer]


@pytest.mark.parametrize(
    ("errors", "order"),
    [
        ({}, []),
        ({1: None, 2: NAN, 3: INF, 4: -INF}, []),
        ({1: 5.0, 2: 4.0, 3: 6.0}, [2, 1, 3]),
        ({1: 5.0, 2: NAN, 3: None, 4: 5.0, 5: 0.0}, [5, 4, 1]),
    ],
    ids=["nothing", "nothing finite", "by error", "newest of equals"],
)
def test_best_come_first(errors: dict[int, float | None], order: list[int]) -> None:
    assert best_first(errors) == order


@pytest.mark.parametrize(
    ("retention", "steps"),
    [
        (Retention(newest=1), [8]),
        (Retention(newest=3), [6, 7, 8]),
        (Retention(newest=9), [1, 2, 3, 4, 5, 6, 7, 8]),
        (Retention(newest=1, best=1), [3, 8]),
        (Retention(newest=1, best=2), [3, 5, 8]),
        (Retention(newest=1, best=9), [1, 3, 5, 7, 8]),
        (Retention(newest=1, every=4), [4, 8]),
        (Retention(newest=2, best=1, every=3), [3, 6, 7, 8]),
    ],
)
def test_step_stays_where_anything_wants_it(retention: Retention, steps: list[int]) -> None:
    """One that was not scored, or is not finite, is not kept as best, however few there are."""
    assert kept(retention, {1: 9.0, 2: NAN, 3: 2.0, 4: None, 5: 3.0, 6: -INF, 7: 4.0, 8: None}) == steps


def test_newest_always_stays() -> None:
    """Whatever the scores are: Orbax's best_fn with max_to_keep deletes it."""
    for scores in itertools.product([None, NAN, INF, 0.0, 1.0], repeat=3):
        for best, every in itertools.product((0, 1, 2), (0, 2)):
            assert 3 in kept(Retention(newest=1, best=best, every=every), dict(enumerate(scores, 1)))
