"""Run directory: the experiment, its metrics and its result."""

import contextlib
import errno
import functools
import importlib.metadata
import json
import math
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from resnet_jax import distributed, models
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.evaluation import exact, protocols
from resnet_jax.evaluation.exact import Score
from resnet_jax.models import components
from resnet_jax.models.components import Factory, parts
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training import config
from resnet_jax.training import program as program_lib
from resnet_jax.training.checkpoint import Checkpoints
from resnet_jax.training.config import Data, Experiment
from resnet_jax.training.program import Program
from resnet_jax.training.step import TrainState
from resnet_jax.weights.card import Card, View
from resnet_jax.weights.loading import Pretrained

Record = dict[str, Any]


class Workdir:
    """Directory with ``experiment.json``, ``environment.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/`` and ``result.json``.

    A run that diverged has ``diverged.json`` with the same fields in place of ``result.json``.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.experiment_file = self.path / "experiment.json"
        self.environment_file = self.path / "environment.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.result_file = self.path / "result.json"
        self.diverged_file = self.path / "diverged.json"
        self.checkpoints = self.path / "checkpoints"
        self._lock_file = self.path / "run.lock"

    @contextlib.contextmanager
    def claimed(
        self, experiment: Experiment, seed: int, *, say: Callable[[str], None]
    ) -> Iterator[None]:
        """Claim the directory and lock it while entered, until process 0 ends; readers need no lock. Collective.

        Raises:
          UserError: as ``claim``; another run holds the lock; the processes do not share the path.
        """
        with contextlib.ExitStack() as stack:

            def lock_and_claim() -> None:
                self.check(experiment, seed)
                stack.callback(self._lock(say).release)
                self.claim(experiment, seed)

            distributed.by_first(lock_and_claim)
            if distributed.anyone(not self._is_shared()):
                raise UserError(
                    f"not all processes find {self.path}: use a --workdir that they share"
                )
            yield

    def _lock(self, say: Callable[[str], None]) -> filelock.BaseFileLock:
        lock = filelock.FileLock(self._lock_file, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"{self.path} is in use by {self._holder()}: wait for it, stop it, or use another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise self._unwritable(error) from error
            say(
                f"{self.path} cannot be locked ({error.strerror}): make sure that no other run uses it"
            )
        return lock

    def _holder(self) -> str:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            holder = json.loads(self.environment_file.read_text())["process"]
            return (
                f"another run, process {holder['pid']} on {holder['host']} since {holder['since']}"
            )
        return "another run"

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.path} cannot be written ({error.strerror}): use another --workdir")

    def _is_shared(self) -> bool:
        """Return whether this process finds the files of process 0, which NFS may delay by seconds."""
        until = time.monotonic() + 30
        while not self.experiment_file.exists():
            if time.monotonic() > until:
                return False
            time.sleep(1)
        return True

    def claim(self, experiment: Experiment, seed: int) -> None:
        """Make the directory this run's, or verify that it is. Raises UserError as ``check``, or if that fails."""
        self.check(experiment, seed)
        identity = config.identity(experiment, seed)
        text = {"fingerprint": config.fingerprint(identity), "identity": identity}
        text |= {"experiment": config.resolve(experiment), "seed": seed}
        process = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.experiment_file.exists():
                write_json(self.experiment_file, text)
            write_json(self.environment_file, describe() | {"process": process})
        except OSError as error:
            raise self._unwritable(error) from error

    def check(self, experiment: Experiment, seed: int) -> None:
        """Raise UserError if the directory holds another experiment or seed, or something else."""
        if self.experiment_file.exists():
            theirs = self.read_experiment_file()["identity"]
            if fields := "\n  ".join(config.differences(config.identity(experiment, seed), theirs)):
                raise UserError(
                    f"{self.path} holds another run; use another --workdir, or delete it. Fields that differ:\n  {fields}"
                )
        elif self.path.is_dir() and any(path != self._lock_file for path in self.path.iterdir()):
            raise UserError(
                f"{self.path} is not empty and holds no run (no experiment.json): use another --workdir"
            )

    def read_experiment_file(self) -> dict[str, Any]:
        """Read ``experiment.json``. Raises UserError if it is missing or corrupt."""
        if not self.experiment_file.is_file():
            raise UserError(
                f"{self.path} is not a run: it has no experiment.json. 'resnet-jax train' writes runs"
            )
        try:
            text = json.loads(self.experiment_file.read_text())
            return {name: text[name] for name in ("fingerprint", "identity", "experiment", "seed")}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.experiment_file} is corrupt: {error!r}") from error

    def experiment(self) -> tuple[Experiment, int]:
        """Return the experiment and its seed."""
        text = self.read_experiment_file()
        return config.restore(Experiment, text["experiment"]), text["seed"]

    def records(self) -> list[Record]:
        """Return the records of ``metrics.jsonl``, without a last line that a kill cut short."""
        if not self.metrics_file.exists():
            return []
        try:
            return [
                json.loads(line)
                for line in self.metrics_file.read_text().splitlines()
                if line.endswith("}")
            ]
        except ValueError as error:
            raise UserError(f"{self.metrics_file} is corrupt: {error}") from None

    def result(self) -> Record | None:
        """Return the contents of ``result.json`` or ``diverged.json``; None before the run has ended."""
        for file in filter(Path.exists, (self.result_file, self.diverged_file)):
            try:
                return {**json.loads(file.read_text())}
            except (ValueError, TypeError):
                raise UserError(
                    f"{file} is corrupt: delete it, and the same command scores the last checkpoint again"
                ) from None
        return None


class MetricsWriter:
    """Appends records to ``metrics.jsonl`` and to TensorBoard event files, on process 0.

    A record has ``step``, ``split`` (train, test, ...) and numbers. The run continues after ``step``: earlier
    records are ``kept``, later ones are dropped. All methods raise UserError if a file cannot be written.
    """

    def __init__(self, workdir: Workdir, *, step: int):
        # All processes read before process 0 rewrites the file.
        distributed.wait("records are written")
        self.kept = [record for record in workdir.records() if record["step"] <= step]
        distributed.wait("records are read")
        self._file, self._directory, self._events = (
            workdir.metrics_file,
            workdir.path / "tensorboard",
            None,
        )
        if distributed.first():
            with self._reported(self._file):
                write_text(self._file, "".join(json.dumps(record) + "\n" for record in self.kept))
            with self._reported(self._directory):
                self._directory.mkdir(exist_ok=True)
                # SummaryWriter blocks forever on a full disk.
                self._events = EventsWriter(str(self._directory / "events"))
                # TensorBoard hides events of earlier files from this step on.
                self._events.write_event(Event(step=step + 1, file_version="brain.Event:2"))
                self._events.write_event(
                    Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
                )

    def write(self, record: Record) -> None:
        """Append a record."""
        if self._events is None:
            return
        with self._reported(self._file), self._file.open("a") as file:
            file.write(json.dumps(record) + "\n")
        with self._reported(self._directory):
            for name, value in record.items():
                if name not in ("step", "split"):
                    summary = scalar(f"{record['split']}/{name}", value)
                    self._events.write_event(
                        Event(step=record["step"], wall_time=time.time(), summary=summary)
                    )

    def close(self) -> None:
        """Flush and close the event file."""
        events, self._events = self._events, None
        if events is not None:
            with self._reported(self._directory):
                events.close()

    @contextlib.contextmanager
    def _reported(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{path} cannot be written ({error.strerror}): free some space or fix the cause, and repeat the command to continue"
            ) from error


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def contents(
    experiment: Experiment,
    seed: int,
    info: DatasetInfo,
    records: Sequence[Record],
    scores: Mapping[str, Score] | None = None,
    training_error_percent: float = 100.0,
    **values: Any,
) -> dict[str, Any]:
    """Returns the contents of ``result.json``, or of ``diverged.json`` without scores. Errors in percent, times in seconds.

    Args:
      records: contents of ``metrics.jsonl``.
      scores: of the last step by split; ``train`` where the experiment asks for it.
      training_error_percent: of the last record of augmented batches.
      **values: further fields.
    """
    count, top5 = info.examples[experiment.data.test_split], info.num_classes > exact.TOP
    # A diverged network has an error of 100 %.
    test = Score(count, math.nan, count, count) if scores is None else scores["test"]
    training = scores.get("train") if scores else None
    test_errors, validation = (
        {record["step"]: record["error_percent"] for record in records if record["split"] == split}
        for split in ("test", "validation")
    )
    # The earliest of equal errors, as early stopping would choose.
    selected = min(
        (step for step in validation if step in test_errors),
        key=lambda step: (validation[step], step),
        default=None,
    )
    measured = "all training images, last step" if training else "the last augmented batches"
    identity = config.identity(experiment, seed)
    return {
        "experiment": experiment.name,
        # Of the last step: neither the best over training nor selected.
        "value": test.error_percent,
        "metric": "top-1 error, percent",
        "statistic": "single",
        "split": experiment.data.test_split,
        "examples": test.examples,
        "top5_error_percent": test.top5_error_percent if top5 else None,
        # Selected on the images that it is an error of.
        "best_over_training": min(test_errors.values(), default=100.0),
        # At the step of the lowest validation error.
        "selected_on_validation": None if selected is None else test_errors[selected],
        "training_error_percent": training.error_percent if training else training_error_percent,
        "training_error_of": "a network that diverged" if scores is None else measured,
        "diverged_at_step": None,
        "protocol": protocol(experiment, info),
        "model": config.resolve(experiment.model),
        "seed": seed,
        "steps": experiment.steps,
        "parameters": models.count(experiment.model).parameters,
        # Training and evaluation over all sessions.
        **dict.fromkeys(("compile_seconds", "seconds", "state_digest")),
        "fingerprint": config.fingerprint(identity),
        "group": config.group(identity),
        "commit": commit(),
        "versions": versions(),
        "device": devices(),
        **values,
    }


def protocol(experiment: Experiment, info: DatasetInfo) -> dict[str, Any]:
    """Returns the circumstances of a score as named fields."""
    data, optimizer, schedule, loss = (
        experiment.data,
        experiment.optimizer,
        experiment.schedule,
        experiment.loss,
    )
    height, width, _ = experiment.model.input_shape
    view = (
        protocols.parse(experiment.evaluation.protocol)
        if experiment.evaluation.protocol
        else protocols.Protocol()
    )
    training_images = info.examples["train"] - data.validation_examples
    smoothing = f"label smoothing {loss.smoothing:g}" if loss.smoothing else ""
    # Beyond the recipes of the residual papers; omitted where empty.
    others = {
        "optimizer": optimizer.rule if optimizer.rule != "sgd" else "",
        "clip": optimizer.clip,
        "schedule": "cosine" if schedule.cosine_steps else "",
        "loss": f"{loss.kind if loss.kind != 'softmax' else ''} {smoothing}".strip(),
        "initial_weights": experiment.start.digest if experiment.start.file else "",
    }
    return {
        "dataset": info.name,
        "dataset_version": info.version,
        "training_images": training_images,
        "validation_images": data.validation_examples,
        "test_images": info.examples[data.test_split],
        "steps": experiment.steps,
        "epochs": round(experiment.steps * experiment.batch_size / training_images, 2),
        "batch_size": experiment.batch_size,
        **_normalization(experiment),
        "padding": "explicit symmetric",
        "preprocessing": data.normalization,
        "augmentation": _augmentation(data),
        "view": view.view(height, width),
        "selection": "last step",
        "learning_rate": schedule.learning_rate,
        "momentum": optimizer.momentum,
        "nesterov": optimizer.nesterov,
        "weight_decay": optimizer.weight_decay,
        "dtype": experiment.model.dtype,
        **{name: value for name, value in others.items() if value},
        "parameters": f"moving average, decay {optimizer.ema}" if optimizer.ema else "last step",
    }


def _augmentation(data: Data) -> str:
    def text(part: Factory | None) -> str:
        return (
            ""
            if part is None
            else getattr(part(), "described", "") or components.text(part, lambda cls: cls.__name__)
        )

    pad = f"pad {data.pad}, random crop" if data.pad else ""
    flip = "random flip" if data.flip else ""
    repeats = f"{data.repeats} of each image" if data.repeats > 1 else ""
    operations = (
        pad,
        text(data.crop),
        text(data.policy),
        flip,
        text(data.color),
        text(data.erasing),
        text(data.mix),
        repeats,
    )
    return ", ".join(filter(None, operations)) or "none"


def _normalization(experiment: Experiment) -> dict[str, Any]:
    norm, options = parts(experiment.model.norm)
    if norm is not BatchNorm:
        return {
            "normalization": norm.__name__,
            "batch_norm_group": None,
            "batch_norm_statistics": None,
        }
    batches = experiment.evaluation.statistics_batches
    averaged = f"over {batches} batches of {experiment.batch_size} after training"
    return {
        "normalization": norm.__name__,
        "batch_norm_group": options.get("group_size", 0)
        or experiment.batch_size // experiment.optimizer.accumulation,
        "batch_norm_statistics": "true average" if batches else "moving average",
        "batch_norm_averaged": averaged if batches else f"momentum {options.get('momentum', 0.9)}",
    }


# Decoders and resampling filters differ by rounding between versions.
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorflow-datasets",
    "numpy",
    "grain",
    "simplejpeg",
    "pillow",
)


def commit() -> str | None:
    """Returns the commit of the checkout that this code runs from, with ``-dirty`` where files differ from it; None outside one."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        # An installed package inside another repository is not part of it.
        if not git("ls-files", "--error-unmatch", Path(__file__).name):
            return None
        return git("rev-parse", "HEAD") + (
            "-dirty" if git("status", "--porcelain", "--untracked-files=no") else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Returns the versions of Python, this package and those that affect numbers and speed."""
    numbers = {"python": platform.python_version()}
    for name in ("resnet-jax-lab", *PACKAGES):
        try:
            numbers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            numbers[name] = "not installed as a package"
    return numbers


def devices() -> dict[str, Any]:
    """Returns backend, kind and number of devices, and the cores of the host."""
    return {
        "backend": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "cores": os.cpu_count(),
        "processes": jax.process_count(),
    }


def describe() -> dict[str, Any]:
    """Returns commit, versions, devices and platform, for ``environment.json``."""
    return {
        "commit": commit(),
        "versions": versions(),
        "devices": devices(),
        "platform": platform.platform(),
    }


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
    checkpoints = Checkpoints(
        workdir.checkpoints,
        experiment.checkpointing,
        say=say,
        fingerprint=fingerprint,
        read_only=True,
    )
    like = (program.abstract_state, program_lib.abstract_preprocessing(experiment))
    kept = checkpoints.steps()
    restored = None
    if not step:
        restored = checkpoints.restore_newest(*like)
    elif step in kept and (state := checkpoints.restore(step, *like)):
        restored = (step, *state)
    if restored is None:
        steps = ", ".join(map(str, (0, *kept)))
        others = (
            f" of step {step}; there is {steps}. --checkpointing.keep-every K keeps every K-th"
            if step
            else ""
        )
        raise UserError(f"{run} has no whole checkpoint{others}")
    if step == 0:
        if experiment.start.file:
            raise UserError(
                f"{run} began with the weights in {experiment.start.file}: name that file in place of step 0"
            )
        restored = (0, program.init(jax.random.key(seed)), restored[2])
    return Trained(experiment, program, *restored)


def weights(run: Path, step: int | None = None) -> Pretrained:
    """Returns the weights that a run is evaluated with; see ``at``."""
    restored = at(run, step)
    params, batch_stats = jax.device_get(restored.state.scored())
    mean, deviation = (
        _tuples(np.asarray(constants, np.float64).tolist()) for constants in restored.preprocessing
    )
    name = restored.experiment.evaluation.protocol
    protocol = protocols.parse(name) if name else protocols.Protocol()
    resize, crop = protocol.resize, protocol.crop
    card = Card(
        architecture=restored.experiment.model,
        view=View(
            mean=mean,
            deviation=deviation,
            resize=resize or 0,
            crop=crop or 0,
            interpolation=protocol.interpolation,
        ),
        source=f"{run.resolve().name}, step {restored.step}",
        data=restored.experiment.data.name,
        counters={"": float(restored.step)},
    )
    return Pretrained(card, params, batch_stats)


def _tuples(value: list[Any]) -> Any:
    return tuple(_tuples(item) if isinstance(item, list) else item for item in value)
