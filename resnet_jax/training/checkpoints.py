"""Orbax's CheckpointManager with what a run needs of it: asynchronous saves, sealed with checksums, verified on resume."""

import contextlib
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.training import agreement, retention, verification
from resnet_jax.training import state as state_lib
from resnet_jax.training.experiment import Checkpointing
from resnet_jax.training.failed_save import OnFailure, SaveFailed
from resnet_jax.training.retention import Retention
from resnet_jax.training.seals import Seals
from resnet_jax.training.state import TrainState
from resnet_jax.training.workdir import Workdir


class Checkpoints:
    """The checkpoints of one run, under ``directory``.

    Orbax restores flipped bits silently. So each committed step is sealed: sha256 of its files, beside it. ``restore_newest`` verifies from
    the newest step backwards, moves damaged steps and those of other runs to ``damaged/`` and says so. A step committed just before the
    process died has no seal; it is complete (Orbax commits by renaming) and is used.

    Where a run has several processes, all of them make this object and call the same methods in the same order; the first one alone
    verifies, seals, renames and deletes, and all go by what it found. ``check``, ``wait`` and ``close`` wait for no other process.

    Args:
      directory: made if missing.
      keep: number of newest steps kept.
      say: takes messages for the user.
      best: number of steps kept for their error, see ``save``.
      keep_every: multiples of it are kept for ever; 0: none.
      failed_save: 'stop' raises ``SaveFailed``; 'continue' says it, counts it in ``failed_saves`` and goes on.
      fingerprint: of the run; saved with each step. A step with another one is set aside. Empty: unknown.
      read_only: writes, renames and deletes nothing, so that the run may go on meanwhile.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep: int,
        say: Callable[[str], None],
        best: int = 0,
        keep_every: int = 0,
        failed_save: OnFailure = "stop",
        fingerprint: str = "",
        read_only: bool = False,
    ):
        self._directory = directory.absolute()
        self._retention = Retention(newest=keep, best=best, every=keep_every)
        self._say, self._on_failure, self._fingerprint, self._read_only = say, failed_save, fingerprint, read_only
        self._seals = Seals(self._directory.parent / "seals")
        self._errors: dict[int, float | None] = {}
        self._begun: int | None = None
        self._busy = False
        self._failure: Exception | None = None
        self.failed_saves = 0
        self._manager = self._open()

    @classmethod
    def of(cls, workdir: Workdir, checkpointing: Checkpointing, *, say: Callable[[str], None], read_only: bool = False) -> "Checkpoints":
        """Those of a claimed work folder."""
        return cls(
            workdir.checkpoints,
            keep=checkpointing.keep,
            say=say,
            best=checkpointing.best,
            keep_every=checkpointing.keep_every,
            failed_save=checkpointing.failed_save,
            fingerprint=workdir.read_experiment_file()["fingerprint"],
            read_only=read_only,
        )

    def _open(self) -> ocp.CheckpointManager:
        # What a kill or a failure left half written. Orbax's own clean-up goes on in the background, past ``close``, into the next
        # manager's first save.
        if not self._read_only:
            if agreement.first():
                for unfinished in self._directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                    shutil.rmtree(unfinished)
            agreement.wait("checkpoints are cleared up")
        options = ocp.CheckpointManagerOptions(preservation_policy=self._retention.policy(self._error_of), create=not self._read_only)
        # Named, so that their metadata can be read before anything is restored.
        handlers: dict[str, Any] = {"state": ocp.StandardCheckpointHandler(), "preprocessing": ocp.StandardCheckpointHandler()}
        return ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """The committed steps, unverified, oldest first."""
        return sorted(self._manager.all_steps())

    def newest(self) -> int | None:
        """The newest committed step, unverified."""
        return self._manager.latest_step()

    def best(self) -> int | None:
        """The step of the lowest finite error, unverified; of equal ones the newest. None where none was scored."""
        found = retention.best_first({step: self._error_of(step) for step in self.steps()})
        return found[0] if found else None

    def save(self, step: int, state: TrainState, preprocessing: Preprocessing, error_percent: float | None = None) -> None:
        """Begins to save; returns when the arrays are copied. The one before it is sealed then, since Orbax waits for it.

        Args:
          step: above all that were saved.
          state: of it.
          preprocessing: constants that go with it.
          error_percent: that the best steps are chosen by, in percent; None: not scored at this step. One that is not finite is never best.

        Raises:
          SaveFailed: this one or the one before it failed, a full disk say, and ``failed_save`` is 'stop'.
        """
        self._take_in()
        if agreement.anyone(self._failure is not None):
            # A process that wrote its part hears only here that another did not.
            self._report(self._begun, self._failure or OSError("another process could not write its part"))
        newest = self.newest()
        assert newest is None or newest < step, f"step {step} is not newer than {newest}: a damaged step was not set aside"
        self._errors[step] = error_percent if error_percent is not None and math.isfinite(error_percent) else None
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state_lib.plain(state)), preprocessing=ocp.args.StandardSave(preprocessing)
                ),
                custom_metadata={"fingerprint": self._fingerprint, "error_percent": self._errors[step]},
            )
        except (OSError, ValueError, RuntimeError) as error:
            # tensorstore's are ValueErrors and RuntimeErrors.
            self._report(step, error)
        else:
            self._begun, self._busy = step, True
        self._seal_all(except_step=step)

    def check(self) -> None:
        """Looks, without waiting, whether the save in the background has ended; seals it.

        Raises:
          SaveFailed: it has failed, and ``failed_save`` is 'stop'.
        """
        if self._busy and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when everything is on disk and sealed. Raises as ``check``."""
        self._take_in()
        self._report_own()
        self._seal_all()

    def close(self) -> None:
        """Waits, then frees the manager's threads. Raises as ``check``."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore_newest(self, like: TrainState, preprocessing: Preprocessing) -> tuple[int, TrainState, Preprocessing] | None:
        """Restores the newest step that is whole, onto the shardings of ``like``; None where there is none.

        ``like`` and ``preprocessing`` give structure, shapes and dtypes; ``jax.ShapeDtypeStruct`` leaves will do.

        Raises:
          UserError: for a whole checkpoint of this run with other arrays, made by another version say, which stays where it is.
        """
        for step in reversed(self.steps()):
            restored = self.restore(step, like, preprocessing)
            if restored is not None:
                return step, *restored
        return None

    def restore(self, step: int, like: TrainState, preprocessing: Preprocessing) -> tuple[TrainState, Preprocessing] | None:
        """Restores one committed step as ``restore_newest`` does; None where it is damaged or of another run, and set aside now."""
        plain = jax.eval_shape(state_lib.plain, like)
        wanted = {"state": plain, "preprocessing": preprocessing}
        problem = agreement.by_first(lambda: verification.problem(self._manager, self._seals, step, wanted, self._fingerprint))
        if problem is None:
            restored = self._restore(step, like, plain, preprocessing)
            if not agreement.anyone(isinstance(restored, Exception)):
                assert not isinstance(restored, Exception)
                return restored
            problem = f"is damaged: {verification.one_line(restored)}" if isinstance(restored, Exception) else "is damaged"
        self._set_aside(step, problem)
        return None

    def drop_after(self, step: int) -> None:
        """Deletes every later step: what is trained again from ``step`` on will take their place."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)
        self._seal_all()

    def _restore(
        self, step: int, like: TrainState, plain: TrainState, preprocessing: Preprocessing
    ) -> tuple[TrainState, Preprocessing] | Exception:
        shardings = jax.tree.leaves(jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), like), is_leaf=lambda s: s is None)
        leaves, treedef = jax.tree.flatten(plain)
        targets = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s) for leaf, s in zip(leaves, shardings, strict=True)]
        constants = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=shardings[0]), preprocessing)
        try:
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.tree.unflatten(treedef, targets)), preprocessing=ocp.args.StandardRestore(constants)
                ),
            )
        except Exception as error:
            # tensorstore, zstd and JSON each raise their own; all mean that this step cannot be read.
            return error
        return state_lib.from_plain(items["state"]), items["preprocessing"]

    def _error_of(self, step: int) -> float | None:
        if step not in self._errors:
            try:
                self._errors[step] = (self._manager.metadata(step).custom_metadata or {}).get("error_percent")
            except Exception:
                # Damaged; that is said where it is restored.
                self._errors[step] = None
        return self._errors[step]

    def _take_in(self) -> None:
        """Waits for what is being saved, and remembers how it ended."""
        self._busy = False
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failure = error

    def _report_own(self) -> None:
        # Going on needs all processes: they hear of it in the next ``save``.
        if self._failure is not None and (jax.process_count() == 1 or self._on_failure == "stop"):
            self._report(self._begun, self._failure)

    def _report(self, step: int | None, error: Exception) -> None:
        """Says that a save failed, or raises it; its remains go."""
        assert step is not None
        self._failure = None
        self._errors.pop(step, None)
        self.failed_saves += 1
        if jax.process_count() == 1 or self._on_failure == "continue":
            self._reopen()
        else:
            self._manager.reload()
        failed = SaveFailed(step, self.newest(), error)
        if self._on_failure == "stop":
            raise failed from error
        self._say(f"{failed.said}. Training goes on without it (checkpointing.failed_save is 'continue')")

    def _reopen(self) -> None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # said already: what is closed here has failed
            self._manager.close()
        self._manager = self._open()

    def _set_aside(self, step: int, problem: str) -> None:
        if self._read_only:
            self._say(f"checkpoint of step {step} {problem}; going on with the one before it")
            return
        damaged = self._directory.parent / "damaged"
        self._manager.close()

        def move() -> str:
            damaged.mkdir(exist_ok=True)
            place = damaged / f"{step}"
            shutil.rmtree(place, ignore_errors=True)
            (self._directory / str(step)).rename(place)
            self._seals.remove(step)
            return str(place)

        place = agreement.by_first(move)
        self._errors.pop(step, None)
        self._manager = self._open()
        self._say(f"checkpoint of step {step} {problem}; set aside in {place}, going on with the one before it")

    def _seal_all(self, except_step: int | None = None) -> None:
        if self._read_only or not agreement.first():
            return
        steps = set(self._manager.all_steps()) - {except_step}
        try:
            for step in steps:
                if (self._directory / str(step)).is_dir():
                    self._seals.write(step, self._directory / str(step))
        except OSError as error:
            self._say(f"a checkpoint could not be sealed: {verification.one_line(error)}; it is used unverified until it is")
        self._seals.keep(steps)
