"""Weights from a network into a safetensors file: in this project's format, or in another convention."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from resnet_jax.errors import UserError
from resnet_jax.weights import card as card_lib
from resnet_jax.weights import inference
from resnet_jax.weights import names as names_lib
from resnet_jax.weights.loading import FILE_NAME, Pretrained, Row
from resnet_jax.weights.names import COUNTER, Convention, Place, convention

_FLOATS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


def save(weights: Pretrained, to: Path) -> Path:
    """Writes weights and their card atomically to a ``.safetensors`` file, or a folder that gets one, and returns the file."""
    file = to if to.suffix == ".safetensors" else to / FILE_NAME
    places = names_lib.own_places(weights.params, weights.batch_stats)
    _write(
        file,
        {place.name: _leaf(weights, place) for place in places},
        {card_lib.KEY: weights.card.text()},
    )
    return file


def export(weights: Pretrained, names: str, to: Path, *, prefix: str | None = None) -> list[Row]:
    """Writes weights in another convention, so that its code loads them strictly, and returns a row per tensor.

    Imported weights are written back bit for bit, except float64, which was rounded to float32.

    ``prefix`` is of every name, by default that of the imported file.
    """
    chosen, card = convention(names), weights.card
    if to.suffix != ".safetensors":
        raise UserError(f"{to} does not end in .safetensors, the format that is written")
    places = _places(weights, chosen)
    same = card.convention == chosen.name
    before = (card.prefix if same else "") if prefix is None else prefix
    tensors, rows = {}, []
    for place in places:
        name = chosen.from_torchvision(place.name)
        dtype = (
            _FLOATS.get(card.dtypes.get(card.prefix + name, ""), np.float32) if same else np.float32
        )
        tensors[before + name] = place.to_file(_leaf(weights, place)).astype(dtype)
        rows.append(Row(place.ours, place.shape, before + name))
    counters = [
        place.name.removesuffix(".running_mean") + COUNTER
        for place in places
        if place.name.endswith(".running_mean")
    ]
    counts = (
        card.counters
        if same
        else {name: card.counters.get(name, card.counters.get("", 0.0)) for name in counters}
    )
    for name, count in counts.items():
        tensors[before + chosen.from_torchvision(name)] = np.asarray(count, np.int64)
    # safetensors' loader for torch requires the format.
    _write(to, tensors, {"format": "pt", card_lib.EXPORTED_KEY: card.text()})
    return rows


def _places(weights: Pretrained, chosen: Convention) -> list[Place]:
    """Raises UserError if the convention's tensors would make another network."""
    ours, name = weights.architecture, chosen.name
    try:
        places = names_lib.torch_places(ours, weights.params, weights.batch_stats)
        theirs = inference.infer({place.name: place.shape for place in places}, chosen)
    except UserError as error:
        raise UserError(f"this network cannot be exported as {name}: {error}") from error
    if fields := inference.differing(ours, theirs):
        raise UserError(
            f"{name} would make another network of these weights: {inference.compared(ours, theirs, fields)}"
        )
    if any(place.name.endswith(".se.fc1.weight") and place.shape[0] % 8 for place in places):
        raise UserError(
            f"{name} squeezes to multiples of 8 channels, this network does not (branch: reduction)"
        )
    depth = ours.stochastic_depth
    if (depth.survival != 1 or depth.kept) and depth.scaled == "test":
        raise UserError(
            f'{name} does not scale branches at test time: train with stochastic_depth.scaled="training" to export'
        )
    return places


def _leaf(weights: Pretrained, place: Place) -> np.ndarray:
    array: Any = weights.params if place.part == "params" else weights.batch_stats
    for key in place.path:
        array = array[key]
    return np.asarray(array if place.block is None else array[place.block])


def _write(file: Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(
            safetensors.numpy.save(
                {name: np.asarray(a, order="C") for name, a in arrays.items()}, metadata
            )
        )
        os.replace(part, file)
    except OSError as error:
        if part.is_file():
            part.unlink()
        raise UserError(f"{file} cannot be written ({error.strerror or error})") from error
