"""Whole lines, all of them, in order: whatever becomes of the disk in between."""

import errno
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet_jax.training.lines import Lines


@pytest.fixture
def limit() -> Callable[[int], None]:
    """Sets how many bytes a file may have; restores it afterwards. Every write behind them fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size < 0 else size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_lines_take_the_place_of_the_file_and_others_follow_at_once(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("before\n" * 100)
    lines = Lines(file, ["one", "two"])
    assert file.read_text() == "one\ntwo\n"
    lines.append("drei ±")
    assert file.read_text() == "one\ntwo\ndrei ±\n"
    lines.close()
    assert [path.name for path in tmp_path.iterdir()] == ["lines"]


def test_part_of_a_line_never_stays_and_no_line_is_lost(tmp_path: Path, limit: Callable[[int], None]) -> None:
    """Six bytes of the second line fit, then none; then there is room again."""
    lines = Lines(tmp_path / "lines", ["a" * 9])
    limit(16)
    for line in ("b" * 9, "c" * 9):
        with pytest.raises(OSError, match="File too large") as error:
            lines.append(line)
        assert error.value.errno == errno.EFBIG
        assert (tmp_path / "lines").read_text() == "a" * 9 + "\n"
    limit(-1)
    lines.append("d")
    assert (tmp_path / "lines").read_text() == "aaaaaaaaa\nbbbbbbbbb\nccccccccc\nd\n"
    lines.close()


def test_closing_writes_what_waits_or_says_that_it_cannot(tmp_path: Path, limit: Callable[[int], None]) -> None:
    for name, room in {"less": 4, "more": -1}.items():
        lines = Lines(tmp_path / name, [])
        limit(4)
        with pytest.raises(OSError, match="File too large"):
            lines.append("lines")
        limit(room)
        if room < 0:
            lines.close()
        else:
            with pytest.raises(OSError, match="File too large"):
                lines.close()
        limit(-1)
    assert (tmp_path / "less").read_text() == ""
    assert (tmp_path / "more").read_text() == "lines\n"
