"""The command ``weights``: import, export and show; no file is overwritten."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from resnet_jax import cli
from resnet_jax.data import datasets
from resnet_jax.weights import files, load_pretrained

from test_cli import fails, prints_json
from weights.others import written

Captured = pytest.CaptureFixture[str]
FIELD = Path(__file__).parents[2] / "shared" / "field" / "weights"


@pytest.fixture(scope="module")
def torchs(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's weights in torchvision's names."""
    file = tmp_path_factory.mktemp("torch") / "torch.safetensors"
    cli.main(["weights", "export", str(short_run), "--as", "torchvision", "--to", str(file)])
    return file


@pytest.mark.slow
def test_public_resnet20_scores_its_published_error(
    capsys: Captured, published_resnet20: Path, cifar10: datasets.DatasetInfo, tmp_path: Path
) -> None:
    """8.27 %, 827 of 10,000 test images; no option describes the preprocessing."""
    to = str(tmp_path / "r20")
    printed = prints_json(capsys, "weights", "import", str(published_resnet20), "--as", "cifar-torch", "--to", to)
    assert printed["network"].startswith("cifar_resnet20")
    assert printed["file"] == f"{to}/model.safetensors"
    assert all(row["source"].startswith("module.") for row in printed["tensors"])
    scored = prints_json(capsys, "evaluate", to, "--data", "cifar10", "--batch-size", "1000")
    assert (scored["error_percent"], scored["examples"], scored["step"]) == (8.27, cifar10.examples["test"], None)
    assert scored["protocol"]["sha256"].startswith("12fca82f")
    assert scored["protocol"]["weights"] == "resnet20-12fca82f.th"


@pytest.mark.slow
def test_public_resnet20_under_other_names_is_asked_for_what_they_do_not_state(
    capsys: Captured, published_resnet20: Path, cifar10: datasets.DatasetInfo, tmp_path: Path
) -> None:
    words = {"linear": "fc", "shortcut": "downsample"}
    arrays = files.read(published_resnet20)[0]["state_dict"]
    renamed = {".".join(words.get(word, word) for word in name.split(".")): array for name, array in arrays.items()}
    source, to = str(written(tmp_path / "r20.safetensors", renamed)), str(tmp_path / "r20")
    message = fails(capsys, "weights", "import", source, "--to", to)
    assert "--stem SmallImageStem" in message
    assert "--mean and --std, 3 of each" in message
    given = ["--stem", "SmallImageStem", "--shortcut", "ZeroPad(resize='pad-both')", "--data", "cifar10"]
    given += ["--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"]
    prints_json(capsys, "weights", "import", source, "--to", to, *given)
    assert prints_json(capsys, "evaluate", to, "--batch-size", "1000")["error_percent"] == 8.27


def test_files_of_public_reports_are_read_correctly_or_rejected(capsys: Captured, tmp_path: Path) -> None:
    if not FIELD.is_dir():
        pytest.skip(f"{FIELD} is missing: it is laid beside the repository")
    constants = ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
    encoder = ["--prefix", "module.encoder_q.", "--no-head"]
    cases: dict[str, tuple[str, list[str], str]] = {
        "tutorial_model_state_dict.pth": ("", [], "key model_state_dict"),
        "compiled_orig_mod.pth": ("", [], "prefix _orig_mod."),
        "lightning_model.ckpt": ("", [], "key state_dict, prefix model."),
        "moco_v2.pth.tar": (" ".join(encoder), encoder, "left out: module.encoder_q.fc.0"),
        "timm_ema.pth.tar": ("", [], "also holds averaged weights (EMA): --key state_dict_ema"),
        "cifar_stem_with_pooling.pt": ("PooledSmallImageStem", ["--stem", "PooledSmallImageStem", *constants], "found: names of"),
        "one_channel.pth": ("--mean and --std, 1 of each", ["--mean", "0.5", "--std", "0.25"], "found: names of"),
    }
    assert cases.keys() == {path.name for path in FIELD.iterdir()}
    for name, (question, given, note) in cases.items():
        command = ["weights", "import", str(FIELD / name), "--to", str(tmp_path / name.partition(".")[0])]
        assert not question or question in fails(capsys, *command), name
        assert note in "\n".join(prints_json(capsys, *command, *given)["notes"]), name


def test_run_keeps_its_score_through_export_and_import(
    capsys: Captured, short_run: Path, torchs: Path, digits_dir: str, tmp_path: Path
) -> None:
    back = str(tmp_path / "back")
    cli.main(["weights", "import", str(torchs), "--as", "torchvision", "--to", back, "--claimed-error", "50"])
    out = capsys.readouterr().out
    assert "network:  a network of (1, 1, 1) blocks, (4, 8, 8) wide, 10 classes" in out
    for text in ("layer3.0.downsample.0.weight", "claimed:  50.0 % error on digits", f"To score it: resnet-jax evaluate {back}\n"):
        assert text in out
    scored = prints_json(capsys, "evaluate", back, "--data-dir", digits_dir, "--batch-size", "72")
    assert scored["error_percent"] == json.loads((short_run / "result.json").read_text())["value"]


def test_export_lists_every_tensor(capsys: Captured, short_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "torch.safetensors"
    command = ["weights", "export", str(short_run), "--as", "torchvision", "--to", str(file), "--prefix", "module."]
    names = [row["source"] for row in prints_json(capsys, *command)["tensors"]]
    shown = prints_json(capsys, "weights", "show", str(file))
    assert {"module.layer1.0.conv1.weight"} < {row["source"] for row in shown["tensors"]} == {*names}


def test_no_file_is_overwritten(capsys: Captured, short_run: Path, torchs: Path, tmp_path: Path) -> None:
    folder, file, run = tmp_path / "folder", tmp_path / "file.safetensors", tmp_path / "run"
    shutil.copytree(short_run, run)
    taken = ["weights", "import", str(torchs), "--as", "torchvision", "--to"]
    for to in (folder, file):
        cli.main([*taken, str(to)])
    capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    export = ["weights", "export", str(short_run), "--as", "torchvision", "--to"]
    for command, to in ((taken, folder), (taken, file), (taken, run), (export, file), (export, run)):
        assert f"{to} exists: delete it, or use another --to" in fails(capsys, *command, str(to))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_bad_input_is_explained_and_writes_nothing(capsys: Captured, short_run: Path, torchs: Path, tmp_path: Path) -> None:
    imports = ["import", str(torchs), "--as", "torchvision", "--to", f"{tmp_path}/TO"]
    cases: list[tuple[list[str], str]] = [
        (["import", str(torchs), "--as", "cifar-torch", "--to", f"{tmp_path}/TO"], "fc.bias: (10,), expected none"),
        ([*imports, "--mean", "0.5", "0.5"], "mean: 1 numbers"),
        ([*imports, "--claimed-error", "101"], "claimed_error must be in [0, 100], got"),
        ([*imports, "--num-classes", "5"], "--allow-new-head draws a new one"),
        ([*imports, "--network", "resnet5O"], "did you mean resnet50"),
        (["export", str(short_run), "--as", "torchvision", "--to", f"{tmp_path}/TO"], "subtracts a mean per channel"),
        (["export", str(torchs), "--as", "timm", "--to", f"{tmp_path}/x.safetensors"], "Foreign weights: resnet-jax weights import"),
    ]
    for arguments, message in cases:
        assert message in fails(capsys, "weights", *arguments), arguments
    assert not list(tmp_path.iterdir())


def test_import_options_set_classes_and_preprocessing(capsys: Captured, torchs: Path, tmp_path: Path) -> None:
    options = ["--mean", "0.25", "--deviation", "0.5", "--resize", "9", "--crop", "8", "--interpolation", "bicubic", "--data", "mnist"]
    command = ["weights", "import", str(torchs), "--as", "torchvision", "--to"]
    printed = prints_json(capsys, *command, str(tmp_path / "w"), *options)
    view = {"mean": [0.25], "deviation": [0.5], "resize": 9, "crop": 8, "interpolation": "bicubic"}
    assert (printed["card"]["view"], printed["card"]["data"]) == (view, "mnist")
    to = tmp_path / "five.safetensors"
    cli.main([*command, str(to), "--num-classes", "5", "--allow-new-head"])
    assert "drawn:    2 of " in capsys.readouterr().out
    weights, kept = load_pretrained(to), load_pretrained(torchs, "torchvision")
    assert weights.params["head"]["linear"]["kernel"].shape == (8, 5)
    np.testing.assert_array_equal(weights.params["stem"]["conv"]["kernel"], kept.params["stem"]["conv"]["kernel"])
