"""``launch/measure.sh`` with a stand-in for Python that records its arguments."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "launch" / "measure.sh"
# Fails for the script that REFUSED names, sleeps for that of SLEEPS, and else writes the file.
PROGRAM = f"""#!{sys.executable}
import os, sys, time
from pathlib import Path
script, words = Path(sys.argv[1]), sys.argv[2:]
assert script.is_file()
with Path("calls").open("a") as calls:
    calls.write(script.stem + "\\n")
if script.stem == os.environ.get("REFUSED"):
    raise SystemExit(1)
if script.stem == os.environ.get("SLEEPS"):
    time.sleep(600)
Path(words[words.index("--output") + 1]).write_text("{{}}")
"""


def call(folder: Path, *words: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    program = folder / "program"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (folder / "calls").write_text("")
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(program)} | variables
    done = subprocess.run(["bash", str(SCRIPT), *words], env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
    return done, (folder / "calls").read_text().split()


def test_measure_continues_with_what_is_missing(tmp_path: Path) -> None:
    done, calls = call(tmp_path, "results of/a b", REFUSED="run", SLEEPS="input", LIMIT="1s")
    assert done.returncode == 1
    failed = [line.split(": ")[1].split()[0] for line in done.stderr.splitlines() if "FAILED or exceeded 1s" in line]
    assert failed == [name for name in calls if name in ("run", "input")]
    assert set(calls) == {"step", "run", "compile", "input"}
    done, again = call(tmp_path, "results of/a b")
    assert (done.returncode, again) == (0, failed)
    assert len(list((tmp_path / "results of/a b").glob("*.json"))) == len(calls)


def test_measure_rejects_wrong_arguments(tmp_path: Path) -> None:
    for words in ((), ("--help",), ("one", "two")):
        done, calls = call(tmp_path, *words)
        assert (done.returncode, calls) == (2, [])
        assert "usage:" in done.stderr
