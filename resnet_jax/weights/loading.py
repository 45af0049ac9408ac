"""Weights from a file into a network: every tensor has its place, or nothing is loaded."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resnet_jax.errors import UserError
from resnet_jax.models import catalog
from resnet_jax.models.execution import Execution
from resnet_jax.models.layers import he_normal
from resnet_jax.models.resnet import Apply, Architecture, ResNet, Variables
from resnet_jax.weights import card as card_lib
from resnet_jax.weights import files, inference
from resnet_jax.weights import names as names_lib
from resnet_jax.weights.card import Card
from resnet_jax.weights.files import Arrays, printable
from resnet_jax.weights.names import CONVENTIONS, COUNTER, Convention, Place, convention

FILE_NAME = "model.safetensors"  # in a folder, here and on the Hugging Face Hub
_SUFFIXES = (".safetensors", ".npz", ".pth", ".th", ".pt", ".ckpt", ".pkl", ".tar", ".bin", ".h5")
_MAX_LISTED = 12


class Row(NamedTuple):
    """The origin of a tensor: our name, and shape and name in the file (empty if it was drawn)."""

    name: str
    shape: tuple[int, ...]
    source: str


class _Tensor(NamedTuple):
    source: str  # name in the file
    array: np.ndarray


_Tensors = dict[str, _Tensor]  # by torchvision's names, or by this project's


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
      source: ``.safetensors``, ``.npz`` or torch file, a folder that this project wrote, or ``OWNER/NAME`` on the
        Hugging Face Hub.
      names: convention of the tensor names: torchvision, timm or cifar-torch. Empty: this project's.
      network: the network, or its name in the catalog; inferred from names and shapes by default.
      num_classes: with ``allow_new_head``, another number than the file's.
      allow_new_head: draw the classifier if it is missing or does not fit.
      view: fields of ``View`` that differ from the convention's: ``{"mean": (0.5, 0.5, 0.5)}``.
      data: TFDS name of the training set; by default guessed from the number of classes.
      claimed_error: published top-1 error, percent.

    Raises:
      UserError: listing missing, unexpected and mis-shaped tensors, and for non-finite values.
    """
    path, hub_view = _fetch(str(source)) if is_hub_name(source) else (Path(source), {})
    # Not Path.is_dir: it raises for a name that is too long.
    path = path / FILE_NAME if os.path.isdir(path) else path
    arrays, metadata = files.read(path)
    try:
        network = catalog.architecture(network) if isinstance(network, str) else network
        own = metadata.get(card_lib.KEY)
        if own is None:
            tensors, card = _foreign(path, arrays, names, network)
            card = dataclasses.replace(card, source=Path(source).name).with_view(hub_view)
            if card_lib.EXPORTED_KEY in metadata:
                exported = card_lib.read(metadata[card_lib.EXPORTED_KEY], card.architecture)
                card = dataclasses.replace(
                    card,
                    view=exported.view,
                    data=exported.data,
                    claimed_error=exported.claimed_error,
                )
        elif names:
            raise UserError(f"this project wrote it: leave out --as {names}")
        else:
            tensors, card = (
                {name: _Tensor(name, array) for name, array in arrays.items()},
                _own_card(own, network),
            )
        claimed_error = card.claimed_error if claimed_error is None else claimed_error
        card = dataclasses.replace(
            card.with_view(view or {}), data=data or card.data, claimed_error=claimed_error
        )
        card.check()
        if num_classes not in (None, card.architecture.num_classes):
            # Other classes are of another data set.
            card = dataclasses.replace(
                card,
                architecture=dataclasses.replace(card.architecture, num_classes=num_classes),
                data=data,
            )
        return _filled(card, tensors, own=own is not None, allow_new_head=allow_new_head)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def abstract(
    architecture: Architecture, execution: Execution = Execution()
) -> tuple[Apply, Variables, Variables]:
    """Returns the network as a function, and the shapes of its variables. Raises UserError if it cannot be built."""
    try:
        return _traced(architecture, execution)
    except UserError:
        raise
    except Exception as error:  # whatever a file says reaches every constructor
        raise UserError(
            f"its network cannot be built ({type(error).__name__}: {error!s:.200})"
        ) from error


@functools.lru_cache(maxsize=8)
def _traced(architecture: Architecture, execution: Execution) -> tuple[Apply, Variables, Variables]:
    return jax.eval_shape(lambda: architecture.init(jax.random.key(0), execution=execution))


def is_hub_name(source: Path | str) -> bool:
    """Returns whether a source is the text ``OWNER/NAME`` or ``hf://OWNER/NAME``, and not a path."""
    if isinstance(source, Path) or source.startswith("hf://"):
        return not isinstance(source, Path)
    return (
        re.fullmatch(r"[\w-]+/[\w.-]+", source) is not None
        and not source.endswith(_SUFFIXES)
        and not Path(source).exists()
    )


def _fetch(source: str) -> tuple[Path, dict[str, Any]]:
    """Returns weights in the Hub's cache, and fields of ``View`` from timm's configuration if there is one."""
    name = source.removeprefix("hf://")
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            f"there is no file or folder {source}. For the Hugging Face Hub: pip install 'resnet-jax-lab[hub]'"
        ) from None
    try:
        path = huggingface_hub.hf_hub_download(name, FILE_NAME)
    except Exception as error:  # dozens of types, of the client and of its network libraries
        raise UserError(
            f"there is no file {source}, nor {name}/{FILE_NAME} on the Hub ({type(error).__name__}: {error!s:.200})"
        ) from error
    try:
        config = json.loads(Path(huggingface_hub.hf_hub_download(name, "config.json")).read_text())[
            "pretrained_cfg"
        ]
        size = config["input_size"][2]
        view = {
            "crop": size,
            "resize": math.floor(size / config["crop_pct"]),
            "interpolation": config["interpolation"],
        }
        return Path(path), view | {"mean": config["mean"], "deviation": config["std"]}
    except Exception:  # most repositories have none
        return Path(path), {}


def _own_card(text: str, network: Architecture | None) -> Card:
    card = card_lib.read(text, network)
    try:
        written = card_lib.read(text).architecture
    except UserError:  # it has the user's own parts, and `network` in their place
        return card
    if fields := [
        field for field in inference.differing(card.architecture, written) if field != "num_classes"
    ]:
        raise UserError(
            f"it is of another network: {inference.compared(card.architecture, written, fields)}"
        )
    return card


def _canonical(arrays: Arrays, chosen: Convention) -> tuple[_Tensors, str]:
    """Returns the tensors by torchvision's names (unknown ones in parentheses), and the prefix of all names in the file."""
    prefix = "module." if arrays and all(name.startswith("module.") for name in arrays) else ""
    items = [
        (chosen.to_torchvision(name.removeprefix(prefix)) or f"({name})", _Tensor(name, array))
        for name, array in arrays.items()
    ]
    return dict(items), prefix


def _foreign(
    path: Path, arrays: Arrays, names: str, network: Architecture | None
) -> tuple[_Tensors, Card]:
    if not names:
        raise UserError(
            f"this project did not write it: give the convention of its names{_hint(arrays)}"
        )
    chosen = convention(names)
    tensors, prefix = _canonical(arrays, chosen)
    try:
        architecture = network or inference.infer(
            {name: tensor.array.shape for name, tensor in tensors.items()}, chosen
        )
    except UserError as error:
        raise UserError(f"{error}{_hint(arrays)}") from error
    counters = {name: tensor for name, tensor in tensors.items() if name.endswith(COUNTER)}
    for source, array in counters.values():
        if array.size != 1 or array.dtype.kind not in "biuf":
            raise UserError(
                f"{printable(source)} is {array.dtype.name} of shape {array.shape}, not one number"
            )
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return tensors, Card(
        architecture=architecture,
        view=chosen.view,
        source=path.name,
        sha256=sha256,
        convention=chosen.name,
        data=dict(chosen.data).get(architecture.num_classes, ""),
        prefix=prefix,
        dtypes={
            source: array.dtype.name
            for source, array in tensors.values()
            if array.dtype != np.float32
        },
        counters={name: float(array.reshape(())) for name, (_, array) in counters.items()},
    )


def _hint(arrays: Arrays) -> str:
    """Returns the conventions that tensors fit, with the network of each."""
    fitting = []
    for candidate in CONVENTIONS.values():
        try:
            tensors, _ = _canonical(arrays, candidate)
            architecture = inference.infer(
                {name: tensor.array.shape for name, tensor in tensors.items()}, candidate
            )
            places = names_lib.torch_places(architecture, *abstract(architecture)[1:])
        except UserError:
            continue
        if not _faults(places, tensors, str):
            fitting.append(
                f"--as {candidate.name} ({inference.known_as(architecture)}, {architecture.num_classes} classes)"
            )
    return f"\nBy their names they fit {' or '.join(fitting) if fitting else 'none of ' + ', '.join(CONVENTIONS)}"


def _faults(
    places: Sequence[Place],
    tensors: _Tensors,
    name_in_file: Callable[[str], str],
    ignored: Sequence[Place] = (),
) -> str:
    """Returns lists of missing, unexpected and mis-shaped tensors; empty if there are none."""
    known = {place.name for place in (*places, *ignored)}
    known |= {
        name.removesuffix(".running_mean") + COUNTER
        for name in known
        if name.endswith(".running_mean")
    }
    missing = [place for place in places if place.name not in tensors]
    misshaped = [
        place
        for place in places
        if place.name in tensors and tensors[place.name].array.shape != place.shape
    ]
    lists = {
        "missing": [f"{name_in_file(place.name)} {place.shape}" for place in missing],
        "unexpected": sorted(
            f"{printable(source)} {array.shape}"
            for name, (source, array) in tensors.items()
            if name not in known
        ),
        "mis-shaped": [
            f"{printable(tensors[p.name].source)} {tensors[p.name].array.shape}, expected {p.shape}"
            for p in misshaped
        ],
    }
    text = ""
    for what, lines in lists.items():
        if lines:
            more = f"\n  and {len(lines) - _MAX_LISTED} more" if len(lines) > _MAX_LISTED else ""
            text += f"\n{len(lines)} {what}:\n  " + "\n  ".join(lines[:_MAX_LISTED]) + more
    if text and all(place.is_head for place in missing + misshaped) and not lists["unexpected"]:
        text += "\nOnly the classifier does not fit: --allow-new-head draws a new one"
    return text


def _filled(card: Card, tensors: _Tensors, *, own: bool, allow_new_head: bool) -> Pretrained:
    _, params, batch_stats = abstract(card.architecture)
    trees: dict[names_lib.Part, Variables] = {"params": params, "batch_stats": batch_stats}
    places = (
        names_lib.own_places(params, batch_stats)
        if own
        else names_lib.torch_places(card.architecture, params, batch_stats)
    )

    def name_in_file(name: str) -> str:
        return name if own else card.prefix + convention(card.convention).from_torchvision(name)

    head = [place for place in places if place.is_head]
    fits = all(
        place.name in tensors and tensors[place.name].array.shape == place.shape for place in head
    )
    drawn = head if allow_new_head and not fits else []
    kept = [place for place in places if place not in drawn]
    if faults := _faults(kept, tensors, name_in_file, ignored=drawn):
        hint = "" if own else _hint(dict(tensors.values()))
        raise UserError(
            f"nothing was loaded, because its tensors are not those of the network:{faults}{hint}"
        )
    targets = {
        (part, path): np.zeros(leaf.shape, np.float32)
        for part, tree in trees.items()
        for path, leaf in names_lib.leaves(tree)
    }
    for place in kept:
        source, array = tensors[place.name]
        numbers = _numbers(printable(source), array, is_variance=place.path[-1] == "var")
        targets[place.part, place.path][... if place.block is None else place.block] = (
            place.from_file(numbers)
        )
    rows = [Row(place.ours, place.shape, tensors[place.name].source) for place in kept]
    if drawn:
        kernel = targets["params", ("head", "linear", "kernel")]
        kernel[...] = he_normal(jax.random.key(0), kernel.shape)
        rows += [Row(place.ours, place.shape, "") for place in drawn]
        # Claim and dtype were those of the old classifier.
        old = {name_in_file(place.name) for place in drawn}
        dtypes = {name: dtype for name, dtype in card.dtypes.items() if name not in old}
        card = dataclasses.replace(card, claimed_error=None, dtypes=dtypes)

    def filled(part: names_lib.Part) -> Variables:
        return jax.tree.map_with_path(
            lambda path, _: jnp.asarray(targets[part, tuple(step.key for step in path)]),
            trees[part],
        )

    return Pretrained(card, filled("params"), filled("batch_stats"), tuple(rows))


def _numbers(source: str, array: np.ndarray, *, is_variance: bool) -> np.ndarray:
    """Returns a tensor as float32. Raises UserError unless it is finite floating point, and a variance not negative."""
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        raise UserError(f"{source} is {array.dtype.name}, not floating point: quantized or corrupt")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    wrong = int(np.count_nonzero(~np.isfinite(array)))
    if wrong:
        raise UserError(
            f"{source} has {wrong} non-finite values of {array.size}: corrupt, or of a run that diverged"
        )
    if is_variance and array.size and array.min() < 0:
        raise UserError(
            f"{source} is a variance and has negative values, down to {array.min():.3g}"
        )
    return array
