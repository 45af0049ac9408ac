"""Results as committed data: one JSON file per study, with command, commit, versions and device."""

import datetime
import functools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from resnet_jax.errors import UserError
from resnet_jax.training.workdir import write_json, write_text

STUDY_FILE = "study.json"


def write(path: Path, results: Sequence[dict[str, Any]], *, command: str, reduced: str = "") -> None:
    """Writes the fields that all results share once, then one line per result."""
    common = {name: value for name, value in results[0].items() if all(other[name] == value for other in results)}
    head = {"kind": "study", "date": datetime.date.today().isoformat(), "command": command, "reduced": reduced, "common": common}
    rows = [json.dumps({name: value for name, value in result.items() if name not in common}) for result in results]
    text = json.dumps(head, indent=1)[:-2] + ',\n "results": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def read(path: Path) -> list[dict[str, Any]]:
    """Reads what ``write`` wrote. Raises UserError for any other file."""
    try:
        text = read_object(path)
        return [text["common"] | row for row in text["results"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds no results of runs ({error!r}): 'resnet-jax report RUNS --save FILE' writes such a file") from None


def is_study(path: Path) -> bool:
    """Returns whether a JSON file holds results of runs."""
    return read_object(path).get("kind") == "study"


def remember_study(workdir: Path, *, command: str, cells: Sequence[str], reduced: str) -> None:
    """Adds the command of a study and its reductions to the notes in its directory."""
    before = study(workdir)
    now = {"command": command, "reduced": reduced}
    text = {"cells": list(cells)} | {name: _joined(before.get(name, ""), note) for name, note in now.items()}
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / STUDY_FILE, text)
    except OSError as error:
        raise UserError(f"{workdir} cannot be written ({error.strerror}): use another --workdir") from error


def _joined(earlier: str, now: str) -> str:
    return "; ".join(dict.fromkeys(filter(None, [*earlier.split("; "), now])))


def notes(paths: Iterable[Path]) -> dict[str, Any]:
    """Merges ``study`` of several directories or files."""
    studies = [text for text in map(study, paths) if text.get("command")]
    if not studies:
        return {}
    merged: dict[str, Any] = {name: functools.reduce(_joined, (text.get(name, "") for text in studies)) for name in ("command", "reduced")}
    return merged | {"cells": list(dict.fromkeys(name for text in studies for name in text.get("cells", ())))}


def study(path: Path) -> dict[str, Any]:
    """Reads the notes of a directory or of a file of results; empty without any."""
    file = path / STUDY_FILE if path.is_dir() else path
    return read_object(file) if file.is_file() else {}


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError for anything else."""
    try:
        text = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is corrupt: {error}") from None
    if not isinstance(text, dict):
        raise UserError(f"{path} is corrupt: it holds no JSON object")
    return text
