"""Whether a checkpoint can be used: whole, of this run, and of this network."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from resnet_jax.errors import UserError
from resnet_jax.training.seals import Seals


def problem(manager: ocp.CheckpointManager, seals: Seals, step: int, wanted: Any, fingerprint: str) -> str | None:
    """What keeps a step from being used, as the end of a sentence about it; None where nothing does.

    Args:
      manager: that has it.
      seals: of its steps.
      step: which.
      wanted: its items by name, arrays or their shapes.
      fingerprint: of the run; empty: unknown. A step that says none, of an earlier version, is taken for the run's.

    Raises:
      UserError: for a whole checkpoint of this run with other arrays.
    """
    changed = seals.problem(step, Path(manager.directory) / str(step))
    if changed is not None:
        return f"is damaged: {changed}"
    try:
        metadata: Any = manager.metadata(step)
        found = layout({name: metadata.item_metadata[name].tree for name in wanted})
        theirs = (metadata.custom_metadata or {}).get("fingerprint")
    except Exception as error:
        # What Orbax meets in damaged files has many types.
        return f"is damaged: {one_line(error)}"
    if fingerprint and theirs and theirs != fingerprint:
        return f"is of another run: its fingerprint is {theirs[:12]}, and this run's {fingerprint[:12]}"
    # Orbax casts another dtype silently, and prints a page about another shape.
    _refuse_another(step, found, layout(wanted))
    return None


def layout(tree: Any) -> dict[str, str]:
    """The dtype and shape of each leaf, by its path."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{tuple(leaf.shape)}" for path, leaf in leaves}


def one_line(error: Exception) -> str:
    """Its type and the beginning of what it says."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def _refuse_another(step: int, found: dict[str, str], wanted: dict[str, str]) -> None:
    differing = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if differing:
        name = differing[0]
        raise UserError(
            f"the checkpoint of step {step} is of another network: {len(differing)} arrays differ, as {name}, "
            f"{found.get(name, 'absent')} in the checkpoint and {wanted.get(name, 'absent')} in the experiment"
        )
