"""Results as data that can be committed: one file a study, with device, versions, commit and command."""

import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from resnet_jax.errors import UserError
from resnet_jax.training.workdir import write_json, write_text

STUDY_FILE = "study.json"


def write(path: Path, results: Sequence[dict[str, Any]], *, command: str, reduced: str = "") -> None:
    """Writes results of runs; fields that all share are written once, every result on a line of its own."""
    common = {name: value for name, value in results[0].items() if all(other[name] == value for other in results)}
    head = {"kind": "study", "date": datetime.date.today().isoformat(), "command": command, "reduced": reduced, "common": common}
    rows = [json.dumps({name: value for name, value in result.items() if name not in common}) for result in results]
    text = json.dumps(head, indent=1)[:-2] + ',\n "results": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def read(path: Path) -> list[dict[str, Any]]:
    """The results in a file that ``write`` wrote.

    Raises:
      UserError: for any other file.
    """
    try:
        found = read_object(path)
        return [found["common"] | row for row in found["results"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} holds no results of runs ({error!r}): such a file is written by 'resnet-jax report RUNS --save FILE'"
        ) from None


def is_study(path: Path) -> bool:
    """Whether a JSON file holds results of runs: benchmarks are committed beside them."""
    return read_object(path).get("kind") == "study"


def remember_study(workdir: Path, *, command: str, cells: Sequence[str], reduced: str) -> None:
    """Notes in a study's folder what it is, the order of its cells, and what makes it smaller than the one that it is named after."""
    before = study(workdir)
    commands, reasons = _both(before.get("command", ""), command), _both(before.get("reduced", ""), reduced)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / STUDY_FILE, {"command": commands, "cells": list(cells), "reduced": reasons})
    except OSError as error:
        raise UserError(f"{workdir} cannot be written ({error.strerror}): use another --workdir") from error


def _both(earlier: str, now: str) -> str:
    """Two notes as one; each once. A study may be run in several commands, one cell after another."""
    return "; ".join(dict.fromkeys(filter(None, [*earlier.split("; "), now])))


def notes(paths: Iterable[Path]) -> dict[str, Any]:
    """What ``study`` says of several folders or files."""
    merged: dict[str, Any] = {"command": "", "cells": [], "reduced": ""}
    for found in map(study, paths):
        merged["command"] = _both(merged["command"], found.get("command", ""))
        merged["reduced"] = _both(merged["reduced"], found.get("reduced", ""))
        merged["cells"] += [name for name in found.get("cells", ()) if name not in merged["cells"]]
    return merged if merged["command"] else {}


def study(path: Path) -> dict[str, Any]:
    """What ``remember_study`` noted in a folder, or a file of results says; an empty dictionary where there is nothing."""
    file = path / STUDY_FILE if path.is_dir() else path
    found = read_object(file) if file.is_file() else {}
    names = found.get("cells", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file} is damaged: its cells are {names!r}")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; UserError where there is none."""
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return found


def study_order(workdir: Path) -> dict[str, int]:
    """Cell to its place."""
    return {name: place for place, name in enumerate(study(workdir).get("cells", ()))}
