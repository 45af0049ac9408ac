"""Weights from a network into a file: this project's own, or under the names of others."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.pretrained import card as card_lib
from resnet_jax.models.pretrained import inference, naming
from resnet_jax.models.pretrained.conventions import COUNTER, Convention, convention
from resnet_jax.models.pretrained.loading import FILE_NAME, Pretrained
from resnet_jax.models.pretrained.matching import Row
from resnet_jax.models.pretrained.naming import Place
from resnet_jax.tensors import files

# What weights may have been before they were float32.
_FLOATS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}


def save(weights: Pretrained, to: Path) -> Path:
    """Writes weights with their card in this project's own format, whole or not at all.

    Args:
      weights: a network with its weights.
      to: a ``.safetensors`` file, or a folder, made if missing, which gets one.

    Returns:
      The file.

    Raises:
      UserError: where it cannot be written.
    """
    file = to if to.suffix == ".safetensors" else to / FILE_NAME
    places = naming.own_places(weights.params, weights.batch_stats)
    _write(file, {place.name: _leaf(weights, place) for place in places}, {card_lib.KEY: weights.card.text()})
    return file


def export(weights: Pretrained, names: str, to: Path, *, prefix: str | None = None) -> list[Row]:
    """Writes weights under the names and in the layout of others, so that their code loads them strictly.

    What was imported goes out as it came in, bit for bit, but for float64, which was rounded to float32, and for Caffe's averages where
    their divisor is not 1 or the first convolution had a bias.

    Args:
      weights: a network with its weights.
      names: whose names, see ``load_pretrained``.
      to: a ``.safetensors`` file.
      prefix: what to put before every name; None: what the file had that they were imported from.

    Returns:
      Our name of each tensor, its shape and its name in the file.

    Raises:
      UserError: for a network that those others do not have, naming what differs.
    """
    chosen, card = convention(names), weights.card
    if to.suffix != ".safetensors":
        raise UserError(f"{to} does not end in .safetensors, which is what is written")
    places = _places(weights, chosen)
    same = card.convention == chosen.name
    before = (card.prefix if same else "") if prefix is None else prefix
    counters = _counters(weights, chosen, places)
    tensors, rows = {}, []
    for place in places:
        name = chosen.from_torchvision(place.name, card.architecture.stages)
        array = chosen.given_out(place.name, place.to_file(_leaf(weights, place)), counters)
        dtype = _FLOATS.get(card.dtypes.get(card.prefix + name, ""), np.float32) if same else np.float32
        tensors[before + name] = np.ascontiguousarray(array.astype(dtype))
        rows.append(Row(place.ours, place.shape, before + name))
    for name, count in counters.items():
        value = np.full(1, count, np.float32) if chosen.divided else np.asarray(count, np.int64)
        tensors[before + chosen.from_torchvision(name, card.architecture.stages)] = value
    # What loads safetensors into torch looks for the format.
    _write(to, tensors, {"format": "pt", card_lib.SEEN_KEY: card.seen()})
    return rows


def _places(weights: Pretrained, chosen: Convention) -> list[Place]:
    """Raises UserError where its tensors would be another network's."""
    ours = weights.architecture
    try:
        places = naming.torch_places(ours, weights.params, weights.batch_stats)
        theirs = inference.infer({place.name: place.shape for place in places}, chosen)
    except UserError as error:
        unusual = [field for field in ("order", "norm", "shortcut", "transition") if inference.differing(ours, _plain(ours, field))]
        named = f" ({'; '.join(f'{field}: {inference.said(ours, field)}' for field in unusual)})" if unusual else ""
        raise UserError(f"this network cannot be exported as {chosen.name}{named}: {error}") from error
    fields = inference.differing(ours, theirs)
    if fields:
        said = inference.compared(ours, theirs, fields)
        raise UserError(f"{chosen.name} would make another network of these weights ({said}): its answers would be wrong without a word")
    nameless = [p.name for p in places if chosen.to_torchvision(chosen.from_torchvision(p.name, ours.stages)) != p.name]
    if nameless:
        raise UserError(f"{chosen.name} has no name for {nameless[0]}, so it cannot have this network")
    odd = [p for p in places if p.name.endswith(".se.fc1.weight") and p.shape[0] % 8]
    if odd:
        raise UserError(f"{chosen.name} squeezes to multiples of 8 channels, this network to {odd[0].shape[0]} (branch: reduction)")
    depth = ours.stochastic_depth
    if (depth.survival != 1 or depth.kept) and depth.scaled == "test":
        raise UserError(
            f"stochastic_depth scales the branches of this network when it is tested (survival {depth.survival}, kept {depth.kept}), which "
            f'{chosen.name} does not do: only what was trained with stochastic_depth.scaled="training" can be exported'
        )
    return places


def _plain(architecture: Architecture, field: str) -> Architecture:
    return dataclasses.replace(architecture, **{field: getattr(Architecture, field)})


def _counters(weights: Pretrained, chosen: Convention, places: list[Place]) -> Mapping[str, float]:
    card = weights.card
    if card.convention == chosen.name:
        return card.counters
    norms = [place.name.removesuffix(".running_mean") + COUNTER for place in places if place.name.endswith(".running_mean")]
    if chosen.divided:
        return dict.fromkeys(norms, 1.0)
    counted = not card.convention or not convention(card.convention).divided
    return {name: card.counters.get(name, card.counters.get("", 0.0)) if counted else 0.0 for name in norms}


def _leaf(weights: Pretrained, place: Place) -> np.ndarray:
    array: Any = weights.params if place.part == "params" else weights.batch_stats
    for key in place.path:
        array = array[key]
    array = np.asarray(array)
    return array if place.unit is None else array[place.unit]


def _write(file: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.save(file, tensors, metadata)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror or error})") from error
