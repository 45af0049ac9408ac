"""Ctrl-C, SIGTERM and SIGUSR1: asked to stop, a run saves first."""

import signal
from types import FrameType, TracebackType


class Interrupted(Exception):
    """A run stopped on request, with its state saved. ``exit_code`` is the shell's convention, 128 + signal."""

    def __init__(self, number: int, step: int):
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the state is saved, the same command continues")
        self.exit_code = 128 + number


class Interruption:
    """While entered, remembers a request to stop instead of obeying it. A second one is obeyed at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]
