"""Trained state of a run at its newest intact checkpoint or another step."""

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
from resnet_jax.models.pretrained.card import Card, View
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
    """Restores the newest intact checkpoint of a run; see ``at``."""
    return at(run, None)


def at(run: Path, step: int | None) -> Trained:
    """Restores a run, which may be in progress, at a step that it kept; None: the newest; 0: initialized from its seed."""
    workdir = Workdir(run)
    experiment, seed = workdir.experiment()
    if not workdir.checkpoints.is_dir():
        raise UserError(f"{run} has no checkpoint yet")
    program = program_lib.compiled(experiment)
    # Results go to stdout, possibly as JSON.
    say = functools.partial(print, file=sys.stderr)
    fingerprint = workdir.read_experiment_file()["fingerprint"]
    checkpoints = Checkpoints(workdir.checkpoints, experiment.checkpointing, say=say, fingerprint=fingerprint, read_only=True)
    like = (program.abstract_state, program_lib.abstract_preprocessing(experiment))
    kept = checkpoints.steps()
    restored = None
    if not step:
        restored = checkpoints.restore_newest(*like)
    elif step in kept and (state := checkpoints.restore(step, *like)):
        restored = (step, *state)
    if restored is None:
        steps = ", ".join(map(str, (0, *kept)))
        others = f" of step {step}; there is {steps}. --checkpointing.keep-every K keeps every K-th" if step else ""
        raise UserError(f"{run} has no whole checkpoint{others}")
    if step == 0:
        if experiment.start.file:
            raise UserError(f"{run} began with the weights in {experiment.start.file}: name that file in place of step 0")
        restored = (0, program.init(jax.random.key(seed)), restored[2])
    return Trained(experiment, program, *restored)


def weights(run: Path, step: int | None = None) -> Pretrained:
    """Returns the weights that a run is evaluated with; see ``at``."""
    restored = at(run, step)
    params, batch_stats = jax.device_get(restored.state.scored())
    mean, deviation = (_tuples(np.asarray(constants, np.float64).tolist()) for constants in restored.preprocessing)
    name = restored.experiment.evaluation.protocol
    protocol = protocols.parse(name) if name else protocols.Protocol()
    resize, crop = protocol.resize, protocol.crop
    card = Card(
        architecture=restored.experiment.model,
        view=View(mean=mean, deviation=deviation, resize=resize or 0, crop=crop or 0, interpolation=protocol.interpolation),
        source=f"{run.resolve().name}, step {restored.step}",
        data=restored.experiment.data.name,
        counters={"": float(restored.step)},
    )
    return Pretrained(card, params, batch_stats)


def _tuples(value: list[Any]) -> Any:
    return tuple(_tuples(item) if isinstance(item, list) else item for item in value)
