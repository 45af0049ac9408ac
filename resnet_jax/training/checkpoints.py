"""Orbax's CheckpointManager with what a run needs of it: asynchronous saves, sealed with checksums, verified on resume."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from resnet_jax.data.augmentation import Preprocessing
from resnet_jax.errors import UserError
from resnet_jax.training import state as state_lib
from resnet_jax.training.state import TrainState


class Checkpoints:
    """The checkpoints of one run, under ``directory``.

    Orbax restores flipped bits silently. So each committed step is sealed: sha256 of its files, beside it. ``restore_newest`` verifies from
    the newest step backwards, moves damaged steps to ``damaged/`` and says so. A step committed just before the process died has no
    seal; it is complete (Orbax commits by renaming) and is used.

    Args:
      directory: made if missing.
      keep: number of newest steps kept.
      say: takes messages for the user.
    """

    def __init__(self, directory: Path, *, keep: int, say: Callable[[str], None]):
        self._directory = directory.absolute()
        # What a kill left half written. Orbax's own clean-up goes on in the background, past ``close``, into the next manager's first save.
        for unfinished in self._directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
            shutil.rmtree(unfinished)
        self._seals = self._directory.parent / "seals"
        self._say = say
        self._manager = self._open(keep)
        self._keep = keep

    def _open(self, keep: int) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        # Named, so that their metadata can be read before anything is restored.
        handlers: dict[str, Any] = {"state": ocp.StandardCheckpointHandler(), "preprocessing": ocp.StandardCheckpointHandler()}
        return ocp.CheckpointManager(self._directory, options=options, item_handlers=handlers)

    def steps(self) -> list[int]:
        """The committed steps, unverified, oldest first."""
        return sorted(self._manager.all_steps())

    def newest(self) -> int | None:
        """The newest committed step, unverified."""
        return self._manager.latest_step()

    def save(self, step: int, state: TrainState, preprocessing: Preprocessing) -> None:
        """Begins to save; returns when the arrays are copied. The one before it is sealed then, since Orbax waits for it.

        Raises:
          OSError: where an earlier save failed, a full disk say.
        """
        saved = self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state_lib.plain(state)), preprocessing=ocp.args.StandardSave(preprocessing)
            ),
        )
        assert saved, f"step {step} is not newer than {self.newest()}: a damaged step was not set aside"
        self._seal_all(except_step=step)

    def wait(self) -> None:
        """Returns when everything is on disk and sealed; raises what an asynchronous save ran into."""
        self._manager.wait_until_finished()
        self._seal_all()

    def close(self) -> None:
        """Waits, then frees the manager's threads."""
        self.wait()
        self._manager.close()

    def restore_newest(self, like: TrainState, preprocessing: Preprocessing) -> tuple[int, TrainState, Preprocessing] | None:
        """Restores the newest step that is whole, onto the shardings of ``like``; None where there is none.

        ``like`` and ``preprocessing`` give structure, shapes and dtypes; ``jax.ShapeDtypeStruct`` leaves will do.

        Raises:
          UserError: for a whole checkpoint of another network, which stays where it is.
        """
        for step in reversed(self.steps()):
            restored = self.restore(step, like, preprocessing)
            if restored is not None:
                return step, *restored
        return None

    def restore(self, step: int, like: TrainState, preprocessing: Preprocessing) -> tuple[TrainState, Preprocessing] | None:
        """Restores one committed step as ``restore_newest`` does; None where it is damaged, and set aside now."""
        problem = self._problem(step)
        if problem is None:
            restored = self._restore(step, like, preprocessing)
            if not isinstance(restored, str):
                return restored
            problem = restored
        self._set_aside(step, problem)
        return None

    def drop_after(self, step: int) -> None:
        """Deletes every later step: what is trained again from ``step`` on will take their place."""
        for later in self.steps():
            if later > step:
                self._manager.delete(later)
        self._seal_all()

    def _restore(self, step: int, like: TrainState, preprocessing: Preprocessing) -> tuple[TrainState, Preprocessing] | str:
        plain = jax.eval_shape(state_lib.plain, like)
        shardings = jax.tree.leaves(jax.tree.map(lambda leaf: getattr(leaf, "sharding", None), like), is_leaf=lambda s: s is None)
        leaves, treedef = jax.tree.flatten(plain)
        targets = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s) for leaf, s in zip(leaves, shardings, strict=True)]
        constants = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=shardings[0]), preprocessing)
        try:
            metadata: Any = self._manager.item_metadata(step)
            layout = _layout({"state": metadata["state"].tree, "preprocessing": metadata["preprocessing"].tree})
        except Exception as error:
            return _one_line(error)
        # Orbax casts another dtype silently, and prints a page about another shape.
        _refuse_another(step, layout, _layout({"state": plain, "preprocessing": constants}))
        try:
            items = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(jax.tree.unflatten(treedef, targets)), preprocessing=ocp.args.StandardRestore(constants)
                ),
            )
        except Exception as error:
            # tensorstore, zstd and JSON each raise their own; all mean that this step cannot be read.
            return _one_line(error)
        return state_lib.from_plain(items["state"]), items["preprocessing"]

    def _problem(self, step: int) -> str | None:
        seal = self._seals / f"{step}.json"
        if not seal.exists():
            return None
        try:
            expected: Any = json.loads(seal.read_text())
        except ValueError:
            expected = {}
        if not isinstance(expected, dict) or not expected:
            return "its seal cannot be read"
        found = _checksums(self._directory / str(step))
        changed = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        return f"{len(changed)} of its files changed since they were written ({changed[0]})" if changed else None

    def _set_aside(self, step: int, problem: str) -> None:
        damaged = self._directory.parent / "damaged"
        damaged.mkdir(exist_ok=True)
        place = damaged / f"{step}"
        shutil.rmtree(place, ignore_errors=True)
        self._manager.close()
        (self._directory / str(step)).rename(place)
        (self._seals / f"{step}.json").unlink(missing_ok=True)
        self._manager = self._open(self._keep)
        self._say(f"checkpoint of step {step} is damaged: {problem}; set aside in {place}, going on with the one before it")

    def _seal_all(self, except_step: int | None = None) -> None:
        self._seals.mkdir(parents=True, exist_ok=True)
        steps = set(self._manager.all_steps()) - {except_step}
        for step in steps:
            seal = self._seals / f"{step}.json"
            if not seal.exists() and (self._directory / str(step)).is_dir():
                temporary = seal.with_suffix(".part")
                temporary.write_text(json.dumps(_checksums(self._directory / str(step))))
                temporary.rename(seal)
        for seal in self._seals.glob("*.json"):
            if int(seal.stem) not in steps:
                seal.unlink()


def _layout(tree: Any) -> dict[str, str]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{tuple(leaf.shape)}" for path, leaf in leaves}


def _refuse_another(step: int, found: dict[str, str], wanted: dict[str, str]) -> None:
    differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if differing:
        name = differing[0]
        raise UserError(
            f"the checkpoint of step {step} is of another network: {len(differing)} arrays differ, as {name}, "
            f"{found.get(name, 'absent')} in the checkpoint and {wanted.get(name, 'absent')} in the experiment"
        )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
