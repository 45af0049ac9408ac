"""`resnet-jax study` and `resnet-jax report` as a user calls them; real processes are killed at random moments."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from resnet_jax import cli, references
from resnet_jax.studies import committed
from resnet_jax.training.workdir import Workdir

TINY = f"{ROOT}/tests/tiny_experiment.py"
TABLE1 = f"{ROOT}/experiments/he2016_shortcuts.py:table1"


def prints_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    cli.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def results(workdir: Path) -> dict[str, bytes]:
    return {path.parent.relative_to(workdir).as_posix(): path.read_bytes() for path in workdir.glob("**/result.json")}


@pytest.mark.slow
def test_a_study_runs_cells_by_seeds_and_leaves_alone_what_is_finished(
    capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path
) -> None:
    command = [
        "study",
        f"{TINY}:pair",
        "--seeds",
        "2",
        "--steps",
        "4",
        "--workdir",
        str(tmp_path),
        "--data-dir",
        digits_dir,
        "--devices",
        "1",
    ]
    rows = prints_json(capsys, *command)
    assert [(row["name"], row["seeds"]) for row in rows] == [("tiny", 2), ("half", 2)]
    before = results(tmp_path)
    assert set(before) == {"tiny/seed-0", "tiny/seed-1", "half/seed-0", "half/seed-1"}
    values = [json.loads(before[f"tiny/seed-{seed}"])["value"] for seed in (0, 1)]
    assert rows[0]["test_error"]["values"] == values
    assert rows[0]["test_error"]["mean"] == pytest.approx(sum(values) / 2)
    assert prints_json(capsys, *command) == rows
    assert results(tmp_path) == before
    # One more seed: those that are there stay, and the table grows.
    command[command.index("--seeds") + 1] = "3"
    cli.main(command)
    captured = capsys.readouterr()
    assert "tiny, seed 2: test error" in captured.err
    assert "seed 0" not in captured.err
    assert "6 of 6 runs" in captured.err
    assert "report.html" in captured.out
    assert {name: text for name, text in results(tmp_path).items() if name in before} == before
    assert all((tmp_path / f"report.{kind}").is_file() for kind in ("html", "csv", "json"))


@pytest.mark.slow
def test_table1_runs_on_digits_at_reduced_scale_and_says_so(capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path) -> None:
    """Two of its cells; the page and the table say that it is reduced, and nothing is put beside the paper's column."""
    scale = ["--data", "digits", "--steps", "4", "--depth", "8", "--seeds", "1", "--only", "original", "scaled-0-1"]
    cli.main(["study", TABLE1, *scale, "--workdir", str(tmp_path / "t1"), "--data-dir", digits_dir, "--devices", "1"])
    out = " ".join(capsys.readouterr().out.split())
    said = "At reduced scale: digits in place of cifar10, 4 steps in place of 64,000, 9 units in place of 162."
    said = said.replace("9 units in place of 162", "3 units in place of 54")
    assert said in out
    assert said in (tmp_path / "t1" / "report.html").read_text()
    noted = committed.study(tmp_path / "t1")
    assert noted["command"].endswith(
        "he2016_shortcuts.py:table1 --seeds 1 --data digits --steps 4 --depth 8 --only original scaled-0-1 --workdir t1"
    )
    assert len(noted["cells"]) == 11
    experiment, _ = Workdir(tmp_path / "t1" / "scaled-0-1" / "seed-0").experiment()
    assert (experiment.model.stages, experiment.model.input_shape, experiment.steps) == ((1, 1, 1), (8, 8, 1), 4)
    assert (experiment.data.name, experiment.data.pad, experiment.data.flip) == ("digits", 0, False)
    compared = prints_json(capsys, "report", str(tmp_path / "t1"), "--paper", "he2016")
    assert len([each for each in compared if each["table"] == "Table 1"]) == 11
    assert not any(each["ours"] for each in compared)


@pytest.mark.slow
def test_seeds_vectorised_and_on_devices_of_their_own_give_the_errors_of_single_runs(
    capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path
) -> None:
    found = {}
    for mode in ("off", "vmap", "devices"):
        devices = "1" if mode != "devices" else "2"
        place = ["--workdir", str(tmp_path / mode), "--data-dir", digits_dir, "--devices", devices]
        rows = prints_json(capsys, "study", f"{TINY}:pair", "--only", "tiny", "--seeds", "2", "--seed-parallel", mode, *place)
        found[mode] = rows[0]["test_error"]["values"]
        together = {json.loads(text)["seeds_together"] for text in results(tmp_path / mode).values()}
        assert together == {1 if mode == "off" else 2}
    assert found["off"][0] != found["off"][1]
    assert found["vmap"] == pytest.approx(found["off"], abs=1)
    assert found["devices"] == pytest.approx(found["off"], abs=1)


def test_bad_words_of_a_study_are_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path
) -> None:
    study = ["--workdir", str(tmp_path / "w"), "--data-dir", digits_dir, "--devices", "1"]
    assert "--seeds is 0" in fails(capsys, "study", f"{TINY}:pair", *study, "--seeds", "0")
    assert "no such cell; did you mean half" in fails(capsys, "study", f"{TINY}:pair", *study, "--only", "halve")
    assert "takes no depth" in fails(capsys, "study", f"{TINY}:pair", *study, "--depth", "20")
    assert "returned no sequence" in fails(capsys, "study", f"{TINY}:several", *study)
    assert "depth 21 is not 6n+2" in fails(capsys, "study", TABLE1, *study, "--depth", "21", "--data", "digits")
    assert "data set 'mnist' is not prepared" in fails(capsys, "study", TABLE1, *study, "--data", "mnist")
    assert "tiny: steps is 0" in fails(capsys, "study", f"{TINY}:pair", *study, "--steps", "0")
    assert "parallel" in fails(capsys, "study", f"{TINY}:pair", *study, "--seed-parallel", "pmap")
    assert "--only is given more than once" in fails(capsys, "study", f"{TINY}:pair", *study, "--only", "tiny", "--only", "half")
    assert not (tmp_path / "w").exists()
    assert "cannot be written" in fails(capsys, "study", f"{TINY}:pair", "--workdir", "/proc/x", "--data-dir", digits_dir, "--devices", "1")


def test_a_cell_whose_folder_holds_another_run_stops_the_study_before_it_begins(
    capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path
) -> None:
    """The last cell's last seed, found before the first is trained."""
    study = ["study", f"{TINY}:pair", "--seeds", "2", "--workdir", str(tmp_path), "--data-dir", digits_dir, "--devices", "1"]
    other = references.load(f"{TINY}:tiny")()
    Workdir(tmp_path / "half" / "seed-1").claim(other, 1)
    assert "holds another run" in fails(capsys, *study, "--steps", "4")
    assert not (tmp_path / "tiny").exists()


def test_bad_words_of_a_report(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "name folders of runs" in fails(capsys, "report")
    assert "no paper 'he2051'; did you mean he2018 or he2016 or he2015" in fails(capsys, "report", "--paper", "he2051")
    assert "no run in" in fails(capsys, "report", str(tmp_path))
    Workdir(tmp_path / "begun").claim(references.load(f"{TINY}:tiny")(), 0)
    assert "nothing to save" in fails(capsys, "report", "begun", "--save", "x.json")
    (tmp_path / "y.json").write_text("{}")
    assert "holds no results of runs" in fails(capsys, "report", "y.json")
    assert not (tmp_path / "x.json").exists()
    assert "ends in .html" in fails(capsys, "report", "begun", "--output", "page.json")
    assert "cannot be written" in fails(capsys, "report", "begun", "--output", "/proc/x.html")
    assert "README.md cannot be written or read" in fails(capsys, "report", "--fill", "README.md")
    (tmp_path / "begun" / "result.json").write_text("{")
    assert "result.json is damaged" in fails(capsys, "report", "begun")


def command(workdir: Path, digits_dir: str) -> list[str]:
    cells = ["study", f"{TINY}:pair", "--seeds", "2", "--steps", "60", "--seed-parallel", "off"]
    return [sys.executable, "-m", "resnet_jax.cli", *cells, "--workdir", str(workdir), "--data-dir", digits_dir, "--json"]


def without_clocks(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("times", [pytest.param(3, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.exhaustive)])
def test_a_study_killed_at_random_moments_ends_in_the_table_of_an_undisturbed_one(times: int, digits_dir: str, tmp_path: Path) -> None:
    """SIGKILL between a tenth of a second and the time that the whole study takes, after its imports."""
    environment = os.environ | {"XLA_FLAGS": ""}
    began = time.monotonic()
    done = subprocess.run(command(tmp_path / "straight", digits_dir), env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    whole = time.monotonic() - began
    expected = without_clocks(json.loads(done.stdout))
    chance = random.Random(20261123)
    kills = 0
    while kills < times:
        process = subprocess.Popen(
            command(tmp_path / "killed", digits_dir), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        began = time.monotonic()
        try:
            assert process.wait(timeout=chance.uniform(2, max(4, whole))) == 0
        except subprocess.TimeoutExpired:
            kills += 1
            process.kill()
            process.wait()
        else:
            # It ended before it was killed: what is missing is done to a study begun anew, whose end has to be the same.
            whole = min(whole, time.monotonic() - began)
            assert len(results(tmp_path / "killed")) == 4
            (tmp_path / "killed").rename(tmp_path / f"finished-{kills}-{chance.random()}")
    done = subprocess.run(command(tmp_path / "killed", digits_dir), env=environment, capture_output=True, text=True, check=True, cwd=ROOT)
    assert without_clocks(json.loads(done.stdout)) == expected
    digests = {name: json.loads(text)["state_digest"] for name, text in results(tmp_path / "straight").items()}
    for ended in tmp_path.glob("finished-*"):
        assert {name: json.loads(text)["state_digest"] for name, text in results(ended).items()} == digests
    assert {name: json.loads(text)["state_digest"] for name, text in results(tmp_path / "killed").items()} == digests
