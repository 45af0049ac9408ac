"""Sources of weights by name: the Hugging Face Hub, and configurations beside weights."""

import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from resnet_jax.errors import UserError, nearest, printable, require
from resnet_jax.models.blocks import Bottleneck
from resnet_jax.models.components import component
from resnet_jax.weights.card import IMAGENET_VIEW

FILE_NAME, CONFIG_NAME = "model.safetensors", "config.json"
_FILES = (FILE_NAME, "pytorch_model.bin")
_NO_FILE = (
    f"has no {' or '.join(_FILES)} (of shards, save_pretrained(FOLDER, max_shard_size='10GB') "
    "makes one)"
)
_SUFFIXES = (".safetensors", ".npz", ".pth", ".th", ".pt", ".ckpt", ".tar", ".bin", ".h5", ".onnx")
# Arguments of timm's networks that names and shapes state.
_TIMM_ARGUMENTS = """layers channels cardinality base_width stem_width stem_type avg_down block_args
    num_classes in_chans global_pool growth_rate block_config"""
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # PIL's numbers


# Fields of a network that names and shapes do not determine.
NETWORK_FIELDS = frozenset({"stem", "branch", "shortcut", "norm"})


@dataclass(frozen=True)
class Source:
    """A file of weights, and what its name, its configuration or the user states of it."""

    path: Path = Path()
    view: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``View``."""
    parts: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the network."""
    stated: frozenset[str] = frozenset()
    """Fields of the network that are as inferred."""
    classes: tuple[str, ...] = ()
    data: str = ""
    claimed_error: float | None = None
    notes: tuple[str, ...] = ()


@functools.cache
def _known() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("pretrained.json").read_text())


def list_pretrained() -> list[str]:
    """Returns the names of ``load_pretrained``: timm's, torchvision's and transformers'."""
    known = _known()
    timm = [f"{name}.{tag}" for name, tags in known["timm"].items() for tag in tags]
    return [*timm, *known["torchvision"], *known["transformers"]]


def is_hub_name(source: Path | str) -> bool:
    """Returns whether a source is ``OWNER/NAME`` or ``hf://OWNER/NAME``, not a path."""
    if isinstance(source, Path) or source.endswith(_SUFFIXES):
        return False
    if os.path.exists(source) or os.path.exists(f"{source}.index"):  # of a TensorFlow checkpoint
        return False
    return bool(re.fullmatch(r"hf://.*|[\w-]+/[\w.-]+", source))


def locate(source: Path | str) -> Source:
    """Returns the file of a path, of a name in ``list_pretrained``, or of a repository."""
    text = str(source)
    if os.path.isdir(text):
        folder, names = Path(text), {*os.listdir(text)}
        command = f"resnet-jax weights export {text} --as hub --to FOLDER"
        require("experiment.json" not in names, f"is a run. Write its weights: {command}")
        files = [name for name in _FILES if name in names]
        # A single file of any name; only the index of a sharded or a TensorFlow checkpoint.
        files = files or [n for n in names if n.endswith((*_SUFFIXES, ".index", ".pb"))]
        require(len(files) == 1 or files[:1] == [FILE_NAME], _NO_FILE)
        stated = _described(lambda name: folder / name if name in names else None)
        return replace(stated, path=folder / files[0])
    if is_hub_name(source):
        return _repository(text.removeprefix("hf://"))
    names = list_pretrained()
    is_path = isinstance(source, Path) or os.path.exists(text) or text.endswith(_SUFFIXES)
    if is_path or not re.fullmatch(r"\w+(\.\w+)?", text):
        return Source(Path(text))
    if torchvision := _known()["torchvision"].get(text):
        tag, file, resize = torchvision
        home = Path(os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch")
        path = home / "hub" / "checkpoints" / file
        origin = Source(path) if path.is_file() else _repository(f"timm/{tag}")
        view = {"mean": IMAGENET_VIEW.mean, "deviation": IMAGENET_VIEW.deviation, **origin.view}
        view |= {"resize": resize, "crop": 224, "interpolation": "bilinear"}
        return replace(origin, view=view, stated=NETWORK_FIELDS, data="imagenet2012")
    if text in names:
        return _repository(f"timm/{text}")
    if (name := text.partition(".")[0]) in _known()["refused"]:
        _check_timm(name)
    raise UserError(f"{text} does not exist{nearest(text, names)}")


def _repository(name: str) -> Source:
    stated = _described(lambda file: _download(name, file))  # It may reject the network.
    if (path := _download(name, *_FILES)) is None:
        raise UserError(f"{name} {_NO_FILE}")
    return replace(stated, path=path)


def _download(repository: str, *files: str) -> Path | None:
    """Returns the first of files that a repository of the Hub has, from the cache if possible."""
    try:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        hint = "pip install 'resnet-jax-lab[hub]'"
        raise UserError(f"{repository} is on the Hugging Face Hub: {hint}") from error
    for file in files:
        try:
            return Path(hf_hub_download(repository, file))
        except Exception as error:  # dozens of types, of the client and its network libraries
            kinds = {cls.__name__ for cls in type(error).__mro__}
            if "LocalEntryNotFoundError" not in kinds and "EntryNotFoundError" in kinds:
                continue
            if "RepositoryNotFoundError" in kinds:
                problem = f"the Hub has no {repository}, or it needs a token (HF_TOKEN)"
            elif kinds & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError"}:
                offline = " (HF_HUB_OFFLINE)" * bool(os.environ.get("HF_HUB_OFFLINE"))
                problem = f"{repository} is not in the cache and the Hub cannot be reached{offline}"
            else:
                problem = f"{repository} cannot be fetched: {printable(repr(error))}"
            raise UserError(problem) from error
    return None


def _described(get: Callable[[str], Path | None]) -> Source:
    """Returns what ``config.json`` states of the weights beside it."""
    try:
        file = get(CONFIG_NAME)
        config = json.loads(file.read_text()) if file else {}
        kind = config.get("model_type", "timm_wrapper")
        require(kind in ("resnet", "timm_wrapper"), f"its network is {kind}, not a ResNet")
        if kind == "resnet":
            file = get("preprocessor_config.json")
            return _of_transformers(config, json.loads(file.read_text()) if file else {})
        return _of_timm(config)
    except UserError:
        raise
    except Exception as error:  # a file may hold anything
        raise UserError(f"its {CONFIG_NAME} is corrupt: {printable(repr(error))}") from error


def _check_timm(name: str) -> None:
    known, reason = _known()["timm"], _known()["refused"].get(name)
    require(not reason, f"timm's {name} is {reason}, which no network of this project is")
    unknown = f"{printable(name)} is not among timm's networks that load{nearest(name, known)}"
    require(name in known, unknown)


def _of_timm(config: dict[str, Any]) -> Source:
    config = config | config.get("pretrained_cfg", {})
    name = config.get("architecture")
    if name:
        _check_timm(name)
    unknown = (config.get("model_args") or {}).keys() - {*_TIMM_ARGUMENTS.split()}
    require(not unknown, f"its model_args change the network: {', '.join(sorted(unknown))}")
    view = _constants(config, "mean", "std")
    percentage, mode = config.get("crop_pct", 0.875), config.get("crop_mode", "center")
    require(mode == "center", f"its images are cropped as {mode}, not in the center")
    if "input_size" in config:
        view |= _crop(config["input_size"], percentage)
    notes = ()
    if size := config.get("test_input_size"):
        test = _crop(size, config.get("test_crop_pct", percentage))
        notes = ("timm tests with: --resize {resize} --crop {crop}".format(**test),)
    if "interpolation" in config:
        view["interpolation"] = config["interpolation"]
    described = config.get("label_descriptions") or {}
    labels = _values(config.get("label_names") or ())
    classes = tuple(str(described.get(label, label)) for label in labels)
    stated = frozenset({"branch", "norm"} if name else ())
    return Source(view=view, stated=stated, classes=classes, notes=notes)


def _constants(config: dict[str, Any], *names: str) -> dict[str, Any]:
    fields = zip(("mean", "deviation"), names, strict=True)
    return {field: config[name] for field, name in fields if {*names} <= config.keys()}


def _crop(size: Sequence[int], percentage: float) -> dict[str, int]:
    # As timm, which rounds down.
    return {"crop": min(size[1:]), "resize": math.floor(min(size[1:]) / percentage)}


def _of_transformers(config: dict[str, Any], images: dict[str, Any]) -> Source:
    activation = config.get("hidden_act", "relu")
    require(activation == "relu", f"its activation is {activation}, not relu")
    strided = config.get("downsample_in_first_stage", False)
    require(not strided, "its first stage is strided (downsample_in_first_stage)")
    is_paper = config.get("downsample_in_bottleneck", False)
    parts = {"branch": component(Bottleneck)} if is_paper else {}
    view = _constants(images, "image_mean", "image_std")
    kind = images.get("image_processor_type", images.get("feature_extractor_type", ""))
    size = images.get("size", 0)
    size = size.get("shortest_edge", 0) if isinstance(size, dict) else size
    if kind.startswith("ConvNext") and 0 < size < 384:
        view |= _crop((3, size), images.get("crop_pct", 0.875))
        view["interpolation"] = _RESAMPLE.get(images.get("resample", 2), "bilinear")
    classes = tuple(map(str, _values(config.get("id2label", {}))))
    return Source(view=view, parts=parts, stated=NETWORK_FIELDS, classes=classes)


def _values(labels: Any) -> list[Any]:
    """Returns names by class, of a list or of a dictionary by number."""
    if isinstance(labels, dict):
        return [labels[key] for key in sorted(labels, key=int)]
    return list(labels)
