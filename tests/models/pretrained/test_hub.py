"""Weights of the Hugging Face Hub, whose client stands in here: nothing is downloaded."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from others import filled, shapes, written

from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models.pretrained import hub, saving

TIMM = {
    "architecture": "resnet18",
    "pretrained_cfg": {
        "mean": [0.5, 0.25, 0.125],
        "std": [0.5, 0.5, 0.25],
        "input_size": [3, 224, 224],
        "crop_pct": 0.95,
        "interpolation": "bicubic",
    },
}


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for every repository; `asked` in it says what was downloaded."""
    (tmp_path / "hub").mkdir()

    def hf_hub_download(repo_id: str, filename: str) -> str:
        with (tmp_path / "asked").open("a") as file:
            file.write(f"{repo_id} {filename}\n")
        path = tmp_path / "hub" / filename
        if not path.exists():
            raise ConnectionError(f"404 for {filename}")
        return str(path)

    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = hf_hub_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.mark.parametrize("source", ["timm/resnet18.a1_in1k", "hf://timm/resnet18.a1_in1k"])
def test_weights_and_view_come_from_the_repository(source: str, repository: Path) -> None:
    """timm resizes to floor(224 / 0.95) = 235 before it crops."""
    written(repository / "model.safetensors", filled(shapes()))
    (repository / "config.json").write_text(json.dumps(TIMM))
    weights = models.load_pretrained(source, "timm")
    assert weights.card.view == models.View(
        mean=(0.5, 0.25, 0.125), deviation=(0.5, 0.5, 0.25), resize=235, crop=224, interpolation="bicubic"
    )
    asked = (repository.parent / "asked").read_text().split("\n")
    assert asked[:2] == ["timm/resnet18.a1_in1k model.safetensors", "timm/resnet18.a1_in1k config.json"]
    changed = models.load_pretrained(source, "timm", view={"mean": (0.1, 0.1, 0.1), "crop": 200}).card.view
    assert (changed.mean, changed.crop, changed.resize) == ((0.1, 0.1, 0.1), 200, 235), "what is given goes before what is found"


def test_without_a_config_the_view_is_the_conventions(repository: Path) -> None:
    written(repository / "model.safetensors", filled(shapes()))
    assert models.load_pretrained("timm/resnet18", "timm").card.view == models.pretrained.card.IMAGENET_VIEW


@pytest.mark.parametrize(
    ("config", "view"),
    [
        ("no JSON", {}),
        ("[1]", {}),
        ('{"pretrained_cfg": [1]}', {}),
        ("{}", {}),
        ('{"mean": [1, 2], "std": 3}', {}),
        ('{"input_size": [3, 224, 224]}', {"crop": 224, "resize": 256}),
        ('{"input_size": [3, 224, 224], "crop_pct": 0}', {}),
        ('{"input_size": [3, 224, 224], "crop_pct": "a"}', {}),
        ('{"input_size": [3, 224, 224], "crop_pct": null}', {}),
        ('{"input_size": [3, 224, "x"]}', {}),
        ('{"interpolation": ["bicubic"]}', {}),
        ('{"interpolation": "random"}', {}),
        ('{"interpolation": "bicubic"}', {"interpolation": "bicubic"}),
    ],
)
def test_of_a_config_is_taken_what_can_be_read(config: str, view: dict[str, Any], repository: Path) -> None:
    written(repository / "model.safetensors", filled(shapes()))
    (repository / "config.json").write_text(config)
    assert hub.fetch("a/b").view == view


@pytest.mark.parametrize(
    "config", [{"mean": [1, 2], "std": [1, 1]}, {"mean": ["a"] * 3, "std": [1] * 3}, {"mean": [1] * 3, "std": [0] * 3}]
)
def test_constants_that_make_no_sense_are_refused(config: dict[str, Any], repository: Path) -> None:
    written(repository / "model.safetensors", filled(shapes()))
    (repository / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="timm/resnet18: what is said of these weights makes no sense"):
        models.load_pretrained("timm/resnet18", "timm")


def test_what_a_file_says_of_its_images_goes_before_what_stands_beside_it(repository: Path) -> None:
    first = models.load_pretrained(written(repository / "x.safetensors", filled(shapes())), "timm", view={"crop": 100})
    (repository / "config.json").write_text(json.dumps(TIMM))
    saving.export(first, "timm", repository / "model.safetensors")
    assert models.load_pretrained("a/b", "timm").card.view == first.card.view
    saving.save(first, repository)
    assert models.load_pretrained("a/b").card.view == first.card.view


def test_a_failed_download_says_what_failed(repository: Path) -> None:
    with pytest.raises(
        UserError, match=r"no file or folder a/b, and the Hugging Face Hub did not give a/b/model.safetensors \(ConnectionError: 404"
    ):
        models.load_pretrained("a/b", "timm")


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"there is no file or folder timm/resnet18; .* pip install 'resnet-jax-lab\[hub\]'"):
        models.load_pretrained("timm/resnet18", "timm")


@pytest.mark.parametrize(
    "source",
    [
        *("runs/x.safetensors", "runs/x.pth", "x.safetensors", "x", "a/b/c", "./a/b", "../a", "/a/b", "~/b", "a/b.npz", "a/b.pth.tar"),
        *("", "a/", "/b", "a b/c", "a/b\n", "x" * 5000),
        Path("timm/resnet18"),
        Path("hf:/timm/resnet18"),
    ],
    ids=lambda source: repr(source)[:30],
)
def test_paths_never_go_to_the_hub(source: Path | str, repository: Path) -> None:
    assert not hub.is_identifier(source)
    with pytest.raises(UserError, match="does not exist|cannot be read|not a file"):
        models.load_pretrained(source, "timm")
    assert not (repository.parent / "asked").exists()


def test_a_folder_that_exists_is_no_repository(repository: Path) -> None:
    folder = repository.parent / "timm" / "resnet18"
    folder.mkdir(parents=True)
    written(folder / "model.safetensors", filled(shapes()))
    assert models.load_pretrained("timm/resnet18", "timm").card.source == "resnet18"
    assert not (repository.parent / "asked").exists()
