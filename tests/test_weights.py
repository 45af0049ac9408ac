"""The command ``weights``: in, out, what a file holds; nothing is ever written over."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_cli import fails, prints_json

from resnet_jax import cli
from resnet_jax.data import sources
from resnet_jax.models import load_pretrained
from resnet_jax.models.pretrained import saving
from resnet_jax.training import trained

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def torchs(short_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's weights under torchvision's names."""
    file = tmp_path_factory.mktemp("torch") / "torch.safetensors"
    cli.main(["weights", "export", str(short_run), "--as", "torchvision", "--to", str(file)])
    return file


@pytest.mark.slow
def test_the_released_resnet_20_scores_its_published_error_without_a_flag(
    capsys: Captured, published_resnet20: Path, cifar10: sources.DatasetInfo, tmp_path: Path
) -> None:
    """8.27 %, 827 of 10,000 test images: what its author says. No flag says how images are shown."""
    to = str(tmp_path / "r20")
    found = prints_json(capsys, "weights", "import", str(published_resnet20), "--as", "cifar-torch", "--to", to, "--json")
    assert found["network"].startswith("cifar_resnet20")
    assert found["file"] == f"{to}/model.safetensors"
    assert all(row["source"].startswith("module.") for row in found["tensors"])
    scored = prints_json(capsys, "evaluate", to, "--data", "cifar10", "--batch-size", "1000", "--json")
    assert (scored["error_percent"], scored["examples"], scored["step"]) == (8.27, cifar10.examples["test"], None)
    assert scored["protocol"]["sha256"].startswith("12fca82f")
    assert scored["protocol"]["weights"] == "resnet20-12fca82f.th"
    assert "steps" not in scored["protocol"]


@pytest.mark.slow
def test_out_and_in_again_a_run_keeps_its_score(capsys: Captured, short_run: Path, torchs: Path, digits_dir: str, tmp_path: Path) -> None:
    cli.main(["weights", "import", str(torchs), "--as", "torchvision", "--to", str(tmp_path / "back"), "--claimed-error", "50"])
    out = capsys.readouterr().out
    assert f"Written to {tmp_path}/back. Score it with: resnet-jax evaluate {tmp_path}/back\n" in out
    assert "layer3.0.downsample.0.weight" in out
    assert "claimed:  50.0 % error on digits" in out
    assert "mean one of every pixel" in out
    result = json.loads((short_run / "result.json").read_text())
    scored = prints_json(capsys, "evaluate", str(tmp_path / "back"), "--data-dir", digits_dir, "--batch-size", "72", "--json")
    assert scored["error_percent"] == result["value"]
    cli.main(["evaluate", str(tmp_path / "back"), "--data-dir", digits_dir, "--batch-size", "72"])
    assert capsys.readouterr().out == f"{tmp_path}/back: error {result['value']:.2f} % on 360 images of test\n"


def test_export_says_every_tensor_and_shows_it_in_torchs_names(capsys: Captured, short_run: Path, tmp_path: Path) -> None:
    file = tmp_path / "torch.safetensors"
    command = ["weights", "export", str(short_run), "--as", "torchvision", "--to", str(file), "--prefix", "module."]
    found = prints_json(capsys, *command, "--json")
    names = [row["source"] for row in found["tensors"]]
    assert "module.layer1.0.conv1.weight" in names
    assert len(names) == len(set(names))
    shown = prints_json(capsys, "weights", "show", str(file), "--as", "torchvision", "--json")
    assert sorted(row["source"] for row in shown["tensors"]) == sorted(names)
    assert shown["card"]["prefix"] == "module."
    own = prints_json(capsys, "weights", "show", str(saving.save(trained.weights(short_run), tmp_path / "own.safetensors")), "--json")
    assert own["card"]["source"] == "run, step 4"


def test_nothing_is_written_over(capsys: Captured, short_run: Path, torchs: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file.safetensors"
    run = tmp_path / "run"
    shutil.copytree(short_run, run)
    taken = ["weights", "import", str(torchs), "--as", "torchvision", "--to"]
    for to in (folder, file):
        cli.main([*taken, str(to)])
    capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for to in (folder, file):
        assert f"{to} is there already: delete it, or use another --to" in fails(capsys, *taken, str(to))
    assert f"{run} holds a run: use another --to" in fails(capsys, *taken, str(run))
    export = ["weights", "export", str(short_run), "--as", "torchvision", "--to"]
    assert "is there already" in fails(capsys, *export, str(file))
    assert "holds a run" in fails(capsys, *export, str(run))
    doctor = ["doctor", "weights", str(file), "--claimed-error", "0", "--to"]
    assert "is there already" in fails(capsys, *doctor, str(folder))
    assert "holds a run" in fails(capsys, *doctor, str(run))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["imprt"], "there is no command 'weights imprt'; did you mean import"),
        (["import", "FILE", "--to", "TO"], "it is not this project's own, so say whose names its tensors have"),
        (["import", "FILE", "--as", "cifar-torch", "--to", "TO"], "nothing was loaded"),
        (["import", "FILE", "--as", "nobody", "--to", "TO"], "invalid choice 'nobody'"),
        (["import", "FILE", "--as", "torchvision"], "--to"),
        (["import", "/nowhere.pth", "--as", "torchvision", "--to", "TO"], "/nowhere.pth does not exist"),
        (["import", "FILE", "--as", "torchvision", "--to", "TO.pth"], "TO.pth ends in .pth, and safetensors is what is written"),
        (["import", "FILE", "--as", "torchvision", "--to", "TO", "--mean", "0.5", "0.5"], "mean: 1 numbers"),
        (["import", "FILE", "--as", "torchvision", "--to", "TO", "--deviation", "0"], "deviation: 1 numbers above 0"),
        (["import", "FILE", "--as", "torchvision", "--to", "TO", "--claimed-error", "101"], "claimed_error: 0 to 100 percent"),
        (["import", "FILE", "--as", "torchvision", "--to", "TO", "--num-classes", "5"], "--allow-new-head draws a new one"),
        (["import", "FILE", "--as", "torchvision", "--to", "TO", "--network", "resnet5O"], "did you mean resnet50"),
        (["export", "RUN", "--as", "torchvision", "--to", "TO"], "does not end in .safetensors"),
        (["export", "RUN", "--as", "cifar-torch", "--to", "TO/none"], "does not end in .safetensors"),
        (["export", "/nowhere", "--as", "timm", "--to", "TO.safetensors"], "there is neither a run nor a file of weights at /nowhere"),
        (["export", "FILE", "--as", "timm", "--to", "TO.safetensors"], "To bring it in: resnet-jax weights import"),
        (["show", "/nowhere"], "/nowhere does not exist"),
        (["show"], "Missing from resnet-jax weights show"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_said_and_writes_nothing(
    arguments: list[str], said: str, capsys: Captured, short_run: Path, torchs: Path, tmp_path: Path
) -> None:
    places = {"FILE": str(torchs), "RUN": str(short_run)}
    given = [places.get(word, word.replace("TO", f"{tmp_path}/TO") if word.startswith("TO") else word) for word in arguments]
    assert said in fails(capsys, "weights", *given)
    assert not list(tmp_path.iterdir())


def test_other_classes_are_drawn_anew_and_said(capsys: Captured, torchs: Path, tmp_path: Path) -> None:
    to = tmp_path / "five.safetensors"
    cli.main(["weights", "import", str(torchs), "--as", "torchvision", "--to", str(to), "--num-classes", "5", "--allow-new-head"])
    assert "drawn:    2 of " in capsys.readouterr().out
    weights = load_pretrained(to)
    assert weights.params["head"]["linear"]["kernel"].shape == (8, 5)
    kept = load_pretrained(torchs, "torchvision")
    np.testing.assert_array_equal(weights.params["stem"]["conv"]["kernel"], kept.params["stem"]["conv"]["kernel"])


def test_how_images_are_shown_can_be_said(capsys: Captured, torchs: Path, tmp_path: Path) -> None:
    said = ["--mean", "0.25", "--deviation", "0.5", "--resize", "9", "--crop", "8", "--interpolation", "bicubic", "--data", "mnist"]
    found = prints_json(capsys, "weights", "import", str(torchs), "--as", "torchvision", "--to", str(tmp_path / "w"), "--json", *said)
    view = {"mean": [0.25], "deviation": [0.5], "resize": 9, "crop": 8, "interpolation": "bicubic"}
    assert (found["card"]["view"], found["card"]["data"]) == (view, "mnist")
    card = load_pretrained(tmp_path / "w").card
    assert (card.view.mean, card.view.resize, card.data) == ((0.25,), 9, "mnist")


@pytest.mark.parametrize("command", [["weights"], ["weights", "--help"], ["weights", "import", "--help"], ["weights", "export", "--help"]])
def test_help_says_whose_names_there_are(command: list[str], capsys: Captured) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert caught.value.code == (2 if command == ["weights"] else 0)
    out: Any = capsys.readouterr().out
    for name in ("torchvision", "timm", "cifar-torch", "caffe", "caffe-torch"):
        assert name in out
