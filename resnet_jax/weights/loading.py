"""Weights from a file into a network: every tensor has its place, or nothing is loaded."""

import functools
import hashlib
import json
import math
import os
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from resnet_jax.errors import UserError, require
from resnet_jax.models import catalog
from resnet_jax.models.components import parts
from resnet_jax.models.layers import he_normal
from resnet_jax.models.resnet import Apply, Architecture, Execution, ResNet, Variables
from resnet_jax.models.stems import SmallImageStem
from resnet_jax.weights import card as card_lib
from resnet_jax.weights import files, inference
from resnet_jax.weights.card import IMAGENET_VIEW, Card
from resnet_jax.weights.files import Arrays, printable
from resnet_jax.weights.names import (
    COUNTER,
    Convention,
    convention,
    leaves,
    own_places,
    torch_places,
)

FILE_NAME = "model.safetensors"  # in a folder, here and on the Hugging Face Hub
_SUFFIXES = (".safetensors", ".npz", ".pth", ".th", ".pt", ".ckpt", ".tar", ".bin")
_OWN = Convention(name="")


class Row(NamedTuple):
    """Our name of a tensor, shape, and name in the file (empty if drawn)."""

    name: str
    shape: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class Pretrained:
    """A network with its weights."""

    card: Card
    params: Variables
    batch_stats: Variables
    rows: tuple[Row, ...] = ()

    @property
    def architecture(self) -> Architecture:
        return self.card.architecture

    def build(self, *, execution: Execution = Execution()) -> ResNet:
        """Returns the module, for images prepared as the card's ``view`` states."""
        graphdef = self.apply(execution).graphdef
        return typing.cast(ResNet, nnx.merge(graphdef, self.params, self.batch_stats))

    def apply(self, execution: Execution = Execution()) -> Apply:
        """Returns the function of ``params`` and ``batch_stats``."""
        return abstract(self.architecture, execution)[0]


def load_pretrained(
    source: Path | str,
    names: str = "",
    *,
    network: Architecture | str | None = None,
    num_classes: int | None = None,
    allow_new_head: bool = False,
    view: Mapping[str, Any] | None = None,
    data: str = "",
    claimed_error: float | None = None,
) -> Pretrained:
    """Loads weights of this project, torchvision, timm or akamaster's CIFAR networks.

    Args:
      source: safetensors, npz or torch file, folder of this project, or ``OWNER/NAME`` on the Hub.
      names: convention of names: torchvision, timm or cifar-torch. Empty: this project's.
      network: the network, or its name in the catalog. None: inferred from names and shapes.
      num_classes: with ``allow_new_head``, another number than the file's.
      allow_new_head: draw the classifier if it is missing or does not fit.
      view: fields of ``View`` that differ from ImageNet's: ``{"mean": (0.5, 0.5, 0.5)}``.
      data: TFDS name of the training set. Empty: guessed from the number of classes.
      claimed_error: published top-1 error, percent.
    """
    path, hub_view = _fetch(str(source)) if is_hub_name(source) else (Path(source), {})
    if os.path.isdir(path):  # Path.is_dir raises for long names
        path /= FILE_NAME
    arrays, metadata = files.read(path)
    own, exported = (metadata.get(key) for key in (card_lib.KEY, card_lib.EXPORTED_KEY))
    try:
        network = catalog.architecture(network) if isinstance(network, str) else network
        require(own is None or not names, f"this project wrote it: leave out --as {names}")
        chosen = _OWN if own is not None else convention(names)
        prefix = "" if own is not None else _prefix(arrays)
        sources = {chosen.rename(name.removeprefix(prefix)): name for name in arrays}
        tensors = {name: arrays[source] for name, source in sources.items()}
        counters = [n for n, a in tensors.items() if n.endswith(COUNTER) and a.size == 1]
        counts = {name: float(tensors.pop(name).item()) for name in counters}
        if own is not None:
            card = card_lib.read(own, network)
            _check_network(card.architecture, own)
        else:
            shapes = {name: array.shape for name, array in tensors.items()}
            network = network or inference.infer(shapes, chosen)
            small = parts(network.stem)[0] is SmallImageStem
            whole = {"resize": 0, "crop": 0} if small else {}
            card = Card(
                architecture=network,
                view=replace(IMAGENET_VIEW, **whole | hub_view),
                source=Path(source).name,
                sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
                convention=names,
                prefix=prefix,
                dtypes={name: a.dtype.name for name, a in arrays.items() if a.dtype != np.float32},
                counters=counts,
                data=chosen.data.get(network.num_classes, ""),
            )
        if exported is not None:
            was = card_lib.read(exported, card.architecture)
            card = replace(card, view=was.view, data=was.data, claimed_error=was.claimed_error)
        card = replace(card, view=replace(card.view, **view or {}), data=data or card.data)
        if claimed_error is not None:
            card = replace(card, claimed_error=claimed_error)
        card.check()
        if num_classes not in (None, card.architecture.num_classes):
            # Other classes are of another data set.
            architecture = replace(card.architecture, num_classes=num_classes)
            card = replace(card, architecture=architecture, data=data)
        return _fill(card, chosen, prefix, sources, tensors, allow_new_head)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


@functools.lru_cache(maxsize=8)
def abstract(
    architecture: Architecture, execution: Execution = Execution()
) -> tuple[Apply, Variables, Variables]:
    """Returns a network as a function, and the shapes of its variables."""
    try:
        return jax.eval_shape(lambda: architecture.init(jax.random.key(0), execution=execution))
    except UserError:
        raise
    except Exception as error:  # constructors receive values of the file
        raise UserError(f"its network cannot be built: {error!r:.200}") from error


def is_hub_name(source: Path | str) -> bool:
    """Returns whether a source is ``OWNER/NAME`` or ``hf://OWNER/NAME``, not a path."""
    if isinstance(source, Path) or source.endswith(_SUFFIXES):
        return False
    is_name = re.fullmatch(r"[\w-]+/[\w.-]+", source) and not Path(source).exists()
    return bool(is_name) or source.startswith("hf://")


def _prefix(names: Iterable[str]) -> str:
    """Returns what precedes the names of the network, such as ``module.``."""
    stems = (re.fullmatch(r"(.*\.|)conv1(\.0)?\.weight", name) for name in names)
    prefixes = {stem[1] for stem in stems if stem and not re.search(r"layer\d+\.", stem[1])}
    listed = printable(", ".join(sorted(prefixes)))
    require(len(prefixes) < 2, f"it holds several networks, under {listed}: keep those of one")
    return prefixes.pop() if prefixes else ""


def _fetch(source: str) -> tuple[Path, dict[str, Any]]:
    """Returns weights in the Hub's cache, and fields of ``View`` from timm's configuration."""
    name = source.removeprefix("hf://")
    try:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]

        path = Path(hf_hub_download(name, FILE_NAME))
    except Exception as error:  # dozens of types, of the client and its network libraries
        hub = "the Hub (pip install 'resnet-jax-lab[hub]')"
        raise UserError(f"there is no {source}, here or on {hub}: {error!r:.200}") from error
    try:
        file = Path(hf_hub_download(name, "config.json"))
        config = json.loads(file.read_text())["pretrained_cfg"]
        crop = config["input_size"][2]
        view = {"crop": crop, "resize": math.floor(crop / config["crop_pct"])}
        view |= {"mean": config["mean"], "deviation": config["std"]}
        return path, view | {"interpolation": config["interpolation"]}
    except Exception:  # most repositories have none
        return path, {}


def _check_network(network: Architecture, card: str) -> None:
    try:
        written = card_lib.read(card).architecture
    except UserError:  # It has classes of the user's files.
        return
    written = replace(written, num_classes=network.num_classes)
    texts = "; ".join(inference.differing(network, written).values())
    require(not texts, f"it holds another network: {texts}")


def _fill(
    card: Card,
    chosen: Convention,
    prefix: str,
    sources: Mapping[str, str],
    tensors: Arrays,
    allow_new_head: bool,
) -> Pretrained:
    """Returns the network with these tensors; each must have its place."""
    variables = leaves(*abstract(card.architecture)[1:])
    places = torch_places(card.architecture, variables) if chosen.name else own_places(variables)
    shapes = {name: array.shape for name, array in tensors.items()}
    expected = {place.name: place.shape for place in places}
    sources = {name: prefix + chosen.rename(name) for name in expected} | dict(sources)
    head = {place.name for place in places if place.path[1:3] == ("head", "linear")}
    wrong = {name for name in expected | shapes if shapes.get(name) != expected.get(name)}
    drawn = head if allow_new_head and head & wrong else set()
    if faults := [name for name in expected | shapes if name in wrong - drawn]:
        text = f"nothing was loaded, because {len(faults)} tensors do not fit:"
        for name in faults[:20]:
            shape = shapes.get(name, "missing")
            text += f"\n{printable(sources[name])}: {shape}, expected {expected.get(name, 'none')}"
        if wrong <= head:
            text += "\nOnly the classifier does not fit: --allow-new-head draws a new one"
        raise UserError(text)
    targets = {path: np.zeros(leaf.shape, np.float32) for path, leaf in variables.items()}
    for place in places:
        if place.name not in drawn:
            array = _check(sources[place.name], tensors[place.name], place.path[-1] == "var")
            targets[place.path][place.index] = place.from_file(array)
    if drawn:
        kernel = targets["params", "head", "linear", "kernel"]
        kernel[...] = he_normal(jax.random.key(0), kernel.shape)
        card = replace(card, claimed_error=None)
    rows = [Row(p.ours, p.shape, "" if p.name in drawn else sources[p.name]) for p in places]
    trees = unflatten_dict({path: jnp.asarray(array) for path, array in targets.items()})
    return Pretrained(card, trees["params"], trees.get("batch_stats", {}), tuple(rows))


def _check(name: str, array: np.ndarray, is_variance: bool) -> np.ndarray:
    """Returns a tensor as float32."""
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    is_floating, non_finite = jnp.issubdtype(array.dtype, jnp.floating), ~np.isfinite(values)
    require(is_floating, f"{name} is {array.dtype.name}, not floating point")
    wrong = f"{name} has {non_finite.sum()} non-finite values of {array.size}"
    require(not non_finite.any(), wrong)
    is_negative = is_variance and bool((values < 0).any())
    require(not is_negative, f"{name} is a variance and has negative values")
    return values
