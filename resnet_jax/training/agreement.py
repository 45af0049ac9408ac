"""Multi-host helpers: run on process 0 and broadcast the result. Without cost in a single process."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnet_jax.errors import UserError

T = TypeVar("T", bound=Any)
# Size of a broadcast message, which has to be equal in all processes.
_BYTES = 16_384


def first() -> bool:
    """Returns whether this is process 0, which writes the files of a run."""
    return jax.process_index() == 0


def wait(reason: str) -> None:
    """Waits for all processes, which pass the same ``reason``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def anyone(flag: bool) -> bool:
    """Returns whether ``flag`` is set in any process. Collective."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def by_first(act: Callable[[], T]) -> T:
    """Runs ``act`` on process 0 and returns its result, a JSON value, in every process. Collective.

    Raises:
      UserError: in every process, where ``act`` raises.
    """
    if jax.process_count() == 1:
        return act()
    value, message, failure = None, None, None
    if first():
        try:
            value = act()
        except Exception as error:
            # Broadcast, because the other processes would wait forever.
            failure = error
            message = str(error) if isinstance(error, UserError) else f"the first process failed: {type(error).__name__}: {error}"
            message = message[: _BYTES // 30]  # JSON takes up to 12 bytes for a character.
    text = json.dumps([value, message]).encode()
    buffer = np.zeros(_BYTES, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    value, message = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes().rstrip(b"\0"))
    if message is not None:
        raise failure or UserError(message)
    return value
