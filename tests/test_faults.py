"""What can happen to a run while it runs, in real processes: killed, told to stop, left by others, hanging. Nothing is lost."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import launched
import numpy as np
import pytest

# Small steps, many of them; a save every twenty.
FIELDS = ("--steps", "200", "--checkpointing.every", "20", "--evaluation.every", "25")
ONE_AND_TWO = [1, 2]


@pytest.fixture(scope="module")
def undisturbed(digits_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict]:
    """The result of a run that nothing happened to, in so many processes."""
    made: dict[int, dict] = {}

    def result(processes: int) -> dict:
        if processes not in made:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            made[processes] = launched.finish(folder, digits_dir, *FIELDS, processes=processes)
        return made[processes]

    return result


@pytest.mark.parametrize("processes", ONE_AND_TWO)
@pytest.mark.parametrize("kills", [pytest.param(5, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.exhaustive)])
def test_killed_at_random_moments_it_ends_in_the_same_bits(
    kills: int, processes: int, undisturbed: Callable[[int], dict], digits_dir: str, tmp_path: Path
) -> None:
    """Moments of the whole life of an attempt: imports, restoring, compilation, steps, saves, scores. Two processes die one at a time, or
    both at once."""
    random, workdir = np.random.default_rng(processes), tmp_path / "run"
    straight = undisturbed(processes)
    # Of an attempt: imports and compilation, and the steps.
    life, ended_early = 6 + straight["seconds"], 0
    for _ in range(kills):
        run = launched.start(workdir, digits_dir, *FIELDS, processes=processes)
        time.sleep(random.uniform(0, life))
        ended_early += all(process.poll() is not None for process in run.processes)
        if random.random() < 0.5:
            run.processes[int(random.integers(processes))].kill()
            time.sleep(random.uniform(0, 1))
        run.kill()
    assert ended_early < 0.75 * kills, "most attempts have to be killed before they are done"
    result = launched.finish(workdir, digits_dir, *FIELDS, processes=processes)
    assert result["state_digest"] == straight["state_digest"]
    assert result["value"] == straight["value"]


def never_scored(workdir: Path) -> bool:
    return not any(json.loads(line)["split"] == "test" for line in (workdir / "metrics.jsonl").read_text().splitlines())


@pytest.mark.slow
@pytest.mark.parametrize(("of", "number"), [(1, signal.SIGTERM), (0, signal.SIGUSR1)])
def test_a_signal_to_one_of_two_stops_both_after_the_same_step(
    of: int, number: signal.Signals, undisturbed: Callable[[int], dict], digits_dir: str, tmp_path: Path
) -> None:
    run = launched.start(tmp_path / "run", digits_dir, *FIELDS, processes=2)
    run.wait_for_checkpoint(40)
    run.processes[of].send_signal(number)
    ends = run.wait()
    assert [code for code, _ in ends] == [128 + number] * 2, ends
    steps = {said.split("after step ")[1].split(";")[0] for _, said in ends}
    assert steps == {str(launched.newest(tmp_path / "run"))}
    assert launched.finish(tmp_path / "run", digits_dir, *FIELDS, processes=2)["state_digest"] == undisturbed(2)["state_digest"]


@pytest.mark.parametrize(
    ("phase", "processes"),
    [
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("compilation", 2), ("evaluation", 2), ("saving", 1))),
        *(pytest.param(*case, marks=pytest.mark.exhaustive) for case in (("compilation", 1), ("warm-up", 1), ("evaluation", 1))),
    ],
)
def test_a_signal_in_any_phase_saves_and_leaves(
    phase: str, processes: int, undisturbed: Callable[[int], dict], digits_dir: str, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    # A batch of 8 images makes a score of the 360 long enough to be caught in.
    more = ("--evaluation.batch-size", "8") if phase == "evaluation" else ()
    run = launched.start(workdir, digits_dir, *FIELDS, *more, processes=processes)
    metrics = workdir / "metrics.jsonl"
    if phase == "compilation":
        # The file is made just before the first step is compiled.
        run.wait_until(metrics.exists)
    elif phase == "warm-up":
        run.wait_until(lambda: metrics.exists() and bool(metrics.read_text()))
    elif phase == "evaluation":
        run.wait_until(lambda: metrics.exists() and '"step": 50' in metrics.read_text())
    else:
        run.wait_until(lambda: any("tmp" in path.name for path in (workdir / "checkpoints").glob("*")))
    run.processes[-1].send_signal(signal.SIGTERM)
    ends = run.wait()
    assert [code for code, _ in ends] == [143] * processes, ends
    assert all("stopped by SIGTERM" in said and "Traceback" not in said for _, said in ends)
    found = launched.finish(workdir, digits_dir, *FIELDS, *more, processes=processes)
    assert found["state_digest"] == undisturbed(processes)["state_digest"]
    assert found["value"] == undisturbed(processes)["value"]
    scored = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"test"' in line]
    assert scored == list(range(25, 201, 25)), "a score that was given up is made when the run goes on"


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_other_within_seconds(
    killed: int, undisturbed: Callable[[int], dict], digits_dir: str, tmp_path: Path
) -> None:
    """With a code that a launcher understands: 75, or 134 where jax's runtime ends the process first. The first is the coordinator."""
    run = launched.start(tmp_path / "run", digits_dir, *FIELDS, processes=2)
    run.wait_for_checkpoint(40)
    run.processes[killed].kill()
    began = time.monotonic()
    ends = run.wait()
    assert time.monotonic() - began < 30
    assert ends[1 - killed][0] in (75, -signal.SIGABRT), ends[1 - killed][1]
    assert launched.finish(tmp_path / "run", digits_dir, *FIELDS, processes=2)["state_digest"] == undisturbed(2)["state_digest"]


@pytest.mark.parametrize("hanging", [pytest.param(0, marks=pytest.mark.exhaustive), pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_hangs_ends_the_other_by_the_heartbeat(
    hanging: int, undisturbed: Callable[[int], dict], digits_dir: str, tmp_path: Path
) -> None:
    run = launched.start(tmp_path / "run", digits_dir, *FIELDS, "--heartbeat-seconds", "10", processes=2)
    run.wait_for_checkpoint(40)
    run.processes[hanging].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    other = run.processes[1 - hanging]
    _, said = other.communicate(timeout=launched.PATIENCE)
    assert other.returncode in (75, -signal.SIGABRT), said
    assert time.monotonic() - began < 60
    run.kill()
    assert launched.finish(tmp_path / "run", digits_dir, *FIELDS, processes=2)["state_digest"] == undisturbed(2)["state_digest"]


@pytest.mark.slow
def test_across_a_change_of_mesh_training_stays_within_the_stated_tolerance(digits_dir: str, tmp_path: Path) -> None:
    """README, "What is promised": the losses of the first steps after the change agree to 1e-4."""
    few = ("--steps", "400", "--checkpointing.every", "3", "--evaluation.every", "50")
    import shutil

    first = launched.start(tmp_path / "run", digits_dir, *few)
    first.wait_for_checkpoint(12)
    first.kill()
    losses = []
    for number, how in enumerate(({}, {"devices": 4}, {"processes": 2, "devices": 2})):
        for fsdp in (("--fsdp", "4"),) if number else ((),):
            folder = tmp_path / f"{number}{len(fsdp)}"
            shutil.copytree(tmp_path / "run", folder)
            began = launched.newest(folder)
            run = launched.start(folder, digits_dir, *few, *fsdp, **how)
            run.wait_for_checkpoint(began + 12)
            run.kill()
            records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            losses.append([r["loss"] for r in records if r["split"] == "train" and began < r["step"] <= began + 5])
    shortest = min(map(len, losses))
    assert shortest >= 1
    for found in losses[1:]:
        np.testing.assert_allclose(found[:shortest], losses[0][:shortest], rtol=1e-4)
