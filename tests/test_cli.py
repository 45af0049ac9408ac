"""The command line: what works end to end, and that bad input fails early, on stderr, without a traceback, with nothing written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from resnet_jax import cli

TINY = f"{ROOT}/tests/tiny_experiment.py"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Runs a command that must fail as bad input does; returns what it said, boxes and line breaks taken out."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert not out
    assert "Traceback" not in err
    return " ".join(err.replace("│", " ").split())


def prints_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    cli.main(list(arguments))
    return json.loads(capsys.readouterr().out)


def test_train_evaluate_report_on_real_digits(capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    result = prints_json(
        capsys, "train", f"{TINY}:tiny", "--workdir", run, "--seed", "5", "--data-dir", digits_dir, "--devices", "1", "--json"
    )
    assert (result["seed"], result["examples"], result["experiment"]) == (5, 360, "tiny")
    scored = prints_json(capsys, "evaluate", run, "--data-dir", digits_dir, "--batch-size", "56", "--json")
    assert (scored["error_percent"], scored["examples"], scored["step"]) == (result["value"], 360, 12)
    assert scored["protocol"] == result["protocol"]
    assert (
        prints_json(capsys, "evaluate", run, "--split", "train", "--data-dir", digits_dir, "--json", "--batch-size", "504")["examples"]
        == 1437
    )
    cli.main(["report", run])
    out = capsys.readouterr().out
    assert "tiny" in out
    assert f"{result['value']:.2f}" in out
    assert (tmp_path / "run" / "report.html").is_file()


def test_steps_rescales_the_schedule_and_fields_can_be_set(capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fields = ["--steps", "4", "--model.shortcut", f"{TINY}:Half", "--optimizer.weight-decay", "5e-4", "--data.no-flip"]
    cli.main(["train", f"{TINY}:tiny", "--workdir", str(run), "--data-dir", digits_dir, "--devices", "1", *fields])
    assert "test error" in capsys.readouterr().out
    experiment = json.loads((run / "experiment.json").read_text())["experiment"]
    assert (experiment["steps"], experiment["schedule"]["decay_steps"]) == (4, [2, 3])  # 6 and 9 of 12
    assert experiment["schedule"]["warmup_steps"] == 2
    assert experiment["optimizer"]["weight_decay"] == 5e-4
    assert experiment["model"]["shortcut"] == f"{TINY}:Half"
    # A run of a user's own class is found again by its reference.
    assert prints_json(capsys, "evaluate", str(run), "--data-dir", digits_dir, "--batch-size", "72", "--json")["examples"] == 360


def test_study_runs_cells_by_seeds_and_skips_what_is_finished(capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path) -> None:
    command = ["study", f"{TINY}:pair", "--seeds", "2", "--steps", "4", "--workdir", str(tmp_path), "--data-dir", digits_dir]
    cli.main([*command, "--devices", "1", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["seeds"]) for row in rows] == [("tiny", 2), ("half", 2)]
    cli.main([*command, "--devices", "1"])
    captured = capsys.readouterr()
    assert captured.err.count("is finished; nothing to do") == 4
    assert "report.html" in captured.out
    assert {p.parent.relative_to(tmp_path).as_posix() for p in tmp_path.glob("**/result.json")} == {
        "tiny/seed-0",
        "tiny/seed-1",
        "half/seed-0",
        "half/seed-1",
    }


def test_summary_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = prints_json(capsys, "summary", "cifar_resnet", "--depth", "110", "--json")
    # papers.md A1: He et al. 2015, Table 6, option A.
    assert (found["parameters"], found["projections"]) == (1_727_962, 0)
    assert round(found["multiply_adds"] / 1e6, 2) == 252.89
    assert prints_json(capsys, "summary", "imagenet_resnet", "--depth", "34", "--shortcut", "C", "--json")["projections"] == 16
    assert prints_json(capsys, "summary", f"{ROOT}/experiments/he2015_cifar10.py:plain20", "--json")["parameters"] == 269_722
    cli.main(["summary", "resnet50"])
    assert "25,557,032" in capsys.readouterr().out


def test_doctor_says_what_it_finds(capsys: pytest.CaptureFixture[str], digits_dir: str) -> None:
    found = prints_json(capsys, "doctor", "--data-dir", digits_dir, "--json")
    assert found["problems"] == []
    assert "1437 train" in found["data_sets"]["digits"]
    assert found["devices"]["count"] == 8


def test_doctor_names_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(SystemExit) as caught:
        cli.main(["doctor"])
    assert caught.value.code == 1
    assert "no data set is prepared. Do: resnet-jax prepare digits" in capsys.readouterr().out


def test_prepare_says_where_and_how_many(capsys: pytest.CaptureFixture[str], digits_dir: str) -> None:
    cli.main(["prepare", "digits", "--data-dir", digits_dir])
    assert "1437 train, 360 test" in capsys.readouterr().out


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_help_of_each_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"resnet-jax {command}" in capsys.readouterr().out


def test_bad_words_are_answered_with_the_nearest_good_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    workdir = ["--workdir", str(tmp_path / "run")]
    cifar = f"{ROOT}/experiments/he2015_cifar10.py"
    assert "no command 'trian'; did you mean train" in fails(capsys, "trian")
    assert "he2015_cifar10.py" in fails(capsys, "train", f"{ROOT}/experiments/he2015_cifar.py:resnet20", *workdir)
    assert "has no 'resnet21'; did you mean" in fails(capsys, "train", f"{cifar}:resnet21", *workdir)
    assert "names no function" in fails(capsys, "train", cifar, *workdir)
    assert "resnet110" in fails(capsys, "train", cifar, *workdir)
    assert "first name the experiment" in fails(capsys, "train", *workdir)
    assert "--model.shortcut" in fails(capsys, "train", f"{cifar}:resnet20", *workdir, "--model.shortcutt", "A")
    assert "'D' is no known class" in fails(capsys, "train", f"{cifar}:resnet20", *workdir, "--model.shortcut", "D")
    assert "no file nowhere.py" in fails(capsys, "train", f"{cifar}:resnet20", *workdir, "--model.shortcut", "nowhere.py:X")
    assert "bfloat16" in fails(capsys, "train", f"{cifar}:resnet20", *workdir, "--model.dtype", "float61")
    assert "--steps" in fails(capsys, "train", f"{cifar}:resnet20", *workdir, "--steps", "many")
    assert "--workdir" in fails(capsys, "train", f"{cifar}:resnet20")
    assert "did you mean" in fails(capsys, "summary", "cifar_resnt", "--depth", "20")
    assert "6n+2" in fails(capsys, "summary", "cifar_resnet", "--depth", "21")
    assert "is not a run" in fails(capsys, "evaluate", str(tmp_path))
    assert "no run in" in fails(capsys, "report", str(tmp_path))
    assert "takes a function that returns several" in fails(capsys, "train", f"{TINY}:pair", *workdir)
    assert "returned no sequence" in fails(capsys, "study", f"{TINY}:several", *workdir)
    assert not (tmp_path / "run").exists()


def test_a_missing_data_set_names_the_directories_and_the_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "one"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    said = fails(capsys, "train", f"{TINY}:tiny", "--workdir", str(tmp_path / "run"), "--data-dir", str(tmp_path / "two"))
    assert "resnet-jax prepare digits" in said
    assert all(str(tmp_path / place) in said for place in ("one", "two", "home"))
    assert not (tmp_path / "run").exists()


def test_another_experiment_in_the_same_workdir_is_refused(capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path) -> None:
    run = ["--workdir", str(tmp_path / "run"), "--data-dir", digits_dir, "--devices", "1"]
    cli.main(["train", f"{TINY}:tiny", *run])
    capsys.readouterr()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    said = fails(capsys, "train", f"{TINY}:tiny", *run, "--seed", "1", "--optimizer.momentum", "0.8")
    assert "optimizer.momentum: 0.8 asked for, 0.9 in the run" in said
    assert "seed: 1 asked for, 0 in the run" in said
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_that_diverges_exits_with_1_and_says_why(digits_dir: str, tmp_path: Path) -> None:
    fields = ["--schedule.learning-rate", "1e30", "--schedule.warmup-steps", "0"]
    command = [
        sys.executable,
        "-m",
        "resnet_jax.cli",
        "train",
        f"{TINY}:tiny",
        "--workdir",
        str(tmp_path / "run"),
        "--data-dir",
        digits_dir,
    ]
    done = subprocess.run([*command, *fields], env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1
    assert "is not finite: no checkpoint was written before" in done.stderr
    assert "Traceback" not in done.stderr


def test_preparing_and_training_import_neither_tensorflow_nor_torch(digits_dir: str, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        f"from resnet_jax import cli; cli.main(['prepare', 'digits', '--data-dir', {str(tmp_path / 'data')!r}])\n"
        f"cli.main(['train', {TINY + ':tiny'!r}, '--steps', '2', '--workdir', {str(tmp_path / 'run')!r}, '--data-dir', {digits_dir!r}])\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"XLA_FLAGS": ""}, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
