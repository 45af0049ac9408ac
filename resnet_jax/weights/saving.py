"""Weights from a network into safetensors: this project's format, or another convention."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from resnet_jax.errors import UserError, require
from resnet_jax.models.components import parts
from resnet_jax.models.resnet import Architecture
from resnet_jax.models.shortcuts import Concatenation, PooledProjection, Projection
from resnet_jax.models.stems import (
    DeepStem,
    ImageNetStem,
    PooledSmallImageStem,
    SmallImageStem,
)
from resnet_jax.weights.card import EXPORTED_KEY, KEY, Card
from resnet_jax.weights.files import Arrays
from resnet_jax.weights.hub import CONFIG_NAME, FILE_NAME
from resnet_jax.weights.inference import differing, infer, known_as
from resnet_jax.weights.loading import Pretrained, Row
from resnet_jax.weights.names import (
    COUNTER,
    PADDED,
    Convention,
    Leaves,
    Place,
    convention,
    leaves,
    own_places,
    torch_places,
)

_FLOATS = ("float16", "bfloat16", "float64")


def save(weights: Pretrained, to: Path) -> Path:
    """Writes weights and card to a ``.safetensors`` file or a folder, and returns the file."""
    file = to if to.suffix == ".safetensors" else to / FILE_NAME
    variables = leaves(weights.params, weights.batch_stats)
    arrays = _arrays(variables, own_places(variables))
    _write(file, safetensors.numpy.save(arrays, {KEY: weights.card.text()}))
    return file


def export(weights: Pretrained, names: str, to: Path, *, prefix: str | None = None) -> list[Row]:
    """Writes weights in another convention, so that its code loads them strictly.

    Imported weights are written back bit for bit, except float64, which was rounded to float32.
    ``prefix`` is of every name, by default that of the imported file. A folder also receives
    a model card and ``config.json``; timm's ``create_model("local-dir:FOLDER")`` reads it.
    """
    beside = {}
    if to.suffix != ".safetensors":
        folders = ("timm", "torchvision", "hub")
        require(names in folders, f"folders are of {', '.join(folders)}: use --to FILE.safetensors")
        require(not prefix, "a folder is for libraries, which expect names without a prefix")
        if names != "hub":
            beside[CONFIG_NAME] = json.dumps(_config(weights.card), indent=1) + "\n"
        beside["README.md"] = _readme(weights.card, names)
        prefix, to = "", to / FILE_NAME
    if names == "hub":
        save(weights, to)
        variables = leaves(weights.params, weights.batch_stats)
        rows = [Row(place.ours, place.shape, place.name) for place in own_places(variables)]
    else:
        rows = _export(weights, convention(names), to, prefix)
    for name, text in beside.items():
        _write(to.with_name(name), text.encode())
    return rows


def _export(weights: Pretrained, chosen: Convention, to: Path, prefix: str | None) -> list[Row]:
    card, variables = weights.card, leaves(weights.params, weights.batch_stats)
    places = _exported_places(weights.architecture, variables, chosen)
    theirs = {place.name: str(chosen.name_of(place.name)) for place in places}
    is_same = card.convention == chosen.name
    if prefix is None:
        prefix = card.prefix if is_same else ""
    arrays = {}
    for name, array in _arrays(variables, places).items():
        dtype = card.dtypes.get(card.prefix + theirs[name]) if is_same else None
        arrays[name] = array.astype(dtype if dtype in _FLOATS else np.float32)
    counters = dict(card.counters)
    step = counters.pop("", None)
    if step is not None:
        means = [name for name in arrays if name.endswith(".running_mean")]
        counters |= {name.replace(".running_mean", COUNTER): step for name in means}
    arrays |= {name: np.asarray(count, np.int64) for name, count in counters.items()}
    arrays = {f"{prefix}{chosen.name_of(name)}": array for name, array in arrays.items()}
    # safetensors' loader for torch requires the format.
    _write(to, safetensors.numpy.save(arrays, {"format": "pt", EXPORTED_KEY: card.text()}))
    return [Row(p.ours, p.shape, prefix + theirs[p.name]) for p in places]


def push(folder: Path, repository: str) -> str:
    """Uploads a folder of ``export`` to the Hugging Face Hub, and returns its address."""
    require((folder / FILE_NAME).is_file(), f"{folder} has no {FILE_NAME}: weights export first")
    try:
        from huggingface_hub import HfApi  # pyright: ignore[reportMissingImports]

        HfApi().create_repo(repository, exist_ok=True)
        return str(HfApi().upload_folder(repo_id=repository, folder_path=str(folder)))
    except Exception as error:  # of the client and its network libraries
        hint = "pip install 'resnet-jax-lab[hub]', and log in with 'hf auth login' or HF_TOKEN"
        raise UserError(f"{repository} was not uploaded ({error!r:.300}): {hint}") from error


def _arrays(variables: Leaves, places: list[Place]) -> Arrays:
    arrays = {p.name: p.to_file(np.asarray(variables[p.path][p.index])) for p in places}
    return {name: np.asarray(array, order="C") for name, array in arrays.items()}


def _exported_places(ours: Architecture, variables: Leaves, chosen: Convention) -> list[Place]:
    name, places = chosen.name, torch_places(ours, variables)
    for place in places:
        require(chosen.name_of(place.name) is not None, f"{name} has no {place.name}")
        is_odd = place.name.endswith(".se.fc1.weight") and place.shape[0] % 8
        require(not is_odd, f"{name} squeezes to multiples of 8 channels (branch: reduction)")
    theirs = infer({place.name: place.shape for place in places})
    if theirs.stem is SmallImageStem and ours.stem is PooledSmallImageStem:
        theirs = replace(theirs, stem=ours.stem)  # neither is the library's own
    if theirs.shortcut == PADDED and not chosen.is_small:
        theirs = replace(theirs, shortcut=Projection)
    texts = "; ".join(differing(ours, theirs).values())
    require(not texts, f"{name} would make another network of these weights: {texts}")
    is_plain = not {"groups", "base_width", "reduction"} & parts(ours.branch)[1].keys()
    require(is_plain or name != "transformers", f"{name} has no {ours.branch}")
    depth = ours.stochastic_depth
    scales = (depth.survival != 1 or bool(depth.kept)) and depth.scaled == "test"
    hint = 'train with stochastic_depth.scaled="training"'
    require(not scales, f"{name} does not scale branches at test time: {hint}")
    return places


def _config(card: Card) -> dict[str, Any]:
    """Returns timm's ``config.json``: the sizes of a network are arguments of its model."""
    network, view = card.architecture, card.view
    channels, options = network.input_shape[2], parts(network.branch)[1]
    features = network.stem_features or network.features[0]
    is_dense, is_deep = network.shortcut is Concatenation, network.stem is DeepStem
    require(np.ndim(view.mean) == 1, "timm subtracts a mean per channel, not a mean image")
    has_stem = is_dense or is_deep or (network.stem is ImageNetStem and features == 64)
    lacks = "timm has no network with this stem or number of stages: use a .safetensors file"
    require(has_stem and len(network.stages) == 4, lacks)
    if is_dense:
        name = "densenet121"
        arguments = {"block_config": network.stages, "growth_rate": network.features[0]}
    else:
        name = "resnet50" if options.get("expansion", 1) > 1 else "resnet18"
        arguments = {
            "layers": network.stages,
            "channels": network.features,
            "cardinality": options.get("groups", 1),
            "base_width": options.get("base_width", 64),
            "avg_down": network.shortcut is PooledProjection,
            **({"stem_type": "deep", "stem_width": features // 2} if is_deep else {}),
            **({"block_args": {"attn_layer": "se"}} if options.get("reduction") else {}),
        }
    side = view.crop or network.input_shape[0]
    percentage = side / (view.resize or side)
    while math.floor(side / percentage) < view.resize:  # timm rounds down
        percentage = math.nextafter(percentage, 0)
    return {
        "architecture": name,
        "num_classes": network.num_classes,
        "model_args": arguments,
        **({"label_names": card.classes} if card.classes else {}),
        "pretrained_cfg": {
            "input_size": (channels, side, side),
            "crop_pct": percentage,
            "interpolation": view.interpolation,
            "mean": view.mean,
            "std": view.deviation,
            "num_classes": network.num_classes,
            "first_conv": "features.conv0" if is_dense else "conv1",
            "classifier": "classifier" if is_dense else "fc",
        },
    }


def _readme(card: Card, names: str) -> str:
    """Returns a model card of the Hub."""
    view, network = card.view, known_as(card.architecture)
    error = f"\n- Top-1 error: {card.claimed_error} %" if card.claimed_error is not None else ""
    mean = view.mean if np.ndim(view.mean) == 1 else "an image, in the file"
    return f"""---
library_name: {"resnet-jax-lab" if names == "hub" else "timm"}
pipeline_tag: image-classification
tags: [image-classification, resnet]
---
# {network}

- Weights: {card.source}
- Training set: {card.data or "unknown"}, {card.architecture.num_classes} classes{error}
- Images: resize {view.resize}, crop {view.crop}, {view.interpolation}
- Normalization: mean {mean}, std {view.deviation}

```python
from resnet_jax import load_pretrained

network = load_pretrained("OWNER/NAME").build()
```
"""


def _write(file: Path, content: bytes) -> None:
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, file)
    except OSError as error:
        if part.is_file():
            part.unlink()
        raise UserError(f"{file} cannot be written ({error.strerror or error})") from error
