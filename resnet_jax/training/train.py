"""The training loop: from an experiment and a seed to ``result.json``."""

import contextlib
import functools
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from resnet_jax import distributed
from resnet_jax.data import datasets
from resnet_jax.errors import Interrupted, NonFiniteLoss, UserError
from resnet_jax.evaluation.exact import Score
from resnet_jax.training import feed, fine_tune, sharding
from resnet_jax.training import program as program_lib
from resnet_jax.training.checkpoint import Checkpoints
from resnet_jax.training.config import Experiment
from resnet_jax.training.feed import Feed
from resnet_jax.training.run_dir import MetricsWriter, Record, Workdir, contents, write_json
from resnet_jax.training.step import Metrics, digest, finite


class Interruption:
    """Records the first signal. A later Ctrl-C raises KeyboardInterrupt, others are ignored."""

    requested = 0

    def __enter__(self) -> Any:
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._record) for number in signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _record(self, number: int, _: FrameType | None) -> None:
        self.requested = self.requested or number
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])


class StopRequest(Interruption):
    """Signal that any process received, pending in all processes at the same step."""

    def __init__(self, mesh: Mesh):
        self._batch = sharding.batch(mesh)
        self._maximum = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
        self._sent = self._send() if jax.process_count() > 1 else None

    def pending(self, step: int) -> Interrupted | None:
        """Returns the error of a signal, if any. Collective, as the next."""
        number = self.requested
        if self._sent is not None:
            # The maximum of the previous call, so that the host never waits.
            received, self._sent = self._sent, self._send()
            number = int(received)
        return Interrupted(number, step) if number else None

    def raise_if_pending(self, step: int) -> None:
        if error := self.pending(step):
            raise error

    def _send(self) -> Int[Array, ""]:
        local = np.full(jax.local_device_count(), self.requested, np.int32)
        return self._maximum(jax.make_array_from_process_local_data(self._batch, local))


class Profile:
    """Trace of at least ``steps`` steps, in whole dispatches after the first, which compiles."""

    def __init__(self, folder: Path, steps: int, say: Callable[[str], None]):
        self._folder, self._left, self._say, self._running = folder, steps, say, False

    def after_dispatch(self, metrics: Metrics, steps: int) -> None:
        if self._left <= 0:
            return
        jax.block_until_ready(metrics)
        if self._running:
            self._left -= steps
            if self._left <= 0:
                self.close()
        else:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def close(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._left, self._running = 0, False
            self._say(f"profile of the run in {self._folder}")
        elif self._left > 0:
            self._say("no step was profiled: the run has one dispatch, which compiles")


@runtime_checkable
class Progress(Protocol):
    """Callbacks: training starts, steps were dispatched, a record was written, a message."""

    def start(self, step: int, steps: int) -> None: ...
    def advance(self, step: int) -> None: ...
    def update(self, record: Record) -> None: ...
    def say(self, message: str) -> None: ...


def train(
    experiment: Experiment,
    seed: int,
    workdir: Path | str,
    *,
    progress: Progress,
    data_dir: str | None = None,
    devices: int | None = None,
    fsdp: int = 1,
    profile_steps: int = 0,
) -> dict[str, Any]:
    """Trains an experiment, or continues it, and returns the contents of ``result.json``.

    Args:
      seed: of initialization, data order and augmentation.
      workdir: run directory; one of another experiment or seed is rejected.
      data_dir: directory that is searched first for prepared data sets.
      devices, fsdp: as of ``sharding.make``.
      profile_steps: steps to trace into ``profile/``; 0: none.

    Raises:
      UserError: for invalid input, before anything is compiled or written; for a failed save.
      NonFiniteLoss: the run diverged, now or earlier.
      Interrupted: a signal stopped the run; its state is saved.
    """
    info = datasets.describe(experiment.data.name, data_dir)
    experiment.check(info, sharding.make(devices, fsdp=fsdp).size)
    feed.check(experiment, info)
    weights = fine_tune.load(experiment) if experiment.start.file else None
    program = program_lib.compiled(experiment, devices, fsdp)
    run_dir, evaluation = Workdir(workdir), experiment.evaluation
    with contextlib.ExitStack() as stack:
        stack.enter_context(run_dir.claimed(experiment, seed, say=progress.say))
        checkpoints = Checkpoints(
            run_dir.checkpoints,
            experiment.checkpointing,
            say=progress.say,
            fingerprint=run_dir.read_experiment_file()["fingerprint"],
        )
        if (finished := run_dir.result()) is not None:
            progress.say(f"{run_dir.path} is finished; nothing to do")
            if finished["diverged_at_step"] is not None:
                raise NonFiniteLoss(finished["diverged_at_step"], checkpoints.newest())
            return finished
        stop = stack.enter_context(StopRequest(program.mesh))

        # The newest intact checkpoint, or a new state.
        stack.push(_closing(checkpoints))
        restored = checkpoints.restore_newest(
            program.abstract_state, program_lib.abstract_preprocessing(experiment)
        )
        if restored is not None:
            step, state, constants = restored
            progress.say(f"continuing after step {step}")
        else:
            step, state, constants = 0, program.init(jax.random.key(seed)), None
            if weights:
                state = fine_tune.initial_state(state, experiment, weights)
                constants = fine_tune.preprocessing(experiment, weights)
            constants = constants or feed.constants(experiment, info)
        constants = program.put(constants)
        batches = Feed(experiment, info, program.mesh, seed, step)
        stack.push(_closing(batches))
        profile = Profile(run_dir.path / "profile", profile_steps, progress.say)
        stack.callback(profile.close)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        result = functools.partial(contents, experiment, seed, info, parameters=parameters)
        every = max(1, evaluation.every // 10)
        log = _Log(run_dir, result, step, every, batches, checkpoints, progress)
        stack.push(_closing(log))

        # The loop. A dispatch ends where a record, a score or a checkpoint is due.
        save_every, parts = experiment.checkpointing.every, feed.parts(experiment, info)
        ends = every, evaluation.every, save_every
        most = 1 if experiment.data.crop is not None else experiment.execution.steps_a_call()
        scores, saved = dict[str, Score](), step
        progress.start(step, experiment.steps)
        while True:
            # All processes receive the request at the same step.
            interrupted, last = stop.pending(step), step == experiment.steps
            saving = step > saved and (interrupted or last or step % save_every == 0)
            # Also scores that an earlier session did not complete.
            due = step > 0 and step % evaluation.every == 0
            scoring = last or (due and not log.scores(step) >= parts.keys() - {"train"})
            if log.pending and (saving or scoring):
                # No metrics window crosses a checkpoint, and nothing non-finite is scored or saved.
                log.fetch()
                log.write_training(step)
                state = program.recompute_statistics(state, batches.for_statistics(step), constants)
                if not finite(state):
                    raise log.diverged(step, "the update")
            test_error = None
            if scoring and not interrupted:
                between = functools.partial(stop.raise_if_pending, step)
                try:
                    for name, part in parts.items():
                        if name != "train" or (last and evaluation.training_images):
                            data = feed.examples(experiment, info, part)
                            options = part[2], evaluation.batch_size, between
                            scores[name] = program.score(state, constants, data, *options)
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
                # After the last checkpoint and all records are on disk.
                log.close()
                checkpoints.wait()
                return log.finish(scores, digest(state))
            count = min(most, experiment.steps - step, *(every - step % every for every in ends))
            batch, started = batches.next(), time.perf_counter()
            with jax.transfer_guard("disallow"):
                state, metrics = program.train(state, batch, constants, count)
            step += count
            log.push(step, metrics, time.perf_counter() - started)
            progress.advance(step)
            profile.after_dispatch(metrics, count)
            checkpoints.check()


def _closing(resource: "Checkpoints | Feed | _Log") -> Callable[..., None]:
    """Closes at exit, but not after an error in one of several processes: the others wait."""

    def close(_: Any, error: BaseException | None, __: Any) -> None:
        ended = error is None or isinstance(error, Interrupted | NonFiniteLoss | UserError)
        if ended or jax.process_count() == 1:
            resource.close()

    return close


class _Log:
    """Records of a run from its last saved ``step`` on, every ``every`` steps, and its result."""

    def __init__(
        self,
        run_dir: Workdir,
        result: Callable[..., dict[str, Any]],
        step: int,
        every: int,
        batches: Feed,
        checkpoints: Checkpoints,
        progress: Progress,
    ):
        self._run_dir, self._result, self._every = run_dir, result, every
        self._batches, self._checkpoints, self._progress = batches, checkpoints, progress
        self._writer = MetricsWriter(run_dir, step=step)
        self.pending: tuple[int, Metrics] | None = None
        """End and metrics of the last dispatch."""
        self._window: list[Metrics] = []
        self._compile_seconds: float | None = None
        self.restart_rate()
        # As if the sessions of the run were one.
        seconds = [record.get("seconds", 0.0) for record in self._writer.records]
        self._started = self._rate_started - max(seconds, default=0.0)

    def restart_rate(self) -> None:
        """Starts a new image rate: after an evaluation, or after compilation."""
        self._rate_started, self._rate_examples = time.perf_counter(), 0.0

    def push(self, step: int, metrics: Metrics, seconds: float) -> None:
        # One dispatch late, so that the devices never wait for the host.
        self.fetch()
        self.pending = step, metrics
        # The first dispatch compiles.
        if self._compile_seconds is None:
            self._compile_seconds = round(seconds, 2)
            self.restart_rate()

    def fetch(self) -> None:
        """Adds pending metrics, and writes a record that is due. Raises NonFiniteLoss."""
        if not self.pending:
            return
        step, metrics = jax.device_get(self.pending)
        self.pending = None
        (bad,) = np.nonzero(~np.isfinite(metrics.loss))
        if bad.size:
            raise self.diverged(step - len(metrics.loss) + int(bad[0]) + 1, "the loss")
        self._window.append(metrics)
        if step % self._every == 0:
            self.write_training(step)

    def write_training(self, step: int) -> None:
        if not self._window:
            return
        columns = zip(*(metrics[:3] for metrics in self._window), strict=True)
        loss, errors, examples = (
            float(sum(np.sum(values, dtype=np.float64) for values in column)) for column in columns
        )
        # Over all records since the last evaluation: dispatches can end late or at once.
        self._rate_examples += examples
        now = time.perf_counter()
        record = {
            "step": step,
            "split": "train",
            "loss": loss / examples,
            "error_percent": 100 * errors / examples,
            "learning_rate": float(self._window[-1].learning_rate[-1]),
            "images_per_second": self._rate_examples / (now - self._rate_started),
            "seconds": now - self._started,
        }
        if self._batches.replaced:
            record["damaged_images_replaced"] = self._batches.replaced
        self._window = []
        self._write(record)

    def write_score(self, step: int, split: str, score: Score) -> None:
        # Unless an earlier session did.
        if split not in self.scores(step):
            record = {"step": step, "split": "train_scored" if split == "train" else split}
            record |= {"loss": score.mean_loss, "error_percent": score.error_percent}
            self._write(record | {"examples": score.examples})

    def scores(self, step: int) -> set[str]:
        """Returns the splits whose scores of a step are written."""
        return {
            record["split"].removesuffix("_scored")
            for record in self._writer.records
            if record["step"] == step and "examples" in record
        }

    def finish(self, scores: dict[str, Score], state_digest: str) -> dict[str, Any]:
        """Writes ``result.json``. Collective."""
        return self._write_result(
            self._run_dir.result_file,
            scores=scores,
            state_digest=state_digest,
            compile_seconds=self._compile_seconds,
            seconds=round(time.perf_counter() - self._started, 2),
        )

    def diverged(self, step: int, what: str) -> NonFiniteLoss:
        """Writes ``diverged.json``, and returns the error. Collective."""
        self._checkpoints.wait()  # The newest may still be in the background.
        self._write_result(self._run_dir.diverged_file, diverged_at_step=step)
        return NonFiniteLoss(step, self._checkpoints.newest(), what)

    def _write_result(self, file: Path, **values: Any) -> dict[str, Any]:
        result = self._result(self._writer.records, **values)
        if distributed.is_first():
            write_json(file, result)
        distributed.wait("the result is written")
        return result

    def _write(self, record: Record) -> None:
        self._writer.write(record)
        self._progress.update(record)

    def close(self) -> None:
        self._writer.close()
