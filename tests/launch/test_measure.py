"""``launch/measure.sh`` with a stand-in for ``resnet-jax``, which writes down what it is asked; and the words that it uses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from resnet_jax import cli, models

SCRIPT = Path(__file__).parents[2] / "launch" / "measure.sh"
# Refuses the benchmark that REFUSED names, and leaves a file for every other.
PROGRAM = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
with Path("asked").open("a") as asked:
    asked.write(json.dumps(words) + "\\n")
if words[1] == os.environ.get("REFUSED"):
    raise SystemExit(1)
if words[1] == os.environ.get("SLEEPS"):
    import time
    time.sleep(60)
Path(words[words.index("--output") + 1]).write_text("{{}}")
"""


def call(folder: Path, *words: str, **variables: str) -> tuple[subprocess.CompletedProcess[str], list[list[str]]]:
    """What a call did, and what it asked of ``resnet-jax``."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "resnet-jax"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    (folder / "asked").write_text("")
    environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}"} | variables
    done = subprocess.run(["bash", str(SCRIPT), *words], env=environment, cwd=folder, capture_output=True, text=True, timeout=120)
    return done, [json.loads(line) for line in (folder / "asked").read_text().splitlines()]


def test_every_benchmark_leaves_a_file_and_is_left_alone_where_it_is_there(tmp_path: Path) -> None:
    done, asked = call(tmp_path, "found on/a b")
    assert done.returncode == 0, done.stderr
    files = [Path(words[-1]) for words in asked]
    assert len(set(files)) == len(files) == 11
    assert sorted(files) == sorted(path.relative_to(tmp_path) for path in (tmp_path / "found on/a b").iterdir())
    # One is lost.
    (tmp_path / files[4]).unlink()
    done, again = call(tmp_path, "found on/a b")
    assert (done.returncode, again) == (0, [asked[4]])


def test_what_fails_or_takes_too_long_is_said_and_the_others_run(tmp_path: Path) -> None:
    done, asked = call(tmp_path, "found", REFUSED="run", SLEEPS="seeds", LIMIT="1s")
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if "FAILED, or not done within 1s" in line]
    assert [line.split("bench ")[1].split()[0] for line in said] == ["run"] * 4 + ["seeds"]
    assert len(asked) == 11
    assert len(list((tmp_path / "found").iterdir())) == 6


@pytest.mark.parametrize("words", [(), ("--help",), ("one", "two")])
def test_called_wrongly_it_says_how_and_asks_nothing(tmp_path: Path, words: tuple[str, ...]) -> None:
    done, asked = call(tmp_path, *words)
    assert (done.returncode, asked) == (2, [])
    assert "usage:" in done.stderr


def test_resnet_jax_takes_its_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is read to its end: what is refused is one more word, not those before it; and the networks exist."""
    for words in call(tmp_path, "found")[1]:
        with pytest.raises(SystemExit):
            cli.main([*words, "--no-such-word"])
        said = capsys.readouterr().err
        assert "--no-such-word" in said
        assert not any(word in said for word in words if word.startswith("--") and word != "--output"), said
        for network in (word for word in words if word.startswith(("resnet", "cifar_resnet")) and not word.endswith(".json")):
            assert network == "cifar_resnet" or models.architecture(network)
