"""Asked to stop, a run is told so and goes on to a good place; asked twice, it stops."""

import os
import signal
from collections.abc import Iterator

import pytest

from resnet_jax.training.interruption import Interrupted, Interruption

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.fixture
def asked() -> Iterator[list[int]]:
    """Handlers of our own beneath, that remember what reached them."""
    reached: list[int] = []
    before = {number: signal.signal(number, lambda n, _: reached.append(n)) for number in SIGNALS}
    yield reached
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_is_remembered_and_not_obeyed(asked: list[int], number: signal.Signals) -> None:
    with Interruption() as interruption:
        assert interruption.requested is None
        os.kill(os.getpid(), number)
        assert interruption.requested == number
    assert asked == []


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_of_second_signals_a_ctrl_c_is_obeyed_at_once(asked: list[int], first: signal.Signals, second: signal.Signals) -> None:
    """A scheduler that says again what it said before does not end the saving that it asked for."""
    with Interruption() as interruption:
        os.kill(os.getpid(), first)
        os.kill(os.getpid(), second)
        assert asked == [second] * (second == signal.SIGINT)
        assert interruption.requested == first


def test_ctrl_c_twice_is_a_keyboard_interrupt() -> None:
    """With Python's own handler beneath."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interruption():
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("how", ["quietly", "with a signal", "with an error"])
def test_handlers_from_before_are_back_afterwards(asked: list[int], how: str) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    try:
        with Interruption():
            assert [signal.getsignal(number) for number in SIGNALS] != before
            if how == "with a signal":
                os.kill(os.getpid(), signal.SIGTERM)
            if how == "with an error":
                raise RuntimeError("diverged")
    except RuntimeError:
        assert how == "with an error"
    assert [signal.getsignal(number) for number in SIGNALS] == before
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked == [signal.SIGTERM]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_interrupted_names_signal_and_step_and_has_the_shell_s_exit_code(number: signal.Signals, code: int) -> None:
    error = Interrupted(number, 1234)
    assert error.exit_code == code
    assert number.name in str(error)
    assert "step 1234" in str(error)
    assert "same command continues" in str(error)
