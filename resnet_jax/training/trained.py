"""What a run has trained: its newest whole checkpoint, or the state at another step."""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.errors import UserError
from resnet_jax.evaluation import protocols
from resnet_jax.models.pretrained.card import Card, Numbers, View
from resnet_jax.models.pretrained.loading import Pretrained
from resnet_jax.training import program as program_lib
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.program import Program
from resnet_jax.training.state import TrainState
from resnet_jax.training.workdir import Workdir


@dataclass(frozen=True)
class Trained:
    """A run at a step."""

    experiment: Experiment
    program: Program
    step: int
    state: TrainState
    preprocessing: Preprocessing


def newest(run: Path) -> Trained:
    """Restores the newest whole checkpoint of a run.

    Raises:
      UserError: where there is no run, or no checkpoint.
    """
    return at(run, None)


def at(run: Path, step: int | None) -> Trained:
    """Restores a run at a step that it kept (``checkpointing.keep_every``), None: the newest; 0 is drawn anew, as its seed says.

    Raises:
      UserError: as ``newest``, and for a step that was not kept, with those that were.
    """
    workdir = Workdir.to_read(run)
    experiment, seed = workdir.experiment()
    if not workdir.checkpoints.is_dir():
        raise UserError(f"{run} has no checkpoint yet")
    program = program_lib.compiled(experiment)
    # What is scored or shown goes to stdout, as JSON perhaps.
    told = functools.partial(print, file=sys.stderr)
    # It may be training still: reading changes nothing, and waits for no lock.
    checkpoints = Checkpoints.of(workdir, experiment.checkpointing, say=told, read_only=True)
    like = (program.abstract_state, program_lib.abstract_preprocessing(experiment))
    kept = checkpoints.steps()
    if not step:
        restored = checkpoints.restore_newest(*like)
    else:
        found = checkpoints.restore(step, *like) if step in kept else None
        restored = found and (step, *found)
    checkpoints.close()
    if restored is None and not step:
        raise UserError(f"{run} has no whole checkpoint")
    if restored is None:
        there = ", ".join(map(str, (0, *kept)))
        raise UserError(f"{run} kept no whole checkpoint of step {step}; there is {there}. --checkpointing.keep-every K keeps every K-th")
    if step == 0:
        if experiment.start.file:
            raise UserError(f"{run} began with the weights in {experiment.start.file}: name that file in place of step 0")
        restored = (0, program.init(jax.random.key(seed)), restored[2])
    return Trained(experiment, program, *restored)


def weights(run: Path, step: int | None = None) -> Pretrained:
    """The weights that scores of a run use, with their card. Arguments and UserErrors as of ``at``."""
    found = at(run, step)
    params, batch_stats = jax.device_get(found.state.scored())
    mean, deviation = (np.asarray(constants, np.float64).tolist() for constants in found.preprocessing)
    asked = found.experiment.evaluation.protocol
    shown = protocols.parse(asked) if asked else protocols.Protocol()
    view = View(
        mean=_tuples(mean), deviation=tuple(deviation), resize=shown.resize or 0, crop=shown.crop or 0, interpolation=shown.interpolation
    )
    card = Card(
        architecture=found.experiment.model,
        view=view,
        source=f"{run.resolve().name}, step {found.step}",
        data=found.experiment.data.name,
        counters={"": float(found.step)},
    )
    return Pretrained(card, params, batch_stats)


def _tuples(value: list[Any]) -> Numbers:
    return tuple(_tuples(item) if isinstance(item, list) else item for item in value)
