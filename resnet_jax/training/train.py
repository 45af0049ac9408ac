"""The training loop: from an experiment and a seed to ``result.json``."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
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
    """Context that records the first signal. A later Ctrl-C raises KeyboardInterrupt; other later signals are ignored."""

    requested: int | None = None

    def __enter__(self) -> "Interruption":
        self._before = {
            number: signal.signal(number, self._record)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        }
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.requested = self.requested or number
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])


class Stopped(Exception):
    """A stop was requested during an evaluation."""

    def __init__(self, number: int):
        super().__init__(number)
        self.signal = number


class StopRequest:
    """The signal that any process received, pending in all processes at the same step.

    Each call of ``pending`` contributes to a maximum over all devices, which is read one call later, so that the host never waits.
    """

    def __init__(self, interruption: Interruption, mesh: Mesh):
        self._interruption, self._single = interruption, jax.process_count() == 1
        if not self._single:
            self._rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            self._maximum = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
            self._sent = self._send()

    def pending(self) -> int | None:
        """Returns the signal received before the previous call, if any. Collective."""
        if self._single:
            return self._interruption.requested
        received, self._sent = self._sent, self._send()
        return int(received) or None

    def raise_if_pending(self) -> None:
        """Raises Stopped where a stop was requested. Collective."""
        if (number := self.pending()) is not None:
            raise Stopped(number)

    def _send(self) -> Int[Array, ""]:
        local = np.full(jax.local_device_count(), self._interruption.requested or 0, np.int32)
        return self._maximum(jax.make_array_from_process_local_data(self._rows, local))


class Profile:
    """Traces whole dispatches of at least ``steps`` steps after the first one, which compiles, into ``folder``."""

    def __init__(self, folder: Path, steps: int, say: Callable[[str], None]):
        self._folder, self._left, self._say, self._running = folder, steps, say, False

    def after_dispatch(self, metrics: Any, steps: int) -> None:
        """Starts or stops the trace after a dispatch."""
        if self._running:
            self._left -= steps
            if self._left <= 0:
                self._stop(metrics)
        elif self._left > 0:
            jax.block_until_ready(metrics)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def close(self) -> None:
        """Ends a trace of fewer steps than requested."""
        if self._running:
            self._left = 0
            self._stop(None)
        elif self._left > 0:
            self._say("no step was profiled: the run has one dispatch, which compiles")

    def _stop(self, metrics: Any) -> None:
        jax.block_until_ready(metrics)
        jax.profiler.stop_trace()
        self._running = False
        self._say(f"profile of the run in {self._folder}")


_T = TypeVar("_T", bound=Any)


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
    """Trains an experiment, or continues it from its newest intact checkpoint, and returns the contents of ``result.json``.

    Args:
      seed: of initialization, data order and augmentation.
      workdir: run directory; one of another experiment or seed is rejected.
      data_dir: directory where prepared data sets are looked for first.
      devices, fsdp: see ``mesh.make``.

    Raises:
      UserError: for invalid input, before anything is compiled or written; for a run that cannot be saved.
      NonFiniteLoss: the run diverged, now or earlier.
      Interrupted: a signal stopped the run; its state is saved.
    """
    info = datasets.describe(experiment.data.name, data_dir)
    experiment.check(info, sharding.make(devices, fsdp=fsdp).size)
    feed.check(experiment, info)
    weights = fine_tune.load(experiment)
    program = program_lib.compiled(experiment, devices, fsdp)
    run_dir = Workdir(workdir)
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
        stack.enter_context(_recording_divergence(experiment, seed, info, run_dir))
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
            state = (
                fine_tune.initial_state(state, experiment, weights)
                if weights is not None
                else state
            )
            constants = fine_tune.preprocessing(experiment, weights) or feed.constants(
                experiment, info
            )
        constants = program.constants(constants)
        batches = stack.enter_context(
            _closing(feed.training(experiment, info, program, constants, seed, step))
        )
        splits = feed.scored(experiment, info)
        if profile is not None:
            stack.callback(profile.close)

        # The loop. A dispatch ends where a record, a score or a checkpoint is due.
        every = (
            max(1, experiment.evaluation.every // 10),
            experiment.evaluation.every,
            experiment.checkpointing.every,
        )
        log = stack.enter_context(_closing(_Log(run_dir, step, every[0], batches, progress)))
        progress.start(step, experiment.steps)
        scores: dict[str, Score] = {}
        scored_at, saved_at, pending = -1, step, None
        while True:
            # All processes receive the request at the same step.
            signal, last = stop.pending(), step == experiment.steps
            saves = step > saved_at and (
                signal is not None or last or step % experiment.checkpointing.every == 0
            )
            # Also a score that an earlier session did not complete.
            due = last or (
                step > 0
                and step % experiment.evaluation.every == 0
                and not log.has_scores(step, splits.keys() - {"train"})
            )
            if pending is not None and (saves or due):
                # No metrics window crosses a checkpoint, and nothing non-finite is scored or saved.
                log.add(*pending, checkpoints)
                log.write_training(step)
                pending = None
                state = program.recompute_statistics(state, batches.statistics_batches(step))
                if not finite(state):
                    raise _diverged(step, checkpoints, "the update")
            if due and signal is None:
                try:
                    for name, (images, number) in splits.items():
                        if name != "train" or last:
                            batch_size = experiment.evaluation.batch_size
                            scores[name] = program.score(
                                state,
                                constants,
                                images(),
                                number,
                                batch_size,
                                stop.raise_if_pending,
                            )
                            log.write_score(step, name, scores[name])
                    scored_at = step
                except Stopped as request:
                    signal = request.signal
                log.restart_rate()
            if saves or (signal is not None and step > saved_at):
                # After the score that ranks checkpoints.
                checkpoints.save(
                    step,
                    state,
                    constants,
                    scores["test"].error_percent if scored_at == step else None,
                )
                saved_at = step
            if signal is not None:
                checkpoints.wait()
                raise Interrupted(signal, step)
            if last:
                break
            count = min(
                batches.max_steps or experiment.execution.steps_a_call(),
                *(n - step % n for n in every),
                experiment.steps - step,
            )
            data = batches.next()
            dispatched = time.perf_counter()
            with jax.transfer_guard("disallow"):
                state, metrics = program.train(state, data, count)
            if log.compile_seconds is None:
                log.restart_rate(dispatched)
            if pending is not None:
                # One dispatch late, so that the devices never wait for the host.
                log.add(*pending, checkpoints)
            step += count
            pending = (step, metrics)
            progress.advance(step)
            if profile is not None:
                profile.after_dispatch(metrics, count)
            checkpoints.check()

        # After the last checkpoint and all records are on disk.
        log.close()
        checkpoints.wait()
        times = {"compile_seconds": log.compile_seconds, "seconds": round(log.seconds, 2)}
        digest = step_lib.digest(state)
        result = run_dir_lib.contents(
            experiment,
            seed,
            info,
            log.records,
            scores,
            log.training_error_percent,
            state_digest=digest,
            **times,
        )
        if distributed.first():
            write_json(run_dir.result_file, result)
        distributed.wait("the result is written")
        return result


@contextlib.contextmanager
def _closing(resource: _T) -> Iterator[_T]:
    """Closes at the end, but not after an error in one of several processes: closing waits for the others."""
    try:
        yield resource
    except BaseException as error:
        if jax.process_count() == 1 or isinstance(error, Interrupted | NonFiniteLoss | UserError):
            resource.close()
        raise
    resource.close()


@contextlib.contextmanager
def _recording_divergence(
    experiment: Experiment, seed: int, info: DatasetInfo, run_dir: Workdir
) -> Iterator[None]:
    """Writes ``diverged.json`` where training diverges."""
    try:
        yield
    except NonFiniteLoss as error:
        if distributed.first():
            result = run_dir_lib.contents(
                experiment, seed, info, run_dir.records(), diverged_at_step=error.step
            )
            write_json(run_dir.diverged_file, result)
        distributed.wait("the result is written")
        raise


def _diverged(step: int, checkpoints: Checkpoints, what: str = "the loss") -> NonFiniteLoss:
    # The newest checkpoint may still be in the background.
    checkpoints.wait()
    return NonFiniteLoss(step, checkpoints.newest(), what)


class _Log:
    """Records of a run from its last saved ``step`` on, with training metrics every ``every`` steps."""

    def __init__(self, run_dir: Workdir, step: int, every: int, batches: Feed, progress: Progress):
        self._writer, self._every, self._batches, self._progress = (
            MetricsWriter(run_dir, step=step),
            every,
            batches,
            progress,
        )
        self.records: list[Record] = list(self._writer.kept)
        last = next(
            (record for record in reversed(self.records) if record["split"] == "train"), None
        )
        self.training_error_percent: float = last["error_percent"] if last else math.nan
        self._earlier_seconds: float = last["seconds"] if last else 0.0
        self._window: list[Metrics] = []
        self._started = self._rate_started = time.perf_counter()
        self._rate_examples = 0.0
        self.compile_seconds: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds of training and evaluation over all sessions."""
        return self._earlier_seconds + time.perf_counter() - self._started

    def restart_rate(self, dispatched: float | None = None) -> None:
        """Starts a new image rate: after an evaluation, or after the first dispatch, which compiles."""
        self._rate_started, self._rate_examples = time.perf_counter(), 0.0
        if dispatched is not None:
            self.compile_seconds = round(self._rate_started - dispatched, 2)

    def add(self, step: int, metrics: Metrics, checkpoints: Checkpoints) -> None:
        """Adds the metrics of a dispatch that ended at ``step``; raises NonFiniteLoss or writes a record that is due."""
        fetched: Metrics = jax.device_get(metrics)
        bad = np.flatnonzero(~np.isfinite(fetched.loss))
        if bad.size:
            raise _diverged(step - len(fetched.loss) + int(bad[0]) + 1, checkpoints)
        self._window.append(fetched)
        if step % self._every == 0:
            self.write_training(step)

    def write_training(self, step: int) -> None:
        """Writes the mean metrics since the last training record."""
        if not self._window:
            return
        names = ("loss", "errors", "examples")
        loss, errors, examples = (
            sum(float(np.sum(getattr(m, name), dtype=np.float64)) for m in self._window)
            for name in names
        )
        # Over all records since the last evaluation: metrics of single dispatches can arrive late or at once.
        self._rate_examples += examples
        self.training_error_percent = 100 * errors / examples
        record = {
            "step": step,
            "split": "train",
            "loss": loss / examples,
            "error_percent": self.training_error_percent,
            "learning_rate": float(self._window[-1].learning_rate[-1]),
            "images_per_second": self._rate_examples / (time.perf_counter() - self._rate_started),
            "seconds": self.seconds,
        }
        self._window = []
        self._write(
            record
            | (
                {"damaged_images_replaced": self._batches.replaced}
                if self._batches.replaced
                else {}
            )
        )

    def write_score(self, step: int, split: str, score: Score) -> None:
        """Writes a score, unless an earlier session did."""
        if not self.has_scores(step, [split]):
            numbers = {
                "loss": score.mean_loss,
                "error_percent": score.error_percent,
                "examples": score.examples,
            }
            self._write(
                {"step": step, "split": "train_scored" if split == "train" else split, **numbers}
            )

    def has_scores(self, step: int, splits: Iterable[str]) -> bool:
        """Returns whether the scores of a step are written."""
        written = {
            record["split"].removesuffix("_scored")
            for record in self.records
            if record["step"] == step and "examples" in record
        }
        return written >= set(splits)

    def close(self) -> None:
        """Flushes the files."""
        self._writer.close()

    def _write(self, record: Record) -> None:
        self.records.append(record)
        self._writer.write(record)
        self._progress.update(record)
