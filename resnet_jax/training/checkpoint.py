"""Checkpoints: asynchronous Orbax saves with checksum manifests that are verified on restore."""

import hashlib
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from resnet_jax import distributed
from resnet_jax.data.augment_device import Preprocessing
from resnet_jax.errors import UserError
from resnet_jax.training.config import Checkpointing
from resnet_jax.training.step import TrainState, from_plain, plain

MANIFEST = "manifest.json"
# Orbax writes the others after the manifest, and a restore does not read them.
_UNVERIFIED = (MANIFEST, "_CHECKPOINT_METADATA", "commit_success.txt")
_TEMPORARY = ocp.utils.TMP_DIR_SUFFIX


class SaveFailed(UserError):
    """A failed save; the checkpoint of step ``last``, if any, is intact."""

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

    Orbax restores flipped bits silently. So each step has a manifest with the sha256 of its files,
    and corrupt steps are moved to ``quarantine/``.

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
        self._step, self._arrays, self._saving = 0, dict[str, str](), False

    def steps(self) -> list[int]:
        """Returns the committed steps, unverified, oldest first."""
        return sorted(int(path.name) for path in self._directory.glob("*") if path.name.isdigit())

    def newest(self) -> int | None:
        """Returns the newest committed step, unverified."""
        return max(self.steps(), default=None)

    def save(
        self,
        step: int,
        state: TrainState,
        preprocessing: Preprocessing,
        error_percent: float | None = None,
    ) -> None:
        """Starts to save a step newer than all others; the caller may change the arrays then.

        Raises SaveFailed if this save or the one before it failed. ``error_percent`` ranks the best
        steps; None or non-finite: never best.
        """
        failure = None
        try:
            self.wait()
        except SaveFailed as error:
            failure = error
        if distributed.anyone(failure is not None):
            elsewhere = OSError("another process could not write its part")
            raise failure or SaveFailed(self._step, self.newest(), elsewhere)
        tree = {"state": plain(state), "preprocessing": preprocessing}
        self._step, self._arrays = step, _arrays(tree)
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
        """Raises SaveFailed if the background save has failed; does not wait."""
        if self._manager and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Waits until the background save is committed. Raises SaveFailed if it has failed."""
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
        """Restores the newest intact step, if any; ``like`` has shapes, dtypes and shardings.

        Raises UserError if an intact checkpoint of this run has other arrays.
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
        constants = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=like.step.sharding),
            preprocessing,
        )
        tree: Any = {"state": like._replace(key=key), "preprocessing": constants}
        problem: str | None = distributed.by_first(lambda: self._problem(step, _arrays(tree)))
        if problem is None:
            restored = tree
            try:
                with ocp.StandardCheckpointer() as checkpointer:
                    restored = checkpointer.restore(self._directory / str(step) / "default", tree)
            except Exception as error:  # of tensorstore, zstd or JSON
                problem = f"cannot be read: {_one_line(error)}"
            if not distributed.anyone(problem is not None):
                return from_plain(restored["state"]), restored["preprocessing"]
        self._quarantine(step, problem or "cannot be read")
        return None

    def _open(self) -> ocp.CheckpointManager:
        distributed.by_first(self._remove_partial)
        # Orbax does not open a directory in which the metrics of any step are corrupt.
        unranked = distributed.by_first(lambda: [s for s in self.steps() if not self._is_ranked(s)])
        for step in unranked:
            self._quarantine(step, "is corrupt: its metrics cannot be read")
        _ignore_closed_loops()
        best, every = self._keep.best, self._keep.keep_every
        keep: list[policies.PreservationPolicy] = [
            policies.LatestN(self._keep.keep),
            policies.BestN(get_metric_fn=_score, n=best, keep_checkpoints_without_metrics=False),
            *([policies.EveryNSteps(every)] if every else []),
        ]
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
        manifest = {"fingerprint": self._fingerprint, "arrays": self._arrays}
        manifest["files"] = _checksums(folder)
        (folder / MANIFEST).write_text(json.dumps({"sha256": _digest(manifest), **manifest}))

    def _problem(self, step: int, arrays: dict[str, str]) -> str | None:
        folder = self._directory / str(step)
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            if manifest.pop("sha256") != _digest(manifest):
                return f"is corrupt: {MANIFEST} has changed"
            # Further files are not read.
            changed = manifest["files"].items() - _checksums(folder).items()
        except (OSError, ValueError, LookupError, AttributeError, TypeError) as error:
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

    def _failed(self, error: Exception) -> SaveFailed:
        if jax.process_count() == 1:
            # Orbax does not wait for the other writes of a failed save, which may recreate files.
            absent, end = 0, time.monotonic() + 10
            while absent < 6 and time.monotonic() < end:
                absent = 0 if self._remove_partial() else absent + 1
                time.sleep(0.05)
        return SaveFailed(self._step, self.newest(), error)

    def _remove_partial(self) -> bool:
        """Returns whether there were uncommitted steps."""
        partial = list(self._directory.glob(f"*{_TEMPORARY}*"))
        for folder in partial:
            shutil.rmtree(folder, ignore_errors=True)
        return bool(partial)

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


def _digest(manifest: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


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
