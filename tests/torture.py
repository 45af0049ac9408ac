"""Long proofs, for a person: python tests/torture.py lost|restarts|moments|full [--times N] [--data-dir DIR]. Prints one line per fault."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from resnet_jax.data.prepare import prepare

import launched
from conftest import ROOT

STEPS = 200
FIELDS = ("--steps", f"{STEPS}", "--checkpointing.every", "20", "--evaluation.every", "25", "--evaluation.batch-size", "8")
LIMITS = ("--heartbeat-seconds", "10", "--meeting-seconds", "30")


def records(run: Path) -> str:
    file = run / "metrics.jsonl"
    return file.read_text() if file.exists() else ""


PHASES: dict[str, Callable[[Path], bool]] = {
    "imports": lambda _: True,
    "compilation": lambda run: (run / "experiment.json").exists(),
    "step": lambda run: '"step": 30,' in records(run),
    "evaluation": lambda run: '"step": 50, "split": "train"' in records(run),
    "save": lambda run: any((run / "checkpoints").glob("*orbax-checkpoint-tmp*")),
    "end": lambda run: f'"step": {STEPS}, "split": "test"' in records(run),
}


def same(result: dict, straight: dict) -> str:
    return "same digest" if result["state_digest"] == straight["state_digest"] else "ANOTHER DIGEST"


def lost(place: Path, data_dir: str, times: int) -> Iterator[str]:
    """Process 1 of 2 is killed in each phase: code and seconds of process 0, and the digest of the continued run."""
    straight = launched.finish(place / "straight", data_dir, *FIELDS, processes=2)
    for phase, reached in PHASES.items():
        for number in range(times):
            folder = place / f"{phase}-{number}"
            run = launched.start(folder, data_dir, *FIELDS, *LIMITS, processes=2)
            time.sleep(1)
            run.wait_until(lambda reached=reached, folder=folder: reached(folder))
            run.processes[1].kill()
            began = time.monotonic()
            _, said = run.processes[0].communicate(timeout=launched.PATIENCE)
            seconds, code = time.monotonic() - began, run.processes[0].returncode
            run.processes[1].communicate()
            last = said.strip().splitlines()[-1:] or [""]
            result = launched.finish(folder, data_dir, *FIELDS, processes=2)
            yield f"{phase:12} code {code:4} after {seconds:5.1f} s, {same(result, straight)}; {last[0][:100]}"


def restarts(place: Path, data_dir: str, times: int) -> Iterator[str]:
    """``launch/local.py --restarts 3`` ends as an undisturbed run, whose process 1 is killed once in each phase."""
    straight = launched.finish(place / "straight", data_dir, *FIELDS, processes=2)
    for phase, reached in PHASES.items():
        for number in range(times):
            folder = place / f"{phase}-{number}"
            words = ["train", f"{ROOT}/tests/tiny_experiment.py:tiny", "--workdir", str(folder), "--data-dir", data_dir, *FIELDS, *LIMITS]
            options = [f"{ROOT}/launch/local.py", "--processes", "2", "--devices-per-process", "1", "--restarts", "3", "--grace", "30"]
            command = [sys.executable, *options, "--", sys.executable, "-m", "resnet_jax.cli", *words]
            began, launcher = time.monotonic(), subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            time.sleep(1)
            launched.Run([launcher]).wait_until(lambda reached=reached, folder=folder: reached(folder))
            children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
            subprocess.run(["kill", "-KILL", children[1]], check=True)
            _, said = launcher.communicate(timeout=2 * launched.PATIENCE)
            count, result = said.count("start again"), json.loads((folder / "result.json").read_text()) if launcher.returncode == 0 else {}
            ended = same(result, straight) if result else f"NOT FINISHED: {said[-300:]}"
            yield f"{phase:12} code {launcher.returncode}, {count} restarts, {time.monotonic() - began:5.1f} s, {ended}"


def moments(place: Path, data_dir: str, times: int) -> Iterator[str]:
    """Kill -9 at random moments after the first checkpoint, of one process and of two."""
    rng = np.random.default_rng(0)
    for processes in (1, 2):
        folder = place / f"killed-{processes}"
        straight = launched.finish(place / f"straight-{processes}", data_dir, *FIELDS, processes=processes)
        steps = []
        for _ in range(times):
            run = launched.start(folder, data_dir, *FIELDS, processes=processes)
            if not steps:
                run.wait_until(lambda folder=folder: launched.newest(folder) > 0)
            # At most the time of imports and a few steps, so that the run is not finished.
            time.sleep(rng.uniform(0, 8))
            run.kill()
            steps.append(launched.newest(folder))
        result = launched.finish(folder, data_dir, *FIELDS, processes=processes)
        yield f"{processes} process(es), killed {times} times, at the checkpoints {steps}: {same(result, straight)}"


def full(place: Path, data_dir: str, times: int) -> Iterator[str]:
    """A run on a file system that is full; then there is room."""
    wide = ("--steps", "12", "--model.features", "64", "64", "64")
    straight = launched.finish(place / "straight", data_dir, *wide)
    for size in (2, 5, 20)[:times]:
        disk = place / f"disk-{size}"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True).returncode:
            yield "SKIPPED: only root can mount a file system"
            return
        try:
            filler = disk / "filler"
            # Keeps 1 MB below what the run needs.
            filler.write_bytes(b"x" * max(0, size - 2) * 2**20)
            ((code, said),) = launched.start(disk / "run", data_dir, *wide).wait()
            lines = [line for line in said.splitlines() if ": step " not in line]
            filler.unlink()
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            result = launched.finish(disk / "run", data_dir, *wide)
            yield f"{size:2} MB: code {code}, {len(lines)} lines, {same(result, straight)}; {lines[-1][:200] if lines else ''}"
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)


PROOFS = {"lost": lost, "restarts": restarts, "moments": moments, "full": full}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("proof", choices=PROOFS)
    parser.add_argument("--times", type=int, default=5, help="faults of each kind; of moments: kills")
    parser.add_argument("--data-dir", help="with digits; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data_dir = options.data_dir or folder
        prepare("digits", data_dir)
        for line in PROOFS[options.proof](Path(folder), data_dir, options.times):
            print(line, flush=True)
            if "same digest" not in line and "SKIPPED" not in line:
                raise SystemExit(1)


if __name__ == "__main__":
    main()
