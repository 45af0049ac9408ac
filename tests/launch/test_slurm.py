"""``launch/slurm.sbatch`` under a real Slurm with preemption; its reading of Slurm's output with a stand-in."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import slurm_cluster
from slurm_cluster import wait_for

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "launch" / "slurm.sbatch"
LONG = f"{Path(__file__).parent}/long_experiment.py:long"
# One device per process, with and without Slurm.
DEVICES = "--xla_force_host_platform_device_count=1 --xla_cpu_collective_call_terminate_timeout_seconds=1200"
MINUTES = 60


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """Environment of jobs; the cluster ends with this file's tests."""
    if reason := slurm_cluster.missing():
        pytest.skip(reason)
    with slurm_cluster.cluster() as environment:
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        yield environment | {"PATH": path, "XLA_FLAGS": DEVICES, "JAX_PLATFORMS": "cpu"}


def submit(environment: dict[str, str], log: Path, *command: str) -> str:
    words = ["sbatch", "--parsable", "--ntasks=2", "--nodes=1", "--ntasks-per-node=2", f"--output={log}", str(SCRIPT), *command]
    return subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def job(environment: dict[str, str], number: str) -> dict[str, str]:
    """Fields of a job, as Slurm prints them."""
    shown = subprocess.run(["scontrol", "show", "job", "-o", number], env=environment, capture_output=True, text=True).stdout
    return dict(re.findall(r"(\S+?)=(\S*)", shown))


def control(environment: dict[str, str], *command: str) -> None:
    subprocess.run(command, env=environment, check=True)


def scored(workdir: Path) -> int:
    """Newest evaluated step."""
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.is_file() else []
    return max((record["step"] for line in lines if (record := json.loads(line))["split"] == "test"), default=0)


@pytest.mark.slow
def test_run_preempted_twice_ends_like_an_uninterrupted_one(slurm: dict[str, str], digits_dir: str, tmp_path: Path) -> None:
    arguments = ["train", LONG, "--data-dir", digits_dir, "--workdir"]
    straight, preempted, log = tmp_path / "straight", tmp_path / "preempted", tmp_path / "job.log"
    local = [sys.executable, str(ROOT / "launch" / "local.py"), "--processes", "2", "--restarts", "0", "--", "resnet-jax", *arguments]
    done = subprocess.run([*local, str(straight)], env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

    number = submit(slurm, log, *arguments, str(preempted))
    wait_for(lambda: scored(preempted) >= 80, 8 * MINUTES, f"step 80 is scored; see {log}")
    control(slurm, "scontrol", "requeue", number)
    wait_for(lambda: job(slurm, number)["Restarts"] == "1", 2 * MINUTES, f"Slurm has put it back; see {log}")
    first_end = scored(preempted)
    assert first_end < 300, "too late to show anything"
    wait_for(lambda: scored(preempted) >= first_end + 60, 8 * MINUTES, f"it goes on; see {log}")
    # As Slurm does before the time limit.
    control(slurm, "scancel", "--batch", "--signal=USR1", number)
    wait_for(lambda: job(slurm, number)["JobState"] == "COMPLETED", 12 * MINUTES, f"the job is done; see {log}")

    text = log.read_text()
    assert [int(n) for n in re.findall(r"slurm\.sbatch: 2 processes on \S+, start (\d+): resnet-jax train", text)] == [1, 2, 3], text
    assert "SIGUSR1, passed on" in text
    assert "exit code 138: requeued" in text
    assert text.rstrip().endswith("slurm.sbatch: done")
    results = [json.loads((folder / "result.json").read_text()) for folder in (straight, preempted)]
    assert results[0]["state_digest"] == results[1]["state_digest"]
    assert results[0]["value"] == results[1]["value"]


@pytest.mark.slow
def test_bad_input_is_not_requeued(slurm: dict[str, str], tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    number = submit(slurm, log, "train", "nowhere.py:nothing", "--workdir", str(tmp_path / "run"))
    wait_for(lambda: job(slurm, number)["JobState"] == "FAILED", 5 * MINUTES, f"the job has failed; see {log}")
    assert "slurm.sbatch: exit code 2: not requeued" in log.read_text()
    assert job(slurm, number)["Restarts"] == "0"


@pytest.mark.slow
def test_cancelled_job_saves_and_stays_cancelled(slurm: dict[str, str], digits_dir: str, tmp_path: Path) -> None:
    log, workdir = tmp_path / "job.log", tmp_path / "run"
    number = submit(slurm, log, "train", LONG, "--data-dir", digits_dir, "--workdir", str(workdir))
    wait_for(lambda: scored(workdir) >= 20, 8 * MINUTES, f"step 20 is scored; see {log}")
    control(slurm, "scancel", number)
    wait_for(lambda: job(slurm, number)["JobState"] == "CANCELLED", 3 * MINUTES, f"the job has ended; see {log}")
    assert ": requeued" not in log.read_text()
    assert job(slurm, number)["Restarts"] == "0"
    assert re.search(r"stopped by SIGTERM after step \d+; the state is saved", log.read_text()), log.read_text()


SRUN = """#!/usr/bin/env bash
echo "$@" > asked_of_srun
env | grep -E '^(JAX_LOCAL|SRUN_CPUS)' >> asked_of_srun
printf '%s\\n' "$SAID"
exit "$CODE"
"""
OTHERS = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> asked_of_slurm
[ "$(basename "$0")" != squeue ] || echo "$STATE"
exit 1
"""


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """Programs in place of Slurm's that record their calls, so that these tests run everywhere."""
    for name in ("srun", "squeue", "scancel", "scontrol"):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(SRUN if name == "srun" else OTHERS)
        file.chmod(0o755)
    variables = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2", "STATE": "RUNNING", "SAID": "", "CODE": "0"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return kept | variables | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}


def sbatch(environment: dict[str, str], folder: Path, *command: str) -> tuple[int, str, bool]:
    """Runs the script; returns its exit code, its output, and whether it requeued the job."""
    done = subprocess.run(["bash", str(SCRIPT), *command], env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    asked = folder / "asked_of_slurm"
    return done.returncode, done.stdout + done.stderr, asked.is_file() and "scontrol requeue 7" in asked.read_text()


# Printed by Slurm 22.05 when one of two processes fails and the other is ended; srun then exits with 143.
ENDED = "srun: launch/slurm: _step_signal: Terminating StepId=2.0\nsrun: error: vm: task 1: Terminated"


def test_first_failure_decides_on_the_requeue(stand_in: dict[str, str], tmp_path: Path) -> None:
    for said, srun_code, code, requeues in (
        ("", 0, 0, False),
        (f"srun: error: vm: task 0: Exited with exit code 2\n{ENDED}", 143, 2, False),
        (f"srun: error: vm: tasks 0-1: Exited with exit code 1\n{ENDED}", 143, 1, False),
        (f"srun: error: vm: task 0: Exited with exit code 75\n{ENDED}", 143, 75, True),
        (f"srun: error: vm: task 0: Killed\n{ENDED}", 143, 143, True),
        ("srun: error: vm: tasks 0-1: Exited with exit code 138", 138, 138, True),
    ):
        (tmp_path / "asked_of_slurm").unlink(missing_ok=True)
        found, _, requeued = sbatch(stand_in | {"SAID": said, "CODE": str(srun_code)}, tmp_path, "train", "a.py:b")
        assert (found, requeued) == (code, requeues), said
    # A cancelled job, and one that restarted too often.
    for variables, message in (
        ({"STATE": "COMPLETING"}, "the job is COMPLETING"),
        ({"SLURM_RESTART_COUNT": "20"}, "exit code 143 after 20 restarts"),
    ):
        (tmp_path / "asked_of_slurm").unlink(missing_ok=True)
        code, text, requeued = sbatch(stand_in | {"CODE": "143"} | variables, tmp_path, "train", "a.py:b")
        assert (code, requeued) == (143, False)
        assert message in text


def test_single_process_of_a_node_takes_all_gpus_and_cores(stand_in: dict[str, str], tmp_path: Path) -> None:
    sbatch(stand_in | {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "6"}, tmp_path, "train", "a b.py:c", "--seed", "1")
    assert (tmp_path / "asked_of_srun").read_text().splitlines() == [
        "--kill-on-bad-exit=1 resnet-jax train a b.py:c --seed 1",
        "JAX_LOCAL_DEVICE_IDS=0,1,2,3",
        "SRUN_CPUS_PER_TASK=6",
    ]
    sbatch(stand_in | {"SLURM_GPUS_ON_NODE": "4", "SLURM_NTASKS": "8"}, tmp_path, "train")
    assert "JAX_LOCAL" not in (tmp_path / "asked_of_srun").read_text()


def test_missing_command_prints_usage(stand_in: dict[str, str], tmp_path: Path) -> None:
    code, text, _ = sbatch(stand_in, tmp_path)
    assert code == 2
    assert "sbatch launch/slurm.sbatch train" in text
