"""Profiler trace of some training steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax


class Profile:
    """Traces whole dispatches of at least ``steps`` steps after the first one, which compiles, into ``folder``."""

    def __init__(self, folder: Path, steps: int, say: Callable[[str], None]):
        self._folder, self._left, self._say, self._running = folder, steps, say, False

    def after_dispatch(self, metrics: Any, steps: int) -> None:
        """Starts or stops the trace after a dispatch."""
        if self._running:
            self._left -= steps
            if self._left <= 0:
                self._stop(metrics)
        elif self._left > 0:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def close(self) -> None:
        """Ends a trace of fewer steps than requested."""
        if self._running:
            self._left = 0
            self._stop(None)
        elif self._left > 0:
            self._say("no step was profiled: the run has one dispatch, which compiles")

    def _stop(self, metrics: Any) -> None:
        jax.block_until_ready(metrics)
        jax.profiler.stop_trace()
        self._running = False
        self._say(f"profile of the run in {self._folder}")
