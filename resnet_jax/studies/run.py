"""One run, from an experiment and a seed to ``result.json``."""

from pathlib import Path
from typing import Any

from resnet_jax.data import sources
from resnet_jax.studies import ledger
from resnet_jax.training import loop, mesh, program, resolved
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.loop import Progress
from resnet_jax.training.workdir import Workdir, write_json


def run(
    experiment: Experiment, seed: int, workdir: Path | str, *, progress: Progress, data_dir: str | None = None, devices: int | None = None
) -> dict[str, Any]:
    """Trains an experiment, or continues it, or finds it finished; returns the contents of its ``result.json``.

    Args:
      experiment: what to run.
      seed: of everything random.
      workdir: its folder; a second run of another experiment or seed there is refused.
      progress: who is told.
      data_dir: where prepared data sets are looked for first.
      devices: how many devices to use; None: all.

    Raises:
      UserError: before anything is compiled or written.
    """
    info = sources.describe(experiment.data.name, data_dir)
    experiment.check(info, mesh.make(devices).size)
    program.compiled(experiment, devices)  # traces the network: a structure that cannot be built fails here, before anything is written
    folder = Workdir(workdir)
    folder.claim(experiment, seed)
    finished = folder.result()
    if finished is not None:
        progress.say(f"{folder.path} is finished; nothing to do")
        return finished
    outcome = loop.train(experiment, seed, workdir=folder, info=info, progress=progress, devices=devices)
    found: dict[str, Any] = resolved.resolve(ledger.result(experiment, seed, info, outcome))
    write_json(folder.result_file, found)
    return found
