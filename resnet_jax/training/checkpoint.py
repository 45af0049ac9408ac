"""Checkpoints: asynchronous Orbax saves, each with a checksum manifest that is verified on restore."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from resnet_jax import distributed
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.errors import UserError
from resnet_jax.training import step as step_lib
from resnet_jax.training.config import Checkpointing
from resnet_jax.training.step import TrainState

MANIFEST = "manifest.json"
# Orbax writes them after the manifest and does not read them in a restore.
_UNVERIFIED = (MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt")


class SaveFailed(UserError):
    """The checkpoint of ``step`` could not be written; that of ``last``, if any, is intact."""

    def __init__(self, step: int, last: int | None, error: Exception):
        code = _errno(error)
        full = code in (errno.ENOSPC, errno.EDQUOT)
        reason = (
            "the disk is full" if full else _one_line(error) if code is None else os.strerror(code)
        )
        kept = (
            "there is no earlier checkpoint"
            if last is None
            else f"the newest is that of step {last}"
        )
        super().__init__(
            f"the checkpoint of step {step} could not be saved: {reason}; {kept}. "
            f"To continue, {'free some space' if full else 'fix the cause'} and repeat the command"
        )
        self.__cause__ = error


class Checkpoints:
    """The checkpoints of one run, under ``directory``.

    Orbax restores flipped bits silently. Every step contains the sha256 of its files, written before
    Orbax commits the step, and is verified before it is read. Corrupt steps are moved to ``quarantine/``.

    All processes call the same methods in the same order; ``check``, ``wait`` and ``close`` do not wait
    for other processes.

    Args:
      directory: created if missing.
      checkpointing: steps to keep.
      say: called with messages for the user.
      fingerprint: of the run; a step with another one is quarantined.
      read_only: write, rename and delete nothing: the run may be in progress.
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
        self._directory, self._checkpointing = directory.absolute(), checkpointing
        self._say, self._fingerprint, self._read_only = say, fingerprint, read_only
        self._manager: ocp.CheckpointManager | None = None
        self._step, self._arrays, self._saving = 0, dict[str, str](), False
        if not read_only:
            if distributed.first():
                self._directory.mkdir(parents=True, exist_ok=True)
                self._remove_partial()
            distributed.wait("partial checkpoints are removed")

    def steps(self) -> list[int]:
        """Return the committed steps, unverified, oldest first."""
        return sorted(int(path.name) for path in self._directory.glob("*") if path.name.isdigit())

    def newest(self) -> int | None:
        """Return the newest committed step, unverified."""
        return max(self.steps(), default=None)

    def save(
        self,
        step: int,
        state: TrainState,
        preprocessing: Preprocessing,
        error_percent: float | None = None,
    ) -> None:
        """Start to save a step that is newer than all others; return when the arrays are copied.

        ``error_percent``, the test error, ranks the best steps; None or non-finite: never best.

        Raises:
          SaveFailed: this save or the one before it failed.
        """
        failure, previous = self._finish(), self._step
        if distributed.anyone(failure is not None):
            raise failure or SaveFailed(
                previous, self.newest(), OSError("another process could not write its part")
            )
        tree = {"state": step_lib.plain(state), "preprocessing": preprocessing}
        self._step, self._arrays = step, _arrays(tree)
        error = (
            error_percent
            if error_percent is not None and math.isfinite(error_percent)
            else math.inf
        )
        try:
            manager = self._manager = self._manager or self._open()
            saved = manager.save(
                step, args=ocp.args.StandardSave(tree), metrics={"error_percent": error}
            )
        except (OSError, ValueError, RuntimeError) as problem:  # tensorstore raises the last two
            raise self._failed(problem) from problem
        assert saved, (
            f"step {step} is not newer than {self.newest()}: a corrupt step was not quarantined"
        )
        self._saving = True

    def check(self) -> None:
        """Raise SaveFailed if the background save has failed; does not wait."""
        if self._saving and self._manager and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Wait until the background save is committed. Raises SaveFailed if it has failed."""
        if failure := self._finish():
            raise failure

    def close(self) -> None:
        """Wait as ``wait`` does, then stop Orbax's threads."""
        try:
            self.wait()
        finally:
            if self._manager:
                self._manager.close()
            self._manager = None

    def restore_newest(
        self, like: TrainState, preprocessing: Preprocessing
    ) -> tuple[int, TrainState, Preprocessing] | None:
        """Restore the newest intact step, if any, in the structure, shapes, dtypes and shardings of ``like`` and ``preprocessing``.

        Raises:
          UserError: an intact checkpoint of this run has other arrays; it stays where it is.
        """
        self.wait()
        for step in reversed(distributed.by_first(self.steps)):
            restored = self.restore(step, like, preprocessing)
            if restored is not None:
                return step, *restored
        return None

    def restore(
        self, step: int, like: TrainState, preprocessing: Preprocessing
    ) -> tuple[TrainState, Preprocessing] | None:
        """Restore one step, see ``restore_newest``; None if it is corrupt or of another run."""
        self.wait()

        def target(shape: Any, placed: Any = like.step) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(
                shape.shape, shape.dtype, sharding=getattr(placed, "sharding", None)
            )

        plain = jax.eval_shape(step_lib.plain, like)
        tree = {
            "state": jax.tree.map(target, plain, like),
            "preprocessing": jax.tree.map(target, preprocessing),
        }
        problem: str | None = distributed.by_first(lambda: self._problem(step, _arrays(tree)))
        restored: Any = None
        if problem is None:
            try:
                with ocp.StandardCheckpointer() as checkpointer:
                    restored = checkpointer.restore(self._directory / str(step) / "default", tree)
            except Exception as error:  # of tensorstore, zstd or JSON
                problem = f"cannot be read: {_one_line(error)}"
            if not distributed.anyone(problem is not None):
                return step_lib.from_plain(restored["state"]), restored["preprocessing"]
        self._quarantine(step, problem or "cannot be read")
        return None

    def _open(self) -> ocp.CheckpointManager:
        # Orbax reads the metrics of all steps, and does not open if one of them is corrupt.
        for step in distributed.by_first(lambda: list(filter(self._has_no_metrics, self.steps()))):
            self._quarantine(step, "is corrupt: its metrics cannot be read")
        _ignore_closed_loops()
        keep: list[policies.PreservationPolicy] = [policies.LatestN(self._checkpointing.keep)]
        if best := self._checkpointing.best:
            keep.append(
                policies.BestN(get_metric_fn=_score, n=best, keep_checkpoints_without_metrics=False)
            )
        if every := self._checkpointing.keep_every:
            keep.append(policies.EveryNSteps(every))
        options = ocp.CheckpointManagerOptions(
            best_fn=_score,  # without it metrics are not stored
            preservation_policy=policies.AnyPreservationPolicy(keep),
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        return ocp.CheckpointManager(
            self._directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def _write_manifest(self) -> None:
        """Write the checksums of a complete step that is not committed yet; runs in Orbax's thread."""
        (folder,) = self._directory.glob(f"{self._step}{ocp.utils.TMP_DIR_SUFFIX}*")
        manifest = {
            "fingerprint": self._fingerprint,
            "arrays": self._arrays,
            "files": _checksums(folder),
        }
        (folder / MANIFEST).write_text(json.dumps({"sha256": _digest(manifest), **manifest}))

    def _problem(self, step: int, arrays: dict[str, str]) -> str | None:
        """Return why a step cannot be used, if so, as the end of a sentence."""
        folder = self._directory / str(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if manifest.pop("sha256") != _digest(manifest):
                return f"is corrupt: {MANIFEST} changed since it was written"
            checksums = _checksums(folder)
            changed = [
                name
                for name, checksum in manifest["files"].items()
                if checksums.get(name) != checksum
            ]
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
            return f"is corrupt: {MANIFEST} or a file cannot be read ({_one_line(error)})"
        if changed:
            return f"is corrupt: {len(changed)} of its files changed since they were written ({changed[0]})"
        fingerprint, theirs = manifest["fingerprint"], manifest["arrays"]
        if self._fingerprint and fingerprint != self._fingerprint:
            return f"belongs to another run: its fingerprint is {fingerprint[:12]}, not {self._fingerprint[:12]}"
        # Orbax casts to another dtype silently.
        if different := sorted({name for name, _ in theirs.items() ^ arrays.items()}):
            name = different[0]
            raise UserError(
                f"the checkpoint of step {step} is of another network: {len(different)} arrays differ, as {name}, "
                f"{theirs.get(name, 'absent')} in the checkpoint and {arrays.get(name, 'absent')} in the experiment"
            )
        return None

    def _has_no_metrics(self, step: int) -> bool:
        try:
            metrics = json.loads((self._directory / str(step) / "metrics" / "metrics").read_text())
            return not isinstance(metrics["error_percent"], float)
        except (OSError, ValueError, LookupError, TypeError):
            return True

    def _finish(self) -> SaveFailed | None:
        """Wait for the background save, and return its failure."""
        if self._manager and self._saving:
            self._saving = False
            try:
                self._manager.wait_until_finished()
            except Exception as error:
                return self._failed(error)
        return None

    def _failed(self, error: Exception) -> SaveFailed:
        if jax.process_count() == 1:
            # Orbax does not wait for the other writes of a failed save, which may recreate their directory.
            absent, end = 0, time.monotonic() + 10
            while absent < 6 and time.monotonic() < end:
                absent = 0 if self._remove_partial() else absent + 1
                time.sleep(0.05)
        return SaveFailed(self._step, self.newest(), error)

    def _remove_partial(self) -> bool:
        """Remove uncommitted steps, and return whether there were any."""
        partials = list(self._directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"))
        for partial in partials:
            shutil.rmtree(partial, ignore_errors=True)
        return bool(partials)

    def _quarantine(self, step: int, problem: str) -> None:
        if self._read_only:
            self._say(f"checkpoint of step {step} {problem}; continuing with the one before it")
            return

        def move() -> str:
            place = self._directory.parent / "quarantine" / str(step)
            shutil.rmtree(place, ignore_errors=True)
            place.parent.mkdir(exist_ok=True)
            (self._directory / str(step)).rename(place)
            return str(place)

        place = distributed.by_first(move)
        if self._manager:
            self._manager.reload()
        self._say(
            f"checkpoint of step {step} {problem}; moved to {place}, continuing with the one before it"
        )


def _score(metrics: Any) -> float:
    return -metrics["error_percent"]


def _arrays(tree: Any) -> dict[str, str]:
    """Return the dtype and shape of each leaf, by path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{tuple(leaf.shape)}"
        for path, leaf in leaves
    }


def _checksums(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file of a step, by path."""
    checksums = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in _UNVERIFIED:
            with path.open("rb") as file:
                checksums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _errno(error: Exception) -> int | None:
    # Errors of tensorstore contain the number as text.
    match = re.search(r"os_error_code='(\d+)'", str(error))
    return error.errno if isinstance(error, OSError) else int(match[1]) if match else None


def _ignore_closed_loops() -> None:
    """Ignore errors of writes that end after a failed one: Orbax has closed its event loop, and tensorstore's thread raises."""
    previous = sys.unraisablehook

    def hook(report: Any) -> None:
        if report.object is not None or str(report.exc_value) != "Event loop is closed":
            previous(report)

    if getattr(previous, "__qualname__", "") != hook.__qualname__:
        sys.unraisablehook = hook
