"""The training loop: from an experiment and a seed to ``result.json``."""

import contextlib
import functools
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from resnet_jax import distributed
from resnet_jax.data import datasets
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import Interrupted, NonFiniteLoss, UserError
from resnet_jax.evaluation.exact import Score
from resnet_jax.training import feed, fine_tune, sharding
from resnet_jax.training import program as program_lib
from resnet_jax.training import run_dir as run_dir_lib
from resnet_jax.training import step as step_lib
from resnet_jax.training.checkpoint import Checkpoints
from resnet_jax.training.config import Experiment
from resnet_jax.training.feed import Feed
from resnet_jax.training.run_dir import MetricsWriter, Record, Workdir, write_json
from resnet_jax.training.step import Metrics, finite


class Interruption:
    """Context that records the first signal.

    A later Ctrl-C raises KeyboardInterrupt; other later signals are ignored.
    """

    requested: int | None = None

    def __enter__(self) -> "Interruption":
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._record) for number in signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = self.requested or number
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])


class StopRequest:
    """The first signal of any process, pending in all processes at the same step.

    Each call contributes to a maximum over all devices, which is read one call later, so that the
    host never waits.
    """

    def __init__(self, interruption: Interruption, mesh: Mesh):
        self._interruption, self._single = interruption, jax.process_count() == 1
        if not self._single:
            self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            self._maximum = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
            self._sent = self._send()

    def pending(self, step: int) -> Interrupted | None:
        """Returns the error of a signal received before the previous call, if any. Collective."""
        number = self._interruption.requested or 0
        if not self._single:
            received, self._sent = self._sent, self._send()
            number = int(received)
        return Interrupted(number, step) if number else None

    def raise_if_pending(self, step: int) -> None:
        """Raises the error, if any. Collective."""
        if error := self.pending(step):
            raise error

    def _send(self) -> Int[Array, ""]:
        local = np.full(jax.local_device_count(), self._interruption.requested or 0, np.int32)
        return self._maximum(jax.make_array_from_process_local_data(self._rows, local))


class Profile:
    """Trace of at least ``steps`` steps, in whole dispatches after the first, which compiles."""

    def __init__(self, folder: Path, steps: int, say: Callable[[str], None]):
        self._folder, self._left, self._say, self._running = folder, steps, say, False

    def after_dispatch(self, metrics: Metrics, steps: int) -> None:
        """Starts or stops the trace after a dispatch."""
        if self._running:
            self._left -= steps
            if self._left <= 0:
                jax.block_until_ready(metrics)
                self.close()
        elif self._left > 0:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def close(self) -> None:
        """Ends a trace of fewer steps than requested."""
        if self._running:
            jax.profiler.stop_trace()
            self._left, self._running = 0, False
            self._say(f"profile of the run in {self._folder}")
        elif self._left > 0:
            self._say("no step was profiled: the run has one dispatch, which compiles")


@runtime_checkable
class Progress(Protocol):
    """Callbacks of a run."""

    def start(self, step: int, steps: int) -> None:
        """Training starts at ``step``."""

    def advance(self, step: int) -> None:
        """Steps up to ``step`` were dispatched."""

    def update(self, record: Record) -> None:
        """A record was written to ``metrics.jsonl``."""

    def say(self, message: str) -> None:
        """A message for the user."""


def train(
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
    """Trains an experiment, or continues it, and returns the contents of ``result.json``.

    Args:
      seed: of initialization, data order and augmentation.
      workdir: run directory; one of another experiment or seed is rejected.
      data_dir: directory that is searched first for prepared data sets.
      devices, fsdp: see ``sharding.make``.

    Raises:
      UserError: for invalid input, before anything is compiled or written; for a failed save.
      NonFiniteLoss: the run diverged, now or earlier.
      Interrupted: a signal stopped the run; its state is saved.
    """
    info = datasets.describe(experiment.data.name, data_dir)
    experiment.check(info, sharding.make(devices, fsdp=fsdp).size)
    feed.check(experiment, info)
    weights = fine_tune.load(experiment)
    program = program_lib.compiled(experiment, devices, fsdp)
    run_dir, evaluation, last_step = Workdir(workdir), experiment.evaluation, experiment.steps
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_dir.claimed(experiment, seed, say=progress.say))
        fingerprint = run_dir.read_experiment_file()["fingerprint"]
        checkpoints = Checkpoints(
            run_dir.checkpoints, experiment.checkpointing, say=progress.say, fingerprint=fingerprint
        )
        if (finished := run_dir.result()) is not None:
            progress.say(f"{run_dir.path} is finished; nothing to do")
            if finished["diverged_at_step"] is not None:
                raise NonFiniteLoss(finished["diverged_at_step"], checkpoints.newest())
            return finished
        stop = StopRequest(stack.enter_context(Interruption()), program.mesh)

        # The newest intact checkpoint, or a new state.
        stack.enter_context(_closing(checkpoints))
        restored = checkpoints.restore_newest(
            program.abstract_state, program_lib.abstract_preprocessing(experiment)
        )
        if restored is not None:
            step, state, constants = restored
            progress.say(f"continuing after step {step}")
        else:
            step, state = 0, program.init(jax.random.key(seed))
            constants = fine_tune.preprocessing(experiment, weights)
            constants = constants or feed.constants(experiment, info)
            if weights is not None:
                state = fine_tune.begun(state, experiment, weights)
        constants = program.put(constants)
        batches = stack.enter_context(_closing(Feed(experiment, info, program.mesh, seed, step)))
        splits = feed.scored(experiment, info)
        if profile is not None:
            stack.callback(profile.close)

        # The loop. A dispatch ends where a record, a score or a checkpoint is due.
        log = _Log(experiment, seed, info, run_dir, step, batches, progress)
        stack.enter_context(_closing(log))
        ends = log.every, evaluation.every, experiment.checkpointing.every
        most = 1 if experiment.data.crop is not None else experiment.execution.steps_a_call()
        scores: dict[str, Score] = {}
        saved, pending = step, None
        progress.start(step, last_step)
        while True:
            # All processes receive the request at the same step.
            interrupted, last = stop.pending(step), step == last_step
            saving = step > saved and (
                bool(interrupted) or last or step % experiment.checkpointing.every == 0
            )
            # Also a score that an earlier session did not complete.
            scoring = last or (
                step > 0
                and step % evaluation.every == 0
                and not log.has_scores(step, splits.keys() - {"train"})
            )
            if pending and (saving or scoring):
                # No metrics window crosses a checkpoint, and nothing non-finite is scored or saved.
                log.add(*pending, checkpoints)
                log.write_training(step)
                pending = None
                recomputed = batches.statistics_batches(step)
                state = program.recompute_statistics(state, recomputed, constants)
                if not finite(state):
                    raise log.diverged(step, checkpoints, "the update")
            test_error = None
            if scoring and not interrupted:
                between = functools.partial(stop.raise_if_pending, step)
                try:
                    for name, (images, count) in splits.items():
                        if name != "train" or last:
                            data = images(), count, evaluation.batch_size
                            scores[name] = program.score(state, constants, *data, between)
                            log.write_score(step, name, scores[name])
                    test_error = scores["test"].error_percent
                except Interrupted as error:
                    interrupted = error
                log.restart_rate()
            if saving or (interrupted and step > saved):
                # After the score that ranks checkpoints.
                checkpoints.save(step, state, constants, test_error)
                saved = step
            if interrupted:
                checkpoints.wait()
                raise interrupted
            if last:
                break
            count = min(most, last_step - step, *(every - step % every for every in ends))
            data = batches.next()
            dispatched = time.perf_counter()
            with jax.transfer_guard("disallow"):
                state, metrics = program.train(state, data, constants, count)
            if log.compile_seconds is None:
                log.restart_rate(dispatched)
            if pending:
                # One dispatch late, so that the devices never wait for the host.
                log.add(*pending, checkpoints)
            step += count
            pending = step, metrics
            progress.advance(step)
            if profile is not None:
                profile.after_dispatch(metrics, count)
            checkpoints.check()

        # After the last checkpoint and all records are on disk.
        log.close()
        checkpoints.wait()
        return log.write_result(scores, step_lib.digest(state))


_T = TypeVar("_T", bound=Any)


@contextlib.contextmanager
def _closing(resource: _T) -> Iterator[_T]:
    """Closes at the end, but not after an error in one of several processes: the others wait."""
    try:
        yield resource
    except BaseException as error:
        if jax.process_count() == 1 or isinstance(error, Interrupted | NonFiniteLoss | UserError):
            resource.close()
        raise
    resource.close()


class _Log:
    """Records of a run from its last saved ``step`` on, and its result."""

    def __init__(
        self,
        experiment: Experiment,
        seed: int,
        info: DatasetInfo,
        run_dir: Workdir,
        step: int,
        batches: Feed,
        progress: Progress,
    ):
        self._contents = functools.partial(run_dir_lib.contents, experiment, seed, info)
        self._run_dir, self._batches, self._progress = run_dir, batches, progress
        self._writer = MetricsWriter(run_dir, step=step)
        self._records: list[Record] = list(self._writer.kept)
        training = [record for record in self._records if record["split"] == "train"]
        last = training[-1] if training else {"error_percent": math.nan, "seconds": 0.0}
        self._training_error_percent: float = last["error_percent"]
        self.every = max(1, experiment.evaluation.every // 10)
        """Steps between training records."""
        self.compile_seconds: float | None = None
        self._window: list[Metrics] = []
        self._rate_started, self._rate_examples = time.perf_counter(), 0.0
        # As if all sessions were one.
        self._started = self._rate_started - last["seconds"]

    def restart_rate(self, dispatched: float | None = None) -> None:
        """Starts a new image rate: after an evaluation, or the first dispatch, which compiles."""
        self._rate_started, self._rate_examples = time.perf_counter(), 0.0
        if dispatched is not None:
            self.compile_seconds = round(self._rate_started - dispatched, 2)

    def add(self, step: int, metrics: Metrics, checkpoints: Checkpoints) -> None:
        """Adds the metrics of a dispatch that ended at ``step``, and writes a record that is due.

        Raises:
          NonFiniteLoss: for a non-finite loss.
        """
        fetched: Metrics = jax.device_get(metrics)
        bad = np.flatnonzero(~np.isfinite(fetched.loss))
        if bad.size:
            first = step - len(fetched.loss) + int(bad[0]) + 1
            raise self.diverged(first, checkpoints, "the loss")
        self._window.append(fetched)
        if step % self.every == 0:
            self.write_training(step)

    def write_training(self, step: int) -> None:
        """Writes the mean metrics since the last training record."""
        if not self._window:
            return
        sums = (
            sum(float(np.sum(values, dtype=np.float64)) for values in column)
            for column in zip(*(metrics[:3] for metrics in self._window), strict=True)
        )
        loss, errors, examples = sums
        # Over all records since the last evaluation: dispatches can end late or at once.
        self._rate_examples += examples
        self._training_error_percent = 100 * errors / examples
        now = time.perf_counter()
        record = {
            "step": step,
            "split": "train",
            "loss": loss / examples,
            "error_percent": self._training_error_percent,
            "learning_rate": float(self._window[-1].learning_rate[-1]),
            "images_per_second": self._rate_examples / (now - self._rate_started),
            "seconds": now - self._started,
        }
        if self._batches.replaced:
            record["damaged_images_replaced"] = self._batches.replaced
        self._window = []
        self._write(record)

    def write_score(self, step: int, split: str, score: Score) -> None:
        """Writes a score, unless an earlier session did."""
        if not self.has_scores(step, [split]):
            record = {"step": step, "split": "train_scored" if split == "train" else split}
            record |= {"loss": score.mean_loss, "error_percent": score.error_percent}
            self._write(record | {"examples": score.examples})

    def has_scores(self, step: int, splits: Iterable[str]) -> bool:
        """Returns whether the scores of a step are written."""
        written = {
            record["split"].removesuffix("_scored")
            for record in self._records
            if record["step"] == step and "examples" in record
        }
        return written >= set(splits)

    def write_result(self, scores: Mapping[str, Score], state_digest: str) -> dict[str, Any]:
        """Writes ``result.json``. Collective."""
        return self._write_result(
            self._run_dir.result_file,
            scores=scores,
            training_error_percent=self._training_error_percent,
            state_digest=state_digest,
            compile_seconds=self.compile_seconds,
            seconds=round(time.perf_counter() - self._started, 2),
        )

    def diverged(self, step: int, checkpoints: Checkpoints, what: str) -> NonFiniteLoss:
        """Writes ``diverged.json``, and returns the error. Collective."""
        checkpoints.wait()  # The newest may still be in the background.
        self._write_result(self._run_dir.diverged_file, diverged_at_step=step)
        return NonFiniteLoss(step, checkpoints.newest(), what)

    def _write_result(self, file: Path, **values: Any) -> dict[str, Any]:
        result = self._contents(self._records, **values)
        if distributed.first():
            write_json(file, result)
        distributed.wait("the result is written")
        return result

    def close(self) -> None:
        """Flushes the files."""
        self._writer.close()

    def _write(self, record: Record) -> None:
        self._records.append(record)
        self._writer.write(record)
        self._progress.update(record)
