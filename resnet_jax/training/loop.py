"""The loop: dispatch steps, look at their metrics one dispatch later, score and save on time."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from resnet_jax.data import augmentation, sources
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import DatasetInfo, Examples
from resnet_jax.evaluation.exact import Score
from resnet_jax.training.checkpoints import Checkpoints
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.interruption import Interrupted, Interruption
from resnet_jax.training.program import Program
from resnet_jax.training.state import TrainState
from resnet_jax.training.step import Metrics
from resnet_jax.training.workdir import MetricsWriter, Record, Workdir


class NonFiniteLoss(Exception):
    """Training diverged."""

    def __init__(self, step: int, checkpoint: int | None):
        saved = f"the last good checkpoint is that of step {checkpoint}" if checkpoint is not None else "no checkpoint was written before"
        super().__init__(
            f"the loss of step {step} is not finite: {saved}. Lower schedule.learning_rate, or warm up (schedule.warmup_steps), "
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


@dataclass(frozen=True)
class Splits:
    """The images of a run: what is trained on, what is scored (with its number according to the set's description), the constants."""

    train: Examples
    scored: dict[str, tuple[Examples, int]]
    preprocessing: Preprocessing


def load(experiment: Experiment, info: DatasetInfo, given: Preprocessing | None = None) -> Splits:
    """Reads the images that an experiment trains on and scores, and measures what normalises them on the former, unless it is ``given``."""
    data = experiment.data
    everything, test = sources.read(info, "train"), sources.read(info, data.test_split)
    kept = info.examples["train"] - data.validation_examples
    train = Examples(everything.images[:kept], everything.labels[:kept])
    scored = {"test": (test, info.examples[data.test_split])}
    if data.validation_examples:
        scored["validation"] = (Examples(everything.images[kept:], everything.labels[kept:]), data.validation_examples)
    if experiment.evaluation.training_images:
        scored["train"] = (train, kept)
    return Splits(train, scored, given or augmentation.fit(train.images, data.normalization))


class Session:
    """What one seed writes while it is trained from ``step`` on, and what is known of it."""

    def __init__(self, seed: int, workdir: Workdir, checkpoints: Checkpoints, step: int):
        checkpoints.drop_after(step)  # a seed that goes back with others trains what follows again
        self.seed, self.checkpoints = seed, checkpoints
        self.writer = MetricsWriter(workdir, step=step)
        earlier = [record for record in self.writer.kept if record["split"] == "train"]
        self.training_error_percent = earlier[-1]["error_percent"] if earlier else math.nan
        self.earlier_seconds = earlier[-1]["seconds"] if earlier else 0.0
        self.scores: dict[str, Score] = {}
        self.diverged: NonFiniteLoss | None = None

    def close(self) -> None:
        """Waits for what is being saved."""
        self.writer.close()
        self.checkpoints.wait()


class Loop:
    """The mutable side of a session of one or more seeds; everything that decides their results is in the states."""

    def __init__(
        self,
        experiment: Experiment,
        program: Program,
        splits: Splits,
        preprocessing: Preprocessing,
        sessions: Sequence[Session],
        progress: Progress,
        interruption: Interruption,
    ):
        self._experiment, self._program, self._splits, self._preprocessing = experiment, program, splits, preprocessing
        self._sessions, self._progress, self._interruption = sessions, progress, interruption
        self._data = program.place(splits.train, preprocessing)
        self._window: list[Metrics] = []
        self._log_every = max(1, experiment.evaluation.every // 10)
        self._began = self._window_began = time.perf_counter()
        self.compile_seconds = math.nan

    def seconds(self) -> float:
        """Since this session began."""
        return time.perf_counter() - self._began

    def run(self, step: int, states: TrainState) -> TrainState:
        """Trains from ``step`` to the experiment's last, or until every seed has diverged; scores the last step.

        Raises:
          Interrupted: asked to stop, and everything is saved.
        """
        experiment = self._experiment
        if step == experiment.steps:
            self._score(step, states)
        pending: tuple[int, Metrics] | None = None
        while step < experiment.steps and self._going():
            # A dispatch ends where something is due. Its metrics are fetched while the next one runs.
            due = min(_next(step, every) for every in (self._log_every, experiment.evaluation.every, experiment.checkpointing.every))
            count = min(_steps_per_dispatch(experiment), due - step, experiment.steps - step)
            called = time.perf_counter()
            with jax.transfer_guard("disallow"):
                states, metrics = self._program.train(states, self._data, count)
            if math.isnan(self.compile_seconds):  # the call returns when the program is compiled and begun
                self.compile_seconds = time.perf_counter() - called
            if pending:
                self._look_at(*pending)
            step, pending = step + count, (step + count, metrics)
            self._progress.advance(step)
            last = step == experiment.steps
            stop = self._interruption.requested
            saves = stop is not None or last or step % experiment.checkpointing.every == 0
            scores = last or step % experiment.evaluation.every == 0
            if saves or scores:
                # Nothing that is not finite is ever saved, and no window of metrics straddles a checkpoint.
                self._look_at(*pending)
                pending = None
                self._log(step)
                states = self._program.settle(states, self._data)
            if scores:
                self._score(step, states)
            if saves:
                self._save(step, states)
            if stop is not None and not last:
                for session in self._going():
                    session.checkpoints.wait()
                raise Interrupted(stop, step)
        return states

    def _going(self) -> list[Session]:
        return [session for session in self._sessions if session.diverged is None]

    def _save(self, step: int, states: TrainState) -> None:
        for session, state in zip(self._sessions, self._program.unstack(states), strict=True):
            if session.diverged is None:
                session.checkpoints.save(step, state, self._preprocessing)

    def _score(self, step: int, states: TrainState) -> None:
        """Scores what is to be scored, and records it."""
        for name, (examples, expected) in self._splits.scored.items():
            if (name == "train" and step < self._experiment.steps) or not self._going():
                continue
            found = self._program.score(states, self._preprocessing, examples, expected, self._experiment.evaluation.batch_size)
            split = "train_scored" if name == "train" else name
            for session, score in zip(self._sessions, found, strict=True):
                if session.diverged is None:
                    session.scores[name] = score
                    numbers = {"loss": score.mean_loss, "error_percent": score.error_percent, "examples": score.examples}
                    self._record(session, {"step": step, "split": split, **numbers})
        self._window_began = time.perf_counter()

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
        now = time.perf_counter()
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
                    "images_per_second": examples / (now - self._window_began),
                    "seconds": session.earlier_seconds + self.seconds(),
                },
            )
        self._window, self._window_began = [], now

    def _record(self, session: Session, record: Record) -> None:
        session.writer.write(record)
        self._progress.update(record if len(self._sessions) == 1 else record | {"seed": session.seed})


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every


def _steps_per_dispatch(experiment: Experiment) -> int:
    asked = experiment.execution.steps_per_dispatch
    if asked:
        return asked
    # On CPU a dispatch costs nothing beside a step, and a loop around the step compiles to slower code.
    return 1 if jax.default_backend() == "cpu" else 100
