"""What keeps a checkpoint from being used, in one sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from resnet_jax.errors import UserError
from resnet_jax.training import verification
from resnet_jax.training.seals import Seals

TREE = {"params": {"kernel": jnp.zeros((2, 3)), "bias": np.zeros(3, np.float16)}, "step": np.int32(4)}


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[ocp.CheckpointManager]:
    """With step 4 of the run 'ours', and step 5 that says no run."""
    with ocp.CheckpointManager(tmp_path / "steps", item_handlers={"state": ocp.StandardCheckpointHandler()}) as found:
        for step, said in {4: {"fingerprint": "ours"}, 5: None}.items():
            found.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave(TREE)), custom_metadata=said)
        found.wait_until_finished()
        yield found


def problem(manager: ocp.CheckpointManager, step: int = 4, wanted: Any = TREE, fingerprint: str = "ours") -> str | None:
    return verification.problem(manager, Seals(Path(manager.directory).parent / "seals"), step, {"state": wanted}, fingerprint)


@pytest.mark.parametrize(("step", "fingerprint"), [(4, "ours"), (4, ""), (5, "ours"), (5, "")])
def test_whole_step_of_the_run_has_none(manager: ocp.CheckpointManager, step: int, fingerprint: str) -> None:
    """Or where either does not say whose it is."""
    assert problem(manager, step, fingerprint=fingerprint) is None


def test_step_of_another_run_has_one(manager: ocp.CheckpointManager) -> None:
    """Of another network, too: that it is of another run is said, and no error."""
    expected = "is of another run: its fingerprint is ours, and this run's 0123456789ab"
    assert problem(manager, fingerprint="0123456789abcdef") == expected
    assert problem(manager, wanted={}, fingerprint="0123456789abcdef") == expected


def test_damage_comes_before_everything_else(manager: ocp.CheckpointManager) -> None:
    """What a damaged step says of itself is not believed."""
    folder = Path(manager.directory) / "4"
    Seals(folder.parents[1] / "seals").write(4, folder)
    (folder / "state" / "_METADATA").write_text("{}")
    found = problem(manager, fingerprint="theirs")
    assert found == "is damaged: 1 of its files changed since they were written (state/_METADATA)"
    (folder.parents[1] / "seals" / "4.json").unlink()
    found = problem(manager, fingerprint="theirs")
    assert found is not None
    assert found.startswith("is damaged: ")
    assert "\n" not in found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"step": np.int64(4)}, "1 arrays differ, as state/step, int32() in the checkpoint and int64() in the experiment"),
        ({"params": {}}, "2 arrays differ, as state/params/bias, float16(3,) in the checkpoint and absent in the experiment"),
        ({"more": np.zeros(2)}, "1 arrays differ, as state/more, absent in the checkpoint and float64(2,) in the experiment"),
    ],
    ids=["dtype", "fewer", "more"],
)
def test_other_arrays_of_the_same_run_are_an_error(manager: ocp.CheckpointManager, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        problem(manager, wanted={**TREE, **changes})
    assert str(error.value) == f"the checkpoint of step 4 is of another network: {said}"


def test_long_errors_become_one_line() -> None:
    assert verification.one_line(ValueError("a\nb")) == "ValueError: a"
    assert verification.one_line(OSError()) == "OSError: "
    assert len(verification.one_line(ValueError("a" * 10_000))) < 250
