"""Weights by name: the client of the Hugging Face Hub against a local server, its cache, and configurations."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from others import filled, identical, norm, renamed, shapes, stored, written
from PIL import Image
from resnet_jax.errors import UserError
from resnet_jax.models.blocks import Bottleneck
from resnet_jax.weights import View, hub, list_pretrained, load_pretrained, saving

constants = pytest.importorskip("huggingface_hub.constants")

TINY = filled(shapes())
HUGGING = renamed(filled(shapes(bottleneck=True)), "transformers")
# As timm 1.0 and transformers 5 write them.
TIMM = {"mean": [0.5, 0.25, 0.125], "std": [0.5, 0.5, 0.25], "input_size": [3, 224, 224], "crop_pct": 0.95, "interpolation": "bicubic"}
TIMM |= {"test_input_size": [3, 288, 288], "test_crop_pct": 1.0}
TIMM_CONFIG = {
    "architecture": "resnet18",
    "num_classes": 3,
    "num_features": 8,
    "global_pool": "avg",
    "pretrained_cfg": TIMM | {"tag": "a1_in1k"},
}
PREPROCESSOR = {"crop_pct": 0.875, "feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "resample": 3}
PREPROCESSOR |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
LABELS = {"1": "cat", "0": "dog", "2": "tench, Tinca tinca"}
TRANSFORMERS = {"model_type": "resnet", "hidden_act": "relu", "downsample_in_first_stage": False, "id2label": LABELS}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder OWNER/NAME/FILE that a local server offers as the Hub does, and an empty cache."""
    root = tmp_path / "hub"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            repository, _, file = self.path.strip("/").partition("/resolve/main/")
            path = root / repository / file
            content = path.read_bytes() if path.is_file() else b""
            self.send_response(200 if path.is_file() else 404)
            if not path.is_file():
                self.send_header("X-Error-Code", "EntryNotFound" if path.parent.is_dir() else "RepoNotFound")
            contents = b"".join(sorted(p.read_bytes() for p in path.parent.glob("*")))
            self.send_header("X-Repo-Commit", hashlib.sha1(contents).hexdigest())
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.server_port}")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.chdir(tmp_path)
    yield root
    listening.shutdown()
    listening.server_close()


def offer(folder: Path, tensors: dict[str, np.ndarray], **configs: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, config in configs.items():
        (folder / f"{name}.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return written(folder / "model.safetensors", tensors)


def rejection(source: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_pretrained(source, **options)
    return str(caught.value)


def test_names_of_timm_torchvision_and_transformers(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm resizes to floor(224 / 0.95) = 235 before it crops."""
    offer(server / "timm/resnet18.a1_in1k", TINY, config=TIMM_CONFIG)
    offer(server / "timm/resnet18.tv_in1k", TINY, config=TIMM_CONFIG)
    offer(server / "microsoft/resnet-50", HUGGING, config=TRANSFORMERS, preprocessor_config=PREPROCESSOR)
    timm = View(mean=(0.5, 0.25, 0.125), deviation=(0.5, 0.5, 0.25), resize=235, crop=224, interpolation="bicubic")
    for _ in range(2):  # the second time offline
        for source in ("resnet18.a1_in1k", "timm/resnet18.a1_in1k", "hf://timm/resnet18.a1_in1k"):
            weights = load_pretrained(source)
            assert (weights.card.view, weights.card.convention) == (timm, "torchvision")
            assert "timm tests with: --resize 288 --crop 288" in weights.notes
        microsoft = load_pretrained("microsoft/resnet-50")
        expected = View(mean=(0.5,) * 3, deviation=(0.25,) * 3, resize=256, crop=224, interpolation="bicubic")
        assert (microsoft.card.view, microsoft.card.convention) == (expected, "transformers")
        assert microsoft.class_names() == ["dog", "cat", "tench, Tinca tinca"]
        assert not [note for note in microsoft.notes if note.startswith("assumed") and "data" not in note]
        torchvision = load_pretrained("ResNet18_Weights.IMAGENET1K_V1").card
        assert (torchvision.view.resize, torchvision.view.crop, torchvision.data) == (256, 224, "imagenet2012")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "not in the cache and the Hub cannot be reached" in rejection("timm/resnet34.a1_in1k")
    local = tmp_path / "torch/hub/checkpoints/resnet50-11ad3fa6.pth"
    local.parent.mkdir(parents=True)
    written(local, filled(shapes(bottleneck=True)))
    assert load_pretrained("ResNet50_Weights.IMAGENET1K_V2").card.view.resize == 232


def test_configurations_decide_or_reject(server: Path) -> None:
    offer(server / "a/b", HUGGING, config=TRANSFORMERS | {"downsample_in_bottleneck": True}, preprocessor_config=PREPROCESSOR)
    assert load_pretrained("a/b").architecture.branch == Bottleneck
    for config, reason in (
        ({"architecture": "resnetblur50"}, "timm's resnetblur50 is anti-aliased"),
        ({"architecture": "ecaresnet50d"}, "timm's ecaresnet50d is of efficient channel attention (ECA)"),
        ({"architecture": "skresnet50"}, "timm's skresnet50 is of selective kernels"),
        ({"architecture": "convnext_tiny"}, "convnext_tiny is not among timm's networks that load"),
        ({"architecture": "resnet18", "model_args": {"act_layer": "silu"}}, "its model_args change the network: act_layer"),
        (TRANSFORMERS | {"hidden_act": "gelu"}, "its activation is gelu"),
        (TRANSFORMERS | {"downsample_in_first_stage": True}, "its first stage is strided"),
        ({"model_type": "vit"}, "its network is vit, not a ResNet"),
        (TIMM_CONFIG | {"model_type": "timm_wrapper", "pretrained_cfg": {"crop_mode": "squash"}}, "its images are cropped as squash"),
        ("no JSON", "its config.json is corrupt"),
        ("[1]", "its config.json is corrupt"),
        ({"pretrained_cfg": TIMM | {"std": [0] * 3}}, "std: 3 above 0 (--std)"),
    ):
        offer(server / "a/c", TINY, config=config)
        assert reason in rejection("a/c"), config
        assert reason in rejection(server / "a/c"), config
    offer(server / "a/c", TINY, config={"pretrained_cfg": TIMM})
    assert load_pretrained("a/c", view={"crop": 200}).card.view.crop == 200
    saving.export(load_pretrained("a/c", view={"crop": 100}), "timm", server / "a/c/model.safetensors")
    assert load_pretrained("a/c").card.view.crop == 100, "the file itself goes before its repository"
    for name, reason in (
        ("a/nothing", "the Hub has no a/nothing, or it needs a token (HF_TOKEN)"),
        ("resnetblur50.bt_in1k", "timm's resnetblur50 is anti-aliased"),
        ("resnet50.a9_in1k", "did you mean resnet50."),
        ("ResNet50_Weights.IMAGENET1K_V3", "did you mean ResNet50_Weights.IMAGENET1K_V2"),
    ):
        assert reason in rejection(name), name
    (server / "a/c/model.safetensors").unlink()
    (server / "a/empty").mkdir()
    shards = [server / f"a/empty/model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for writes in (False, True):
        for shard in shards * writes:
            written(shard, TINY)
        for source in ("a/empty", server / "a/empty"):
            assert "has no model.safetensors or pytorch_model.bin (of shards, save_pretrained(" in rejection(source)
    shards[1].unlink()
    assert load_pretrained(server / "a/empty").card.source == "model-00001-of-00002.safetensors"
    (server / "a/empty/experiment.json").write_text("{}")
    assert "is a run. Write its weights: resnet-jax weights export" in rejection(server / "a/empty")


def test_known_names_are_loadable_networks() -> None:
    names = list_pretrained()
    assert len([name for name in names if "." in name and "Weights" not in name]) >= 100
    assert {"resnet50.a1_in1k", "ResNet50_Weights.IMAGENET1K_V2", "microsoft/resnet-50", "densenet121.tv_in1k"} <= {*names}


def test_folders_of_transformers_are_read(tmp_path: Path) -> None:
    """As ``save_pretrained`` of version 5 writes networks with and without a classifier."""
    images = PREPROCESSOR | {"image_processor_type": "ConvNextImageProcessorFast", "size": {"shortest_edge": 224}}
    config = TRANSFORMERS | {"architectures": ["ResNetModel"], "depths": [1, 1], "hidden_sizes": [16, 32], "layer_type": "bottleneck"}
    backbone = {name.removeprefix("resnet."): array for name, array in HUGGING.items() if not name.startswith("classifier")}
    for tensors, classes in ((HUGGING, ["dog", "cat", "tench, Tinca tinca"]), (backbone, [])):
        offer(tmp_path / "saved", tensors, config=config, preprocessor_config=images)
        weights = load_pretrained(tmp_path / "saved")
        assert (weights.card.view.resize, weights.card.view.mean, weights.class_names()) == (256, (0.5,) * 3, classes)
        saving.export(weights, "transformers", tmp_path / "again.safetensors")
        again = stored(tmp_path / "again.safetensors")
        identical(tensors, {name.removeprefix("" if classes else "resnet."): array for name, array in again.items()})


def test_paths_are_not_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources = ["runs/x.safetensors", "runs/x.pth", "x", "a/b/c", "./a/b", "../a", "/a/b", "~/b", "a/b.npz", "a/b.pth.tar", "a/", "/b"]
    for source in (*sources, "", "a/b\n", "x" * 5000, Path("timm/resnet18")):
        assert not hub.is_hub_name(source)
    assert "does not exist" in rejection("a/b.npz")
    offer(tmp_path / "timm" / "resnet18", TINY)
    assert load_pretrained("timm/resnet18").card.source == "model.safetensors"


def test_exported_folders_are_read_back(tmp_path: Path, server: Path) -> None:
    deep = {"conv1.0.weight": (4, 3, 3, 3), **norm("conv1.1", 4), "conv1.3.weight": (4, 4, 3, 3), **norm("conv1.4", 4)}
    deep |= shapes((1,) * 4, (8, 8, 12, 16)) | {"conv1.6.weight": (8, 4, 3, 3)}
    del deep["conv1.weight"]
    wide = shapes((1,) * 4, (64, 8, 8, 8), bottleneck=True)
    cases = {
        "timm": ("timm", filled(deep), {"stem_type": "deep", "stem_width": 4, "layers": [1] * 4, "channels": [8, 8, 12, 16]}),
        "torchvision": ("torchvision", filled(wide), {"channels": [64, 8, 8, 8], "avg_down": False}),
    }
    for names, (convention, tensors, arguments) in cases.items():
        weights = load_pretrained(written(tmp_path / "x.safetensors", tensors), view={"resize": 235})
        saving.export(weights, names, tmp_path / names)
        config = json.loads((tmp_path / names / "config.json").read_text())
        assert config["model_args"].items() >= arguments.items()
        assert int(224 / config["pretrained_cfg"]["crop_pct"]) == 235
        assert load_pretrained(tmp_path / names).card.view == weights.card.view
        identical(tensors, stored(tmp_path / names / "model.safetensors"))
        assert convention == weights.card.convention
    saving.export(load_pretrained(tmp_path / "timm"), "hub", server / "me/mine")
    assert load_pretrained("me/mine").card.view.resize == 235
    assert "library_name: resnet-jax-lab" in (server / "me/mine/README.md").read_text()


def test_images_are_prepared_as_torchvision_does_and_predicted_by_name(tmp_path: Path, server: Path) -> None:
    rng = np.random.default_rng(0)
    photograph = Image.fromarray(rng.integers(0, 256, (50, 90, 3), dtype=np.uint8))
    photograph.save(tmp_path / "x.png")
    offer(server / "a/b", HUGGING, config=TRANSFORMERS, preprocessor_config=PREPROCESSOR)
    weights = load_pretrained("a/b", view={"resize": 40, "crop": 32})
    resized = np.asarray(photograph.resize((72, 40), Image.Resampling.BICUBIC), np.float32)
    expected = (resized[4:36, 20:52] / 255 - 0.5) / 0.25
    for image in (tmp_path / "x.png", str(tmp_path / "x.png"), photograph, np.asarray(photograph)):
        prepared = weights.card.preprocess(image)
        assert (prepared.shape, prepared.dtype) == ((1, 32, 32, 3), np.float32)
        np.testing.assert_allclose(prepared[0], expected, atol=0.05)
    first, second = weights.predict([photograph, tmp_path / "x.png"], top=2)
    assert first == second
    assert [name for name, _ in first] == [name for name, _ in weights.predict(photograph)[0][:2]]
    assert {name for name, _ in weights.predict(photograph)[0]} == {"dog", "cat", "tench, Tinca tinca"}
    assert sum(share for _, share in weights.predict(photograph)[0]) == pytest.approx(1, abs=1e-5)
    for wrong in (np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)):
        with pytest.raises(UserError, match="an image must be uint8 of"):
            weights.card.preprocess(wrong)


def test_push_uploads_a_folder_once_it_is_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's calls; a refused token ends in one sentence."""
    calls: list[Any] = []

    class Api:
        def create_repo(self, repository: str, exist_ok: bool) -> None:
            calls.append((repository, exist_ok))

        def upload_folder(self, *, repo_id: str, folder_path: str) -> str:
            if repo_id == "no/token":
                raise ConnectionError("401")
            calls.append((repo_id, folder_path))
            return "https://hub/" + repo_id

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    offer(tmp_path / "w", TINY)
    assert saving.push(tmp_path / "w", "me/mine") == "https://hub/me/mine"
    assert calls == [("me/mine", True), ("me/mine", str(tmp_path / "w"))]
    with pytest.raises(UserError, match=r"no/token was not uploaded .*401.*log in with 'hf auth login' or HF_TOKEN"):
        saving.push(tmp_path / "w", "no/token")
