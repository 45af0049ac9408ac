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

LOCAL = Path(__file__).parents[2] / "launch" / "local.py"
PATIENCE = 600
# Each process writes its variables, waits for the others, then runs the test's code. ``deaf`` ignores signals.
COMMAND = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
me, folder = int(os.environ["JAX_PROCESS_ID"]), Path(sys.argv[1])
attempt = len(list(folder.glob(f"start-{me}-*")))
def stopped(number, frame):
    if "deaf" not in sys.argv:
        (folder / f"stopped-{me}").write_text(str(number))
        raise SystemExit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1): signal.signal(number, stopped)
written = folder / f"part-{me}-{attempt}"
written.write_text(json.dumps({"pid": os.getpid()} | dict(os.environ)))
written.rename(folder / f"start-{me}-{attempt}")
while len(list(folder.glob(f"start-*-{attempt}"))) < int(os.environ["JAX_NUM_PROCESSES"]): time.sleep(0.02)
"""
SLEEP = "time.sleep(1000)"


def launch(folder: Path, *options: str, does: str, words: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    """Starts the launcher with the code ``does``; output goes to the files ``out`` and ``err``."""
    command = [sys.executable, str(LOCAL), *options, "--", sys.executable, "-c", COMMAND + does, str(folder), *words]
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        return subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | variables, text=True)


def run(folder: Path, *options: str, **how) -> tuple[int, str]:
    """Returns the launcher's exit code and its stderr."""
    return launch(folder, *options, **how).wait(timeout=PATIENCE), (folder / "err").read_text()


def started(folder: Path) -> dict[str, dict]:
    """Variables of each process, by process and attempt (``0-1``)."""
    return {file.name.removeprefix("start-"): json.loads(file.read_text()) for file in folder.glob("start-*")}


def alive(folder: Path) -> bool:
    """Whether any process or child of one runs (a zombie does not)."""
    pids = [seen["pid"] for seen in started(folder).values()] + [file.read_text() for file in folder.glob("child-*")]
    stats = [Path(f"/proc/{pid}/stat") for pid in pids]
    return any(stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z" for stat in stats)


def test_processes_share_a_coordinator_and_process_0_prints(tmp_path: Path) -> None:
    does = "print('out', me); print('err', me, file=sys.stderr)"
    code, err = run(tmp_path, "--processes", "2", "--devices-per-process", "3", does=does)
    first, second = started(tmp_path)["0-0"], started(tmp_path)["1-0"]
    assert code == 0
    assert first["JAX_COORDINATOR_ADDRESS"] == second["JAX_COORDINATOR_ADDRESS"]
    assert second["XLA_FLAGS"].endswith("--xla_force_host_platform_device_count=3")
    assert second["JAX_PLATFORMS"] == "cpu"
    assert (tmp_path / "out").read_text() == "out 0\n"
    assert sorted(err.splitlines()) == ["[0] err 0", "[1] err 1", "[1] out 1"]


def test_failure_restarts_all_at_another_port(tmp_path: Path) -> None:
    does = f"if me == 1 and attempt == 0: os.kill(os.getpid(), signal.SIGKILL)\nif attempt == 0: {SLEEP}"
    code, err = run(tmp_path, "--processes", "3", "--restarts", "1", does=does)
    seen = started(tmp_path)
    assert (code, sorted(seen)) == (0, ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"])
    assert seen["0-0"]["JAX_COORDINATOR_ADDRESS"] != seen["0-1"]["JAX_COORDINATOR_ADDRESS"]
    assert (tmp_path / "stopped-0").read_text() == (tmp_path / "stopped-2").read_text() == str(int(signal.SIGTERM))
    assert "process 1 ended with exit code 137" in err


def test_cause_of_a_failure_decides_on_restarts(tmp_path: Path) -> None:
    """137: killed. 2: bad input, at once or after a process that noticed the loss of its peer."""
    for does, expected, attempts in (
        (f"if me == 0: os.kill(os.getpid(), signal.SIGKILL)\n{SLEEP}", 137, 2),
        ("sys.exit(2)", 2, 1),
        ("if me == 0: sys.exit(75)\nfor _ in range(10): time.sleep(0.1)\nsys.exit(2)", 2, 1),
        ("sys.exit(75)", 75, 2),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        code, err = run(folder, "--processes", "2", "--restarts", "1", does=does, words=("deaf",) if "range" in does else ())
        assert (code, len(started(folder))) == (expected, 2 * attempts), does
        assert ("restarts used up (1)" in err) == (attempts == 2)


def test_grace_ends_with_a_kill_of_all_descendants(tmp_path: Path) -> None:
    reader = "child = subprocess.Popen(['sleep', '1000']); (folder / f'child-{me}').write_text(str(child.pid))\n"
    does = f"{reader}if me == 1: sys.exit(1)\nwhile True: time.sleep(1)"
    assert run(tmp_path, "--processes", "2", "--restarts", "0", "--grace", "1", does=does, words=("deaf",))[0] == 1
    assert len(list(tmp_path.glob("child-*"))) == 2
    assert not alive(tmp_path)


def test_signals_are_passed_on_without_restart(tmp_path: Path) -> None:
    """Grace does not bound a stop by the user; a second Ctrl-C does. A killed launcher stops its processes."""
    for number, words, expected in (
        (signal.SIGUSR1, (), 128 + signal.SIGUSR1),
        (signal.SIGINT, ("deaf",), 128 + signal.SIGKILL),
        *([(signal.SIGKILL, (), -signal.SIGKILL)] if sys.platform == "linux" else []),
    ):
        folder = tmp_path / number.name
        folder.mkdir()
        launcher = launch(folder, "--processes", "2", "--grace", "0", does=f"while True: {SLEEP}", words=words)
        wait_for(lambda folder=folder: len(started(folder)) == 2, PATIENCE, "both have started")
        launcher.send_signal(number)
        if words:
            time.sleep(1)
            assert launcher.poll() is None
            launcher.send_signal(number)
        assert launcher.wait(timeout=PATIENCE) == expected
        wait_for(lambda folder=folder: not alive(folder), PATIENCE, "both are gone")
        passed = signal.SIGTERM if number == signal.SIGKILL else number
        assert {file.read_text() for file in folder.glob("stopped-*")} == (set() if words else {str(int(passed))})
        assert sorted(started(folder)) == ["0-0", "1-0"]


def test_gpus_are_split_equally(tmp_path: Path) -> None:
    for visible, shares in (("-1", ["-1", "-1"]), ("4,5,6,7", ["4,5", "6,7"])):
        assert run(tmp_path, "--processes", "2", does="", CUDA_VISIBLE_DEVICES=visible, JAX_PLATFORMS="")[0] == 0
        attempt = len(started(tmp_path)) // 2 - 1
        assert [started(tmp_path)[f"{i}-{attempt}"]["CUDA_VISIBLE_DEVICES"] for i in (0, 1)] == shares


def test_bad_options_are_rejected(tmp_path: Path) -> None:
    gpus = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "JAX_PLATFORMS": ""}
    for options, variables, message in (
        (("--processes", "0"), {}, "--processes must be at least 1, got 0"),
        (("--processes", "2", "--grace", "nan"), {}, "--grace must be at least 0, got nan"),
        (("--processes", "3"), gpus, "4 GPUs cannot be split over 3 processes"),
        (("--processes", "2", "--", "resnet-jacks"), {}, "resnet-jacks cannot be started: No such file"),
    ):
        code, err = run(tmp_path, *options, does="", **variables)
        assert (code, started(tmp_path)) == (2, {})
        assert message in err


SUM = """
import jax
from resnet_jax import distributed as processes
processes.connect()
from jax.experimental import multihost_utils
print(multihost_utils.process_allgather(jax.numpy.asarray(me + 1)).sum(), jax.device_count(), jax.local_device_count(), flush=True)
"""


def test_processes_sum_over_all_devices(tmp_path: Path) -> None:
    code, err = run(tmp_path, "--processes", "2", "--devices-per-process", "2", does=SUM)
    assert code == 0, err
    assert (tmp_path / "out").read_text().splitlines()[-1] == "3 4 2"


@pytest.mark.slow
def test_run_with_a_killed_process_ends_like_an_uninterrupted_one(digits_dir: str, tmp_path: Path) -> None:
    digests = []
    for name in ("straight", "disturbed"):
        workdir, log = tmp_path / name, tmp_path / f"{name}.log"
        local = [sys.executable, str(LOCAL), "--processes", "2", "--devices-per-process", "2", "--restarts", "1", "--"]
        train = [sys.executable, "-m", "resnet_jax.cli", "train", f"{Path(__file__).parent}/long_experiment.py:long", "--steps", "120"]
        with log.open("w") as out:
            launcher = subprocess.Popen([*local, *train, "--data-dir", digits_dir, "--workdir", str(workdir)], stdout=out, stderr=out)
        if name == "disturbed":
            metrics = workdir / "metrics.jsonl"
            wait_for(lambda metrics=metrics: metrics.is_file() and '"step": 40,' in metrics.read_text(), PATIENCE, "step 40")
            _, second = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            os.kill(int(second), signal.SIGKILL)
        assert launcher.wait(timeout=PATIENCE) == 0, log.read_text()[-3000:]
        assert ("all 2 start again" in log.read_text()) == (name == "disturbed")
        digests.append(json.loads((workdir / "result.json").read_text())["state_digest"])
    assert digests[0] == digests[1]
