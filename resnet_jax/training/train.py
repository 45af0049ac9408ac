"""The training loop: from an experiment and a seed to ``result.json``."""

import contextlib
import functools
import itertools
import signal
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int

from resnet_jax import distributed
from resnet_jax.data import augment_device, datasets
from resnet_jax.data import stream as stream_lib
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.augment_host import CenterCrop
from resnet_jax.data.datasets import DatasetInfo, Examples
from resnet_jax.data.stream import Rows, Stream
from resnet_jax.errors import CALLBACK, Interrupted, NonFiniteLoss, Seed, UserError, check
from resnet_jax.evaluation import protocols
from resnet_jax.evaluation.exact import Score
from resnet_jax.training import fine_tune, sharding
from resnet_jax.training import loggers as loggers_lib
from resnet_jax.training.checkpoint import Checkpoints, with_checksum
from resnet_jax.training.config import HELD_OUT, Experiment
from resnet_jax.training.loggers import Callback, Captioned, Logger, Observers, Run
from resnet_jax.training.run_dir import MetricsWriter, Record, Workdir, contents, write_json
from resnet_jax.training.sharding import Program
from resnet_jax.training.step import (
    Batch,
    Metrics,
    Teacher,
    TrainState,
    augmentation_key,
    batch_indices,
    digest,
    finite,
)
from resnet_jax.weights.loading import Pretrained

Part = tuple[str, int, int]
"""Split, first example, number of examples."""
# Images that measure the constants of a streamed set: the mean is within 1/100 of a deviation.
_MEASURED = 10_000


class Interruption:
    """Records the first signal. A later Ctrl-C raises KeyboardInterrupt."""

    requested = 0

    def __enter__(self) -> "Interruption":
        signals = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
        self._before = {number: signal.signal(number, self._record) for number in signals}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def by_callback(self) -> None:
        self.requested = self.requested or CALLBACK

    def _record(self, number: int, _: FrameType | None) -> None:
        self.requested = self.requested or number
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])


class StopRequest(Interruption):
    """Signal to any process, pending in all at the same step."""

    def __init__(self, mesh: Mesh):
        self._batch = sharding.batch(mesh)
        self._maximum = jax.jit(jnp.max, out_shardings=sharding.replicated(mesh))
        self._sent = self._send() if jax.process_count() > 1 else None

    def pending(self, step: int) -> Interrupted | None:
        """Returns the error of a signal, if any. Collective."""
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
    """Traces at least ``steps`` steps, in whole dispatches after the first, which compiles."""

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
            self._running = False
            jax.profiler.stop_trace()
            self._say(f"profile of the run in {self._folder}")
        elif self._left > 0:
            self._say("no step was profiled: the run has one dispatch, which compiles")


def train(
    experiment: Experiment,
    seed: int,
    run_dir: Path | str,
    *,
    callbacks: Sequence[Callback] = (),
    loggers: Sequence[str | Logger] = loggers_lib.DEFAULT,
    data_dir: str | None = None,
    devices: int | None = None,
    fsdp: int = 1,
    profile_steps: int = 0,
) -> Record:
    """Trains an experiment, or continues it, and returns the contents of ``result.json``.

    Args:
      seed: of initialization, data order and augmentation.
      run_dir: run directory; one of another experiment or seed is rejected.
      callbacks: observers of the run, see ``loggers.Callback``.
      loggers: names of ``loggers.LOGGERS``, FILE.py:CLASS or objects, see ``loggers.Logger``.
      data_dir: directory that is searched first for prepared data sets.
      devices, fsdp: as of ``sharding.make``.
      profile_steps: steps to trace into ``profile/``; 0: none.

    Raises:
      UserError: for invalid input, before anything is compiled or written; for a failed save.
      NonFiniteLoss: the run diverged, now or earlier.
      Interrupted: by a signal or a callback; the state is saved.
    """
    check("seed", Seed, seed)
    check("profile_steps", int, profile_steps)
    observers = Observers(callbacks, list(map(loggers_lib.create, loggers)))
    info = datasets.describe(experiment.data.name, data_dir)
    experiment.check(info, sharding.make(devices, fsdp=fsdp).size)
    experiment, info = experiment.with_data(info)
    observers.message(info.notes)
    _check_stream(experiment, info)
    experiment, weights, teacher = _pretrained(experiment)
    program = sharding.compiled(experiment, devices, fsdp)
    teacher = program.put(teacher)
    kept, evaluation = experiment.checkpointing, experiment.evaluation
    parts = split_parts(experiment, info)
    # Errors of components and of the data are raised before the run directory is claimed.
    inputs = program.abstract_inputs(parts["train"][2])
    with sharding.report_trace_errors():
        program.train.eval_shape(*inputs, _next_dispatch(experiment, 0), teacher=teacher)
        program.trace_score(*inputs[1:], evaluation.batch_size)
    constants = _new_constants(experiment, info, folder := Workdir(run_dir))
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder.claimed(experiment, seed, say=observers.message))
        options = {"fingerprint": folder.read_experiment_file()["fingerprint"]}
        checkpoints = Checkpoints(folder.checkpoints, kept, say=observers.message, **options)
        if (finished := folder.result(observers.message)) is not None:
            observers.message(f"{folder.path} is finished; nothing to do")
            if (diverged := finished.get("diverged_at_step")) is not None:
                raise NonFiniteLoss(diverged, checkpoints.newest())
            return finished
        stack.enter_context(stop := StopRequest(program.mesh))
        stack.push(_closing(checkpoints))
        step, state, constants = _first_state(program, info, checkpoints, weights, seed, constants)
        batches = Feed(experiment, info, program.mesh, seed, step)
        stack.push(_closing(batches))
        profile = Profile(folder.path / "profile", profile_steps, observers.message)
        stack.callback(profile.close)
        view = folder.path, info, constants, stop.by_callback, step, state, images_of_step
        run = Run(experiment, seed, *view)
        stack.push(_closing(observers))
        log = _Log(folder, run, batches, checkpoints, observers)
        observers.start(run)
        scores, saved = dict[str, Score](), step
        while True:
            # All processes receive the request at the same step.
            interrupted, last = stop.pending(step), step == experiment.steps
            saving = step > saved and (interrupted or last or step % kept.every == 0)
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
                run.state = state
            test_error = None
            if scoring and not interrupted:
                between = functools.partial(stop.raise_if_pending, step)
                try:
                    for name, part in parts.items():
                        if name != "train" or (last and evaluation.training_images):
                            data = _evaluation_set(experiment, info, part)
                            options = part[2], evaluation.batch_size, between
                            scores[name] = program.score(state, constants, data, *options)
                            log.write_score(step, name, scores[name])
                    test_error = scores["test"].error_percent
                except Interrupted as error:
                    interrupted = error
                log.restart_rate()
            if saving or (interrupted and step > saved):
                # After the score that ranks checkpoints.
                checkpoints.save(step, state, constants, test_error, log.records)
                saved = step
            if interrupted:
                checkpoints.wait()
                raise interrupted
            if last:
                # After the last checkpoint and all records are on disk.
                checkpoints.wait()
                return log.finish(scores, digest(state))
            count, batch = _next_dispatch(experiment, step), batches.next()
            started = time.perf_counter()
            with jax.transfer_guard("disallow"):
                state, metrics = program.train(state, batch, constants, count, teacher=teacher)
            step += count
            run.step, run.state = step, state
            log.push(step, metrics, time.perf_counter() - started)
            observers.step(step, metrics)
            profile.after_dispatch(metrics, count)
            checkpoints.check()


def _pretrained(experiment: Experiment) -> tuple[Experiment, Pretrained | None, Teacher | None]:
    """Returns the experiment with its teacher's digest, its initial weights and the teacher."""
    weights, teacher = None, None
    if experiment.start.file:
        weights = fine_tune.load(experiment)
    if experiment.distillation.teacher:
        experiment, teacher = fine_tune.with_teacher(experiment)
    return experiment, weights, teacher


def _new_constants(
    experiment: Experiment, info: DatasetInfo, folder: Workdir
) -> Preprocessing | None:
    """Returns the constants of a new run, unless they are those of its weights."""
    is_new = not folder.checkpoints.exists() and experiment.data.normalization != "weights"
    return measure_constants(experiment, info) if is_new else None


def _first_state(
    program: Program,
    info: DatasetInfo,
    checkpoints: Checkpoints,
    weights: Pretrained | None,
    seed: int,
    constants: Preprocessing | None,
) -> tuple[int, TrainState, Preprocessing]:
    """Returns step, state and constants of the newest intact checkpoint or of a new run."""
    experiment = program.experiment
    shapes = program.abstract_state, program.abstract_preprocessing
    if restored := checkpoints.restore_newest(*shapes):
        step, state, constants = restored
    else:
        step, state = 0, program.init(jax.random.key(seed))
        if weights:
            state = fine_tune.initial_state(state, experiment, weights)
            constants = fine_tune.preprocessing(experiment, weights) or constants
    return step, state, program.put(constants or measure_constants(experiment, info))


def _record_every(experiment: Experiment) -> int:
    return max(1, experiment.evaluation.every // 10)


def _next_dispatch(experiment: Experiment, step: int) -> int:
    """Returns the number of steps of the next dispatch; 1 for streamed images.

    A dispatch ends where a record, a score or a checkpoint is due.
    """
    most = 1 if experiment.data.crop is not None else experiment.execution.steps_per_call()
    every = _record_every(experiment), experiment.evaluation.every, experiment.checkpointing.every
    return min(most, experiment.steps - step, *(end - step % end for end in every))


def _check_stream(experiment: Experiment, info: DatasetInfo) -> None:
    """Raises UserError for corrupt files and a low memory bound of a streamed set."""
    if experiment.data.crop is None:
        return
    for split in {part[0] for part in split_parts(experiment, info).values()}:
        datasets.check(info, split)
    rows = Rows(stream(experiment, info, seed=0), first_step=0, last_step=1, **_process_index())
    stream_lib.reading_ahead(rows, **vars(experiment.loading))
    rows[0]


def split_parts(experiment: Experiment, info: DatasetInfo) -> dict[str, Part]:
    """Returns ``test``, ``validation`` (if any) and ``train``."""
    test, held_out = experiment.data.test_split, experiment.data.validation_examples
    count = info.examples["train"] - held_out
    train, validation = ("train", 0, count), ("train", count, held_out)
    if test == HELD_OUT:
        return {"test": validation, "train": train}
    others = {"validation": validation} if held_out else {}
    return {"test": (test, 0, info.examples[test]), **others, "train": train}


def _resident(info: DatasetInfo, part: Part) -> Examples:
    split, first, count = part
    whole, rows = datasets.read(info, split), slice(first, first + count)
    return Examples(whole.images[rows], whole.labels[rows])


def _evaluation_set(
    experiment: Experiment, info: DatasetInfo, part: Part
) -> Examples | Iterable[Examples]:
    """Returns the images of a part; batches of a streamed set."""
    if experiment.data.crop is None:
        return _resident(info, part)
    split, first, count = part
    protocol = protocols.parse(experiment.evaluation.protocol)
    options = {"first": first, "count": count, **_process_index()}
    return protocols.batches(info, split, protocol, experiment.evaluation.batch_size, **options)


def training_set(experiment: Experiment, info: DatasetInfo) -> Examples:
    """Returns the training images of a device-resident set."""
    return _resident(info, split_parts(experiment, info)["train"])


def measure_constants(experiment: Experiment, info: DatasetInfo) -> Preprocessing:
    """Measures the normalization constants, of a streamed set on central crops of some images."""
    normalization = experiment.data.normalization
    if experiment.data.crop is None:
        images = training_set(experiment, info).images
        return augment_device.fit(images, normalization, info.name)
    size = experiment.model.input_shape[:2]
    crop = CenterCrop(shorter_side=round(max(size) * 8 / 7))
    source, (_, _, count) = datasets.encoded(info, "train"), split_parts(experiment, info)["train"]

    def load(index: int) -> np.ndarray | None:
        try:
            image = datasets.example(source, info, "train", index)["image"]
        except UserError:
            if experiment.data.damaged == "stop":
                raise
            return None
        return crop(image, size, np.random.default_rng(0))

    chosen = np.linspace(0, count - 1, min(count, _MEASURED), dtype=int).tolist()
    groups = (chosen[start : start + 64] for start in range(0, len(chosen), 64))
    loaded = (image for _, group in protocols.ahead(load, groups) for image in group)
    images = (image for image in loaded if image is not None)
    return augment_device.fit(images, normalization, info.name)


def stream(experiment: Experiment, info: DatasetInfo, seed: int) -> Stream:
    """Returns the streamed training images of a seed."""
    data = experiment.data
    assert data.crop
    return Stream(
        info=info,
        split="train",
        examples=split_parts(experiment, info)["train"][2],
        seed=seed,
        batch_size=experiment.batch_size,
        size=experiment.model.input_shape[:2],
        crop=data.crop,
        policy=data.policy,
        repeats=data.repeats,
        replaces_damaged=data.damaged == "replace",
    )


def images_of_step(
    experiment: Experiment,
    info: DatasetInfo,
    preprocessing: Preprocessing | None = None,
    *,
    seed: int,
    step: int,
    count: int,
) -> Captioned:
    """Returns the first ``count`` images of a training step, in [0, 1], and their classes."""
    preprocessing = preprocessing or measure_constants(experiment, info)
    key = jax.random.key(seed)
    if experiment.data.crop is None:
        examples = training_set(experiment, info)
        size = {"steps": 1, "batch_size": experiment.batch_size, "examples": len(examples)}
        order = np.asarray(batch_indices(jax.random.fold_in(key, 1), jnp.int32(step), **size)[0])
        images, labels = examples.images[order], examples.labels[order]
    else:
        # The randomness of an image depends on the whole batch.
        rows = Rows(stream(experiment, info, seed), first_step=step, last_step=step + 1)
        images, labels, _ = map(np.stack, zip(*(rows[i] for i in range(len(rows))), strict=True))
    augment = jax.jit(sharding.augmentation(experiment), static_argnums=4)
    key = augmentation_key(key, step)
    augmented, targets = augment(key, preprocessing, images, labels, info.num_classes)
    pixels = np.asarray(augmented[:count]) * preprocessing.deviation + preprocessing.mean
    pixels, names = np.clip(pixels, 0, 1), info.classes
    if targets is None:
        return pixels, [names[label] for label in labels[:count]]
    return pixels, [
        " + ".join(f"{row[i]:.2f} {names[i]}" for i in np.argsort(-row)[:2] if row[i] > 0)
        for row in np.asarray(targets[:count])
    ]


def _process_index() -> dict[str, int]:
    return {"process": jax.process_index(), "processes": jax.process_count()}


class Feed:
    """Training batches on the devices, or the whole device-resident set."""

    replaced = 0
    """Corrupt images that were replaced."""

    def __init__(self, experiment: Experiment, info: DatasetInfo, mesh: Mesh, seed: int, step: int):
        self._experiment, self._seed, self._sharding = experiment, seed, sharding.batch(mesh)
        self._stream = functools.cache(functools.partial(stream, experiment, info))
        self._resident = None
        if experiment.data.crop is None:
            whole: Any = training_set(experiment, info)
            whole = Batch(whole.images, whole.labels)
            self._resident = sharding.put(whole, sharding.replicated(mesh))
        self._batches = self._read(seed, step, experiment.steps)

    def next(self) -> Batch:
        return next(self._batches)

    def for_statistics(self, step: int) -> Iterator[Batch]:
        """Returns the data of ``Program.recompute_statistics`` after ``step`` steps."""
        count = self._experiment.evaluation.statistics_batches
        # Other batches than those of the steps.
        seed = np.random.SeedSequence([self._seed, 1]).generate_state(1)[0]
        return self._read(int(seed), step * count, (step + 1) * count)

    def close(self) -> None:
        self._batches.close()

    def _read(self, seed: int, first_step: int, last_step: int) -> Generator[Batch]:
        if self._resident is not None:
            yield from itertools.repeat(self._resident, last_step - first_step)
            return
        steps = {"first_step": first_step, "last_step": last_step}
        rows = Rows(self._stream(seed), **steps, **_process_index())
        put = functools.partial(jax.make_array_from_process_local_data, self._sharding)
        loaded = stream_lib.batches(rows, **vars(self._experiment.loading))
        with contextlib.closing(loaded):
            for batch in loaded:
                self.replaced += int(batch.replaced.sum())
                yield Batch(put(batch.images), put(batch.labels))


def _closing(resource: "Checkpoints | Feed | Observers") -> Callable[..., None]:
    """Closes at exit, but not after an error of one of several processes, which would wait."""

    def close(_: object, error: BaseException | None, __: object) -> None:
        ended = error is None or isinstance(error, Interrupted | NonFiniteLoss | UserError)
        if ended or jax.process_count() == 1:
            resource.close()

    return close


class _Log(MetricsWriter):
    """Records of a run and its result."""

    def __init__(
        self,
        run_dir: Workdir,
        run: Run,
        batches: Feed,
        checkpoints: Checkpoints,
        observers: Observers,
    ):
        records, say = checkpoints.records(run.step), observers.message
        super().__init__(run_dir, step=run.step, records=records, say=say)
        run.records = tuple(dict(record) for record in self.records)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(run.state.params))
        of_run = run.experiment, run.seed, run.info
        self._result = functools.partial(contents, *of_run, parameters=parameters)
        self._run_dir, self._every = run_dir, _record_every(run.experiment)
        self._batches, self._checkpoints, self._observers = batches, checkpoints, observers
        self.pending: tuple[int, Metrics] | None = None
        """End and metrics of the last dispatch."""
        self._window: list[Metrics] = []
        self._compile_seconds: float | None = None
        self.restart_rate()
        # As if the sessions of the run were one.
        seconds = max((record.get("seconds", 0.0) for record in self.records), default=0.0)
        self._started = self._rate_started - seconds

    def restart_rate(self) -> None:
        """Starts a new image rate."""
        self._rate_started, self._rate_examples = time.perf_counter(), 0.0

    def push(self, step: int, metrics: Metrics, seconds: float) -> None:
        # One dispatch late, so that the devices never wait for the host.
        self.fetch()
        self.pending = step, metrics
        if self._compile_seconds is None:
            self._compile_seconds = round(seconds, 2)
            self.restart_rate()

    def fetch(self) -> None:
        """Adds pending metrics and writes a due record. Raises NonFiniteLoss."""
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
        window = [np.concatenate(column) for column in zip(*self._window, strict=True)]
        loss, errors, examples = (float(np.sum(sums, dtype=np.float64)) for sums in window[:3])
        # Over all records since the last evaluation: dispatches can end late or at once.
        self._rate_examples += examples
        now = time.perf_counter()
        record = {
            "step": step,
            "split": "train",
            "loss": loss / examples,
            "error_percent": 100 * errors / examples,
            "learning_rate": float(window[3][-1]),
            "images_per_second": self._rate_examples / (now - self._rate_started),
            "seconds": now - self._started,
        }
        if self._batches.replaced:
            record["damaged_images_replaced"] = self._batches.replaced
        self._window = []
        self.write(record)

    def write_score(self, step: int, split: str, score: Score) -> None:
        # Unless an earlier session did.
        if split not in self.scores(step):
            record = {"step": step, "split": "train_scored" if split == "train" else split}
            record |= {"loss": score.mean_loss, "error_percent": score.error_percent}
            self.write(record | {"examples": score.examples})

    def scores(self, step: int) -> set[str]:
        """Returns the splits whose scores of a step are written."""
        scored = (r for r in self.records if r["step"] == step and "examples" in r)
        return {record["split"].removesuffix("_scored") for record in scored}

    def finish(self, scores: dict[str, Score], state_digest: str) -> Record:
        """Writes ``result.json``. Collective."""
        seconds = round(time.perf_counter() - self._started, 2)
        values = {"scores": scores, "state_digest": state_digest, "seconds": seconds}
        values["compile_seconds"] = self._compile_seconds
        return self._write_result(self._run_dir.result_file, **values)

    def diverged(self, step: int, what: str) -> NonFiniteLoss:
        """Writes ``diverged.json``, and returns the error. Collective."""
        self._checkpoints.wait()  # The newest may still be in the background.
        self._write_result(self._run_dir.diverged_file, diverged_at_step=step)
        return NonFiniteLoss(step, self._checkpoints.newest(), what)

    def _write_result(self, file: Path, **values: object) -> Record:
        result = self._result(self.records, **values)
        distributed.by_first(lambda: write_json(file, with_checksum(result)))
        self._observers.end(result)
        return result

    def write(self, record: Record) -> None:
        super().write(record)
        self._observers.record(record)
