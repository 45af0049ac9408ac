"""A comparison: experiments x seeds, run one after another, what is finished skipped."""

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnet_jax.studies import run as run_lib
from resnet_jax.training import resolved
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.loop import NonFiniteLoss, Progress
from resnet_jax.training.workdir import Workdir


def run(
    cells: Sequence[Experiment],
    seeds: Sequence[int],
    workdir: Path,
    *,
    progress: Callable[[str], AbstractContextManager[Progress]],
    data_dir: str | None = None,
    devices: int | None = None,
) -> list[Path]:
    """Runs every cell with every seed under ``workdir/CELL/seed-S`` and returns the folders. Started again, it goes on where it was.

    A run that diverges is left without a result, and the others go on. ``progress`` makes, from a title, what is told about each run.
    """
    folders = []
    todo = [(cell, seed) for seed in seeds for cell in cells]
    for number, (cell, seed) in enumerate(todo, start=1):
        folder = workdir / cell.name / f"seed-{seed}"
        with progress(f"[{number}/{len(todo)}] {cell.name}, seed {seed}") as told:
            try:
                run_lib.run(cell, seed, folder, progress=told, data_dir=data_dir, devices=devices)
            except NonFiniteLoss as error:
                told.say(str(error))
        folders.append(folder)
    return folders


def find(path: Path) -> list[Path]:
    """The run folders at or below a path, in the order they were begun."""
    found = [path] if (path / "experiment.json").is_file() else [file.parent for file in path.glob("**/experiment.json")]
    return sorted(found, key=lambda folder: (folder / "experiment.json").stat().st_mtime_ns)


@dataclass(frozen=True)
class Group:
    """Runs of one experiment that differ in nothing but their seed."""

    name: str
    folders: list[Path]


def groups(folders: Sequence[Path]) -> list[Group]:
    """Groups runs by identity, in order of first appearance; different experiments of one name get part of their fingerprint as well."""
    found: dict[str, Group] = {}
    for folder in folders:
        text = Workdir(folder).read_experiment_file()
        without_seed = {k: v for k, v in text["identity"].items() if k != "seed"}
        key = resolved.fingerprint(without_seed)
        found.setdefault(key, Group(text["experiment"]["name"], [])).folders.append(folder)
    names = [group.name for group in found.values()]
    return [group if names.count(group.name) == 1 else Group(f"{group.name} ({key[:6]})", group.folders) for key, group in found.items()]


def summarise(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """One row a group that has results: means and sample standard deviations over the seeds that finished."""
    rows = []
    for group in groups(folders):
        results = [result for result in (Workdir(folder).result() for folder in group.folders) if result is not None]
        if not results:
            continue
        rows.append(
            {
                "name": group.name,
                "seeds": len(results),
                "training_error": _spread([r["training_error_percent"] for r in results]),
                "test_error": _spread([r["value"] for r in results]),
                "parameters": results[0]["parameters"],
                "seconds": statistics.mean(r["seconds"] for r in results),
                "expected": results[0]["expected"],
            }
        )
    return rows


def _spread(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan
