"""Weights from a file into a network: every tensor has its place, or nothing is loaded."""

import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from resnet_jax.errors import UserError
from resnet_jax.models import catalog
from resnet_jax.models.architecture import Apply, Architecture, Variables
from resnet_jax.models.execution import Execution
from resnet_jax.models.layers import he_normal
from resnet_jax.models.resnet import ResNet
from resnet_jax.weights import card as card_lib
from resnet_jax.weights import files, inference
from resnet_jax.weights import names as names_lib
from resnet_jax.weights.card import Card
from resnet_jax.weights.files import Arrays, printable
from resnet_jax.weights.names import CONVENTIONS, COUNTER, Convention, Place, convention

FILE_NAME = "model.safetensors"  # in a folder, here and on the Hugging Face Hub
_SUFFIXES = (".safetensors", ".npz", ".pth", ".th", ".pt", ".ckpt", ".tar", ".bin")
_MAX_LISTED = 20
_OWN = Convention(name="", description="this project's")


class Row(NamedTuple):
    """Origin of a tensor: our name, and shape and name in the file (empty if it was drawn)."""

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
    """Origin of every tensor."""

    @property
    def architecture(self) -> Architecture:
        """The network."""
        return self.card.architecture

    def build(self, *, execution: Execution = Execution()) -> ResNet:
        """Returns the module, for images prepared as the card's ``view`` states."""
        model: Any = nnx.merge(self.apply(execution).graphdef, self.params, self.batch_stats)
        return model

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
      source: ``.safetensors``, ``.npz`` or torch file, a folder that this project wrote, or
        ``OWNER/NAME`` on the Hugging Face Hub.
      names: convention of the names: torchvision, timm or cifar-torch. Empty: this project's.
      network: the network, or its name in the catalog; by default inferred from names and shapes.
      num_classes: with ``allow_new_head``, another number than the file's.
      allow_new_head: draw the classifier if it is missing or does not fit.
      view: fields of ``View`` that differ from the convention's: ``{"mean": (0.5, 0.5, 0.5)}``.
      data: TFDS name of the training set; by default guessed from the number of classes.
      claimed_error: published top-1 error, percent.

    Raises:
      UserError: listing missing, unexpected and mis-shaped tensors, and for non-finite values.
    """
    path, hub_view = _fetch(str(source)) if is_hub_name(source) else (Path(source), {})
    # Path.is_dir raises for a name that is too long.
    path = path / FILE_NAME if os.path.isdir(path) else path
    arrays, metadata = files.read(path)
    is_own = card_lib.KEY in metadata
    try:
        network = catalog.architecture(network) if isinstance(network, str) else network
        if is_own and names:
            raise UserError(f"this project wrote it: leave out --as {names}")
        if is_own:
            card = _own_card(metadata[card_lib.KEY], network)
        else:
            card = _foreign_card(path, arrays, names, network)
            card = replace(card, source=Path(source).name, view=replace(card.view, **hub_view))
        if card_lib.EXPORTED_KEY in metadata:
            was = card_lib.read(metadata[card_lib.EXPORTED_KEY], card.architecture)
            card = replace(card, view=was.view, data=was.data, claimed_error=was.claimed_error)
        claimed_error = card.claimed_error if claimed_error is None else claimed_error
        card = replace(card, data=data or card.data, claimed_error=claimed_error)
        card = replace(card, view=replace(card.view, **view or {}))
        card.check()
        if num_classes not in (None, card.architecture.num_classes):
            # Other classes are of another data set.
            architecture = replace(card.architecture, num_classes=num_classes)
            card = replace(card, architecture=architecture, data=data)
        return _filled(card, arrays, is_own=is_own, allow_new_head=allow_new_head)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


@functools.lru_cache(maxsize=8)
def abstract(
    architecture: Architecture, execution: Execution = Execution()
) -> tuple[Apply, Variables, Variables]:
    """Returns a network as a function, and its variables' shapes. UserError if it is invalid."""
    try:
        return jax.eval_shape(lambda: architecture.init(jax.random.key(0), execution=execution))
    except UserError:
        raise
    except Exception as error:  # whatever a file says reaches every constructor
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(f"its network cannot be built ({reason})") from error


def is_hub_name(source: Path | str) -> bool:
    """Returns whether a source is the text ``OWNER/NAME`` or ``hf://OWNER/NAME``, not a path."""
    if isinstance(source, Path) or source.startswith("hf://"):
        return not isinstance(source, Path)
    is_name = re.fullmatch(r"[\w-]+/[\w.-]+", source) and not source.endswith(_SUFFIXES)
    return bool(is_name) and not Path(source).exists()


def _fetch(source: str) -> tuple[Path, dict[str, Any]]:
    """Returns weights in the Hub's cache, and the ``View`` of timm's configuration if any."""
    name = source.removeprefix("hf://")
    try:
        from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]

        path = Path(hf_hub_download(name, FILE_NAME))
    except ImportError:
        hint = "For the Hugging Face Hub: pip install 'resnet-jax-lab[hub]'"
        raise UserError(f"there is no file or folder {source}. {hint}") from None
    except Exception as error:  # dozens of types, of the client and of its network libraries
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(f"there is no {source}, here or on the Hub ({reason})") from error
    try:
        config = json.loads(Path(hf_hub_download(name, "config.json")).read_text())
        config = config["pretrained_cfg"]
        crop = config["input_size"][2]
        view = {"crop": crop, "resize": math.floor(crop / config["crop_pct"])}
        view |= {"mean": config["mean"], "deviation": config["std"]}
        return path, view | {"interpolation": config["interpolation"]}
    except Exception:  # most repositories have none
        return path, {}


def _own_card(text: str, network: Architecture | None) -> Card:
    card = card_lib.read(text, network)
    try:
        differing = inference.differing(card.architecture, card_lib.read(text).architecture)
    except UserError:  # it has the user's own parts, and `network` in their place
        return card
    texts = [text for field, text in differing.items() if field != "num_classes"]
    if texts:
        raise UserError(f"it is of another network: {'; '.join(texts)}")
    return card


def _foreign_card(path: Path, arrays: Arrays, names: str, network: Architecture | None) -> Card:
    if not names:
        raise UserError(f"give the convention of its names, --as {', '.join(CONVENTIONS)}")
    chosen = convention(names)
    prefix, tensors = _canonical(arrays, chosen)
    shapes = {name: array.shape for name, array in tensors.items()}
    architecture = network or inference.infer(shapes, chosen)
    counters = {name: array for name, array in tensors.items() if name.endswith(COUNTER)}
    if wrong := [printable(name) for name, array in counters.items() if array.size != 1]:
        raise UserError(f"{wrong[0]} is not one number")
    return Card(
        architecture=architecture,
        view=chosen.view,
        source=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        convention=chosen.name,
        data=chosen.data.get(architecture.num_classes, ""),
        prefix=prefix,
        dtypes={name: a.dtype.name for name, a in arrays.items() if a.dtype != np.float32},
        counters={name: float(array.item()) for name, array in counters.items()},
    )


def _canonical(arrays: Arrays, chosen: Convention) -> tuple[str, Arrays]:
    """Returns the prefix of all names in a file, and the tensors by torchvision's names."""
    prefix = "module." if all(name.startswith("module.") for name in arrays) else ""
    return prefix, {chosen.rename(name.removeprefix(prefix)): a for name, a in arrays.items()}


def _filled(card: Card, arrays: Arrays, *, is_own: bool, allow_new_head: bool) -> Pretrained:
    _, params, batch_stats = abstract(card.architecture)
    if is_own:
        chosen, places = _OWN, names_lib.own_places(params, batch_stats)
    else:
        chosen = convention(card.convention)
        places = names_lib.torch_places(card.architecture, params, batch_stats)
    prefix, tensors = _canonical(arrays, chosen)
    shapes = {name: a.shape for name, a in tensors.items() if not name.endswith(COUNTER)}
    expected = {place.name: place.shape for place in places}
    sources = {name: prefix + chosen.rename(name) for name in shapes | expected}
    head = {place.name for place in places if place.is_head}
    wrong = [n for n in (*expected, *sorted(shapes)) if shapes.get(n) != expected.get(n)]
    drawn = head if allow_new_head and not head.isdisjoint(wrong) else set()
    if lines := [
        f"{printable(sources[n])}: {shapes.get(n, 'missing')}, expected {expected.get(n, 'none')}"
        for n in dict.fromkeys(wrong)
        if n not in drawn
    ]:
        if len(lines) > _MAX_LISTED:
            lines[_MAX_LISTED:] = [f"and {len(lines) - _MAX_LISTED} more"]
        if head.issuperset(wrong):
            lines.append("Only the classifier does not fit: --allow-new-head draws a new one")
        raise UserError("nothing was loaded, because tensors do not fit:\n" + "\n".join(lines))
    variables = names_lib.leaves(params, batch_stats)
    targets = {path: np.zeros(leaf.shape, np.float32) for path, leaf in variables.items()}
    for place in places:
        if place.name not in drawn:
            array = _checked(sources[place.name], tensors[place.name], place)
            targets[place.path][place.index] = place.from_file(array)
    if drawn:
        kernel = targets["params", "head", "linear", "kernel"]
        kernel[...] = he_normal(jax.random.key(0), kernel.shape)
        # Claim and dtype were those of the old classifier.
        old = {sources[name] for name in drawn}
        dtypes = {name: dtype for name, dtype in card.dtypes.items() if name not in old}
        card = replace(card, claimed_error=None, dtypes=dtypes)
    rows = [Row(p.ours, p.shape, "" if p.name in drawn else sources[p.name]) for p in places]
    trees = unflatten_dict({path: jnp.asarray(array) for path, array in targets.items()})
    return Pretrained(card, trees["params"], trees.get("batch_stats", {}), tuple(rows))


def _checked(name: str, array: np.ndarray, place: Place) -> np.ndarray:
    """Returns a tensor as float32. Raises UserError for integers, NaN, and negative variances."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{name} is {array.dtype.name}, not floating point: quantized or corrupt")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if wrong := np.count_nonzero(~np.isfinite(array)):
        raise UserError(f"{name} has {wrong} non-finite values of {array.size}")
    if place.path[-1] == "var" and (array < 0).any():
        raise UserError(f"{name} is a variance and has negative values, down to {array.min():.3g}")
    return array
