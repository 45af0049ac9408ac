"""Several processes of one run do the same: the first one looks and writes, the others hear of it. One process pays nothing."""

import json
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnet_jax.errors import UserError

# Of a message between processes: arrays that are broadcast have one size everywhere.
_BYTES = 16_384


def first() -> bool:
    """Whether this process is the one that writes what a run writes once."""
    return jax.process_index() == 0


def wait(reason: str) -> None:
    """Returns when every process is here; all have to come, for the same ``reason``."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)


def anyone(flag: bool) -> bool:
    """Whether ``flag`` is set in any process; all have to ask."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def by_first(act: Callable[[], str | None]) -> str | None:
    """Returns, in every process, what ``act`` returns in the first one, where alone it runs; all have to call.

    Raises:
      UserError: in every process, where ``act`` does.
    """
    if jax.process_count() == 1:
        return act()
    value, refusal, failure = None, None, None
    if first():
        try:
            value = act()
        except UserError as error:
            refusal = str(error)
        except Exception as error:
            # The others wait for this message, and would wait for ever.
            failure = error
            refusal = f"the first process failed: {type(error).__name__}: {error}"
    text = json.dumps([_short(value), _short(refusal)]).encode()
    buffer = np.zeros(_BYTES, np.uint8)
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    value, refusal = json.loads(np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes().rstrip(b"\0"))
    if failure is not None:
        raise failure
    if refusal is not None:
        raise UserError(refusal)
    return value


def _short(text: str | None) -> str | None:
    # A character is at most 12 bytes of JSON.
    return None if text is None else text[: _BYTES // 30]
