"""The command line: what works end to end, and that bad input fails early, on stderr, without a traceback, with nothing written."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from resnet_jax import cli
from resnet_jax.configured import configured
from resnet_jax.models import Architecture, count
from resnet_jax.models.branches import Bottleneck
from resnet_jax.models.norms import GroupNorm
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.shortcuts import Projection
from resnet_jax.models.stems import DeepStem
from resnet_jax.models.transitions import DenseTransition

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


@pytest.mark.slow
def test_steps_rescales_the_schedule_and_fields_can_be_set(capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fields = ["--steps", "4", "--model.shortcut", f"{TINY}:Half", "--optimizer.weight-decay", "5e-4", "--data.no-flip"]
    cli.main(["train", f"{TINY}:tiny", "--workdir", str(run), "--data-dir", digits_dir, "--devices", "1", *fields])
    assert "test error" in capsys.readouterr().out
    experiment = json.loads((run / "experiment.json").read_text())["experiment"]
    assert (experiment["steps"], experiment["schedule"]["decay_steps"]) == (4, [2, 3])  # 6 and 9 of 12
    assert experiment["schedule"]["warmup_steps"] == 1  # a quarter of the run at most
    assert experiment["optimizer"]["weight_decay"] == 5e-4
    assert experiment["model"]["shortcut"] == f"{TINY}:Half"
    # A run of a user's own class is found again by its reference.
    assert prints_json(capsys, "evaluate", str(run), "--data-dir", digits_dir, "--batch-size", "72", "--json")["examples"] == 360


MINE = """
import jax.numpy as jnp
from flax import nnx


class Mine(nnx.Module):
    def __init__(self, in_features, out_features, stride, rngs, scale=1.0):
        self.stride, self.missing, self.scale = stride, out_features - in_features, scale

    def __call__(self, x, branch):
        x = x[:, :: self.stride, :: self.stride]
        return branch + self.scale * jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.missing)))


class Narrow:
    pass
"""


@pytest.mark.slow
def test_a_users_class_with_arguments_trains_resumes_and_is_scored(
    capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--model.shortcut "my.py:Mine(scale=0.7)"``; the argument is part of the run: 0.8 is refused, and 0.7 finds it finished."""
    (tmp_path / "my.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    command = ["train", f"{TINY}:tiny", "--workdir", "run", "--data-dir", digits_dir, "--devices", "1", "--steps", "4", "--json"]
    results = [prints_json(capsys, *command, "--model.shortcut", "my.py:Mine(scale=0.7)")]
    experiment = json.loads((tmp_path / "run" / "experiment.json").read_text())
    assert experiment["experiment"]["model"]["shortcut"] == f"{tmp_path}/my.py:Mine(scale=0.7)"
    assert experiment["identity"]["model"]["shortcut"] == "my.py:Mine(scale=0.7)"
    # Killed after step 4 was saved and before the result was written.
    (tmp_path / "run" / "result.json").unlink()
    results.append(prints_json(capsys, *command, "--model.shortcut", f"{tmp_path}/my.py:Mine( scale = 0.7 )"))
    assert results[0]["state_digest"] == results[1]["state_digest"]
    scored = prints_json(capsys, "evaluate", "run", "--data-dir", digits_dir, "--batch-size", "72", "--json")
    assert scored["error_percent"] == results[0]["value"]
    assert "model.shortcut: 'my.py:Mine(scale=0.8)' asked for, 'my.py:Mine(scale=0.7)' in the run" in fails(
        capsys, *command, "--model.shortcut", "my.py:Mine(scale=0.8)"
    )
    other = prints_json(capsys, *[c if c != "run" else "other" for c in command], "--model.shortcut", "my.py:Mine(scale=0.0)")
    assert other["state_digest"] != results[0]["state_digest"]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shortcut", "my.py:Mine(scal=0.7)", "Mine takes no argument 'scal'; did you mean scale?"),
        ("shortcut", "my.py:Mien(scale=0.7)", "my.py has no 'Mien'; did you mean Mine?"),
        ("shortcut", "my.py:Mine(scale=)", "cannot be read: write my.py:Mine(argument=value, ...)"),
        ("shortcut", "my.py:Mine(0.7)", "cannot be read: write my.py:Mine(argument=value, ...)"),
        ("shortcut", "my.py:Mine(scale=[1])", "an argument is a finite number, a string, True, False, None or a tuple of those"),
        ("shortcut", "my.py:jnp", "my.py:jnp is not a class"),
        ("shortcut", "Scald(shortcut=0.5)", "'Scald' is no known class; did you mean Scaled"),
        ("shortcut", "ShortcutOnlyGating(bia=-6)", "ShortcutOnlyGating takes no argument 'bia'; did you mean bias?"),
        ("branch", "Botleneck", "'Botleneck' is no known class; did you mean Bottleneck"),
        ("norm", "BatchNorm(groupsize=64)", "BatchNorm takes no argument 'groupsize'; did you mean group_size?"),
        ("order", "FullPreactivatoin", "'FullPreactivatoin' is no known class; did you mean FullPreactivation"),
        ("order", "ZeroPad", "ZeroPad is no Order; "),
        ("order", "Basic", "Basic is no Order; "),
        ("order", "my.py:Mine", "my.py:Mine is no Order; "),
        ("order", "my.py:Narrow", "my.py:Narrow is no Order; "),
        ("order", "FullPreactivation(a=1)", "FullPreactivation takes no argument 'a'"),
        ("order", "FullPreactivation()", "FullPreactivation() is no Order"),
    ],
)
def test_an_unknown_part_or_argument_exits_with_2_one_message_and_nothing_written(
    field: str,
    value: str,
    message: str,
    capsys: pytest.CaptureFixture[str],
    digits_dir: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "my.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    said = fails(capsys, "train", f"{TINY}:tiny", "--workdir", "run", "--data-dir", digits_dir, f"--model.{field}", value)
    assert said.count(message) == 1
    assert not (tmp_path / "run").exists()


def test_parts_and_their_arguments_can_be_set(capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them, as the help prints them."""
    parts = ["--branch", "Bottleneck(groups=2, base_width=32)", "--order", "FullPreactivation", "--norm", "GroupNorm(num_groups=8)"]
    more = ["--stem", "DeepStem", "--transition", "DenseTransition(compression=0.5)", "--stages", "1", "1", "--features", "32", "32"]
    found = prints_json(capsys, "summary", "cifar_resnet", "--depth", "20", *parts, *more, "--shortcut", "B", "--json")
    model = Architecture(
        stages=(1, 1),
        features=(32, 32),
        branch=configured(Bottleneck, groups=2, base_width=32),
        order=FullPreactivation,
        shortcut=Projection,
        stem=DeepStem,
        norm=configured(GroupNorm, num_groups=8),
        transition=configured(DenseTransition, compression=0.5),
    )
    assert found == json.loads(json.dumps(dataclasses.asdict(count(model))))
    with pytest.raises(SystemExit):
        cli.main(["summary", "resnet50_v15", "--help"])
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "Branch(expansion=4, kernels=(1, 3, 1), stride_at=1)" in out or "BottleneckV15" in out


def test_summary_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = prints_json(capsys, "summary", "cifar_resnet", "--depth", "110", "--json")
    # papers.md A1: He et al. 2015, Table 6, option A.
    assert (found["parameters"], found["projections"]) == (1_727_962, 0)
    assert round(found["multiply_adds"] / 1e6, 2) == 252.89
    assert prints_json(capsys, "summary", "imagenet_resnet", "--depth", "34", "--shortcut", "C", "--json")["projections"] == 16
    assert prints_json(capsys, "summary", f"{ROOT}/experiments/he2015_cifar10.py:plain20", "--json")["parameters"] == 269_722
    # papers.md A2 to A8: networks by their own names, and with another head.
    for name, parameters in (("wrn28_10", 36_479_194), ("resnext50_32x4d", 25_028_904), ("cifar_preresnet1001", 10_327_706)):
        assert prints_json(capsys, "summary", name, "--json")["parameters"] == parameters
    assert prints_json(capsys, "summary", "wrn28_10", "--num-classes", "100", "--json")["parameters"] == 36_536_884
    assert prints_json(capsys, "summary", "cifar_preresnet", "--depth", "164", "--json")["parameters"] == 1_703_258
    assert "leave out --depth 28" in fails(capsys, "summary", "wrn28_10", "--depth", "28")
    assert "give the depth once" in fails(capsys, "summary", "resnet50", "--depth", "50")
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
    assert "'E' is no known class" in fails(capsys, "train", f"{cifar}:resnet20", *workdir, "--model.shortcut", "E")
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_fine_tuning_from_a_run_is_a_run_of_its_own(
    capsys: pytest.CaptureFixture[str], digits_dir: str, short_run: Path, tmp_path: Path
) -> None:
    """Frozen but for a new head; found finished again; not without the weights; the advice for another network is followed."""
    command = ["train", f"{TINY}:tiny", "--data-dir", digits_dir, "--devices", "1", "--steps", "2", "--json"]
    run = tmp_path / "tuned"
    begin = [*command, "--workdir", str(run), "--init-from", str(short_run), "--new-head", "--freeze-trunk"]
    text = fails(capsys, *begin)
    assert "model.shortcut is ZeroPad, of the weights Projection. Ask for theirs: --model.shortcut Projection" in text
    assert not run.exists()
    result = prints_json(capsys, *begin, "--model.shortcut", "Projection", "--optimizer.rates", "stages", "0.1", "head", "2")
    assert len(result["protocol"]["initial_weights"]) == 64
    written = json.loads((run / "experiment.json").read_text())["experiment"]
    assert written["start"] == {"file": str(short_run), "digest": result["protocol"]["initial_weights"], "new_head": True}
    assert written["optimizer"]["rates"] == [["stages", 0.1], ["head", 2.0]]
    assert written["optimizer"]["frozen"] == ["stages", "stem"]
    assert (written["data"]["normalization"], written["model"]["norm"].rpartition(":")[2]) == ("weights", "FrozenBatchNorm")
    scored = prints_json(capsys, "evaluate", str(run), "--data-dir", digits_dir, "--batch-size", "72", "--json")
    assert (scored["error_percent"], scored["protocol"]) == (result["value"], result["protocol"])
    again = prints_json(capsys, *begin, "--model.shortcut", "Projection", "--optimizer.rates", "stages", "0.1", "head", "2")
    assert again == result
    assert "holds another run" in fails(capsys, *command, "--workdir", str(run), "--model.shortcut", "Projection")


@pytest.mark.slow
def test_the_normalisation_that_is_asked_for_is_taken(
    capsys: pytest.CaptureFixture[str], digits_dir: str, short_run: Path, tmp_path: Path
) -> None:
    """Instead of that of the weights, and not silently left out."""
    command = ["train", f"{TINY}:tiny", "--data-dir", digits_dir, "--devices", "1", "--steps", "1", "--model.shortcut", "Projection"]
    cli.main([*command, "--workdir", str(tmp_path / "run"), "--init-from", str(short_run), "--data.normalization", "channel"])
    capsys.readouterr()
    assert json.loads((tmp_path / "run" / "experiment.json").read_text())["experiment"]["data"]["normalization"] == "channel"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--new-head"], "--new-head and --freeze-trunk belong to --init-from FILE"),
        (["--freeze-trunk"], "--new-head and --freeze-trunk belong to --init-from FILE"),
        (["--init-from", "/nowhere"], "there is neither a run nor a file of weights at /nowhere"),
        (["--data.normalization", "weights"], "data.normalization is 'weights', and the run starts from none"),
        (["--optimizer.rates", "stags", "0.1"], "optimizer.rates: no parameter lies below 'stags'; did you mean stages"),
        (["--optimizer.rates", "stages", "-1"], "optimizer.rates: the factor of 'stages' is -1.0; it must be 0 or more"),
        (["--optimizer.rates", "stages"], "--optimizer.rates"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_start_that_cannot_be_is_refused_and_nothing_written(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path
) -> None:
    command = ["train", f"{TINY}:tiny", "--workdir", str(tmp_path / "run"), "--data-dir", digits_dir, "--devices", "1"]
    assert said in fails(capsys, *command, *options)
    assert not (tmp_path / "run").exists()


def test_neither_help_nor_missing_data_waits_for_what_only_training_needs() -> None:
    """Orbax, TFDS, Grain and OpenCV take their time: neither the commands' help nor a set that is not there imports them."""
    code = (
        "import sys\nfrom resnet_jax import cli\n"
        "for command in (['--help'], ['train', 'TINY', '--workdir', '/nowhere/x', '--init-from', 'x', '--data.name', 'none']):\n"
        "    try:\n        cli.main(command)\n    except SystemExit:\n        pass\n"
        "    print([name for name in ('orbax', 'tensorflow_datasets', 'grain', 'cv2') if name in sys.modules])\n"
    ).replace("TINY", f"{TINY}:tiny")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400, check=True)
    assert [line for line in found.stdout.splitlines() if line.startswith("[")] == ["[]", "[]"]
    assert "data set 'none' is not prepared" in found.stderr
