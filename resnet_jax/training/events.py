"""TensorBoard's event files, written at once: tensorboardX's own thread dies of a full disk, and its queue then waits for ever."""

import time
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar


class Events:
    """One event file under ``directory``, made if missing. Every method raises OSError where it cannot be written.

    Args:
      directory: of all sessions of a run.
      step: that it begins after; what earlier files say of later steps is hidden.
    """

    def __init__(self, directory: Path, *, step: int):
        directory.mkdir(parents=True, exist_ok=True)
        self._file = EventsWriter(str(directory / "events"))
        self._file.write_event(Event(step=step + 1, file_version="brain.Event:2"))
        self._file.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, tag: str, value: float, step: int) -> None:
        """Adds one number."""
        self._file.write_event(Event(step=step, wall_time=time.time(), summary=scalar(tag, value)))

    def close(self) -> None:
        """Flushes it."""
        self._file.close()
