"""The loop: dispatch steps, look at their metrics one dispatch later, score and save on time."""

import math
import time
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import numpy as np

from resnet_jax.data import augmentation, sources
from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.data.sources import DatasetInfo, Examples
from resnet_jax.evaluation.exact import Score
from resnet_jax.training import program as program_lib
from resnet_jax.training import state as state_lib
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
        """A record of ``metrics.jsonl`` was written."""
        ...

    def say(self, message: str) -> None:
        """Something worth a line."""
        ...


@dataclass(frozen=True)
class Outcome:
    """The end of a run."""

    state_digest: str
    scores: dict[str, Score]
    """Of the last step, by split; ``train`` where the experiment asks for it."""
    examples: dict[str, int]
    """Number of images trained on and scored, by split."""
    training_error_percent: float
    """Of the last window of batches, augmented, statistics of the batch."""
    compile_seconds: float
    """Of the first call of the training program in this session: near 0 where an earlier run of the process compiled it."""
    seconds: float
    """Training and scoring, over all sessions of the run; loading and the time between sessions not."""


def train(
    experiment: Experiment,
    seed: int,
    *,
    workdir: Workdir,
    info: DatasetInfo,
    progress: Progress,
    devices: int | None = None,
) -> Outcome:
    """Runs, or continues, an experiment in a claimed work folder until its last step.

    Raises:
      Interrupted: stopped by a signal, with the state saved.
      NonFiniteLoss: diverged.
    """
    splits = load(experiment, info)
    program = program_lib.compiled(experiment, devices)
    checkpoints = Checkpoints(workdir.checkpoints, keep=experiment.checkpointing.keep, say=progress.say)
    with Interruption() as interruption:
        restored = checkpoints.restore_newest(program.abstract_state, program_lib.abstract_preprocessing(experiment))
        if restored is None:
            step, state, preprocessing = 0, program.init(jax.random.key(seed)), splits.preprocessing
        else:
            step, state, preprocessing = restored
            progress.say(f"continuing after step {step}")
        writer = MetricsWriter(workdir, step=step)
        run = _Run(experiment, program, splits, preprocessing, checkpoints, writer, progress, interruption)
        progress.start(step, experiment.steps)
        try:
            state = run.steps(step, state)
            scores = run.last_scores or run.score(experiment.steps, state)
        finally:
            writer.close()
            checkpoints.close()
    return Outcome(
        state_digest=state_lib.digest(state),
        scores=scores,
        examples={"train": len(splits.train)} | {name: expected for name, (_, expected) in splits.scored.items()},
        training_error_percent=run.training_error_percent,
        compile_seconds=run.compile_seconds,
        seconds=run.seconds(),
    )


@dataclass(frozen=True)
class Splits:
    """The images of a run: what is trained on, what is scored (with its number according to the set's description), the constants."""

    train: Examples
    scored: dict[str, tuple[Examples, int]]
    preprocessing: Preprocessing


def load(experiment: Experiment, info: DatasetInfo) -> Splits:
    """Reads the images that an experiment trains on and scores, and measures what normalises them on the former."""
    data = experiment.data
    everything, test = sources.read(info, "train"), sources.read(info, data.test_split)
    kept = info.examples["train"] - data.validation_examples
    train = Examples(everything.images[:kept], everything.labels[:kept])
    scored = {"test": (test, info.examples[data.test_split])}
    if data.validation_examples:
        scored["validation"] = (Examples(everything.images[kept:], everything.labels[kept:]), data.validation_examples)
    if experiment.evaluation.training_images:
        scored["train"] = (train, kept)
    return Splits(train, scored, augmentation.fit(train.images, data.normalization))


class _Run:
    """The mutable side of one session of a run; everything that decides the result is in the state."""

    def __init__(
        self,
        experiment: Experiment,
        program: Program,
        splits: Splits,
        preprocessing: Preprocessing,
        checkpoints: Checkpoints,
        writer: MetricsWriter,
        progress: Progress,
        interruption: Interruption,
    ):
        self._experiment, self._program, self._splits, self._preprocessing = experiment, program, splits, preprocessing
        self._checkpoints, self._writer, self._progress, self._interruption = checkpoints, writer, progress, interruption
        self._data = program.place(splits.train, preprocessing)
        self._window: list[Metrics] = []
        self._log_every = max(1, experiment.evaluation.every // 10)
        earlier = [record for record in writer.kept if record["split"] == "train"]
        self.training_error_percent = earlier[-1]["error_percent"] if earlier else math.nan
        self._earlier_seconds = earlier[-1]["seconds"] if earlier else 0.0
        self._began = self._window_began = time.perf_counter()
        self.last_scores: dict[str, Score] | None = None
        self.compile_seconds = math.nan

    def seconds(self) -> float:
        return self._earlier_seconds + time.perf_counter() - self._began

    def steps(self, step: int, state: TrainState) -> TrainState:
        """Trains from ``step`` to the experiment's last."""
        experiment = self._experiment
        pending: tuple[int, Metrics] | None = None
        self.last_scores = None
        while step < experiment.steps:
            # A dispatch ends where something is due. Its metrics are fetched while the next one runs.
            due = min(_next(step, every) for every in (self._log_every, experiment.evaluation.every, experiment.checkpointing.every))
            count = min(_steps_per_dispatch(experiment), due - step, experiment.steps - step)
            called = time.perf_counter()
            with jax.transfer_guard("disallow"):
                state, metrics = self._program.train(state, self._data, count)
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
                state = self._program.settle(state, self._data)
            if scores:
                self.last_scores = self.score(step, state)
            if saves:
                self._checkpoints.save(step, state, self._preprocessing)
            if stop is not None and not last:
                self._checkpoints.wait()
                raise Interrupted(stop, step)
        return state

    def score(self, step: int, state: TrainState) -> dict[str, Score]:
        """Scores what is to be scored, and records it."""
        scores = {}
        for name, (examples, expected) in self._splits.scored.items():
            if name == "train" and step < self._experiment.steps:
                continue
            score = scores[name] = self._program.score(
                state, self._preprocessing, examples, expected, self._experiment.evaluation.batch_size
            )
            split = "train_scored" if name == "train" else name
            self._record(
                {"step": step, "split": split, "loss": score.mean_loss, "error_percent": score.error_percent, "examples": score.examples}
            )
        self._window_began = time.perf_counter()
        return scores

    def _look_at(self, step: int, metrics: Metrics) -> None:
        """Takes in the metrics of a dispatch that ended at ``step``."""
        fetched: Metrics = jax.device_get(metrics)
        bad = np.flatnonzero(~np.isfinite(fetched.loss))
        if bad.size:
            raise NonFiniteLoss(step - len(fetched.loss) + int(bad[0]) + 1, self._checkpoints.newest())
        self._window.append(fetched)
        if step % self._log_every == 0:
            self._log(step)

    def _log(self, step: int) -> None:
        if not self._window:
            return
        loss, errors, examples = (
            sum(float(np.sum(getattr(m, name), dtype=np.float64)) for m in self._window) for name in ("loss", "errors", "examples")
        )
        now = time.perf_counter()
        self.training_error_percent = 100 * errors / examples
        self._record(
            {
                "step": step,
                "split": "train",
                "loss": loss / examples,
                "error_percent": self.training_error_percent,
                "learning_rate": float(self._window[-1].learning_rate[-1]),
                "images_per_second": examples / (now - self._window_began),
                "seconds": self.seconds(),
            }
        )
        self._window, self._window_began = [], now

    def _record(self, record: Record) -> None:
        self._writer.write(record)
        self._progress.update(record)


def _next(step: int, every: int) -> int:
    return (step // every + 1) * every


def _steps_per_dispatch(experiment: Experiment) -> int:
    asked = experiment.execution.steps_per_dispatch
    if asked:
        return asked
    # On CPU a dispatch costs nothing beside a step, and a loop around the step compiles to slower code.
    return 1 if jax.default_backend() == "cpu" else 100
