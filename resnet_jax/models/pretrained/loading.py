"""Weights from a file into a network."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resnet_jax.errors import UserError
from resnet_jax.models import catalog
from resnet_jax.models.architecture import Apply, Architecture, Variables
from resnet_jax.models.execution import Execution
from resnet_jax.models.layers import he_normal
from resnet_jax.models.pretrained import card as card_lib
from resnet_jax.models.pretrained import hub, inference, matching, naming
from resnet_jax.models.pretrained.card import Card
from resnet_jax.models.pretrained.conventions import CONVENTIONS, COUNTER, FIRST_BIAS, Convention, convention
from resnet_jax.models.pretrained.matching import Found, Row
from resnet_jax.models.pretrained.naming import Place
from resnet_jax.models.resnet import ResNet
from resnet_jax.tensors import files
from resnet_jax.tensors.stored import Stored, TensorFile, shown

# The file of weights in a folder that stands for it.
FILE_NAME = "model.safetensors"


@dataclass(frozen=True)
class Pretrained:
    """A network with its weights."""

    card: Card
    params: Variables
    batch_stats: Variables
    rows: tuple[Row, ...] = ()
    """Where every tensor was read from."""

    @property
    def architecture(self) -> Architecture:
        """The network."""
        return self.card.architecture

    def build(self, *, execution: Execution = Execution()) -> ResNet:
        """Returns the module: ``model(images)`` gives logits of images prepared as the card's ``view`` says."""
        model: Any = nnx.merge(self.apply(execution).graphdef, self.params, self.batch_stats)
        return model

    def apply(self, execution: Execution = Execution()) -> Apply:
        """Returns the network as a function of ``params`` and ``batch_stats``."""
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
    seed: int = 0,
) -> Pretrained:
    """Reads weights of this project, torchvision, timm, akamaster's CIFAR networks or Caffe; nothing in a file is ever executed.

    Args:
      source: a ``.safetensors``, ``.npz`` or torch file (``.pth``, ``.th``, ``.pth.tar``), a folder that this project wrote, or
        ``OWNER/NAME`` on the Hugging Face Hub.
      names: whose names its tensors have: torchvision, timm, cifar-torch, caffe or caffe-torch; empty: this project's.
      network: the network, or its name in the catalog; read from names and shapes where not given.
      num_classes: with ``allow_new_head``, other classes than the file's.
      allow_new_head: a classifier that is missing or does not fit is drawn anew. Nothing else may be.
      view: fields of ``View`` that differ from how those networks are usually shown images: ``{"mean": (0.5, 0.5, 0.5)}``.
      data: TFDS name of the set that they were trained on; imagenet2012, cifar10 or cifar100 by the classes where not given.
      claimed_error: top-1 error on it that their authors state, percent.
      seed: of a new head.

    Raises:
      UserError: listing missing, unexpected and mis-shaped tensors; for values that are not finite; saying what the file is instead.
    """
    fetched = hub.fetch(str(source)) if hub.is_identifier(source) else hub.Fetched(Path(source), {})
    given: dict[str, Any] = {
        name: value for name, value in {"data": data, "claimed_error": claimed_error}.items() if value not in (None, "")
    }
    # Not Path.is_dir, which raises for a name that is too long. What is wrong with the file itself is said with its path.
    file = files.open_tensors(fetched.path / FILE_NAME if os.path.isdir(fetched.path) else fetched.path)
    try:
        known = catalog.architecture(network) if isinstance(network, str) else network
        if card_lib.KEY in file.metadata:
            if names:
                raise UserError(f"it is this project's own, which says itself what it is: leave out --as {names}")
            card, read = _own_card(file.metadata[card_lib.KEY], known), _own
        else:
            # What the file says of its images goes before what stands beside it in a repository.
            card, read = _foreign_card(file, _chosen(names, file), known, Path(source).name).viewed(fetched.view), _foreign
            card = card.as_seen(file.metadata[card_lib.SEEN_KEY]) if card_lib.SEEN_KEY in file.metadata else card
        card = dataclasses.replace(card.viewed(view or {}), **given)
        card.check()
        if num_classes not in (None, card.architecture.num_classes):
            # Other classes are of another set.
            card = dataclasses.replace(card, architecture=dataclasses.replace(card.architecture, num_classes=num_classes), data=data)
        _, params, batch_stats = abstract(card.architecture)
        places, found = read(file, card, params, batch_stats)
        try:
            return _filled(card, places, found, params, batch_stats, seed if allow_new_head else None)
        except matching.Unaccounted as error:
            raise UserError(f"{error}{_instead(file, card) if names else ''}") from error
    except UserError as error:
        raise UserError(f"{source}: {error}") from error


def abstract(architecture: Architecture, execution: Execution = Execution()) -> tuple[Apply, Variables, Variables]:
    """The network as a function, and the shapes of its variables.

    Raises:
      UserError: for a network that cannot be built.
    """
    try:
        return _traced(architecture, execution)
    except UserError:
        raise
    except Exception as error:
        # What a file says reaches every constructor, and they fail in as many ways.
        raise UserError(f"the network that these weights describe cannot be built ({type(error).__name__}: {error!s:.200})") from error


@functools.lru_cache(maxsize=8)
def _traced(architecture: Architecture, execution: Execution) -> tuple[Apply, Variables, Variables]:
    # Loading, applying and telling conventions apart ask for the same few networks, and tracing one takes most of the time of each.
    return jax.eval_shape(lambda: architecture.init(jax.random.key(0), execution=execution))


def _own_card(text: str, network: Architecture | None) -> Card:
    card = card_lib.read(text, network)
    try:
        written = card_lib.read(text).architecture
    except UserError:
        # Parts of somebody's own, which is what a network is given for.
        return card
    fields = [field for field in inference.differing(card.architecture, written) if field != "num_classes"]
    if fields:
        raise UserError(f"it is of another network than the one given: {inference.compared(card.architecture, written, fields)}")
    return card


def _own(file: TensorFile, _: Card, params: Variables, batch_stats: Variables) -> tuple[list[Place], Found]:
    return naming.own_places(params, batch_stats), Found(file.tensors, {name: name for name in file.tensors})


def _foreign(file: TensorFile, card: Card, params: Variables, batch_stats: Variables) -> tuple[list[Place], Found]:
    chosen = convention(card.convention)
    tensors, sources = _canonical(file, chosen, card.prefix)
    places = naming.torch_places(card.architecture, params, batch_stats)
    beside = _beside(tensors, chosen, places)
    bias = matching.numbers(tensors[FIRST_BIAS], sources[FIRST_BIAS]) if FIRST_BIAS in beside else None
    return places, Found(tensors, sources, beside, lambda name, array: chosen.taken_in(name, array, card.counters, bias))


def _beside(tensors: Mapping[str, Stored], chosen: Convention, places: list[Place]) -> frozenset[str]:
    """Tensors that are no weights, but belong to one: counters of a normalisation, the bias before the first."""
    means = {place.name: place.shape for place in places if place.name.endswith(".running_mean")}
    return frozenset(
        name
        for name, stored in tensors.items()
        if chosen.is_beside(name)
        and (stored.shape == means.get("bn1.running_mean") if name == FIRST_BIAS else name.removesuffix(COUNTER) + ".running_mean" in means)
    )


def _chosen(names: str, file: TensorFile) -> Convention:
    if names:
        return convention(names)
    raise UserError(f"it is not this project's own, so say whose names its tensors have{_whose(file)}")


def _canonical(file: TensorFile, chosen: Convention, prefix: str) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors by torchvision's names, and what the file calls them; names that the convention does not have stay as they are."""
    names = {name: chosen.to_torchvision(name.removeprefix(prefix)) or f"({name})" for name in file.tensors}
    sources = {ours: name for name, ours in names.items()}
    twice = next((name for name, ours in names.items() if sources[ours] != name), None)
    if twice is not None:
        raise UserError(f"its tensors {shown(twice)} and {shown(sources[names[twice]])} mean the same, so that not both can be loaded")
    return {names[name]: stored for name, stored in file.tensors.items()}, sources


def _prefix(file: TensorFile) -> str:
    return "module." if file.tensors and all(name.startswith("module.") for name in file.tensors) else ""


def _foreign_card(file: TensorFile, chosen: Convention, network: Architecture | None, source: str) -> Card:
    prefix = _prefix(file)
    tensors, sources = _canonical(file, chosen, prefix)
    try:
        architecture = network or inference.infer({name: stored.shape for name, stored in tensors.items()}, chosen)
    except UserError as error:
        raise UserError(f"{error}. Its tensors are {', '.join(map(shown, sorted(file.tensors)[:4]))}, ...{_whose(file)}") from error
    beside = {name: stored for name, stored in tensors.items() if chosen.is_beside(name)}
    return Card(
        architecture=architecture,
        view=chosen.view,
        source=source,
        sha256=files.sha256(file.path),
        convention=chosen.name,
        data=dict(chosen.data).get(architecture.num_classes, ""),
        prefix=prefix,
        dtypes={sources[name]: stored.dtype.name for name, stored in tensors.items() if stored.dtype != np.float32},
        counters={name: _count(stored, sources[name]) for name, stored in beside.items() if name != FIRST_BIAS},
    )


def _count(stored: Stored, source: str) -> float:
    if int(np.prod(stored.shape)) != 1:
        raise UserError(f"{source} has shape {stored.shape}: beside a normalisation stands one number")
    value = float(stored.read().reshape(()))
    if not np.isfinite(value):
        raise UserError(f"{source} is {value}: the file is damaged")
    return value


def _instead(file: TensorFile, card: Card) -> str:
    """What a file is, whose tensors are not those of the network asked for."""
    fitting = _fitting(file)
    if card.convention not in fitting:
        return f"\nThey fit --as {' or '.join(fitting)}" if fitting else ""
    return f"\nThey are those of {inference.known_as(fitting[card.convention])}, {fitting[card.convention].num_classes} classes"


def _whose(file: TensorFile) -> str:
    fitting = _fitting(file)
    return f": they fit --as {' or '.join(fitting)}" if fitting else f"; they fit none of {', '.join(CONVENTIONS)}"


def _fitting(file: TensorFile) -> dict[str, Architecture]:
    """Conventions that a file's tensors fit without a remainder, and the networks that they make."""
    fitting = {}
    for each in CONVENTIONS.values():
        try:
            tensors, sources = _canonical(file, each, _prefix(file))
            architecture = inference.infer({name: stored.shape for name, stored in tensors.items()}, each)
            places = naming.torch_places(architecture, *abstract(architecture)[1:])
            matching.account(places, Found(tensors, sources, _beside(tensors, each, places)), told=str)
        except UserError:
            continue
        fitting[each.name] = architecture
    return fitting


def _filled(card: Card, places: list[Place], found: Found, params: Variables, batch_stats: Variables, new_head: int | None) -> Pretrained:
    chosen = convention(card.convention) if card.convention and places[0].axes is not None else None

    def told(name: str) -> str:
        return card.prefix + chosen.from_torchvision(name, card.architecture.stages) if chosen else name

    head = [place for place in places if place.is_head]
    # A classifier is kept, or drawn, as a whole.
    anew = head if new_head is not None and matching.unfit(head, found) else []
    if anew:
        found = dataclasses.replace(found, beside=found.beside | {place.name for place in head})
    kept = [place for place in places if place not in anew]
    matching.account(kept, found, told=told)
    trees = {"params": params, "batch_stats": batch_stats}
    targets = {
        part: {tuple(step.key for step in path): np.zeros(leaf.shape, np.float32) for path, leaf in jax.tree.leaves_with_path(tree)}
        for part, tree in trees.items()
    }
    rows = matching.fill(kept, found, targets)
    if anew:
        kernel = targets["params"][("head", "linear", "kernel")]
        kernel[...] = he_normal(jax.random.key(new_head or 0), kernel.shape)
        rows += [Row(place.ours, place.shape, "") for place in anew]
        # Neither what was claimed nor how it was stored is true of the new one.
        drawn = {told(place.name) for place in anew}
        dtypes = {name: dtype for name, dtype in card.dtypes.items() if name not in drawn}
        card = dataclasses.replace(card, claimed_error=None, dtypes=dtypes)
    filled = [
        jax.tree.map_with_path(lambda path, _, of=targets[part]: jnp.asarray(of[tuple(step.key for step in path)]), tree)
        for part, tree in trees.items()
    ]
    return Pretrained(card, filled[0], filled[1], tuple(rows))
