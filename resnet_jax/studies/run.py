"""Runs, from an experiment and seeds to ``result.json``."""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_jax.data import sources
from resnet_jax.studies import result as result_lib
from resnet_jax.training import agreement, feed, mesh, program, resolved, seeds, start
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.loop import NonFiniteLoss, Progress
from resnet_jax.training.profile import Profile
from resnet_jax.training.workdir import Workdir, write_json


def run(
    experiment: Experiment,
    seed: int,
    workdir: Path | str,
    *,
    progress: Progress,
    data_dir: str | None = None,
    devices: int | None = None,
    fsdp: int = 1,
    profile: Profile | None = None,
) -> dict[str, Any]:
    """Trains an experiment, or continues it, or finds it finished; returns the contents of its ``result.json``.

    Args:
      experiment: what to run.
      seed: of everything random.
      workdir: its folder; a second run of another experiment or seed there is refused.
      progress: who is told.
      data_dir: where prepared data sets are looked for first.
      devices, fsdp: how many devices to use, and how many of them share a copy of the parameters; see ``training.mesh.make``.
      profile: of some of its steps.

    Raises:
      UserError: before anything is compiled or written.
      NonFiniteLoss: it diverged, now or when it was run before.
    """
    (found,) = run_together(
        experiment, {seed: Path(workdir)}, progress=progress, data_dir=data_dir, devices=devices, fsdp=fsdp, profile=profile
    )
    if found["diverged_at_step"] is not None:
        raise NonFiniteLoss(found["diverged_at_step"], Workdir(workdir).newest_checkpoint())
    return found


def run_together(
    experiment: Experiment,
    folders: Mapping[int, Path],
    *,
    progress: Progress,
    data_dir: str | None = None,
    devices: int | None = None,
    fsdp: int = 1,
    spread: bool = False,
    profile: Profile | None = None,
) -> list[dict[str, Any]]:
    """``run`` for several seeds in one program, see ``training.seeds.train``; seeds that have finished are left as they are.

    Where they are ``spread`` over devices of their own, there have to be as many devices as seeds.

    Returns:
      The contents of each seed's ``result.json``, or ``diverged.json``, in the order of ``folders``.

    Raises:
      UserError: before anything is compiled or written.
    """
    info = sources.describe(experiment.data.name, data_dir)
    experiment.check(info, 1 if spread else mesh.make(devices, fsdp=fsdp).size)
    feed.check(experiment, info)
    weights = start.load(experiment)
    # Traces the network: a structure that cannot be built fails here, before anything is written.
    program.compiled(experiment, devices, fsdp=fsdp)
    workdirs = {seed: Workdir(folder) for seed, folder in folders.items()}
    with contextlib.ExitStack() as claims:
        for seed, workdir in workdirs.items():
            claims.enter_context(workdir.claimed(experiment, seed, say=progress.say))
            if workdir.result() is not None:
                progress.say(f"{workdir.path} is finished; nothing to do")
        open_ended = [seeds.Member(seed, workdir) for seed, workdir in workdirs.items() if workdir.result() is None]

        def ended(member: seeds.Member, outcome: seeds.Outcome | NonFiniteLoss) -> None:
            found = result_lib.result(experiment, member.seed, info, outcome, member.workdir.records())
            diverged = isinstance(outcome, NonFiniteLoss)
            if agreement.first():
                write_json(member.workdir.diverged_file if diverged else member.workdir.result_file, resolved.resolve(found))
            if diverged:
                progress.say(f"seed {member.seed}: {outcome}")

        if open_ended:
            seeds.train(
                experiment,
                open_ended,
                weights=weights,
                info=info,
                progress=progress,
                ended=ended,
                devices=devices,
                fsdp=fsdp,
                spread=spread,
                profile=profile,
            )
        agreement.wait("results are written")
        return [found for workdir in workdirs.values() if (found := workdir.result()) is not None]
