"""Commands in several processes find what they find in one, and say it once."""

import json
import subprocess
from pathlib import Path

import launched
import pytest


def said(words: list[str], processes: int, devices: int = 1) -> list[str]:
    """What each process prints."""
    begun = launched.begin(words, processes=processes, devices=devices, stdout=subprocess.PIPE)
    ends = [process.communicate(timeout=launched.PATIENCE) for process in begun]
    assert [process.returncode for process in begun] == [0] * processes, ends
    assert any("[Gloo]" in err for _, err in ends) or processes == 1, "what libraries tell goes to stderr, an answer stands alone"
    return [out for out, _ in ends]


@pytest.mark.slow
def test_a_run_of_two_processes_is_scored_by_two_as_by_one(digits_dir: str, tmp_path: Path) -> None:
    trained = launched.finish(tmp_path / "run", digits_dir, "--fsdp", "2", processes=2, devices=2)
    words = ["evaluate", str(tmp_path / "run"), "--data-dir", digits_dir, "--json"]
    (alone,), (first, second) = said(words, 1), said(words, 2, devices=2)
    assert json.loads(alone)["error_percent"] == json.loads(first)["error_percent"] == trained["value"]
    assert second == ""
