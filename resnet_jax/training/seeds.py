"""Several seeds of an experiment in one program: which go together, from which step on, and what becomes of each."""

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.evaluation.exact import Score
from resnet_jax.models.pretrained.loading import Pretrained
from resnet_jax.training import feed, postmortem, start
from resnet_jax.training import program as program_lib
from resnet_jax.training import state as state_lib
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.feed import Images
from resnet_jax.training.interruption import Interrupted, Interruption, StopRequest
from resnet_jax.training.loop import Loop, NonFiniteLoss, Progress, Session
from resnet_jax.training.profile import Profile
from resnet_jax.training.program import Program
from resnet_jax.training.state import TrainState
from resnet_jax.training.workdir import Workdir

# Times that a run whose loss is not finite goes back before it is given up.
_ROLLBACKS = 3

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
    fsdp: int = 1,
    spread: bool = False,
    profile: Profile | None = None,
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
      devices, fsdp: see ``mesh.make``.
      spread: every seed on devices of its own; else all are vectorised.
      profile: of some of its steps.

    Raises:
      Interrupted: stopped by a signal, with the states saved.
    """
    images = feed.load(experiment, info, start.preprocessing(experiment, weights))
    with Interruption() as interruption:
        opened = {member.seed: Checkpoints.of(member.workdir, experiment.checkpointing, say=progress.say) for member in members}
        with _closing(*opened.values()):
            layout = _Layout(devices, fsdp, spread, profile)
            try:
                _Company(experiment, weights, images, opened, layout, progress, interruption, ended).run(members)
            finally:
                if profile is not None:
                    profile.close()


@contextlib.contextmanager
def _closing(*open_ones: Any) -> Iterator[Any]:
    """Closes them at the end; not after an error in one of several processes, where closing waits for others, which may be gone."""
    try:
        yield open_ones[0]
    except (Interrupted, UserError):
        raise
    except Exception:
        if jax.process_count() > 1:
            open_ones = ()
        raise
    finally:
        for each in open_ones:
            each.close()


@dataclass(frozen=True)
class _Layout:
    devices: int | None
    fsdp: int
    spread: bool
    profile: Profile | None

    def program(self, experiment: Experiment, seeds: int) -> Program:
        found = program_lib.compiled(experiment, self.devices, seeds if self.spread else 1, self.fsdp)
        return found if self.profile is None else self.profile.around(found)


@dataclass(frozen=True)
class _Company:
    """The seeds of an experiment, on their way to their ends."""

    experiment: Experiment
    weights: Pretrained | None
    images: Images
    opened: dict[int, Checkpoints]
    layout: _Layout
    progress: Progress
    interruption: Interruption
    ended: Callable[[Member, Outcome | NonFiniteLoss], None]

    def run(self, members: Sequence[Member]) -> None:
        waiting = self._levels(members)
        while waiting:
            level = waiting.pop(0)
            program = self.layout.program(self.experiment, len(level))
            restored = self._restore(level, program)
            levels = self._levels(level)
            if restored is None and len(levels) > 1:
                # Damage has taken what they had in common; what is left of each is not thrown away for it.
                waiting = levels + waiting
                continue
            asked = StopRequest(self.interruption, program.mesh)
            step = self._train(level, restored or self._begin(level, program), program, asked)
            if waiting and (number := asked.now()) is not None:
                raise Interrupted(number, step)

    def _levels(self, members: Sequence[Member]) -> list[list[Member]]:
        """Members by the step that they were left at. One that a kill caught a save ahead of another goes back to it, unless at its end."""
        every, last = self.experiment.checkpointing.every, self.experiment.steps
        steps = {member.seed: [0, *self.opened[member.seed].steps()] for member in members}
        # Streamed images are those of one seed, and those of a seed that was rolled back are its own.
        together = self.experiment.data.crop is None and self.experiment.checkpointing.non_finite == "stop"
        levels: list[list[Member]] = []
        for member in sorted(members, key=lambda m: steps[m.seed][-1]):
            behind = steps[levels[-1][0].seed][-1] if levels else -1
            newest = steps[member.seed][-1]
            if together and (newest == behind or (behind in steps[member.seed] and newest - behind <= every and newest < last)):
                levels[-1].append(member)
            else:
                levels.append([member])
        return levels

    def _begin(self, members: Sequence[Member], program: Program) -> Restored:
        states = [program.init(jax.random.key(member.seed)) for member in members]
        if self.weights is not None:
            states = [start.begun(state, self.experiment, self.weights) for state in states]
        return 0, states, self.images.preprocessing

    def _restore(self, members: Sequence[Member], program: Program) -> Restored | None:
        """The newest step of which all have a whole checkpoint; None where there is none."""
        checkpoints = [self.opened[member.seed] for member in members]
        constants = program_lib.abstract_preprocessing(self.experiment)
        while common := set.intersection(*(set(each.steps()) for each in checkpoints)):
            step = max(common)
            found = [each.restore(step, program.abstract_state, constants) for each in checkpoints]
            whole = [each for each in found if each is not None]
            if len(whole) == len(found):
                return step, [state for state, _ in whole], whole[0][1]
        return None

    def _train(self, members: Sequence[Member], restored: Restored, program: Program, asked: StopRequest) -> int:
        """Trains seeds together from a step on, those that diverge until they do; returns the step that they reached."""
        step, states, preprocessing = restored
        if step:
            self.progress.say(f"continuing after step {step}")
        sessions = [
            Session(
                member.seed, member.workdir, self.opened[member.seed], step, self.progress.say, self.experiment.checkpointing.failed_save
            )
            for member in members
        ]
        states = [session.rekeyed(state, program.mesh) for session, state in zip(sessions, states, strict=True)]
        running = Loop(self.experiment, program, self.images, program.constants(preprocessing), sessions, self.progress, asked)
        self.progress.start(step, self.experiment.steps)
        with _closing(running, *sessions):
            stacked = running.run(step, program.stack(states))
        for member, session in zip(members, sessions, strict=True):
            if session.diverged is not None:
                self._look_back(member, session, session.diverged, asked)
        for member, session, state in zip(members, sessions, program.unstack(stacked), strict=True):
            if session.diverged is None:
                outcome = Outcome(
                    state_digest=state_lib.digest(state),
                    scores=session.scores,
                    training_error_percent=session.training_error_percent,
                    compile_seconds=running.compile_seconds,
                    seconds=session.earlier_seconds + running.seconds(),
                    seeds_together=len(members),
                )
                self.ended(member, outcome)
        return self.experiment.steps

    def _look_back(self, member: Member, session: Session, diverged: NonFiniteLoss, asked: StopRequest) -> None:
        """Says why a seed diverged, and ends it, or trains it again from its last checkpoint, on other batches."""
        program = self.layout.program(self.experiment, 1)
        step, (state,), preprocessing = self._restore([member], program) or self._begin([member], program)
        state = session.rekeyed(state, program.mesh)
        with _closing(self.images.feed(program, program.constants(preprocessing), session.images_seed)) as feed:
            found = postmortem.examine(program, feed, (step, state), diverged.step, asked)
        if found is None:
            raise Interrupted(asked.now() or signal.SIGTERM, step)
        member.workdir.write_postmortem(found)
        self.progress.say(f"seed {member.seed}: at step {diverged.step} {postmortem.in_words(found)}; {member.workdir.postmortem_file}")
        if self.experiment.checkpointing.non_finite == "stop" or session.rollbacks == _ROLLBACKS:
            self.ended(member, diverged)
            return
        if session.rollbacks and session.began == step:
            # Other batches did not help there.
            self.opened[member.seed].drop_after(step - 1)
        restored = self._restore([member], program) or self._begin([member], program)
        step, again = restored[0], session.rollbacks + 1
        self.progress.say(f"seed {member.seed}: {diverged}; back to step {step}, on with other batches, {again} of {_ROLLBACKS} times")
        session.roll_back(step, diverged.step)
        self._train([member], restored, program, asked)
