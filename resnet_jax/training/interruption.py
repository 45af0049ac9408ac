"""Stop requests by SIGINT, SIGTERM and SIGUSR1: the run saves its state, then stops."""

import signal
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int


class Interruption:
    """Context that records the first signal. A later Ctrl-C raises KeyboardInterrupt; other later signals are ignored."""

    requested: int | None = None

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._record) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = self.requested or number
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])


class Stopped(Exception):
    """A stop was requested during an evaluation."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


class StopRequest:
    """The signal that any process received, pending in all processes at the same step.

    Each call of ``pending`` contributes to a maximum over all devices, which is read one call later, so that the host never waits.
    """

    def __init__(self, interruption: Interruption, mesh: Mesh):
        self._interruption, self._single = interruption, jax.process_count() == 1
        if not self._single:
            self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            self._maximum = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
            self._sent = self._send()

    def pending(self) -> int | None:
        """Returns the signal received before the previous call, if any. Collective."""
        if self._single:
            return self._interruption.requested
        received, self._sent = self._sent, self._send()
        return int(received) or None

    def raise_if_pending(self) -> None:
        """Raises Stopped where a stop was requested. Collective."""
        if (number := self.pending()) is not None:
            raise Stopped(number)

    def _send(self) -> Int[Array, ""]:
        local = np.full(jax.local_device_count(), self._interruption.requested or 0, np.int32)
        return self._maximum(jax.make_array_from_process_local_data(self._rows, local))
