"""``launch/local.py`` with real processes: failures, signals, restarts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from slurm_cluster import wait_for

from conftest import ROOT

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
(folder / f"part-{me}").write_text(json.dumps({"pid": os.getpid()} | dict(os.environ)))
(folder / f"part-{me}").rename(folder / f"start-{me}-{attempt}")
while len(list(folder.glob(f"start-*-{attempt}"))) < int(os.environ["JAX_NUM_PROCESSES"]): time.sleep(0.02)
"""
SLEEP = "while True: time.sleep(1)"


def launch(folder: Path, *options: str, does: str, words: tuple[str, ...] = (), **variables: str) -> subprocess.Popen[str]:
    """Starts the launcher with the code ``does``; output goes to the files ``out`` and ``err``."""
    folder.mkdir(exist_ok=True)
    python = [sys.executable, "-c", COMMAND + does, str(folder), *words]
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        command = [sys.executable, f"{ROOT}/launch/local.py", *options, "--", *python]
        return subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | variables, text=True)


def run(folder: Path, *options: str, **how) -> tuple[int, str]:
    """Returns the launcher's exit code and its stderr."""
    return launch(folder, *options, **how).wait(timeout=PATIENCE), (folder / "err").read_text()


def started(folder: Path) -> dict[str, dict]:
    """Variables of each process, sorted by process and attempt (``0-1``)."""
    return {file.name[6:]: json.loads(file.read_text()) for file in sorted(folder.glob("start-*"))}


def alive(folder: Path) -> bool:
    """Returns True if any process or child of one runs (a zombie does not)."""
    pids = [seen["pid"] for seen in started(folder).values()] + [file.read_text() for file in folder.glob("child-*")]
    stats = [Path(f"/proc/{pid}/stat") for pid in pids]
    return any(stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z" for stat in stats)


def test_processes_share_a_coordinator_and_process_0_prints(tmp_path: Path) -> None:
    does = "print('out', me); print('err', me, file=sys.stderr)"
    code, err = run(tmp_path, "--processes", "2", "--devices-per-process", "3", does=does)
    first, second = started(tmp_path).values()
    assert first["JAX_COORDINATOR_ADDRESS"] == second["JAX_COORDINATOR_ADDRESS"]
    assert second["XLA_FLAGS"].endswith("--xla_force_host_platform_device_count=3")
    assert (code, second["JAX_PLATFORMS"], (tmp_path / "out").read_text()) == (0, "cpu", "out 0\n")
    assert sorted(err.splitlines()) == ["[0] err 0", "[1] err 1", "[1] out 1"]


def test_cause_of_a_failure_decides_on_restarts(tmp_path: Path) -> None:
    """137: killed. 2: bad input, at once or after a process that noticed the loss of its peer. Nothing outlives the launcher."""
    child = "child = subprocess.Popen(['sleep', '1000']); (folder / f'child-{me}').write_text(str(child.pid))"
    for does, words, expected, attempts in (
        (f"{child}\nif me == 1: os.kill(os.getpid(), signal.SIGKILL)\n{SLEEP}", ("deaf",), 137, 2),
        ("sys.exit(2)", (), 2, 1),
        ("if me == 0: sys.exit(75)\nfor _ in range(10): time.sleep(0.1)\nsys.exit(2)", ("deaf",), 2, 1),
        ("sys.exit(75)", (), 75, 2),
    ):
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        code, err = run(folder, "--processes", "2", "--restarts", "1", "--grace", "2", does=does, words=words)
        assert (code, len(started(folder))) == (expected, 2 * attempts), does
        assert ("restarts used up (1)" in err) == (attempts == 2)
        assert not alive(folder)
    does = f"if attempt == 0:\n  if me == 1: os.kill(os.getpid(), signal.SIGKILL)\n  {SLEEP}"
    code, err = run(tmp_path / "once", "--processes", "2", "--restarts", "1", does=does)
    first, second, *others = started(tmp_path / "once").values()
    assert (code, len(others), "process 1 ended with exit code 137" in err) == (0, 2, True)
    assert first["JAX_COORDINATOR_ADDRESS"] != second["JAX_COORDINATOR_ADDRESS"]
    assert (tmp_path / "once" / "stopped-0").read_text() == str(int(signal.SIGTERM))


def test_signals_are_passed_on_without_restart(tmp_path: Path) -> None:
    """Grace does not bound a stop by the user; a second Ctrl-C does. A killed launcher stops its processes."""
    for number, words, expected, passed in (
        (signal.SIGUSR1, (), 128 + signal.SIGUSR1, {str(int(signal.SIGUSR1))}),
        (signal.SIGINT, ("deaf",), 128 + signal.SIGKILL, set()),
        *([(signal.SIGKILL, (), -signal.SIGKILL, {str(int(signal.SIGTERM))})] if sys.platform == "linux" else []),
    ):
        folder = tmp_path / number.name
        launcher = launch(folder, "--processes", "2", "--grace", "0", does=SLEEP, words=words)
        wait_for(lambda folder=folder: len(started(folder)) == 2, PATIENCE, "both have started")
        launcher.send_signal(number)
        if words:
            time.sleep(1)
            assert launcher.poll() is None
            launcher.send_signal(number)
        assert launcher.wait(timeout=PATIENCE) == expected
        wait_for(lambda folder=folder: not alive(folder), PATIENCE, "both are gone")
        assert {file.read_text() for file in folder.glob("stopped-*")} == passed
        assert list(started(folder)) == ["0-0", "1-0"]


def test_gpus_are_split_equally_and_bad_options_rejected(tmp_path: Path) -> None:
    def run_on(gpus: str, folder: Path, *options: str) -> tuple[int, str]:
        return run(folder, *options, does="", CUDA_VISIBLE_DEVICES=gpus, JAX_PLATFORMS="")

    for visible, shares in (("-1", ["-1", "-1"]), ("4,5,6,7", ["4,5", "6,7"])):
        assert run_on(visible, tmp_path / visible, "--processes", "2")[0] == 0
        assert [seen["CUDA_VISIBLE_DEVICES"] for seen in started(tmp_path / visible).values()] == shares
    for options, message in (
        (("--processes", "0"), "--processes must be at least 1, got 0"),
        (("--processes", "2", "--grace", "nan"), "--grace must be at least 0, got nan"),
        (("--processes", "3"), "4 GPUs cannot be split over 3 processes"),
        (("--processes", "2", "--", "resnet-jacks"), "resnet-jacks cannot be started: No such file"),
    ):
        code, err = run_on("0,1,2,3", tmp_path, *options)
        assert (code, started(tmp_path)) == (2, {})
        assert message in err
