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

from conftest import ROOT
from launched import finish, newest

SCRIPT = ROOT / "launch" / "slurm.sbatch"
# Long enough to be interrupted in the middle.
TRAIN = ("train", "tests/tiny_experiment.py:tiny", "--steps", "400", "--evaluation.every", "20", "--checkpointing.every", "20")
# One device per process, with and without Slurm.
DEVICES = "--xla_force_host_platform_device_count=1 --xla_cpu_collective_call_terminate_timeout_seconds=1200"


class Job:
    """A job of two processes that runs a resnet-jax command."""

    def __init__(self, environment: dict[str, str], log: Path, *command: str):
        self.environment, self.log = environment, log
        options = ["--parsable", "--ntasks=2", "--nodes=1", "--ntasks-per-node=2", f"--output={log}"]
        self.number = self.control("sbatch", *options, str(SCRIPT), *command)

    def control(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    def wait(self, minutes: int, **fields: str) -> None:
        def is_reached() -> bool:
            return fields.items() <= dict(re.findall(r"(\S+?)=(\S*)", self.control("scontrol", "show", "job", "-o", self.number))).items()

        wait_for(is_reached, 60 * minutes, f"{fields}; see {self.log}")

    def wait_for_step(self, workdir: Path, step: int) -> None:
        wait_for(lambda: newest(workdir) >= step, 600, f"step {step} is saved; see {self.log}")


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """Environment of jobs; the cluster ends with this file's tests."""
    if not slurm_cluster.can_start():
        pytest.skip("a temporary Slurm needs root and `apt-get install slurm-wlm munge`")
    with slurm_cluster.cluster() as environment:
        path = f"{Path(sys.executable).parent}:{environment['PATH']}"
        yield environment | {"PATH": path, "XLA_FLAGS": DEVICES, "JAX_PLATFORMS": "cpu"}


@pytest.mark.slow
def test_run_preempted_twice_ends_like_an_uninterrupted_one(slurm: dict[str, str], digits_dir: str, tmp_path: Path) -> None:
    straight, preempted = finish(tmp_path / "straight", digits_dir, *TRAIN[2:], processes=2), tmp_path / "preempted"
    job = Job(slurm, tmp_path / "job.log", *TRAIN, "--data-dir", digits_dir, "--workdir", str(preempted))
    job.wait_for_step(preempted, 80)
    job.control("scontrol", "requeue", job.number)
    job.wait(2, Restarts="1")
    first_end = newest(preempted)
    assert first_end < 300, "too late to show anything"
    job.wait_for_step(preempted, first_end + 60)
    # As Slurm does before the time limit.
    job.control("scancel", "--batch", "--signal=USR1", job.number)
    job.wait(12, JobState="COMPLETED")

    text = job.log.read_text()
    assert re.findall(r"slurm\.sbatch: 2 processes on \S+, start (\d+): resnet-jax train", text) == ["1", "2", "3"], text
    assert text.index("SIGUSR1, passed on") < text.index("exit code 138: requeued")
    assert json.loads((preempted / "result.json").read_text())["state_digest"] == straight["state_digest"]


@pytest.mark.slow
def test_bad_input_and_cancelled_jobs_are_not_requeued(slurm: dict[str, str], digits_dir: str, tmp_path: Path) -> None:
    job = Job(slurm, tmp_path / "bad.log", "train", "nowhere.py:nothing", "--workdir", str(tmp_path / "bad"))
    job.wait(5, JobState="FAILED")
    assert "slurm.sbatch: exit code 2: not requeued" in job.log.read_text()

    job = Job(slurm, tmp_path / "job.log", *TRAIN, "--data-dir", digits_dir, "--workdir", str(tmp_path / "run"))
    job.wait_for_step(tmp_path / "run", 20)
    job.control("scancel", job.number)
    job.wait(3, JobState="CANCELLED", Restarts="0")
    assert re.search(r"stopped by SIGTERM after step \d+; the state is saved", job.log.read_text()), job.log.read_text()


# In place of Slurm's programs.
PROGRAM = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> calls
case $(basename "$0") in
  srun) env | grep -E '^(JAX_LOCAL|SRUN_CPUS)' >> calls; printf '%s\\n' "$SAID"; exit "$CODE" ;;
  squeue) echo "$STATE" ;;
esac
exit 1
"""
VARIABLES = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_JOB_NUM_NODES": "2", "STATE": "RUNNING", "SAID": "", "CODE": "0"}


def sbatch(folder: Path, *command: str, **variables: str) -> tuple[int, str, list[str]]:
    """Runs the script with the stand-in; returns its exit code, its output, and the calls of Slurm's programs."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "calls").write_text("")
    for name in ("srun", "squeue", "scancel", "scontrol"):
        (folder / "bin" / name).write_text(PROGRAM)
        (folder / "bin" / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment = kept | VARIABLES | {"PATH": f"{folder}/bin:{os.environ['PATH']}"} | variables
    done = subprocess.run(["bash", str(SCRIPT), *command], env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout + done.stderr, (folder / "calls").read_text().splitlines()


# Printed by Slurm 22.05 when one of two processes fails and the other is ended; srun then exits with 143.
ENDED = "srun: launch/slurm: _step_signal: Terminating StepId=2.0\nsrun: error: vm: task 1: Terminated"


def test_first_failure_decides_on_the_requeue(tmp_path: Path) -> None:
    for said, variables, expected, requeues, message in (
        ("", {"CODE": "0"}, 0, False, "done"),
        (f"srun: error: vm: tasks 0-1: Exited with exit code 2\n{ENDED}", {}, 2, False, "not requeued"),
        (f"srun: error: vm: task 0: Exited with exit code 75\n{ENDED}", {}, 75, True, "requeued"),
        (f"srun: error: vm: task 0: Killed\n{ENDED}", {}, 143, True, "requeued"),
        ("srun: error: vm: tasks 0-1: Exited with exit code 138", {"CODE": "138"}, 138, True, "requeued"),
        ("", {"STATE": "COMPLETING"}, 143, False, "the job is COMPLETING"),
        ("", {"SLURM_RESTART_COUNT": "20"}, 143, False, "exit code 143 after 20 restarts"),
        ("", {"RESNET_JAX_RESTARTS": "few"}, 2, False, "RESNET_JAX_RESTARTS must be a number, got 'few'"),
    ):
        code, text, calls = sbatch(tmp_path, "train", "a.py:b", **{"SAID": said, "CODE": "143"} | variables)
        assert (code, "scontrol requeue 7" in calls) == (expected, requeues), said
        assert message in text
    assert "sbatch launch/slurm.sbatch train" in sbatch(tmp_path)[1]


def test_single_process_of_a_node_takes_all_gpus_and_cores(tmp_path: Path) -> None:
    srun = "srun --kill-on-bad-exit=1 resnet-jax train a b.py:c"
    for variables, exported in (
        ({"SLURM_CPUS_PER_TASK": "6"}, ["JAX_LOCAL_DEVICE_IDS=0,1,2,3", "SRUN_CPUS_PER_TASK=6"]),
        ({"SLURM_NTASKS": "8"}, []),
    ):
        assert sbatch(tmp_path, "train", "a b.py:c", SLURM_GPUS_ON_NODE="4", **variables)[2] == [srun, *exported]
