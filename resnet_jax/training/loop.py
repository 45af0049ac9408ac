"""The loop: dispatch steps, look at their metrics one dispatch later, score and save on time."""

import math
import time
from collections.abc import Callable, Sequence
from typing import NoReturn, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.evaluation.exact import Score
from resnet_jax.training import mesh as mesh_lib
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.failed_save import OnFailure
from resnet_jax.training.feed import Images
from resnet_jax.training.interruption import Interrupted, StopRequest
from resnet_jax.training.program import Program
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Metrics
from resnet_jax.training.workdir import MetricsWriter, Record, Workdir

# The split of a record that says that a run went back to a step, and on with other batches.
ROLLBACK = "rollback"


def rollbacks(records: Sequence[Record]) -> int:
    """How often a run went back, by its records: the last says the number, since it may have gone further back than one before."""
    return max((record["number"] for record in records if record["split"] == ROLLBACK), default=0)


class NonFiniteLoss(Exception):
    """Training diverged."""

    def __init__(self, step: int, checkpoint: int | None, what: str = "the loss"):
        saved = f"the last good checkpoint is that of step {checkpoint}" if checkpoint is not None else "no checkpoint was written before"
        super().__init__(
            f"{what} of step {step} is not finite: {saved}. Lower schedule.learning_rate, or warm up (schedule.warmup_steps), "
            "in another --workdir"
        )
        self.step = step


@runtime_checkable
class Progress(Protocol):
    """Who is told how a run is getting on."""

    def start(self, step: int, steps: int) -> None:
        """Training begins at ``step`` of ``steps``."""
        ...

    def advance(self, step: int) -> None:
        """A step was dispatched."""
        ...

    def update(self, record: Record) -> None:
        """A record of ``metrics.jsonl`` was written; it has a ``seed`` as well where several are trained together."""
        ...

    def say(self, message: str) -> None:
        """Something worth a line."""
        ...


class Session:
    """What one seed writes while it is trained from ``step`` on, and what is known of it."""

    def __init__(
        self, seed: int, workdir: Workdir, checkpoints: Checkpoints, step: int, say: Callable[[str], None], failed_save: OnFailure
    ):
        checkpoints.drop_after(step)  # a seed that goes back with others trains what follows again
        self.seed, self.checkpoints, self._workdir, self.began = seed, checkpoints, workdir, step
        self.writer = MetricsWriter(workdir, step=step, say=say, failed_save=failed_save)
        self.rollbacks = rollbacks(self.writer.kept)
        earlier = [record for record in self.writer.kept if record["split"] == "train"]
        self.training_error_percent = earlier[-1]["error_percent"] if earlier else math.nan
        self.earlier_seconds = earlier[-1]["seconds"] if earlier else 0.0
        self.scores: dict[str, Score] = {}
        self.scored_at: int | None = None
        self.diverged: NonFiniteLoss | None = None

    @property
    def images_seed(self) -> int:
        """Decides which images are streamed in which order: the run's seed, until it was rolled back."""
        return self.seed if not self.rollbacks else int(np.random.SeedSequence([self.seed % 2**64, 2, self.rollbacks]).generate_state(1)[0])

    def rekeyed(self, state: TrainState, mesh: Mesh) -> TrainState:
        """The state with the root key of its batches: another one after each time that it was rolled back."""
        if not self.rollbacks:
            return state
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), 5), self.rollbacks)
        return state._replace(key=jax.random.wrap_key_data(mesh_lib.put(jax.random.key_data(key), mesh_lib.replicated(mesh))))

    def roll_back(self, step: int, non_finite_step: int) -> None:
        """Remembers that the run goes back to a step; the next session begins there."""
        writer = MetricsWriter(self._workdir, step=step)
        writer.write({"step": step, "split": ROLLBACK, "number": self.rollbacks + 1, "non_finite_step": non_finite_step})
        writer.close()

    def was_scored(self, step: int, split: str) -> bool:
        """Whether an earlier session scored a split after a step, the one that this one began with."""
        return any(record["step"] == step and record["split"] == split for record in self.writer.kept)

    def close(self) -> None:
        """Waits for what is being saved."""
        self.writer.close()
        self.checkpoints.wait()


class _Asked(Exception):
    """To stop, in the middle of a score."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Loop:
    """The mutable side of a session of one or more seeds; everything that decides their results is in the states."""

    def __init__(
        self,
        experiment: Experiment,
        program: Program,
        images: Images,
        preprocessing: Preprocessing,
        sessions: Sequence[Session],
        progress: Progress,
        asked: StopRequest,
    ):
        self._experiment, self._program, self._scored, self._preprocessing = experiment, program, images.scored, preprocessing
        self._sessions, self._progress, self._asked = sessions, progress, asked
        self._feed = images.feed(program, preprocessing, sessions[0].images_seed)
        self._window: list[Metrics] = []
        self._log_every = max(1, experiment.evaluation.every // 10)
        self._began = self._rate_began = time.perf_counter()
        self._rate_examples = 0.0
        self.compile_seconds = math.nan

    def close(self) -> None:
        """Ends what reads images ahead."""
        self._feed.close()

    def seconds(self) -> float:
        """Since this session began."""
        return time.perf_counter() - self._began

    def run(self, step: int, states: TrainState) -> TrainState:
        """Trains from ``step`` to the experiment's last, or until every seed has diverged; scores the last step.

        Raises:
          Interrupted: asked to stop, and everything is saved.
        """
        experiment = self._experiment
        if (early := self._asked.now()) is not None:
            raise Interrupted(early, step)
        if self._unscored(step) and (early := self._score(step, states)) is not None:
            raise Interrupted(early, step)
        pending: tuple[int, Metrics] | None = None
        while step < experiment.steps and self._going():
            # A dispatch ends where something is due. Its metrics are fetched while the next one runs.
            due = min(_next(step, every) for every in (self._log_every, experiment.evaluation.every, experiment.checkpointing.every))
            count = min(self._feed.most_steps or experiment.execution.steps_a_call(), due - step, experiment.steps - step)
            data = self._feed.steps(step)
            called = time.perf_counter()
            with jax.transfer_guard("disallow"):
                states, metrics = self._program.train(states, data, count)
            if math.isnan(self.compile_seconds):  # the call returns when the program is compiled and begun
                self._rate_began = time.perf_counter()
                self.compile_seconds = self._rate_began - called
            if pending:
                self._look_at(*pending)
            step, pending = step + count, (step + count, metrics)
            self._progress.advance(step)
            for session in self._going():
                session.checkpoints.check()
            last = step == experiment.steps
            stop = self._asked.heard()
            saves = stop is not None or last or step % experiment.checkpointing.every == 0
            scores = last or step % experiment.evaluation.every == 0
            if saves or scores:
                # Nothing that is not finite is ever saved, and no window of metrics straddles a checkpoint.
                self._look_at(*pending)
                pending = None
                self._log(step)
                states = self._program.settle(states, self._feed.settling(step))
            if scores and stop is None:
                stop = self._score(step, states)
            if saves:
                self._save(step, states)
            if stop is not None:
                self._stop(stop, step)
        return states

    def _stop(self, number: int, step: int) -> NoReturn:
        for session in self._going():
            session.checkpoints.wait()
        raise Interrupted(number, step)

    def _unscored(self, step: int) -> bool:
        """Whether a run that was stopped while it scored, or just before its end, has to score now."""
        due = step and step % self._experiment.evaluation.every == 0
        return step == self._experiment.steps or (bool(due) and not all(session.was_scored(step, "test") for session in self._going()))

    def _going(self) -> list[Session]:
        return [session for session in self._sessions if session.diverged is None]

    def _save(self, step: int, states: TrainState) -> None:
        # The update of a step whose own loss is finite may be none.
        for session, finite in zip(self._sessions, jax.device_get(self._program.finite(states)), strict=True):
            if not finite and session.diverged is None:
                session.diverged = NonFiniteLoss(step, session.checkpoints.newest(), "the update")
        for session, state in zip(self._sessions, self._program.unstack(states), strict=True):
            if session.diverged is None:
                test = session.scores.get("test") if session.scored_at == step else None
                session.checkpoints.save(step, state, self._preprocessing, test.error_percent if test else None)

    def _score(self, step: int, states: TrainState) -> int | None:
        """Scores what is to be scored, and records it; returns the signal where it was asked to stop meanwhile, and gave up."""
        for name, (images, expected) in self._scored.items():
            if (name == "train" and step < self._experiment.steps) or not self._going():
                continue
            batch_size = self._experiment.evaluation.batch_size
            try:
                found = self._program.score(states, self._preprocessing, images(), expected, batch_size, self._give_up_if_asked)
            except _Asked as asked:
                return asked.number
            split = "train_scored" if name == "train" else name
            for session, score in zip(self._sessions, found, strict=True):
                if session.diverged is None:
                    session.scores[name] = score
                    session.scored_at = step
                    numbers = {"loss": score.mean_loss, "error_percent": score.error_percent, "examples": score.examples}
                    if not session.was_scored(step, split):
                        self._record(session, {"step": step, "split": split, **numbers})
        self._rate_began, self._rate_examples = time.perf_counter(), 0.0
        return None

    def _give_up_if_asked(self) -> None:
        if (number := self._asked.heard()) is not None:
            raise _Asked(number)

    def _look_at(self, step: int, metrics: Metrics) -> None:
        """Takes in the metrics of a dispatch that ended at ``step``."""
        fetched: Metrics = jax.device_get(metrics)
        for session, losses in zip(self._sessions, fetched.loss, strict=True):
            bad = np.flatnonzero(~np.isfinite(losses))
            if bad.size and session.diverged is None:
                session.diverged = NonFiniteLoss(step - len(losses) + int(bad[0]) + 1, session.checkpoints.newest())
        self._window.append(fetched)
        if step % self._log_every == 0:
            self._log(step)

    def _log(self, step: int) -> None:
        if not self._window:
            return
        # Since the last score: a call may return when its steps are done (XLA's loops on a GPU), so that of two calls the first is fetched
        # late, and the second at once.
        self._rate_examples += sum(float(np.sum(m.examples[0])) for m in self._window)
        rate = self._rate_examples / (time.perf_counter() - self._rate_began)
        for index, session in enumerate(self._sessions):
            if session.diverged is not None:
                continue
            loss, errors, examples = (
                sum(float(np.sum(getattr(m, name)[index], dtype=np.float64)) for m in self._window)
                for name in ("loss", "errors", "examples")
            )
            session.training_error_percent = 100 * errors / examples
            self._record(
                session,
                {
                    "step": step,
                    "split": "train",
                    "loss": loss / examples,
                    "error_percent": session.training_error_percent,
                    "learning_rate": float(self._window[-1].learning_rate[index, -1]),
                    "images_per_second": rate,
                    "seconds": session.earlier_seconds + self.seconds(),
                    **({"damaged_images_replaced": self._feed.replaced} if self._feed.replaced else {}),
                },
            )
        self._window = []

    def _record(self, session: Session, record: Record) -> None:
        session.writer.write(record)
        self._progress.update(record if len(self._sessions) == 1 else record | {"seed": session.seed})


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every
