"""Several seeds of an experiment in one program: which go together, from which step on, and what becomes of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.evaluation.exact import Score
from resnet_jax.models.pretrained.loading import Pretrained
from resnet_jax.training import loop, start
from resnet_jax.training import program as program_lib
from resnet_jax.training import state as state_lib
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.interruption import Interrupted, Interruption
from resnet_jax.training.loop import Loop, NonFiniteLoss, Progress, Session, Splits
from resnet_jax.training.program import Program
from resnet_jax.training.state import TrainState
from resnet_jax.training.workdir import Workdir

# Steps done, the state of each seed, the constants that normalise their images.
Restored = tuple[int, list[TrainState], Preprocessing]


@dataclass(frozen=True)
class Outcome:
    """The end of the run of one seed."""

    state_digest: str
    scores: dict[str, Score]
    """Of the last step, by split; ``train`` where the experiment asks for it."""
    training_error_percent: float
    """Of the last window of batches, augmented, statistics of the batch."""
    compile_seconds: float
    """Of the first call of the training program in this session: near 0 where an earlier run of the process compiled it."""
    seconds: float
    """Training and scoring of all seeds of the program, over all sessions; loading and the time between sessions not."""
    seeds_together: int
    """Seeds that the program trained."""


@dataclass(frozen=True)
class Member:
    """One of the seeds that are trained together."""

    seed: int
    workdir: Workdir
    """Claimed for the experiment with this seed."""


def train(
    experiment: Experiment,
    members: Sequence[Member],
    *,
    weights: Pretrained | None = None,
    info: DatasetInfo,
    progress: Progress,
    ended: Callable[[Member, Outcome | NonFiniteLoss], None],
    devices: int | None = None,
    spread: bool = False,
) -> None:
    """Runs, or continues, an experiment with several seeds, each in its own work folder, until the last step.

    Each folder becomes what a run of its seed by itself makes it, to rounding, and can be continued alone or in other company. Seeds that
    were left at different steps are trained one group after another. A seed that diverges ends without disturbing the others.

    Args:
      experiment: what to run.
      members: seeds, at least one; at most as many as there are devices where they are ``spread``.
      weights: that the experiment begins with, see ``start.load``; None: they are drawn.
      info: of the data set.
      progress: who is told.
      ended: is told what became of each member, as soon as it is known.
      devices: how many to use; None: all.
      spread: every seed on devices of its own; else all are vectorised.

    Raises:
      Interrupted: stopped by a signal, with the states saved.
    """
    splits = loop.load(experiment, info, start.preprocessing(experiment, weights))
    with Interruption() as interruption:
        opened = {
            member.seed: Checkpoints(member.workdir.checkpoints, keep=experiment.checkpointing.keep, say=progress.say) for member in members
        }
        try:
            waiting = _levels(members, opened, experiment)
            while waiting:
                level = waiting.pop(0)
                program = program_lib.compiled(experiment, devices, len(level) if spread else 1)
                restored = _restore([opened[member.seed] for member in level], program, experiment)
                levels = _levels(level, opened, experiment)
                if restored is None and len(levels) > 1:
                    # Damage has taken what they had in common; what is left of each is not thrown away for it.
                    waiting = levels + waiting
                    continue
                if restored is None:
                    restored = 0, _begin(experiment, level, program, weights), splits.preprocessing
                step = _train_together(experiment, level, opened, restored, program, splits, progress, interruption, ended)
                if interruption.requested is not None:
                    raise Interrupted(interruption.requested, step)
        finally:
            for checkpoints in opened.values():
                checkpoints.close()


def _levels(members: Sequence[Member], opened: dict[int, Checkpoints], experiment: Experiment) -> list[list[Member]]:
    """Members by the step that they were left at. One that a kill caught a save ahead of another goes back to it, unless at its end."""
    every, last = experiment.checkpointing.every, experiment.steps
    steps = {member.seed: [0, *opened[member.seed].steps()] for member in members}
    levels: list[list[Member]] = []
    for member in sorted(members, key=lambda m: steps[m.seed][-1]):
        behind = steps[levels[-1][0].seed][-1] if levels else -1
        newest = steps[member.seed][-1]
        if newest == behind or (behind in steps[member.seed] and newest - behind <= every and newest < last):
            levels[-1].append(member)
        else:
            levels.append([member])
    return levels


def _begin(experiment: Experiment, members: Sequence[Member], program: Program, weights: Pretrained | None) -> list[TrainState]:
    states = [program.init(jax.random.key(member.seed)) for member in members]
    return states if weights is None else [start.begun(state, experiment, weights) for state in states]


def _train_together(
    experiment: Experiment,
    members: Sequence[Member],
    opened: dict[int, Checkpoints],
    restored: Restored,
    program: Program,
    splits: Splits,
    progress: Progress,
    interruption: Interruption,
    ended: Callable[[Member, Outcome | NonFiniteLoss], None],
) -> int:
    step, states, preprocessing = restored
    if step:
        progress.say(f"continuing after step {step}")
    sessions = [Session(member.seed, member.workdir, opened[member.seed], step) for member in members]
    running = Loop(experiment, program, splits, preprocessing, sessions, progress, interruption)
    progress.start(step, experiment.steps)
    try:
        states = running.run(step, program.stack(states))
    finally:
        for member, session in zip(members, sessions, strict=True):
            session.close()
            if session.diverged is not None:
                ended(member, session.diverged)
    for member, session, state in zip(members, sessions, program.unstack(states), strict=True):
        if session.diverged is None:
            outcome = Outcome(
                state_digest=state_lib.digest(state),
                scores=session.scores,
                training_error_percent=session.training_error_percent,
                compile_seconds=running.compile_seconds,
                seconds=session.earlier_seconds + running.seconds(),
                seeds_together=len(members),
            )
            ended(member, outcome)
    return experiment.steps


def _restore(checkpoints: Sequence[Checkpoints], program: Program, experiment: Experiment) -> Restored | None:
    """The newest step of which all have a whole checkpoint; None where there is none."""
    constants = program_lib.abstract_preprocessing(experiment)
    while common := set.intersection(*(set(each.steps()) for each in checkpoints)):
        step = max(common)
        found = [each.restore(step, program.abstract_state, constants) for each in checkpoints]
        whole = [each for each in found if each is not None]
        if len(whole) == len(found):
            return step, [state for state, _ in whole], whole[0][1]
    return None
