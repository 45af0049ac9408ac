"""The command line: commands work end to end; invalid input fails early, on stderr, without a traceback, with nothing written."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
import resnet_jax
from flax import nnx
from resnet_jax import cli
from resnet_jax.models import NETWORKS, Architecture, catalog, count
from resnet_jax.models.blocks import Bottleneck
from resnet_jax.models.components import component
from resnet_jax.models.norms import GroupNorm
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.shortcuts import Projection
from resnet_jax.models.stems import DeepStem

from conftest import ROOT

TINY = f"{ROOT}/tests/tiny_experiment.py:tiny"
CIFAR = f"{ROOT}/experiments/he2015_cifar10.py"
MINE = """
import jax.numpy as jnp
from flax import nnx


class Mine(nnx.Module):
    def __init__(self, in_features, out_features, stride, rngs, scale=1.0):
        self.stride, self.missing, self.scale = stride, out_features - in_features, scale

    def __call__(self, x, branch):
        x = x[:, :: self.stride, :: self.stride]
        return branch + self.scale * jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.missing)))
"""


def fails(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 2) -> str:
    """Runs a command that must fail; returns its message, boxes and line breaks taken out."""
    with pytest.raises(SystemExit) as caught:
        cli.main(list(arguments))
    assert caught.value.code == code
    out, err = capsys.readouterr()
    assert not out
    assert "Traceback" not in err
    return " ".join(err.replace("│", " ").split())


def prints_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    cli.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_train_resume_evaluate_report_with_a_users_class(
    capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The argument of the class is part of the run; --steps rescales the schedule; other fields can be set."""
    (tmp_path / "my.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    fields = ["--steps", "4", "--optimizer.weight-decay", "5e-4", "--data.no-flip", "--seed", "5"]
    command = ["train", TINY, "--workdir", "run", "--data-dir", digits_dir, "--devices", "1", *fields]
    result = prints_json(capsys, *command, "--model.shortcut", "my.py:Mine(scale=0.7)")
    assert (result["seed"], result["examples"], result["experiment"]) == (5, 360, "tiny")
    written = json.loads(Path("run/experiment.json").read_text())
    experiment = written["experiment"]
    assert experiment["model"]["shortcut"] == f"{tmp_path}/my.py:Mine(scale=0.7)"
    assert written["identity"]["model"]["shortcut"] == "my.py:Mine(scale=0.7)"
    assert (experiment["steps"], experiment["schedule"]["decay_steps"]) == (4, [2, 3])  # 6 and 9 of 12
    assert experiment["schedule"]["warmup_steps"] == 1  # at most a quarter of the run
    assert experiment["optimizer"]["weight_decay"] == 5e-4
    # As if killed after step 4 was saved and before the result was written.
    Path("run/result.json").unlink()
    again = prints_json(capsys, *command, "--model.shortcut", f"{tmp_path}/my.py:Mine( scale = 0.7 )")
    assert again["state_digest"] == result["state_digest"]
    score = ["evaluate", "run", "--data-dir", digits_dir, "--batch-size", "56"]
    scored = prints_json(capsys, *score)
    assert (scored["error_percent"], scored["examples"], scored["step"]) == (result["value"], 360, 4)
    assert scored["protocol"] == result["protocol"]
    assert prints_json(capsys, *score, "--split", "train")["examples"] == 1437
    cli.main(["report", "run"])
    out = capsys.readouterr().out
    assert all(text in out for text in ("tiny", f"{result['value']:.2f}", "run/report.html"))
    before = files_of(tmp_path)
    message = fails(capsys, *command, "--model.shortcut", "my.py:Mine(scale=0.8)", "--seed", "1")
    assert "model.shortcut: 'my.py:Mine(scale=0.8)' asked for, 'my.py:Mine(scale=0.7)' in the run" in message
    assert "seed: 1 asked for, 5 in the run" in message
    assert files_of(tmp_path) == before


def test_invalid_input_fails_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands, recipes by name, parts of networks, ranges, weights, paths; each message names the nearest valid input."""
    (tmp_path / "my.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", digits_dir)
    train = ["train", f"{CIFAR}:resnet20", "--workdir", "run"]
    tiny = ["train", TINY, "--workdir", "run", "--devices", "1"]
    plan = ["plan", TINY, "--target"]
    before = files_of(tmp_path)
    for arguments, message in (
        ([], "Missing subcommand"),
        (["trian", "--help"], "no command is called 'trian'; did you mean train?"),
        (["analyze", "lesion", "x"], "no command is called 'analyze lesion'; did you mean analyze lesions?"),
        (["train", f"{ROOT}/experiments/he2015_cifar.py:resnet20", *train[2:]], "he2015_cifar10.py"),
        (["train", "he2015_cifar:resnet20", *train[2:]], "no recipe or module is called 'he2015_cifar'; did you mean he2015_cifar10"),
        (["train", f"{CIFAR}:resnet21", *train[2:]], "has no 'resnet21'; did you mean"),
        (["train", CIFAR, *train[2:]], "names no function or class: write FILE.py:NAME; it has"),
        (["train", *train[2:]], "the first argument is missing, see resnet-jax train --help"),
        (["train", TINY.replace(":tiny", ":pair"), *train[2:]], "takes a function that returns several"),
        (["summary", "cifar_resnt", "--depth", "20"], "did you mean"),
        (["summary", "wrn28_10", "--depth", "28"], "leave out --depth 28"),
        (["list", "resnet5l"], "no recipe is called 'resnet5l'"),
        (["evaluate", "x" * 300], "cannot be written or read (File name too long)"),
        (["data", "preview", TINY, "--step", "-1"], "--step must be in [0, 2147483648), got -1."),
        ([*plan, "tpu:v5e:0x2"], "--target is 'tpu:v5e:0x2', not tpu:v5e:4x4 for a slice"),
        ([*train, "--model.shortcutt", "A"], "--model.shortcut"),
        ([*train, "--evaluation.every", "0"], "resnet-jax: evaluation.every must be at least 1, got 0."),
        # JAX would use the last 32 bits.
        ([*train, "--seed", "4294967296"], "--seed must be in [0, 4294967296), got 4294967296."),
        ([*tiny, "--new-head"], "--new-head and --freeze-trunk belong to --init-from FILE"),
        ([*tiny, "--init-from", "/nowhere"], "there is neither a run nor a file of weights at /nowhere"),
        ([*tiny, "--optimizer.rates", "stags", "0.1"], "optimizer.rates: no parameter lies below 'stags'; did you mean stages"),
        ([*tiny, "--model.shortcut", "my.py:Mine(scal=0.7)"], "Mine takes no argument 'scal'; did you mean scale?"),
        ([*tiny, "--model.shortcut", "my.py:Mine(0.7)"], "cannot be read: write my.py:Mine(argument=value, ...)"),
        ([*tiny, "--model.order", "FullPreactivatoin"], "'FullPreactivatoin' is no known class; did you mean FullPreactivation"),
        ([*tiny, "--model.order", "ZeroPad"], "order=ZeroPad is for the shortcut, not for the order"),
    ):
        assert message in fails(capsys, *arguments), arguments
    assert files_of(tmp_path) == before
    assert not (tmp_path / "run").exists()


def test_files_of_users_fail_in_one_sentence_with_their_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for file, text, message in (
        ("a.py", "def f(:", "SyntaxError: invalid syntax (a.py, line 1)"),
        ("b.py", "\nimport nowhere", "b.py, line 2: ModuleNotFoundError: No module named 'nowhere'"),
        ("c.py", "raise SystemExit(0)", "c.py, line 1: SystemExit: 0"),
        ("d.py", "def f():\n    return {}['x']", "d.py, line 2: KeyError: 'x'"),
        ("e.py", "def f():\n    raise SystemExit(0)", "e.py, line 2: SystemExit: 0"),
        ("f.py", "def f(x): pass", "f.py:f cannot be called with"),
        ("g.py", "def f(): pass", "g.py:f returned no "),
    ):
        (tmp_path / file).write_text(text)
        for command in (["train", "--workdir", "run"], ["study", "--workdir", "run"], ["summary"], ["plan", "--target", "gpu:h100"]):
            assert message in fails(capsys, command[0], f"{file}:f", *command[1:])
    (tmp_path / "part.py").write_text("class Part:\n    def __init__(self, *_, **__):\n        raise SystemExit(0)\n")
    assert "part.py, line 3: SystemExit: 0" in fails(capsys, "summary", "resnet18", "--shortcut", "part.py:Part")
    assert not (tmp_path / "run").exists()


def test_summary_counts_any_network(capsys: pytest.CaptureFixture[str]) -> None:
    """Every part with arguments; the counts of papers.md, A1 and A4."""
    parts = ["--branch", "Bottleneck(groups=2, base_width=32)", "--order", "FullPreactivation", "--norm", "GroupNorm(num_groups=8)"]
    more = ["--stem", "DeepStem", "--transition", "DenseTransition(compression=0.5)", "--stages", "1", "1", "--features", "32", "32"]
    counts = prints_json(capsys, "summary", "cifar_resnet", "--depth", "20", *parts, *more, "--shortcut", "B")
    branch, norm = component(Bottleneck, groups=2, base_width=32), component(GroupNorm, num_groups=8)
    transition = component(catalog.known()["DenseTransition"], compression=0.5)
    others: dict[str, Any] = {"branch": branch, "norm": norm, "transition": transition, "order": FullPreactivation, "shortcut": Projection}
    model = Architecture(stages=(1, 1), features=(32, 32), stem=DeepStem, **others)
    assert counts == json.loads(json.dumps(dataclasses.asdict(count(model))))
    counts = prints_json(capsys, "summary", "cifar_resnet", "--depth", "110")
    assert (counts["parameters"], counts["projections"], round(counts["multiply_adds"] / 1e6, 2)) == (1_727_962, 0, 252.89)
    assert prints_json(capsys, "summary", "he2015_cifar10:plain20")["parameters"] == 269_722
    cli.main(["summary", "resnet18"])
    assert "11,689,512" in capsys.readouterr().out


def test_prepare_and_doctor_list_data_sets_and_problems(
    capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.main(["prepare", "digits", "--data-dir", digits_dir])
    assert "1437 train, 360 test" in capsys.readouterr().out
    report = prints_json(capsys, "doctor", "--data-dir", digits_dir)
    assert report["problems"] == []
    assert "1437 train" in report["data_sets"]["digits"]
    assert (report["devices"]["count"], report["processes"][:9]) == (8, "one alone")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "one"))
    with pytest.raises(SystemExit, match="1"):
        cli.main(["doctor"])
    assert "no data set is prepared. Do: resnet-jax prepare digits" in capsys.readouterr().out
    message = fails(capsys, "train", TINY, "--workdir", str(tmp_path / "run"), "--data-dir", str(tmp_path / "two"))
    assert all(text in message for text in ("resnet-jax prepare digits", *(str(tmp_path / place) for place in ("one", "two", "home"))))
    assert not (tmp_path / "run").exists()


def test_help_has_the_frequent_options_and_help_all_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    def helps(*command: str) -> str:
        with contextlib.suppress(SystemExit):
            cli.main([*command])
        return capsys.readouterr().out

    for name in cli.COMMANDS:
        assert f"usage: resnet-jax {name}" in helps(*name.split(), "--help")
        assert f" {name.split()[-1]} " in helps(*name.split()[:-1], "--help")
    short, full = helps("train", "--help"), helps("train", TINY, "--help-all")
    frequent = ("--workdir", "--seed", "--steps", "--model.shortcut", "--data.name", "--schedule.learning-rate")
    assert all(option in text for option in frequent for text in (short, full))
    assert 14 <= len(re.findall(r"^\W*--[a-z]", short, re.MULTILINE)) <= 18
    assert not any(option in short for option in ("--coordinator", "--optimizer.momentum"))
    assert all(option in full for option in ("--coordinator", "--optimizer.momentum", "--loading.threads"))
    assert not any(option in full for option in ("--data.digest", "--data.classes", "--start.digest"))


def test_list_has_networks_and_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    every = prints_json(capsys, "list")
    assert {network["name"] for network in every["networks"]} == set(NETWORKS)
    assert {"recipe": "he2015_cifar10:resnet20", "command": "train", "description": "Table 6: 8.75 %."} in every["recipes"]
    (plain,) = prints_json(capsys, "list", "cifar_plain20")["networks"]
    assert plain == {"name": "cifar_plain20", "parameters": 269_722, "paper": "He et al. 2015, arXiv 1512.03385"}


def test_closed_and_full_output_and_a_missing_home_end_a_command() -> None:
    """Quietly for a closed pipe, with one sentence otherwise."""
    read, closed = os.pipe()
    os.close(read)
    nobody = {name: value for name, value in os.environ.items() if name != "HOME"}
    main = "import os; os.path.expanduser = lambda path: path; from resnet_jax import cli; cli.main(['list'])"
    for command, stdout, environment, code, message in (
        (["-m", "resnet_jax.cli", "--help"], closed, None, 141, ""),
        (["-m", "resnet_jax.cli", "--help"], os.open("/dev/full", os.O_WRONLY), None, 2, "[Errno 28] No space left on device"),
        (["-c", main], subprocess.PIPE, nobody, 2, "the home directory is unknown; set HOME"),
    ):
        done = subprocess.run([sys.executable, *command], stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
        assert (done.returncode, message in done.stderr, done.stderr.count("\n")) == (code, True, int(message != ""))


def test_help_imports_no_jax_and_a_missing_data_set_no_orbax() -> None:
    program = f"""
import contextlib, sys
import resnet_jax
from resnet_jax import cli
with contextlib.suppress(SystemExit):
    cli.main(["--help"])
assert not {{"jax", "flax", "numpy"}} & set(sys.modules)
with contextlib.suppress(SystemExit):
    cli.main(["train", {TINY!r}, "--workdir", "/nowhere/x", "--init-from", "x", "--data.name", "none"])
assert not {{"orbax", "tensorflow_datasets", "grain", "cv2"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "data set 'none' is not prepared" in done.stderr) == (0, True), done.stderr


def test_public_names_resolve(short_run: Path, digits_dir: str) -> None:
    assert all(getattr(resnet_jax, name) for name in resnet_jax.__all__)
    assert resnet_jax.list_models("cifar_plain2*") == ["cifar_plain20"]
    model = resnet_jax.create_model("cifar_resnet8", num_classes=3, rngs=nnx.Rngs(0))
    assert model(jax.numpy.zeros((1, 32, 32, 3)), False).shape == (1, 3)
    result = json.loads((short_run / "result.json").read_text())
    assert resnet_jax.evaluate(short_run, data_dir=digits_dir, batch_size=72)["error_percent"] == result["value"]
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        resnet_jax.trian  # noqa: B018


def test_divergence_exits_with_1_and_names_the_step(capsys: pytest.CaptureFixture[str], digits_dir: str, tmp_path: Path) -> None:
    fields = ["--schedule.learning-rate", "1e30", "--schedule.warmup-steps", "0", "--devices", "1", "--data-dir", digits_dir]
    message = fails(capsys, "train", TINY, "--workdir", str(tmp_path / "run"), *fields, code=1)
    assert "is non-finite: no checkpoint was written before" in message


@pytest.mark.slow
def test_fine_tuning_from_a_run_is_another_run(
    capsys: pytest.CaptureFixture[str], digits_dir: str, short_run: Path, tmp_path: Path
) -> None:
    """With a new head, frozen otherwise; the message for another network gives the option that fits."""
    command = ["train", TINY, "--data-dir", digits_dir, "--devices", "1", "--steps", "2", "--init-from", str(short_run)]
    run = ["--workdir", str(tmp_path / "tuned"), "--new-head", "--freeze-trunk"]
    assert "the weights are of another network. Use --model.shortcut Projection" in fails(capsys, *command, *run)
    assert not (tmp_path / "tuned").exists()
    command += ["--model.shortcut", "Projection"]
    rates = ["--optimizer.rates", "stages", "0.1", "head", "2"]
    result = prints_json(capsys, *command, *run, *rates)
    written = json.loads((tmp_path / "tuned" / "experiment.json").read_text())["experiment"]
    assert written["start"] == {"file": str(short_run), "digest": result["protocol"]["initial_weights"], "new_head": True}
    assert (written["optimizer"]["rates"], written["optimizer"]["frozen"]) == ([["stages", 0.1], ["head", 2.0]], ["stages", "stem"])
    assert written["data"]["normalization"] == "weights"
    assert prints_json(capsys, *command, *run, *rates) == result
    assert "holds another run" in fails(capsys, *command, *run[:2])


@pytest.mark.slow
def test_second_start_compiles_nothing_and_imports_no_tensorflow(digits_dir: str, tmp_path: Path) -> None:
    """Compiled programs are kept in XDG_CACHE_HOME/resnet_jax, unless the user names a folder."""
    program = "import sys; from resnet_jax import cli; cli.main(); assert not {'tensorflow', 'torch'} & set(sys.modules)"
    variables = {name: value for name, value in os.environ.items() if name not in ("JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS")}
    variables |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    written = []
    for name, more in (("first", {}), ("second", {}), ("third", {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "mine")})):
        train = ["train", TINY, "--steps", "2", "--workdir", str(tmp_path / name), "--data-dir", digits_dir]
        subprocess.run([sys.executable, "-c", program, *train], env=variables | more, cwd=ROOT, timeout=600, check=True)
        written.append({file: file.stat().st_mtime_ns for file in (tmp_path / "cache" / "resnet_jax").iterdir()})
    assert written[0]
    assert written[0] == written[1] == written[2]
    assert list((tmp_path / "mine").iterdir())
