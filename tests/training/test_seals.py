"""A seal vouches for every byte of a step, and for nothing else."""

from pathlib import Path

import pytest

from resnet_jax.training.seals import Seals


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """The folder of a step: two files, one of them empty, one of them larger than what is read at once."""
    folder = tmp_path / "checkpoints" / "7"
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "data").write_bytes(bytes(5 << 20))
    (folder / "commit").write_bytes(b"")
    return folder


@pytest.fixture
def seals(tmp_path: Path, step: Path) -> Seals:
    """Of that step."""
    found = Seals(tmp_path / "seals")
    found.write(7, step)
    return found


def test_sealed_step_has_no_problem_and_neither_has_one_without_a_seal(seals: Seals, step: Path) -> None:
    assert seals.problem(7, step) is None
    assert seals.problem(8, step) is None


def test_every_change_is_a_problem_with_the_file_named(seals: Seals, step: Path) -> None:
    """A bit behind the first part that is read; something in the empty file; a file more, and one less."""
    content = bytearray(bytes(5 << 20))
    content[-1] ^= 1
    (step / "state" / "data").write_bytes(content)
    assert seals.problem(7, step) == "1 of its files changed since they were written (state/data)"
    (step / "commit").write_bytes(b"1")
    (step / "more").write_bytes(b"")
    assert seals.problem(7, step) == "3 of its files changed since they were written (commit)"
    (step / "state" / "data").unlink()
    assert seals.problem(7, step) == "3 of its files changed since they were written (commit)"


def test_seal_is_never_written_again(seals: Seals, step: Path) -> None:
    """It would vouch for the damage."""
    (step / "commit").write_bytes(b"1")
    seals.write(7, step)
    assert seals.problem(7, step) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "7"])
def test_seal_that_says_nothing_is_a_problem(seals: Seals, step: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "seals" / "7.json").write_text(content)
    assert seals.problem(7, step) == "its seal cannot be read"


def test_seals_go_with_their_steps(seals: Seals, step: Path, tmp_path: Path) -> None:
    for other in (8, 9, 10):
        seals.write(other, step)
    seals.remove(8)
    seals.remove(8)
    seals.keep({7, 10, 11})
    assert sorted(path.name for path in (tmp_path / "seals").iterdir()) == ["10.json", "7.json"]


def test_nothing_is_left_of_a_seal_that_could_not_be_written(step: Path, tmp_path: Path) -> None:
    (tmp_path / "seals").write_text("a file in the way")
    with pytest.raises(OSError, match="File exists"):
        Seals(tmp_path / "seals").write(7, step)
