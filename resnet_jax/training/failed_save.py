"""A checkpoint that could not be written."""

import errno
import os
import re
from typing import Literal

from resnet_jax.errors import UserError
from resnet_jax.training.verification import one_line

OnFailure = Literal["stop", "continue"]


class SaveFailed(UserError):
    """What was saved before is as it was. ``step`` is the one that failed, ``last`` the newest that there is, None where there is none.

    ``said`` is what happened, without what to do.
    """

    def __init__(self, step: int, last: int | None, error: Exception):
        number = _errno(error)
        full = number in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full" if full else one_line(error) if number is None else os.strerror(number)
        kept = "there is none before it" if last is None else f"the newest is that of step {last}"
        todo = "make room" if full else "mend that"
        self.said = f"the checkpoint of step {step} could not be saved: {reason}; {kept}"
        super().__init__(f"{self.said}. To go on, {todo}, and give the same command")
        self.step, self.last = step, last


def _errno(error: Exception) -> int | None:
    # tensorstore's errors are no OSErrors, and say it at the end of a page.
    said = re.search(r"os_error_code='(\d+)'", str(error))
    return error.errno if isinstance(error, OSError) else int(said[1]) if said else None
