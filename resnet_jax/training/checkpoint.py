"""Checkpoints: asynchronous Orbax saves with checksum manifests that are verified on restore."""

import contextlib
import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from resnet_jax import distributed
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.errors import CommandError, NeverMet, UserError
from resnet_jax.training.config import Checkpointing
from resnet_jax.training.step import TrainState

MANIFEST = "manifest.json"
Record = dict[str, Any]
# Orbax writes the others after the manifest, and a restore does not read them.
_UNVERIFIED = (MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt")
CORRUPT = (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError)
_TEMPORARY = ocp.utils.TMP_DIR_SUFFIX


class SaveFailed(UserError):
    """A failed save; step ``last``, if any, is intact."""

    def __init__(self, step: int, last: int | None, error: Exception):
        # Errors of tensorstore contain the number as text.
        code = re.search(r"os_error_code='(\d+)'", str(error))
        number = int(code[1]) if code else getattr(error, "errno", None)
        reason = os.strerror(number) if number else _one_line(error)
        kept = "no step is saved" if last is None else f"the newest is that of step {last}"
        super().__init__(
            f"the checkpoint of step {step} could not be saved: {reason}; {kept}. "
            "To continue, fix the cause and repeat the command."
        )


class Checkpoints:
    """Checkpoints of one run. All its processes call the same methods in the same order.

    Orbax restores flipped bits silently: each step has a manifest with the sha256 of its files, and
    corrupt steps are moved to ``quarantine/``.

    Args:
      fingerprint: of the run; a step with another one is quarantined.
      read_only: change no file, because the run may be in progress.
    """

    def __init__(
        self,
        directory: Path,
        checkpointing: Checkpointing,
        *,
        say: Callable[[str], None],
        fingerprint: str = "",
        read_only: bool = False,
    ):
        self._directory, self._keep = directory.absolute(), checkpointing
        self._say, self._fingerprint, self._read_only = say, fingerprint, read_only
        self._manager: ocp.CheckpointManager | None = None
        self._step, self._manifest, self._saving = 0, Record(), False

    def steps(self) -> list[int]:
        """Returns the committed steps, unverified, in order."""
        return _steps(self._directory)

    def newest(self) -> int | None:
        """Returns the newest committed step, unverified."""
        return max(self.steps(), default=None)

    def save(
        self,
        step: int,
        state: TrainState,
        preprocessing: Preprocessing,
        error_percent: float | None = None,
        records: Sequence[Record] = (),
    ) -> None:
        """Starts to save a step newer than all others; the arrays may change afterward.

        Raises SaveFailed if this save or the one before it failed. A step is never best with an
        ``error_percent`` that is None or non-finite. ``records``: all up to the step.
        """
        failure = None
        try:
            self.wait()
        except SaveFailed as error:
            failure = error
        if distributed.anyone(failure is not None):
            elsewhere = OSError("another process could not write its part")
            raise failure or SaveFailed(self._step, self.newest(), elsewhere)
        state = state._replace(key=jax.random.key_data(state.key))
        tree = {"state": state, "preprocessing": preprocessing}
        self._step, self._manifest = step, {"fingerprint": self._fingerprint}
        self._manifest |= {"arrays": _arrays(tree), "records": list(records)}
        ranked = error_percent is not None and math.isfinite(error_percent)
        metrics = {"error_percent": error_percent if ranked else math.inf}
        try:
            self._manager = manager = self._manager or self._open()
            saved = manager.save(step, args=ocp.args.StandardSave(tree), metrics=metrics)
        except (OSError, ValueError, RuntimeError) as error:  # tensorstore raises the last two
            raise self._failed(error) from error
        # Otherwise a corrupt step was not quarantined.
        assert saved, f"step {step} is not newer than {self.newest()}"
        self._saving = True

    def check(self) -> None:
        """Raises SaveFailed if the background save has failed."""
        if self._manager and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits for the background save. Raises SaveFailed if it has failed."""
        if not self._saving or not self._manager:
            return
        self._saving = False
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits as ``wait`` does, then stops Orbax's threads."""
        try:
            self.wait()
        finally:
            if self._manager:
                self._manager.close()
            self._manager = None

    def restore_newest(
        self, like: TrainState, preprocessing: Preprocessing
    ) -> tuple[int, TrainState, Preprocessing] | None:
        """Restores the newest intact step, if any, as arrays of these shapes and shardings.

        Raises UserError if it has others.
        """
        self.wait()
        for step in reversed(distributed.by_first(self.steps)):
            if restored := self.restore(step, like, preprocessing):
                return step, *restored
        return None

    def restore(
        self, step: int, like: TrainState, preprocessing: Preprocessing
    ) -> tuple[TrainState, Preprocessing] | None:
        """Restores one step as ``restore_newest``; None if it is corrupt or of another run."""
        self.wait()
        key: Any = jax.eval_shape(jax.random.key_data, like.key).update(sharding=like.key.sharding)
        tree: Any = {"state": like._replace(key=key), "preprocessing": preprocessing}
        problem: str | None = distributed.by_first(lambda: self._problem(step, _arrays(tree)))
        if problem is None:
            restored = tree
            try:
                with ocp.StandardCheckpointer() as checkpointer:
                    restored = checkpointer.restore(self._directory / str(step) / "default", tree)
            except Exception as error:  # of tensorstore, zstd or JSON
                problem = f"cannot be read: {_one_line(error)}"
            if not distributed.anyone(problem is not None):
                state = restored["state"]
                state = state._replace(key=jax.random.wrap_key_data(state.key))
                return state, restored["preprocessing"]
        self._quarantine(step, problem or "cannot be read")
        return None

    def records(self, step: int) -> list[Record] | None:
        """Returns the records of a restored step; None if an earlier version saved it."""
        return _read_manifest(self._directory / str(step)).get("records") if step else []

    def _open(self) -> ocp.CheckpointManager:
        distributed.by_first(self._remove_partial)
        # Orbax does not open a directory in which the metrics of any step are corrupt.
        unranked = distributed.by_first(lambda: [s for s in self.steps() if not self._is_ranked(s)])
        for step in unranked:
            self._quarantine(step, "is corrupt: its metrics cannot be read")
        _ignore_closed_loops()
        best = {"n": self._keep.best, "keep_checkpoints_without_metrics": False}
        keep: list[policies.PreservationPolicy] = [
            policies.LatestN(self._keep.keep),
            policies.BestN(get_metric_fn=_score, **best),
        ]
        if self._keep.keep_every:
            keep.append(policies.EveryNSteps(self._keep.keep_every))
        options = ocp.CheckpointManagerOptions(
            best_fn=_score,  # without it metrics are not stored
            preservation_policy=policies.AnyPreservationPolicy(keep),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        handler = ocp.StandardCheckpointHandler()
        return ocp.CheckpointManager(self._directory, options=options, item_handlers=handler)

    def _write_manifest(self) -> None:
        """Runs in Orbax's thread before it commits a complete step."""
        (folder,) = self._directory.glob(f"{self._step}{_TEMPORARY}*")
        manifest = self._manifest | {"files": _checksums(folder)}
        (folder / MANIFEST).write_text(json.dumps(with_checksum(manifest)))

    def _problem(self, step: int, arrays: dict[str, str]) -> str | None:
        folder = self._directory / str(step)
        try:
            manifest = _read_manifest(folder)
            # Further files are not read.
            changed = manifest["files"].items() - _checksums(folder).items()
        except CORRUPT as error:
            return f"is corrupt: {MANIFEST} or a file cannot be read ({_one_line(error)})"
        if changed:
            return f"is corrupt: {len(changed)} files have changed ({min(changed)[0]})"
        theirs, ours = manifest["fingerprint"], self._fingerprint
        if ours and theirs != ours:
            return f"belongs to another run: its fingerprint is {theirs[:12]}, not {ours[:12]}"
        # Orbax casts to another dtype silently.
        saved = manifest["arrays"]
        if names := sorted({name for name, _ in saved.items() ^ arrays.items()}):
            theirs, ours = (tree.get(names[0], "absent") for tree in (saved, arrays))
            raise UserError(
                f"the checkpoint of step {step} is of another network: {len(names)} arrays differ, "
                f"as {names[0]}, {theirs} in the checkpoint and {ours} in the experiment"
            )
        return None

    def _is_ranked(self, step: int) -> bool:
        try:
            metrics = json.loads((self._directory / str(step) / "metrics" / "metrics").read_text())
            return isinstance(metrics["error_percent"], float)
        except (OSError, ValueError, LookupError, TypeError):
            return False

    def _failed(self, error: Exception) -> CommandError:
        if distributed.several() and distributed.lost(error):
            what = f"another process was lost while step {self._step} was saved"
            return NeverMet(f"{what}; run all of them again")
        if jax.process_count() == 1:
            self._remove_partial()
        return SaveFailed(self._step, self.newest(), error)

    def _remove_partial(self) -> None:
        for folder in self._directory.glob(f"*{_TEMPORARY}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _quarantine(self, step: int, problem: str) -> None:
        place = self._directory.parent / "quarantine" / str(step)

        def move() -> None:
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(place)

        if not self._read_only:
            distributed.by_first(move)
            if self._manager:
                self._manager.reload()
            problem += f"; moved to {place}"
        self._say(f"checkpoint of step {step} {problem}; continuing with the one before it")


def fingerprints(directory: Path) -> set[str]:
    """Returns those of the run that wrote the checkpoints, from intact manifests."""
    names = set[str]()
    for step in _steps(directory):
        with contextlib.suppress(*CORRUPT):
            names.add(_read_manifest(directory / str(step))["fingerprint"])
    return names


def _steps(directory: Path) -> list[int]:
    names = (path.name for path in directory.glob("*") if path.name.isdecimal())
    return sorted(int(name) for name in names if name == str(int(name)))


def _read_manifest(folder: Path) -> Record:
    return parse_checked((folder / MANIFEST).read_text())


def with_checksum(record: Record) -> Record:
    """Returns a JSON object with its checksum."""
    return record | {"sha256": hashlib.sha256(json.dumps(record).encode()).hexdigest()}


def parse_checked(text: str) -> Record:
    """Parses a JSON object, with its checksum or without; raises one of ``CORRUPT``."""
    record = json.loads(text)
    checksum = record.pop("sha256", None)
    if checksum and with_checksum(record)["sha256"] != checksum:
        raise ValueError("its content has changed")
    return record


def _score(metrics: Mapping[str, float]) -> float:
    return -metrics["error_percent"]


def _arrays(tree: object) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{tuple(leaf.shape)}"
        for path, leaf in jax.tree.leaves_with_path(tree)
    }


def _checksums(folder: Path) -> dict[str, str]:
    checksums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and (name := path.relative_to(folder).as_posix()) not in _UNVERIFIED:
            with path.open("rb") as file:
                checksums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _ignore_closed_loops() -> None:
    """Ignores errors of writes after a failed one: Orbax has closed its event loop."""
    previous = sys.unraisablehook

    def hook(report: "sys.UnraisableHookArgs") -> None:
        if report.object is not None or str(report.exc_value) != "Event loop is closed":
            previous(report)

    if getattr(previous, "__qualname__", "") != hook.__qualname__:
        sys.unraisablehook = hook
