"""The folder of one run: what it is, what it measured, what came out."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from resnet_jax.errors import UserError
from resnet_jax.training import agreement, environment, lock, resolved
from resnet_jax.training.events import Events
from resnet_jax.training.experiment import Experiment
from resnet_jax.training.failed_save import OnFailure
from resnet_jax.training.lines import Lines
from resnet_jax.training.mirror import LOCK, Mirror, is_remote

Record = dict[str, Any]


class Workdir:
    """``experiment.json``, ``environment.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``result.json`` under one path.

    A run that diverged has the same fields as that in ``diverged.json`` instead, and ``postmortem.json``. A path may be the URL of
    an object store, see ``training.mirror``: ``path`` is then the folder of this machine.

    Raises:
      UserError: for a URL that cannot be read here.
    """

    def __init__(self, path: Path | str):
        self._mirror = Mirror(path) if is_remote(path) else None
        self.path = Path(path) if self._mirror is None else self._mirror.folder
        self.experiment_file = self.path / "experiment.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.result_file = self.path / "result.json"
        self.diverged_file = self.path / "diverged.json"
        self.postmortem_file = self.path / "postmortem.json"
        self.checkpoints = self.path / "checkpoints"
        self._lock = self.path / LOCK

    @classmethod
    def to_read(cls, path: Path | str) -> "Workdir":
        """For readers: a copy of what lies on an object store, else the folder itself. Raises UserError where it cannot be read."""
        return cls(Mirror(path).copy() if is_remote(path) else path)

    @contextlib.contextmanager
    def claimed(self, experiment: Experiment, seed: int, *, say: Callable[[str], None]) -> Iterator[None]:
        """``claim``, with the folder locked for as long as it is entered: a second run is refused before it writes. Readers are not.

        Where a run has several processes, all enter, and the first one holds the lock. What lies on an object store is fetched, and what is
        written sent there; there is no lock on a store, which is said.

        Raises:
          UserError: as ``claim``; where another run holds the folder; where processes do not share it; where a store cannot be used.
        """
        with contextlib.ExitStack() as stack:

            def lock_and_write() -> None:
                if self._mirror is None:
                    self.check(experiment, seed)
                stack.enter_context(lock.held(self._lock, say))
                if self._mirror is not None:
                    say(f"{self._mirror.url} cannot be locked: see to it that no other machine runs it")
                    self._mirror.fetch()
                self._claim(experiment, seed)
                if self._mirror is not None:
                    stack.enter_context(self._mirror.sending(say))

            agreement.by_first(lock_and_write)
            if agreement.anyone(not self._is_shared()):
                raise UserError(
                    f"not all processes find {self.path}: use a --workdir that they share"
                    + (", or set RESNET_JAX_STAGING to a folder that they share" if self._mirror else "")
                )
            yield

    def _is_shared(self) -> bool:
        """Whether this process finds what the first one wrote; NFS may take some seconds to show it."""
        until = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                self.experiment_file.open().close()
                return True
            if time.monotonic() > until:
                return False
            time.sleep(1)

    def claim(self, experiment: Experiment, seed: int) -> None:
        """Makes the folder this run's, or finds that it already is.

        Raises:
          UserError: as ``check``, or where it cannot be written.
        """
        agreement.by_first(lambda: self._claim(experiment, seed))

    def _claim(self, experiment: Experiment, seed: int) -> None:
        self.check(experiment, seed)
        identity = resolved.identity(experiment, seed)
        text = {
            "fingerprint": resolved.fingerprint(identity),
            "identity": identity,
            "experiment": resolved.resolve(experiment),
            "seed": seed,
        }
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.experiment_file.exists():
                write_json(self.experiment_file, text)
            write_json(self.path / "environment.json", environment.describe())
        except OSError as error:
            raise UserError(f"{self.path} cannot be written ({error.strerror}): use another --workdir") from error

    def check(self, experiment: Experiment, seed: int) -> None:
        """Raises UserError where the folder holds another experiment or seed, with the fields that differ, or something else."""
        if self.experiment_file.exists():
            theirs = self.read_experiment_file()["identity"]
            differing = list(resolved.differences(resolved.identity(experiment, seed), theirs))
            if differing:
                fields = "\n  ".join(differing)
                raise UserError(f"{self.path} holds another run; use another --workdir, or delete it. Fields that differ:\n  {fields}")
        elif self.path.is_dir() and any(path != self._lock for path in self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run (no experiment.json): use another --workdir")

    def read_experiment_file(self) -> dict[str, Any]:
        """Raises UserError where there is none, or it is damaged."""
        if not self.experiment_file.is_file():
            raise UserError(f"{self.path} is not a run: it has no experiment.json. A run is a folder that 'resnet-jax train' wrote")
        try:
            text = json.loads(self.experiment_file.read_text())
            return {name: text[name] for name in ("fingerprint", "identity", "experiment", "seed")}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.experiment_file} is damaged: {error!r}") from error

    def experiment(self) -> tuple[Experiment, int]:
        """The run's experiment and seed."""
        text = self.read_experiment_file()
        return resolved.restore(Experiment, text["experiment"]), text["seed"]

    def records(self) -> list[Record]:
        """Everything measured so far; a last line that a kill cut short is left out."""
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text().splitlines()
        try:
            return [json.loads(line) for line in lines if line.endswith("}")]
        except ValueError as error:
            raise UserError(f"{self.metrics_file} is damaged: {error}") from None

    def write_postmortem(self, found: Record) -> None:
        """Writes why a run diverged, see ``training.postmortem``."""
        if agreement.first():
            write_json(self.postmortem_file, found)

    def newest_checkpoint(self) -> int | None:
        """Step of the newest committed checkpoint, by the names of the folders."""
        return max((int(path.name) for path in self.checkpoints.glob("*") if path.name.isdigit()), default=None)

    def result(self) -> Record | None:
        """The contents of ``result.json``, or of the ``diverged.json`` that a run has in its place; None before it has ended."""
        for file in (self.result_file, self.diverged_file):
            if file.exists():
                try:
                    found = json.loads(file.read_text())
                except ValueError:
                    found = None
                if not isinstance(found, dict):
                    raise UserError(f"{file} is damaged: delete it, and the same command scores the last checkpoint again")
                return found
        return None


class MetricsWriter:
    """Appends records to ``metrics.jsonl`` and to TensorBoard event files, from ``step`` on: what a killed run wrote after it goes.

    A record has ``step``, ``split`` (train, test, ...) and numbers. Where a run has several processes, the first one writes.

    Args:
      workdir: of the run.
      step: that it goes on after.
      say: takes messages for the user.
      failed_save: 'stop' raises what cannot be written, on a full disk say; 'continue' says it once, and goes on: records are written as
        soon as they can be, event files end.

    Raises:
      UserError: so, from every method; from the first one in any case.
    """

    def __init__(self, workdir: Workdir, *, step: int, say: Callable[[str], None] = print, failed_save: OnFailure = "stop"):
        # All read what an earlier writer wrote, before the first one rewrites it.
        agreement.wait("records are written")
        self.kept = [record for record in workdir.records() if record["step"] <= step]
        agreement.wait("records are read")
        self._path, self._say, self._stops = workdir.path, say, True
        self._lines: Lines | None = None
        self._events: Events | None = None
        self._said: set[str] = set()
        if agreement.first():
            with self._reported("metrics.jsonl"):
                self._lines = Lines(workdir.metrics_file, map(json.dumps, self.kept))
            with self._reported("tensorboard"):
                self._events = Events(workdir.path / "tensorboard", step=step)
        self._stops = failed_save == "stop"

    def write(self, record: Record) -> None:
        """Writes one record."""
        if self._lines is not None:
            with self._reported("metrics.jsonl"):
                self._lines.append(json.dumps(record))
        if self._events is not None:
            with self._reported("tensorboard"):
                for name, value in record.items():
                    if name not in ("step", "split"):
                        self._events.write(f"{record['split']}/{name}", value, record["step"])

    def close(self) -> None:
        """Flushes both."""
        lines, events = self._lines, self._events
        self._lines = self._events = None
        with contextlib.ExitStack() as both:
            if events is not None:
                both.enter_context(self._reported("tensorboard"))
                both.callback(events.close)
            if lines is not None:
                both.enter_context(self._reported("metrics.jsonl"))
                both.callback(lines.close)

    @contextlib.contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if name == "tensorboard":
                self._events = None  # its last record may be half there
            message = f"{self._path / name} cannot be written ({error.strerror})"
            if self._stops:
                raise UserError(f"{message}: make room, or mend that, and the same command goes on from the newest checkpoint") from error
            if name not in self._said:
                self._said.add(name)
                self._say(f"{message}; training goes on meanwhile (checkpointing.failed_save is 'continue')")


def write_text(path: Path, text: str) -> None:
    """Writes whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_output(path: Path, value: Any) -> None:
    """Writes as JSON what a command was told to write, whole or not at all. Raises UserError where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): use another --output") from error


def write_json(path: Path, value: Any) -> None:
    """Writes whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")
