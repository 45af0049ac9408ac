"""What a run has trained: its newest whole checkpoint."""

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
    workdir = Workdir.to_read(run)
    experiment, _ = workdir.experiment()
    if not workdir.checkpoints.is_dir():
        raise UserError(f"{run} has no checkpoint yet")
    program = program_lib.compiled(experiment)
    # What is scored or shown goes to stdout, as JSON perhaps.
    told = functools.partial(print, file=sys.stderr)
    # It may be training still: reading changes nothing, and waits for no lock.
    checkpoints = Checkpoints.of(workdir, experiment.checkpointing, say=told, read_only=True)
    restored = checkpoints.restore_newest(program.abstract_state, program_lib.abstract_preprocessing(experiment))
    checkpoints.close()
    if restored is None:
        raise UserError(f"{run} has no whole checkpoint")
    return Trained(experiment, program, *restored)


def weights(run: Path) -> Pretrained:
    """The weights that scores of a run use, with their card. Raises UserError as ``newest``."""
    found = newest(run)
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
