"""Faults of a run in real processes: kills, signals, lost and hanging processes."""

import functools
import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import launched
import torture

# Small steps, many of them; a save every twenty.
FIELDS = ("--steps", "200", "--checkpointing.every", "20", "--evaluation.every", "25")


@pytest.fixture(scope="module")
def undisturbed(digits_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict]:
    """Returns the result of a run without faults, by the number of processes."""

    @functools.cache
    def result(processes: int) -> dict:
        return launched.finish(tmp_path_factory.mktemp("undisturbed") / "run", digits_dir, *FIELDS, processes=processes)

    return result


@pytest.mark.slow
def test_long_proofs_hold_for_one_fault_of_each_kind(digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``python tests/torture.py`` has more of each."""
    monkeypatch.setattr(torture, "PHASES", {phase: torture.PHASES[phase] for phase in ("imports", "save")})
    for name, proof in torture.PROOFS.items():
        (tmp_path / name).mkdir()
        for line in proof(tmp_path / name, digits_dir, 1):
            assert "same digest" in line or "SKIPPED" in line, line


@pytest.mark.slow
def test_dead_or_hanging_process_ends_the_other(undisturbed: Callable[[int], dict], digits_dir: str, tmp_path: Path) -> None:
    """With a code that a launcher understands: 75, or 134 where jax's runtime ends the process first. A hanging one: by the heartbeat."""
    workdir = tmp_path / "run"
    for sent, seconds, step in ((signal.SIGKILL, 30, 0), (signal.SIGKILL, 30, 40), (signal.SIGSTOP, 60, 80)):
        run = launched.start(workdir, digits_dir, *FIELDS, "--heartbeat-seconds", "10", processes=2)
        # At step 0: while the first checkpoint is saved.
        run.wait_until(lambda step=step: launched.newest(workdir) >= step and any((workdir / "checkpoints").glob("*")))
        run.processes[1].send_signal(sent)
        began = time.monotonic()
        _, said = run.processes[0].communicate(timeout=launched.PATIENCE)
        assert run.processes[0].returncode in (75, -signal.SIGABRT), said
        assert time.monotonic() - began < seconds
        run.kill()
    assert launched.finish(workdir, digits_dir, *FIELDS, processes=2)["state_digest"] == undisturbed(2)["state_digest"]


@pytest.mark.slow
def test_signal_to_one_process_stops_all_at_the_same_step(undisturbed: Callable[[int], dict], digits_dir: str, tmp_path: Path) -> None:
    """A score that was cut short is completed when the run continues."""
    # A batch of 8 images makes a score of the 360 long enough to be caught in.
    workdir, fields = tmp_path / "run", (*FIELDS, "--evaluation.batch-size", "8")
    run, metrics = launched.start(workdir, digits_dir, *fields, processes=2), workdir / "metrics.jsonl"
    run.wait_until(lambda: metrics.exists() and '"step": 50' in metrics.read_text())
    run.processes[-1].send_signal(signal.SIGTERM)
    ends = run.wait()
    assert [code for code, _ in ends] == [143, 143], ends
    assert {said.split("stopped by SIGTERM after step ")[1].split(";")[0] for _, said in ends} == {str(launched.newest(workdir))}
    assert all("Traceback" not in said for _, said in ends)
    resumed, straight = launched.finish(workdir, digits_dir, *fields, processes=2), undisturbed(2)
    assert (resumed["state_digest"], resumed["value"]) == (straight["state_digest"], straight["value"])
    scored = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"test"' in line]
    assert scored == list(range(25, 201, 25))


@pytest.mark.slow
def test_run_of_two_processes_is_scored_by_two_as_by_one(digits_dir: str, tmp_path: Path) -> None:
    """Process 0 alone prints; libraries log to stderr."""
    trained = launched.finish(tmp_path / "run", digits_dir, "--fsdp", "2", processes=2, devices=2)
    words = ["evaluate", str(tmp_path / "run"), "--data-dir", digits_dir, "--json"]
    for processes in (1, 2):
        begun = launched.begin(words, processes=processes, devices=processes, stdout=subprocess.PIPE)
        ends = [process.communicate(timeout=launched.PATIENCE) for process in begun]
        assert [process.returncode for process in begun] == [0] * processes, ends
        assert json.loads(ends[0][0])["error_percent"] == trained["value"]
        assert processes == 1 or (ends[1][0] == "" and any("[Gloo]" in err for _, err in ends))
