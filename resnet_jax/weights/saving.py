"""Weights from a network into a safetensors file: this project's format, or another convention."""

import os
import re
from pathlib import Path

import numpy as np
import safetensors.numpy

from resnet_jax.errors import UserError
from resnet_jax.models.architecture import Architecture
from resnet_jax.weights import card as card_lib
from resnet_jax.weights import inference
from resnet_jax.weights import names as names_lib
from resnet_jax.weights.files import Arrays
from resnet_jax.weights.loading import FILE_NAME, Pretrained, Row
from resnet_jax.weights.names import COUNTER, Convention, Leaves, Place, convention

_FLOATS = ("float16", "bfloat16", "float64")


def save(weights: Pretrained, to: Path) -> Path:
    """Writes weights and card to a ``.safetensors`` file or a folder, and returns the file."""
    file = to if to.suffix == ".safetensors" else to / FILE_NAME
    variables = names_lib.leaves(weights.params, weights.batch_stats)
    arrays = _arrays(variables, names_lib.own_places(variables))
    _write(file, arrays, {card_lib.KEY: weights.card.text()})
    return file


def export(weights: Pretrained, names: str, to: Path, *, prefix: str | None = None) -> list[Row]:
    """Writes weights in another convention, so that its code loads them strictly; returns rows.

    Imported weights are written back bit for bit, except float64, which was rounded to float32.
    ``prefix`` is of every name, by default that of the imported file.
    """
    chosen, card = convention(names), weights.card
    if to.suffix != ".safetensors":
        raise UserError(f"{to} does not end in .safetensors")
    variables = names_lib.leaves(weights.params, weights.batch_stats)
    places = _exported_places(weights.architecture, variables, chosen)
    is_same = card.convention == chosen.name
    prefix = card.prefix * is_same if prefix is None else prefix
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
    _write(to, arrays, {"format": "pt", card_lib.EXPORTED_KEY: card.text()})
    return [Row(p.ours, p.shape, prefix + chosen.rename(p.name)) for p in places]


def _arrays(variables: Leaves, places: list[Place]) -> Arrays:
    return {p.name: p.to_file(np.asarray(variables[p.path][p.index])) for p in places}


def _exported_places(ours: Architecture, variables: Leaves, chosen: Convention) -> list[Place]:
    """Raises UserError if the convention's tensors would make another network."""
    name = chosen.name
    try:
        places = names_lib.torch_places(ours, variables)
        theirs = inference.infer({place.name: place.shape for place in places}, chosen)
    except UserError as error:
        raise UserError(f"this network cannot be exported as {name}: {error}") from error
    if texts := "; ".join(inference.differing(ours, theirs).values()):
        raise UserError(f"{name} would make another network of these weights: {texts}")
    variants = re.compile(r"conv1\.\d|.*(\.se\.|\.downsample\.2\.)")
    if not chosen.has_variants and (lacking := [p for p in places if variants.match(p.name)]):
        raise UserError(f"{name} has no {lacking[0].name}; timm has")
    if any(place.name.endswith(".se.fc1.weight") and place.shape[0] % 8 for place in places):
        raise UserError(f"{name} squeezes to multiples of 8 channels (branch: reduction)")
    depth = ours.stochastic_depth
    if (depth.survival != 1 or depth.kept) and depth.scaled == "test":
        hint = 'train with stochastic_depth.scaled="training"'
        raise UserError(f"{name} does not scale branches at test time: {hint}")
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
