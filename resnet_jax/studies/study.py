"""Variants x seeds, one run each: sequentially in this process, or in worker processes."""

import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from resnet_jax.data import sources
from resnet_jax.errors import NonFiniteLoss, UserError
from resnet_jax.training import agreement, mesh, program
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.train import Progress, train
from resnet_jax.training.workdir import Workdir


class Run(NamedTuple):
    """One run of a study."""

    variant: Experiment
    seed: int
    folder: Path


@runtime_checkable
class Watcher(Protocol):
    """Display of the progress of a study."""

    def running(self, variant: Experiment, seed: int) -> AbstractContextManager[Progress]: ...

    def finished(self, variant: Experiment, result: dict[str, Any]) -> None:
        """Receives the result of a finished run, including those of earlier sessions."""
        ...


def run(
    variants: Sequence[Experiment],
    seeds: Sequence[int],
    workdir: Path,
    *,
    watcher: Watcher,
    data_dir: str | None = None,
    devices: int | None = None,
    environments: Sequence[dict[str, str]] = (),
    on_start: Callable[[], None] = lambda: None,
) -> dict[Path, str]:
    """Runs every variant, seed by seed, in ``workdir/VARIANT/seed-S``; resumes where an earlier call stopped.

    ``environments`` has the variables of the worker processes; empty: everything runs in this process, on ``devices``
    devices. ``on_start`` is called after every check, before the first run.

    Returns:
      Run directories of worker processes that failed, with the reason.

    Raises:
      UserError: for anything that any of the runs would reject, before the first starts.
      Interrupted, SystemExit: after a signal, with the states saved.
    """
    size = 1 if environments else mesh.make(devices).size
    runs = []
    for seed, variant in itertools.product(seeds, variants):
        folder = workdir / variant.name / f"seed-{seed}"
        try:
            variant.check(sources.describe(variant.data.name, data_dir), size)
            Workdir(folder).check(variant, seed)
            result = Workdir(folder).result()
        except UserError as error:
            raise UserError(f"{variant.name}: {error}") from None
        if result is None:
            runs.append(Run(variant, seed, folder))
        else:
            watcher.finished(variant, result)
    if environments:
        from resnet_jax.studies import workers

        on_start()
        return workers.train(runs, environments, watcher=watcher, data_dir=data_dir)
    for variant in {run.variant.name: run.variant for run in runs}.values():
        try:
            program.compiled(variant, devices)  # Traces the network: an invalid one fails before the first run.
        except UserError as error:
            raise UserError(f"{variant.name}: {error}") from None
    agreement.wait("results are read")
    if agreement.first():
        on_start()
    for variant, seed, folder in runs:
        with watcher.running(variant, seed) as progress:
            try:
                result = train(variant, seed, folder, progress=progress, data_dir=data_dir, devices=devices)
            except NonFiniteLoss:
                result = Workdir(folder).result()
        watcher.finished(variant, result or {})
    return {}
