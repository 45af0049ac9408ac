"""A comparison: experiments x seeds, what is finished skipped."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import jax

from resnet_jax.data import sources
from resnet_jax.errors import UserError
from resnet_jax.studies import run as run_lib
from resnet_jax.training import agreement, mesh, program
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.loop import Progress
from resnet_jax.training.workdir import Workdir

SeedParallel = Literal["off", "vmap", "devices"]


@runtime_checkable
class Watcher(Protocol):
    """Who is told how a study is getting on."""

    def running(self, cell: Experiment, seeds: Sequence[int]) -> AbstractContextManager[Progress]:
        """These seeds of a cell run until the context ends."""
        ...

    def finished(self, cell: Experiment, results: Sequence[dict[str, Any]]) -> None:
        """Seeds of a cell have finished, now or before."""
        ...


def run(
    cells: Sequence[Experiment],
    seeds: Sequence[int],
    workdir: Path,
    *,
    watcher: Watcher,
    data_dir: str | None = None,
    devices: int | None = None,
    seed_parallel: SeedParallel | None = None,
    begun: Callable[[], None] | None = None,
) -> list[Path]:
    """Runs every cell with every seed under ``workdir/CELL/seed-S`` and returns the folders. Started again, it goes on where it was.

    A run that diverges has that as its result, and the others go on.

    Args:
      cells: experiments of different names.
      seeds: the same for every cell, so that cells can be compared seed by seed.
      workdir: made if missing.
      watcher: who is told.
      data_dir: where prepared data sets are looked for first.
      devices: how many to use; None: all.
      seed_parallel: ``off``: one run after another; ``devices``: seeds beside each other, each on devices of its own; ``vmap``: the seeds
        of a cell vectorised. None: ``devices`` where there are several, else ``off``.
      begun: called before the first run, when nothing is left that would be refused.

    Raises:
      UserError: for anything that any of the runs would refuse, before the first begins.
    """
    mode = seed_parallel or default_seed_parallel(devices)
    if mode == "devices" and jax.process_count() > 1:
        raise UserError("seeds beside each other on devices of their own need one process: use --seed-parallel off, or vmap")
    folders = {(cell.name, seed): workdir / cell.name / f"seed-{seed}" for cell in cells for seed in seeds}
    unfinished: dict[str, list[int]] = {}
    for cell in cells:
        with _of(cell):
            cell.check(sources.describe(cell.data.name, data_dir), 1 if mode == "devices" else mesh.make(devices).size)
            for seed in seeds:
                Workdir(folders[cell.name, seed]).check(cell, seed)
        found = {seed: Workdir(folders[cell.name, seed]).result() for seed in seeds}
        unfinished[cell.name] = [seed for seed, result in found.items() if result is None]
        watcher.finished(cell, [result for result in found.values() if result is not None])
    for cell in cells:
        if unfinished[cell.name]:
            with _of(cell):
                program.compiled(cell, devices)  # traces the network: one that cannot be built stops the study before it begins
    agreement.wait("what is finished is known")
    if begun and agreement.first():
        begun()
    at_once = {"off": 1, "devices": mesh.make(devices).size, "vmap": len(seeds)}[mode]
    waiting = (
        [(cell, some[at : at + at_once]) for at in range(0, len(some), at_once)] for cell in cells for some in [unfinished[cell.name]]
    )
    # Every cell has its first seeds before any has its next: the table fills evenly.
    for cell, some in filter(None, itertools.chain.from_iterable(itertools.zip_longest(*waiting))):
        with watcher.running(cell, some) as progress:
            results = run_lib.run_together(
                cell,
                {seed: folders[cell.name, seed] for seed in some},
                progress=progress,
                data_dir=data_dir,
                devices=devices,
                spread=mode == "devices",
            )
        watcher.finished(cell, results)
    return list(folders.values())


@contextlib.contextmanager
def _of(cell: Experiment) -> Iterator[None]:
    """Says of which cell an error speaks."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{cell.name}: {error}") from None


def default_seed_parallel(devices: int | None = None) -> SeedParallel:
    """``devices`` where one process has several, else ``off``: the fastest on CPU, where alone it was measured (README, ``bench seeds``).

    There ``vmap`` runs at a fraction of the speed: convolutions with a kernel for each seed become grouped ones.
    """
    return "devices" if jax.process_count() == 1 and mesh.make(devices).size > 1 else "off"
