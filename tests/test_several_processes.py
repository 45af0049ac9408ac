"""Commands print in several processes as in one, and once."""

import json
import subprocess
from pathlib import Path

import pytest

import launched


def printed(words: list[str], processes: int, devices: int = 1) -> list[str]:
    """Returns stdout of each process."""
    begun = launched.begin(words, processes=processes, devices=devices, stdout=subprocess.PIPE)
    ends = [process.communicate(timeout=launched.PATIENCE) for process in begun]
    assert [process.returncode for process in begun] == [0] * processes, ends
    assert any("[Gloo]" in err for _, err in ends) or processes == 1, "libraries log to stderr"
    return [out for out, _ in ends]


@pytest.mark.slow
def test_run_of_two_processes_is_scored_by_two_as_by_one(digits_dir: str, tmp_path: Path) -> None:
    trained = launched.finish(tmp_path / "run", digits_dir, "--fsdp", "2", processes=2, devices=2)
    words = ["evaluate", str(tmp_path / "run"), "--data-dir", digits_dir, "--json"]
    (alone,), (first, second) = printed(words, 1), printed(words, 2, devices=2)
    assert json.loads(alone)["error_percent"] == json.loads(first)["error_percent"] == trained["value"]
    assert second == ""
