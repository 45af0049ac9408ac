"""A trace of some steps of a run for the usual viewers (XProf, Perfetto), and a table of the dearest operations."""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.profiler import ProfileData

from resnet_jax.training.program import Program

# What stands on a device's plane beside its operations: whole programs, steps, and names of scopes.
_OTHER_LINES = ("Steps", "XLA Modules", "Framework", "Source", "XLA TraceMe")
# On CPU operations run on threads of the host; what else happens there has the names of functions and files.
_HOST_THREADS = re.compile(r"tf_XLA|XLAEigen|xla_cpu|PjRt|Eigen", re.IGNORECASE)
_OPERATION = re.compile(r"^[a-z][\w\-.]*$")
TABLE = "operations.txt"


@dataclass(frozen=True)
class Operation:
    """What an operation of the compiled program took in all of a trace."""

    name: str
    """Without its number: fusion, convolution, ..."""
    seconds: float
    count: int


class Profile:
    """Traces calls of a program after the first one, which compiles, until ``steps`` steps are in the trace.

    Args:
      folder: of the trace and its table.
      steps: at least so many; a call is traced whole.
      say: is told where they are.
    """

    def __init__(self, folder: Path, steps: int, say: Callable[[str], None]):
        self._folder, self._left, self._say, self._running, self._calls = folder, steps, say, False, 0

    def around(self, program: Program) -> Program:
        """The same program, under this profile."""

        def train(states: Any, data: Any, steps: int) -> Any:
            self._calls += 1
            if self._calls > 1 and self._left > 0 and not self._running:
                jax.profiler.start_trace(str(self._folder))
                self._running = True
            found = program.train(states, data, steps)
            if self._running:
                self._left -= steps
                if self._left <= 0:
                    self._stop(found)
            return found

        return dataclasses.replace(program, train=train)

    def close(self) -> None:
        """Ends a trace of fewer steps than were asked for."""
        if self._running:
            self._stop(None)
        elif self._left > 0:
            self._say("no step was profiled: the first call of the program compiles, and there was no other")

    def _stop(self, found: Any) -> None:
        # What is dispatched and not yet done belongs to the trace.
        jax.block_until_ready(found)
        jax.profiler.stop_trace()
        self._running = False
        (self._folder / TABLE).write_text(table(operations(self._folder)))
        self._say(f"profile of the run in {self._folder}; the dearest operations in {self._folder / TABLE}")


def operations(folder: Path) -> list[Operation]:
    """Of the newest trace below a folder, those of the devices (of the host's XLA threads on CPU), the dearest first."""
    traces = sorted(folder.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not traces:
        return []
    seconds: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    planes = list(ProfileData.from_file(str(traces[-1])).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:") and "CUSTOM" not in plane.name]
    for plane in devices or [plane for plane in planes if plane.name.startswith("/host:CPU")]:
        for line in plane.lines:
            if devices and any(other in (line.name or "") for other in _OTHER_LINES):
                continue
            if not devices and not _HOST_THREADS.search(line.name or ""):
                continue
            for event in line.events:
                if devices or _OPERATION.match(event.name):
                    name = re.sub(r"(\.\d+)+(\.clone)?$", "", event.name)
                    seconds[name] += event.duration_ns / 1e9
                    counts[name] += 1
    found = [Operation(name, spent, counts[name]) for name, spent in seconds.items()]
    return sorted(found, key=lambda each: -each.seconds)


def table(found: list[Operation], rows: int = 25) -> str:
    """Milliseconds, share, number and name of the dearest operations."""
    whole = sum(each.seconds for each in found) or 1.0
    lines = [f"{'ms':>12}  {'share':>6}  {'times':>8}  operation"]
    lines += [f"{1e3 * each.seconds:>12,.2f}  {each.seconds / whole:>6.1%}  {each.count:>8,}  {each.name}" for each in found[:rows]]
    return "\n".join(lines) + "\n"
