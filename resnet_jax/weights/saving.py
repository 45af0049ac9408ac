"""Weights from a network into a safetensors file: this project's format, or another convention."""

import os
import re
from pathlib import Path

import numpy as np
import safetensors.numpy

from resnet_jax.errors import UserError, require
from resnet_jax.models.resnet import Architecture
from resnet_jax.weights.card import EXPORTED_KEY, KEY
from resnet_jax.weights.files import Arrays
from resnet_jax.weights.inference import differing, infer
from resnet_jax.weights.loading import FILE_NAME, Pretrained, Row
from resnet_jax.weights.names import (
    COUNTER,
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
    _write(file, arrays, {KEY: weights.card.text()})
    return file


def export(weights: Pretrained, names: str, to: Path, *, prefix: str | None = None) -> list[Row]:
    """Writes weights in another convention, so that its code loads them strictly.

    Imported weights are written back bit for bit, except float64, which was rounded to float32.
    ``prefix`` is of every name, by default that of the imported file.
    """
    chosen, card = convention(names), weights.card
    require(to.suffix == ".safetensors", f"{to} does not end in .safetensors")
    variables = leaves(weights.params, weights.batch_stats)
    places = _exported_places(weights.architecture, variables, chosen)
    is_same = card.convention == chosen.name
    if prefix is None:
        prefix = card.prefix if is_same else ""
    arrays = {}
    for name, array in _arrays(variables, places).items():
        dtype = card.dtypes.get(card.prefix + chosen.rename(name)) if is_same else None
        arrays[name] = array.astype(dtype if dtype in _FLOATS else np.float32)
    counters = dict(card.counters)
    step = counters.pop("", None)
    if step is not None:
        means = [name for name in arrays if name.endswith(".running_mean")]
        counters |= {name.replace(".running_mean", COUNTER): step for name in means}
    arrays |= {name: np.asarray(count, np.int64) for name, count in counters.items()}
    arrays = {prefix + chosen.rename(name): array for name, array in arrays.items()}
    # safetensors' loader for torch requires the format.
    _write(to, arrays, {"format": "pt", EXPORTED_KEY: card.text()})
    return [Row(p.ours, p.shape, prefix + chosen.rename(p.name)) for p in places]


def _arrays(variables: Leaves, places: list[Place]) -> Arrays:
    return {p.name: p.to_file(np.asarray(variables[p.path][p.index])) for p in places}


def _exported_places(ours: Architecture, variables: Leaves, chosen: Convention) -> list[Place]:
    name, places = chosen.name, torch_places(ours, variables)
    theirs = infer({place.name: place.shape for place in places}, chosen)
    texts = "; ".join(differing(ours, theirs).values())
    require(not texts, f"{name} would make another network of these weights: {texts}")
    for place in places:
        is_variant = re.search(r"^conv1\.\d|\.se\.|\.downsample\.2", place.name)
        require(chosen.has_variants or not is_variant, f"{name} has no {place.name}; timm has")
        is_odd = place.name.endswith(".se.fc1.weight") and place.shape[0] % 8
        require(not is_odd, f"{name} squeezes to multiples of 8 channels (branch: reduction)")
    depth = ours.stochastic_depth
    scales = (depth.survival != 1 or bool(depth.kept)) and depth.scaled == "test"
    hint = 'train with stochastic_depth.scaled="training"'
    require(not scales, f"{name} does not scale branches at test time: {hint}")
    return places


def _write(file: Path, arrays: Arrays, metadata: dict[str, str]) -> None:
    part = file.with_name(file.name + ".part")
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(safetensors.numpy.save(arrays, metadata))
        os.replace(part, file)
    except OSError as error:
        if part.is_file():
            part.unlink()
        raise UserError(f"{file} cannot be written ({error.strerror or error})") from error
