"""Checksums of committed checkpoints, kept beside them: Orbax restores flipped bits silently."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any


class Seals:
    """One file a step under ``directory``: sha256 of each file of the step."""

    def __init__(self, directory: Path):
        self._directory = directory

    def write(self, step: int, folder: Path) -> None:
        """Seals a step that has no seal yet, whole or not at all. Raises OSError where it cannot be written."""
        seal = self._file(step)
        if seal.exists():
            return
        self._directory.mkdir(parents=True, exist_ok=True)
        temporary = seal.with_suffix(".part")
        temporary.write_text(json.dumps(_checksums(folder)))
        temporary.rename(seal)

    def problem(self, step: int, folder: Path) -> str | None:
        """What is wrong with the files of a step; None where nothing is, or it was never sealed."""
        seal = self._file(step)
        if not seal.exists():
            return None
        try:
            expected: Any = json.loads(seal.read_text())
        except ValueError:
            expected = {}
        if not isinstance(expected, dict) or not expected:
            return "its seal cannot be read"
        found = _checksums(folder)
        changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        return f"{len(changed)} of its files changed since they were written ({changed[0]})" if changed else None

    def remove(self, step: int) -> None:
        """Forgets a step."""
        self._file(step).unlink(missing_ok=True)

    def keep(self, steps: Collection[int]) -> None:
        """Forgets all other steps."""
        for seal in self._directory.glob("*.json"):
            if int(seal.stem) not in steps:
                seal.unlink()

    def _file(self, step: int) -> Path:
        return self._directory / f"{step}.json"


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 22):
            sha.update(part)
    return sha.hexdigest()
