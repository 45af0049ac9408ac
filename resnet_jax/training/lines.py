"""A file that grows line by line, and has whole lines only, whatever becomes of the disk."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


class Lines:
    """Replaces ``file`` by the given lines, then appends to it. Every method raises OSError where it cannot be written."""

    def __init__(self, file: Path, lines: Iterable[str]):
        self._waiting = b""
        text = "".join(line + "\n" for line in lines).encode()
        temporary = file.with_suffix(".part")
        temporary.write_bytes(text)
        temporary.replace(file)
        self._size = len(text)
        self._file = file.open("ab", buffering=0)

    def append(self, line: str) -> None:
        """Writes a line, at once. One that could not be written is not lost: it is written before the next one, or by ``close``."""
        self._waiting += line.encode() + b"\n"
        self._write()

    def close(self) -> None:
        """Writes what waits, and closes the file in any case."""
        try:
            self._write()
        finally:
            self._file.close()

    def _write(self) -> None:
        try:
            written = 0
            while written < len(self._waiting):
                written += self._file.write(self._waiting[written:])
        except OSError:
            # A full disk takes a part of a line.
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._size)
            raise
        self._size, self._waiting = self._size + written, b""
