"""Stop requests: the first signal is recorded, a second Ctrl-C is obeyed."""

import os
import signal
from collections.abc import Iterator

import pytest
from resnet_jax.errors import Interrupted
from resnet_jax.training.train import Interruption

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.fixture
def reached() -> Iterator[list[int]]:
    """Signals that reach handlers of our own beneath."""
    found: list[int] = []
    before = {number: signal.signal(number, lambda n, _: found.append(n)) for number in SIGNALS}
    yield found
    for number, handler in before.items():
        signal.signal(number, handler)


def test_first_signal_is_recorded_and_a_later_ctrl_c_raises(reached: list[int]) -> None:
    """A scheduler that repeats its signal does not end the save."""
    for first in SIGNALS:
        for second in SIGNALS:
            reached.clear()
            with Interruption() as interruption:
                assert interruption.requested == 0
                os.kill(os.getpid(), first)
                assert (interruption.requested, reached) == (first, [])
                os.kill(os.getpid(), second)
                assert (interruption.requested, reached) == (first, [second] * (second == signal.SIGINT))


def test_earlier_handlers_are_restored(reached: list[int]) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    for error in (None, RuntimeError("diverged")):
        try:
            with Interruption():
                assert [signal.getsignal(number) for number in SIGNALS] != before
                os.kill(os.getpid(), signal.SIGINT)
                if error:
                    raise error
        except RuntimeError:
            assert error
        assert [signal.getsignal(number) for number in SIGNALS] == before
    os.kill(os.getpid(), signal.SIGTERM)
    assert reached == [signal.SIGTERM]


def test_interrupted_states_signal_and_step_and_has_the_shells_exit_code() -> None:
    for number, code in {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 138}.items():
        error = Interrupted(number, 1234)
        assert error.exit_code == code
        assert f"{number.name} after step 1234" in str(error)
