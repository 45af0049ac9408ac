"""Run directory: the experiment, its environment, its metrics and its result."""

import contextlib
import errno
import importlib.metadata
import json
import math
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import jax

from resnet_jax import distributed, terminal
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError, require
from resnet_jax.evaluation import exact, protocols
from resnet_jax.models import components
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training import config
from resnet_jax.training.checkpoint import (
    CORRUPT,
    Record,
    SaveFailed,
    fingerprints,
    parse_checked,
    with_checksum,
)
from resnet_jax.training.config import Data, Experiment

_REMEDY = "restore it, or repeat the command that trained it"


class Workdir:
    """The files of a run. ``diverged.json`` has the fields of ``result.json``."""

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
        """Claims the directory and locks it. Collective."""
        lock = filelock.FileLock(self._lock_file, timeout=0)

        def lock_and_claim() -> None:
            self.check(experiment, seed)
            self._acquire(lock, say)
            self.claim(experiment, seed, say)

        try:
            distributed.by_first(lock_and_claim)
            # NFS may delay the files of process 0 by seconds.
            end = time.monotonic() + 30
            while not (is_shared := self.experiment_file.exists()) and time.monotonic() < end:
                time.sleep(1)
            if distributed.anyone(not is_shared):
                raise UserError(f"{self.path} must be shared by all processes")
            with self._captured(say):
                yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _captured(self, say: Callable[[str], None]) -> Iterator[None]:
        """Sends what libraries write to a command's stderr, also in C++, to ``debug.log``."""
        if sys.stderr is not sys.__stderr__:
            yield
            return
        with _report_errors(self.path):
            log = (self.path / "debug.log").open("a")
        with log, os.fdopen(os.dup(2), "w", buffering=1) as terminal.err.file:
            os.dup2(log.fileno(), 2)
            try:
                yield
            except SaveFailed:
                say(f"messages of libraries are in {log.name}")
                raise
            finally:
                with contextlib.suppress(OSError):
                    sys.stderr.flush()
                os.dup2(terminal.err.file.fileno(), 2)
                terminal.err.file = sys.stderr

    def _acquire(self, lock: filelock.BaseFileLock, say: Callable[[str], None]) -> None:
        with _report_errors(self.path):
            try:
                lock.acquire()
            except filelock.Timeout:
                text = f"{self.path} is in use by another run"
                with contextlib.suppress(UserError, LookupError, TypeError):
                    process = _read(self.environment_file)["process"]
                    text += ", process {pid} on {host} since {since}".format(**process)
                raise UserError(f"{text}: use another --workdir") from None
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                    raise
                say(f"{self.path} cannot be locked ({error.strerror}): no other run may use it")

    def claim(self, experiment: Experiment, seed: int, say: Callable[[str], None] = print) -> None:
        """Writes ``experiment.json`` and ``environment.json``; raises UserError as ``check``."""
        is_written = self.check(experiment, seed)
        identity = config.identity(experiment, seed)
        run = {"fingerprint": config.fingerprint(identity), "identity": identity}
        run |= {"experiment": config.resolve(experiment), "seed": seed}
        since = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        process = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
        with _report_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        if not is_written:
            if self.experiment_file.exists():
                say(f"{self.experiment_file} was corrupt; it is written again")
            write_json(self.experiment_file, with_checksum(run))
        write_json(self.environment_file, describe() | {"process": process})

    def check(self, experiment: Experiment, seed: int) -> bool:
        """Raises UserError if the directory holds another run, or something else.

        Returns whether ``experiment.json`` is written and intact.
        """
        with _report_errors(self.path):
            for path in (self.path, *self.path.parents):
                is_dangling = path.is_symlink() and not path.exists()
                require(not is_dangling, f"{path} is a link to a directory that does not exist.")
            if self.checkpoints.exists() and not self.checkpoints.is_dir():
                raise UserError(f"{self.checkpoints} is not a directory: move it")
            if self.experiment_file.exists():
                ours = config.identity(experiment, seed)
                try:
                    theirs = self.read_experiment_file("identity")["identity"]
                except UserError as error:
                    if config.fingerprint(ours) in fingerprints(self.checkpoints):
                        return False
                    raise UserError(f"{error}. No checkpoint has its fingerprint") from error
                if fields := "\n  ".join(config.differences(ours, theirs)):
                    problem = f"{self.path} holds another run: use another --workdir"
                    raise UserError(f"{problem}. Fields that differ:\n  {fields}")
            elif self.path.is_dir() and {*self.path.iterdir()} - {self._lock_file}:
                raise UserError(f"{self.path} is not empty and holds no run: use another --workdir")
            return self.experiment_file.exists()

    def read_experiment_file(self, *fields: str) -> Record:
        """Returns fingerprint, identity, experiment and seed; ``fields`` are required."""
        if not self.experiment_file.is_file():
            raise UserError(f"{self.path} is not a run: it has no experiment.json")
        return _read(self.experiment_file, *fields)

    def experiment(self) -> tuple[Experiment, int]:
        """Returns the experiment and its seed."""
        run = self.read_experiment_file("experiment", "seed", "fingerprint")
        return config.restore(Experiment, run["experiment"]), run["seed"]

    def records(self) -> list[Record]:
        """Returns the records of ``metrics.jsonl``, of an unfinished run without a torn line."""
        file = self.metrics_file
        *lines, _ = _read_text(file).split("\n") if file.exists() else [""]
        records = [_parse(file, line, "step", "split") for line in lines]
        digest = (self.result() or {}).get("records_digest")
        if digest and digest != records_digest(records):
            raise UserError(f"{file} is corrupt (its content has changed): {_REMEDY}")
        return records

    def result(self, say: Callable[[str], None] | None = None) -> Record | None:
        """Returns the result, also of a run that diverged; None before the run has ended.

        A corrupt file raises UserError, or is reported with ``say`` and ignored, as is the result
        of corrupt records.
        """
        for file in filter(Path.exists, (self.result_file, self.diverged_file)):
            try:
                if say:
                    self.records()
                return _read(file, "value")
            except UserError as error:
                if say is None:
                    raise
                say(f"{error}; continuing from the newest checkpoint")
        return None


class MetricsWriter:
    """Appends records to ``metrics.jsonl``, on process 0.

    A record has ``step``, ``split`` (train, test, ...) and numbers.

    Args:
      step: the run continues after it; later records are dropped.
      records: those of its checkpoint; None: of the file.
    """

    def __init__(
        self,
        workdir: Workdir,
        *,
        step: int,
        records: list[Record] | None = None,
        say: Callable[[str], None] = print,
    ):
        if records is None:  # An earlier version saved the checkpoint.
            distributed.wait("records are written")
            records = [record for record in workdir.records() if record["step"] <= step]
            distributed.wait("records are read")
        self._file, self.records = workdir.metrics_file, records
        if distributed.is_first():
            lines = [json.dumps(record) + "\n" for record in records]
            present = _read_text(self._file, "replace") if self._file.exists() else ""
            if lines and not present.startswith("".join(lines)):
                lost = len({*lines} - {*present.splitlines(keepends=True)})
                say(f"{self._file} was corrupt; {lost} records are restored from the checkpoint")
            write_text(self._file, "".join(lines))

    def write(self, record: Record) -> None:
        self.records.append(record)
        if distributed.is_first():
            with _report_errors(self._file), self._file.open("a") as file:
                file.write(json.dumps(record) + "\n")


@contextlib.contextmanager
def _report_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "free some space, or use another --workdir"
        raise UserError(f"{path} cannot be written ({error.strerror}): {remedy}") from error


def _read_text(file: Path, errors: str = "strict") -> str:
    try:
        return file.read_text(errors=errors)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is corrupt ({error}): {_REMEDY}") from error


def _parse(file: Path, text: str, *fields: str) -> Record:
    try:
        record = parse_checked(text)
        problem = ", ".join(f"no {name}" for name in fields if name not in record)
    except CORRUPT as error:
        record, problem = {}, str(error)
    if problem:
        raise UserError(f"{file} is corrupt ({problem}): {_REMEDY}")
    return record


def _read(file: Path, *fields: str) -> Record:
    return _parse(file, _read_text(file), *fields)


def records_digest(records: list[Record]) -> str:
    """Returns the checksum of records in a result."""
    return with_checksum({"records": records})["sha256"]


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    with _report_errors(path):
        temporary.write_text(text)
        temporary.replace(path)


def write_json(path: Path, value: object) -> None:
    """Writes JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def contents(
    experiment: Experiment,
    seed: int,
    info: DatasetInfo,
    records: list[Record],
    scores: dict[str, exact.Score] | None = None,
    **values: object,
) -> Record:
    """Returns the contents of ``result.json``, without scores of ``diverged.json``.

    ``scores``: of the last step, by split.
    """
    split = experiment.data.test_split
    test_errors, validation_errors, training_errors = (
        {record["step"]: record["error_percent"] for record in records if record["split"] == name}
        for name in ("test", "validation", "train")
    )
    if scores is None:
        count, training_error, measured = info.examples[split], 100.0, "a network that diverged"
        test = exact.Score(count, math.nan, count, count)
    else:
        test, measured = scores["test"], "the last augmented batches"
        training_error = training_errors[max(training_errors)]
        if "train" in scores:
            measured = "all training images, last step"
            training_error = scores["train"].error_percent
    # The earliest of equal errors, as early stopping would choose.
    steps = sorted(validation_errors.keys() & test_errors)
    selected = min(steps, key=validation_errors.__getitem__, default=None)
    identity = config.identity(experiment, seed)
    return {
        "experiment": experiment.name,
        # Of the last step.
        "value": test.error_percent,
        "metric": "top-1 error, percent",
        "statistic": "single",
        "split": split,
        "examples": test.examples,
        "top5_error_percent": test.top5_error_percent if info.num_classes > exact.TOP else None,
        # Selected on the test images.
        "best_over_training": min(test_errors.values(), default=100.0),
        # At the step of the lowest validation error.
        "selected_on_validation": None if selected is None else test_errors[selected],
        "training_error_percent": training_error,
        "training_error_of": measured,
        "diverged_at_step": None,
        "protocol": protocol(experiment, info),
        "model": config.resolve(experiment.model),
        "seed": seed,
        "steps": experiment.steps,
        # Seconds of training and evaluation are over all sessions.
        **dict.fromkeys(("parameters", "compile_seconds", "seconds", "state_digest")),
        "records_digest": records_digest(records),
        "fingerprint": config.fingerprint(identity),
        "group": config.group(identity),
        "commit": commit(),
        "versions": versions(),
        "device": devices(),
        **values,
    }


def protocol(experiment: Experiment, info: DatasetInfo) -> Record:
    """Returns the fields in which comparable scores agree."""
    data, optimizer, schedule = experiment.data, experiment.optimizer, experiment.schedule
    height, width, _ = experiment.model.input_shape
    view, loss = experiment.evaluation.protocol, experiment.loss
    training_images = info.examples["train"] - data.validation_examples
    smoothing = f"label smoothing {loss.smoothing:g}" if loss.smoothing else ""
    # Beyond the recipes of the residual papers; omitted where empty.
    others = {
        "optimizer": components.without_folder(optimizer.rule).removeprefix("sgd"),
        "clip": optimizer.clip,
        "schedule": components.without_folder(schedule.rule)
        or ("cosine" if schedule.cosine_steps else ""),
        "loss": f"{loss.label.removeprefix('softmax')} {smoothing}".strip(),
        "distillation": _distillation(experiment),
        "initial_weights": experiment.start.digest if experiment.start.file else "",
        "test_split": data.test_split if data.test_split == config.HELD_OUT else "",
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
        "view": protocols.parse(view).view() if view else f"single {height}x{width}",
        "selection": "last step",
        "learning_rate": None if schedule.rule else schedule.learning_rate,
        **dict.fromkeys(("momentum", "nesterov", "weight_decay")),
        **{name: getattr(optimizer, name) for name in optimizer.shared},
        "dtype": experiment.model.dtype,
        **{name: value for name, value in others.items() if value},
        "parameters": f"moving average, decay {optimizer.ema}" if optimizer.ema else "last step",
    }


def _distillation(experiment: Experiment) -> str:
    fields = experiment.distillation
    maps = f", maps {' '.join(fields.maps)} x {fields.maps_weight:g}" if fields.maps else ""
    text = f"teacher {fields.digest}, T {fields.temperature:g}, weight {fields.weight:g}{maps}"
    return text if fields.teacher else ""


def _augmentation(data: Data) -> str:
    def text(part: components.Factory) -> str:
        return getattr(part(), "described", "") or components.text(part, lambda cls: cls.__name__)

    operations = (
        f"pad {data.pad}, random crop" if data.pad else "",
        *(text(part) for part in (data.crop, data.policy) if part),
        "random flip" if data.flip else "",
        *(text(part) for part in (data.color, data.erasing, data.mix) if part),
        f"{data.repeats} of each image" if data.repeats > 1 else "",
    )
    return ", ".join(filter(None, operations)) or "none"


def _normalization(experiment: Experiment) -> Record:
    norm, options = components.parts(experiment.model.norm)
    fields = {"normalization": norm.__name__}
    if norm is not BatchNorm:
        return fields | dict.fromkeys(("batch_norm_group", "batch_norm_statistics"))
    size, batches = experiment.batch_size, experiment.evaluation.statistics_batches
    averaged = f"momentum {options.get('momentum', 0.9)}"
    if batches:
        averaged = f"over {batches} batches of {size} after training"
    return fields | {
        "batch_norm_group": options.get("group_size") or size // experiment.optimizer.accumulation,
        "batch_norm_statistics": "true average" if batches else "moving average",
        "batch_norm_averaged": averaged,
    }


# Decoders and resampling filters differ by rounding between versions.
_PACKAGES = (
    "resnet-jax-lab jax jaxlib flax optax orbax-checkpoint tensorflow-datasets numpy grain "
    "simplejpeg pillow"
)


def commit() -> str | None:
    """Returns the commit of this checkout, with ``-dirty`` if files differ; None outside one."""
    folder, name = os.path.split(__file__)

    def git(*words: str) -> str:
        options: Any = {"timeout": 10, "text": True, "stderr": subprocess.DEVNULL}
        return subprocess.check_output(["git", "-C", folder, *words], **options).strip()

    try:
        # An installed package inside another repository is not part of it.
        git("ls-files", "--error-unmatch", name)
        return git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    numbers = {"python": platform.python_version()}
    for name in _PACKAGES.split():
        try:
            numbers[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            numbers[name] = "not installed as a package"
    return numbers


def devices() -> Record:
    return {
        "backend": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "cores": os.cpu_count(),
        "processes": jax.process_count(),
    }


def describe() -> Record:
    """Returns commit, versions, devices and platform, for ``environment.json``."""
    known = {"commit": commit(), "versions": versions(), "devices": devices()}
    return known | {"platform": platform.platform()}
