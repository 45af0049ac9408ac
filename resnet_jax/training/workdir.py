"""Run directory: the experiment, its metrics and its result."""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import scalar

from resnet_jax.errors import UserError
from resnet_jax.training import agreement, environment, resolved
from resnet_jax.training.experiment import Experiment

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
    def claimed(self, experiment: Experiment, seed: int, *, say: Callable[[str], None]) -> Iterator[None]:
        """Claim the directory and lock it while entered, until process 0 ends; readers need no lock. Collective.

        Raises:
          UserError: as ``claim``; another run holds the lock; the processes do not share the path.
        """
        with contextlib.ExitStack() as stack:

            def lock_and_claim() -> None:
                self.check(experiment, seed)
                stack.callback(self._lock(say).release)
                self.claim(experiment, seed)

            agreement.by_first(lock_and_claim)
            if agreement.anyone(not self._is_shared()):
                raise UserError(f"not all processes find {self.path}: use a --workdir that they share")
            yield

    def _lock(self, say: Callable[[str], None]) -> filelock.BaseFileLock:
        lock = filelock.FileLock(self._lock_file, timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            raise UserError(f"{self.path} is in use by {self._holder()}: wait for it, stop it, or use another --workdir") from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise self._unwritable(error) from error
            say(f"{self.path} cannot be locked ({error.strerror}): make sure that no other run uses it")
        return lock

    def _holder(self) -> str:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            holder = json.loads(self.environment_file.read_text())["process"]
            return f"another run, process {holder['pid']} on {holder['host']} since {holder['since']}"
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
        identity = resolved.identity(experiment, seed)
        text = {"fingerprint": resolved.fingerprint(identity), "identity": identity}
        text |= {"experiment": resolved.resolve(experiment), "seed": seed}
        process = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.experiment_file.exists():
                write_json(self.experiment_file, text)
            write_json(self.environment_file, environment.describe() | {"process": process})
        except OSError as error:
            raise self._unwritable(error) from error

    def check(self, experiment: Experiment, seed: int) -> None:
        """Raise UserError if the directory holds another experiment or seed, or something else."""
        if self.experiment_file.exists():
            theirs = self.read_experiment_file()["identity"]
            if fields := "\n  ".join(resolved.differences(resolved.identity(experiment, seed), theirs)):
                raise UserError(f"{self.path} holds another run; use another --workdir, or delete it. Fields that differ:\n  {fields}")
        elif self.path.is_dir() and any(path != self._lock_file for path in self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run (no experiment.json): use another --workdir")

    def read_experiment_file(self) -> dict[str, Any]:
        """Read ``experiment.json``. Raises UserError if it is missing or corrupt."""
        if not self.experiment_file.is_file():
            raise UserError(f"{self.path} is not a run: it has no experiment.json. 'resnet-jax train' writes runs")
        try:
            text = json.loads(self.experiment_file.read_text())
            return {name: text[name] for name in ("fingerprint", "identity", "experiment", "seed")}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.experiment_file} is corrupt: {error!r}") from error

    def experiment(self) -> tuple[Experiment, int]:
        """Return the experiment and its seed."""
        text = self.read_experiment_file()
        return resolved.restore(Experiment, text["experiment"]), text["seed"]

    def records(self) -> list[Record]:
        """Return the records of ``metrics.jsonl``, without a last line that a kill cut short."""
        if not self.metrics_file.exists():
            return []
        try:
            return [json.loads(line) for line in self.metrics_file.read_text().splitlines() if line.endswith("}")]
        except ValueError as error:
            raise UserError(f"{self.metrics_file} is corrupt: {error}") from None

    def result(self) -> Record | None:
        """Return the contents of ``result.json`` or ``diverged.json``; None before the run has ended."""
        for file in filter(Path.exists, (self.result_file, self.diverged_file)):
            try:
                return {**json.loads(file.read_text())}
            except (ValueError, TypeError):
                raise UserError(f"{file} is corrupt: delete it, and the same command scores the last checkpoint again") from None
        return None


class MetricsWriter:
    """Appends records to ``metrics.jsonl`` and to TensorBoard event files, on process 0.

    A record has ``step``, ``split`` (train, test, ...) and numbers. The run continues after ``step``: earlier
    records are ``kept``, later ones are dropped. All methods raise UserError if a file cannot be written.
    """

    def __init__(self, workdir: Workdir, *, step: int):
        # All processes read before process 0 rewrites the file.
        agreement.wait("records are written")
        self.kept = [record for record in workdir.records() if record["step"] <= step]
        agreement.wait("records are read")
        self._file, self._directory, self._events = workdir.metrics_file, workdir.path / "tensorboard", None
        if agreement.first():
            with self._reported(self._file):
                write_text(self._file, "".join(json.dumps(record) + "\n" for record in self.kept))
            with self._reported(self._directory):
                self._directory.mkdir(exist_ok=True)
                # SummaryWriter blocks forever on a full disk.
                self._events = EventsWriter(str(self._directory / "events"))
                # TensorBoard hides events of earlier files from this step on.
                self._events.write_event(Event(step=step + 1, file_version="brain.Event:2"))
                self._events.write_event(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

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
                    self._events.write_event(Event(step=record["step"], wall_time=time.time(), summary=summary))

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
