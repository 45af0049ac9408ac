"""The folder of one run: what it is, what it measured, what came out."""

import json
import os
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from resnet_jax.errors import UserError
from resnet_jax.training import environment, resolved
from resnet_jax.training.experiment import Experiment

Record = dict[str, Any]


class Workdir:
    """``experiment.json``, ``environment.json``, ``metrics.jsonl``, ``tensorboard/``, ``checkpoints/``, ``result.json`` under one path.

    A run that diverged has the same fields in ``diverged.json``, and no ``result.json``.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.experiment_file = self.path / "experiment.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.result_file = self.path / "result.json"
        self.diverged_file = self.path / "diverged.json"
        self.checkpoints = self.path / "checkpoints"

    def claim(self, experiment: Experiment, seed: int) -> None:
        """Makes the folder this run's, or finds that it already is.

        Raises:
          UserError: as ``check``, or where it cannot be written.
        """
        self.check(experiment, seed)
        if not self.experiment_file.exists():
            identity = resolved.identity(experiment, seed)
            text = {
                "fingerprint": resolved.fingerprint(identity),
                "identity": identity,
                "experiment": resolved.resolve(experiment),
                "seed": seed,
            }
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                write_json(self.experiment_file, text)
            except OSError as error:
                raise UserError(f"{self.path} cannot be written ({error.strerror}): use another --workdir") from error
        write_json(self.path / "environment.json", environment.describe())

    def check(self, experiment: Experiment, seed: int) -> None:
        """Raises UserError where the folder holds another experiment or seed, with the fields that differ, or something else."""
        if self.experiment_file.exists():
            theirs = self.read_experiment_file()["identity"]
            differing = list(resolved.differences(resolved.identity(experiment, seed), theirs))
            if differing:
                fields = "\n  ".join(differing)
                raise UserError(f"{self.path} holds another run; use another --workdir, or delete it. Fields that differ:\n  {fields}")
        elif self.path.is_dir() and any(self.path.iterdir()):
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

    A record has ``step``, ``split`` (train, test, ...) and numbers.
    """

    def __init__(self, workdir: Workdir, *, step: int):
        kept = [record for record in workdir.records() if record["step"] <= step]
        temporary = workdir.metrics_file.with_suffix(".part")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))
        temporary.replace(workdir.metrics_file)
        self.kept = kept
        self._file = workdir.metrics_file.open("a", buffering=1)
        self._events = SummaryWriter(str(workdir.path / "tensorboard"), purge_step=step + 1)

    def write(self, record: Record) -> None:
        """Writes one record."""
        self._file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            if name not in ("step", "split"):
                self._events.add_scalar(f"{record['split']}/{name}", value, record["step"])

    def close(self) -> None:
        """Flushes both."""
        self._file.close()
        self._events.close()


def write_text(path: Path, text: str) -> None:
    """Writes whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text)
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Writes whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")
