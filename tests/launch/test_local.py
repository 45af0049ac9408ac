"""``launch/local.py`` with real processes: failures, signals, restarts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from slurm_cluster import wait_for

ROOT = Path(__file__).parents[2]
LOCAL = ROOT / "launch" / "local.py"
PATIENCE = 600

# Each process writes its variables, then runs the test's code.
COMMAND = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
me, folder = int(os.environ["JAX_PROCESS_ID"]), Path(sys.argv[1])
names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "XLA_FLAGS", "JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
attempt = len(list(folder.glob(f"start-{me}-*")))
def stopped(number, frame):
    (folder / f"stopped-{me}").write_text(str(number))
    raise SystemExit(128 + number)
if "deaf" not in sys.argv:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1): signal.signal(number, stopped)
else:
    for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)
written = folder / f"part-{me}-{attempt}"
written.write_text(json.dumps({"pid": os.getpid()} | {name: os.environ.get(name) for name in names}))
written.rename(folder / f"start-{me}-{attempt}")
def all_started(): return len(list(folder.glob(f"start-*-{attempt}"))) == int(os.environ["JAX_NUM_PROCESSES"])
while not all_started(): time.sleep(0.02)
"""


def launch(folder: Path, *options: str, does: str, words: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    """Starts the launcher with the code ``does``; output goes to the files ``out`` and ``err``."""
    command = [sys.executable, str(LOCAL), *options, "--", sys.executable, "-c", COMMAND + does, str(folder), *words]
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | variables, text=True)


def ended(launcher: subprocess.Popen[str]) -> int:
    return launcher.wait(timeout=PATIENCE)


def started(folder: Path) -> dict[str, dict]:
    """Variables of each process, by process and attempt (``0-1``)."""
    return {file.name.removeprefix("start-"): json.loads(file.read_text()) for file in folder.glob("start-*")}


def alive(pid: int) -> bool:
    """Returns True if the process runs; False for a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_share_a_coordinator_and_process_0_prints(tmp_path: Path) -> None:
    does = "print('out', me); print('err', me, file=sys.stderr)"
    assert ended(launch(tmp_path, "--processes", "2", "--devices-per-process", "3", does=does)) == 0
    seen = started(tmp_path)
    assert sorted(seen) == ["0-0", "1-0"]
    first, second = seen["0-0"], seen["1-0"]
    assert first["JAX_COORDINATOR_ADDRESS"] == second["JAX_COORDINATOR_ADDRESS"]
    assert first["JAX_NUM_PROCESSES"] == second["JAX_NUM_PROCESSES"] == "2"
    assert second["XLA_FLAGS"].endswith("--xla_force_host_platform_device_count=3")
    assert second["JAX_PLATFORMS"] == "cpu"
    assert (tmp_path / "out").read_text() == "out 0\n"
    assert sorted((tmp_path / "err").read_text().splitlines()) == ["[0] err 0", "[1] err 1", "[1] out 1"]


def test_failure_restarts_all_at_another_port(tmp_path: Path) -> None:
    does = "if me == 1 and attempt == 0: sys.exit(75)\nif attempt == 0: time.sleep(1000)"
    assert ended(launch(tmp_path, "--processes", "3", does=does)) == 0
    seen = started(tmp_path)
    assert sorted(seen) == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert seen["0-0"]["JAX_COORDINATOR_ADDRESS"] != seen["0-1"]["JAX_COORDINATOR_ADDRESS"]
    assert (tmp_path / "stopped-0").read_text() == (tmp_path / "stopped-2").read_text() == str(int(signal.SIGTERM))
    assert "process 1 ended with exit code 75" in (tmp_path / "err").read_text()


def test_restarts_are_counted_and_the_first_failure_is_the_exit_code(tmp_path: Path) -> None:
    does = "if me == 0: os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(100)"
    assert ended(launch(tmp_path, "--processes", "2", "--restarts", "1", does=does)) == 128 + signal.SIGKILL
    assert sorted(started(tmp_path)) == ["0-0", "0-1", "1-0", "1-1"]
    assert "restarts used up (1)" in (tmp_path / "err").read_text()


def test_bad_input_is_not_retried(tmp_path: Path) -> None:
    assert ended(launch(tmp_path, "--processes", "2", does="sys.exit(2)")) == 2
    assert sorted(started(tmp_path)) == ["0-0", "1-0"]


def test_grace_ends_with_a_kill_of_all_descendants(tmp_path: Path) -> None:
    reader = "child = subprocess.Popen(['sleep', '1000']); (folder / f'child-{me}').write_text(str(child.pid))\n"
    does = f"{reader}if me == 1: sys.exit(1)\ntime.sleep(1000)"
    assert ended(launch(tmp_path, "--processes", "2", "--restarts", "0", "--grace", "1", does=does, words=("deaf",))) == 1
    pids = [seen["pid"] for seen in started(tmp_path).values()] + [int(file.read_text()) for file in tmp_path.glob("child-*")]
    assert len(pids) == 4
    assert not any(map(alive, pids))


def test_signal_is_passed_on_without_restart(tmp_path: Path) -> None:
    number = signal.SIGUSR1
    launcher = launch(tmp_path, "--processes", "2", "--grace", "30", does="time.sleep(1000)")
    wait_for(lambda: len(started(tmp_path)) == 2, PATIENCE, "both have started")
    launcher.send_signal(number)
    assert ended(launcher) == 128 + number
    assert {(tmp_path / f"stopped-{i}").read_text() for i in (0, 1)} == {str(int(number))}
    assert sorted(started(tmp_path)) == ["0-0", "1-0"]


def test_stop_ignores_grace_until_a_second_ctrl_c(tmp_path: Path) -> None:
    launcher = launch(tmp_path, "--processes", "2", "--grace", "0", does="time.sleep(1000)", words=("deaf",))
    wait_for(lambda: len(started(tmp_path)) == 2, PATIENCE, "both have started")
    launcher.send_signal(signal.SIGINT)
    time.sleep(1)
    assert launcher.poll() is None
    launcher.send_signal(signal.SIGINT)
    assert ended(launcher) == 128 + signal.SIGKILL
    assert not any(alive(seen["pid"]) for seen in started(tmp_path).values())


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is of Linux")
def test_killed_launcher_stops_its_processes(tmp_path: Path) -> None:
    launcher = launch(tmp_path, "--processes", "2", does="time.sleep(1000)")
    wait_for(lambda: len(started(tmp_path)) == 2, PATIENCE, "both have started")
    launcher.kill()
    ended(launcher)
    wait_for(lambda: not any(alive(seen["pid"]) for seen in started(tmp_path).values()), PATIENCE, "both are gone")
    assert (tmp_path / "stopped-0").read_text() == str(int(signal.SIGTERM))


def test_gpus_are_split_equally(tmp_path: Path) -> None:
    assert ended(launch(tmp_path, "--processes", "2", does="", CUDA_VISIBLE_DEVICES="4,5,6,7", JAX_PLATFORMS="")) == 0
    seen = started(tmp_path)
    assert [seen[f"{i}-0"]["CUDA_VISIBLE_DEVICES"] for i in (0, 1)] == ["4,5", "6,7"]


def test_bad_options_are_rejected(tmp_path: Path) -> None:
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "JAX_PLATFORMS": ""}
    for options, variables, message in (
        (("--processes", "0"), {}, "--processes must be at least 1, got 0"),
        (("--processes", "3"), gpus, "4 GPUs cannot be split over 3 processes"),
    ):
        assert ended(launch(tmp_path, *options, does="", **variables)) == 2
        assert message in (tmp_path / "err").read_text()
    assert not started(tmp_path)
    command = [sys.executable, str(LOCAL), "--processes", "2", "--", "resnet-jacks", "train"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "resnet-jacks cannot be started: No such file" in done.stderr


SUM = """
import jax
from resnet_jax import distributed as processes
processes.connect()
from jax.experimental import multihost_utils
print(multihost_utils.process_allgather(jax.numpy.asarray(me + 1)).sum(), jax.device_count(), jax.local_device_count(), flush=True)
"""


def test_processes_sum_over_all_devices(tmp_path: Path) -> None:
    assert ended(launch(tmp_path, "--processes", "2", "--devices-per-process", "2", does=SUM)) == 0, (tmp_path / "err").read_text()
    assert (tmp_path / "out").read_text().splitlines()[-1] == "3 4 2"


@pytest.mark.slow
def test_run_with_a_killed_process_ends_like_an_uninterrupted_one(digits_dir: str, tmp_path: Path) -> None:
    experiment = f"{Path(__file__).parent}/long_experiment.py:long"

    def train(name: str) -> subprocess.Popen[str]:
        local = [sys.executable, str(LOCAL), "--processes", "2", "--devices-per-process", "2", "--restarts", "1", "--"]
        run = [sys.executable, "-m", "resnet_jax.cli", "train", experiment, "--data-dir", digits_dir, "--steps", "120"]
        with (tmp_path / f"{name}.log").open("w") as log:
            return subprocess.Popen([*local, *run, "--workdir", str(tmp_path / name)], stdout=log, stderr=log, text=True)

    assert train("straight").wait(timeout=600) == 0, (tmp_path / "straight.log").read_text()[-3000:]
    disturbed, metrics = train("disturbed"), tmp_path / "disturbed" / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and '"step": 40,' in metrics.read_text(), 600, "step 40")
    children = Path(f"/proc/{disturbed.pid}/task/{disturbed.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    assert disturbed.wait(timeout=600) == 0, (tmp_path / "disturbed.log").read_text()[-3000:]
    assert "all 2 start again" in (tmp_path / "disturbed.log").read_text()
    digests = [json.loads((tmp_path / name / "result.json").read_text())["state_digest"] for name in ("straight", "disturbed")]
    assert digests[0] == digests[1]
