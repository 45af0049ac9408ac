"""Ctrl-C, SIGTERM and SIGUSR1: asked to stop, a run saves first."""

import signal
from types import FrameType, TracebackType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int


class Interrupted(Exception):
    """A run stopped on request, with its state saved. ``exit_code`` is the shell's convention, 128 + signal."""

    def __init__(self, number: int, step: int):
        saved = f"after step {step}; the state is saved, the same command continues" if step else "before its first step was done"
        super().__init__(f"stopped by {signal.Signals(number).name} {saved}")
        self.exit_code = 128 + number


class Interruption:
    """While entered, remembers a request to stop instead of obeying it. Ctrl-C after another signal is obeyed at once.

    Schedulers repeat themselves (Slurm sends SIGTERM when time is up, whatever it sent before): other second signals change nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self) -> None:
        self.requested: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._remember) for number in self.SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number in self.SIGNALS:
            self._restore(number)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = self.requested or number
        self._restore(signal.SIGINT)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._before[number])  # pyright: ignore[reportArgumentType]


class StopRequest:
    """The signal that any of a run's processes was sent, as all of them know it at the same moment of the run.

    Processes have to stop after the same step, and a signal reaches them at different ones. So each contributes to a maximum that the
    devices take beside the steps, and hears of it one call later: nothing waits for it. A single process knows at once.
    """

    def __init__(self, interruption: Interruption, mesh: Mesh):
        self._interruption, self._alone = interruption, jax.process_count() == 1
        if not self._alone:
            self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            self._greatest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
            self._sent = self._send()

    def heard(self) -> int | None:
        """The signal, if there was one before the last call; every process has to call it equally often."""
        if self._alone:
            return self._interruption.requested
        found, self._sent = self._sent, self._send()
        return int(found) or None

    def now(self) -> int | None:
        """The signal, if there was one: waits for all processes."""
        self.heard()
        return self.heard()

    def _send(self) -> Int[Array, ""]:
        asked = np.full(jax.local_device_count(), self._interruption.requested or 0, np.int32)
        return self._greatest(jax.make_array_from_process_local_data(self._rows, asked))
