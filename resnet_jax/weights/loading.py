"""Weights from a file into a network: every tensor has its place, or nothing is loaded."""

import functools
import hashlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import unflatten_dict

from resnet_jax.errors import UserError, printable, require
from resnet_jax.models import catalog
from resnet_jax.models.components import Part
from resnet_jax.models.layers import Rngs, he_normal, rngs_of
from resnet_jax.models.resnet import PLAIN, Apply, Architecture, Execution, ResNet, Variables
from resnet_jax.weights import card as card_lib
from resnet_jax.weights import files, hub, inference, search
from resnet_jax.weights.card import IMAGENET_VIEW, Card, Picture
from resnet_jax.weights.files import Arrays
from resnet_jax.weights.hub import FILE_NAME as FILE_NAME
from resnet_jax.weights.names import (
    CONVENTIONS,
    COUNTER,
    OWN,
    Leaves,
    Shape,
    leaves,
    own_places,
    torch_places,
)

_CLASSIFIER, _CLASSIFIERS = ("head", "linear"), {"fc.weight", "classifier.weight"}


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
    notes: tuple[str, ...] = ()
    """What the import found, left out and assumed, with the options that change it."""

    @property
    def architecture(self) -> Architecture:
        return self.card.architecture

    def build(self, *, rngs: Rngs = 0, execution: Execution = PLAIN, **fields: Any) -> ResNet:
        """Returns the module, for images prepared as the card's ``view`` states.

        Args:
          rngs: streams, key or seed of a new classifier.
          execution: as of ``Architecture.build``.
          **fields: changes of the network that keep every weight, such as ``output_stride``.
            Another ``num_classes`` has a new classifier, 0 none.
        """
        architecture = catalog.variant(self.architecture, **fields)
        apply, *shapes = abstract(architecture, execution)
        variables, expected = leaves(self.params, self.batch_stats), leaves(*shapes)
        if architecture.num_classes != self.architecture.num_classes:
            variables = {path: v for path, v in variables.items() if path[1:3] != _CLASSIFIER}
            variables |= _new_classifier(expected, rngs)
        fits = jax.tree.map(jnp.shape, variables) == {p: v.shape for p, v in expected.items()}
        require(fits, f"the weights of {self.card.source} do not fit with {', '.join(fields)}")
        trees = unflatten_dict(variables)
        merged = nnx.merge(apply.graphdef, trees["params"], trees.get("batch_stats", {}))
        return typing.cast(ResNet, merged)

    def apply(self, execution: Execution = PLAIN) -> Apply:
        """Returns the function of ``params`` and ``batch_stats``."""
        return abstract(self.architecture, execution)[0]

    def predict(
        self, images: Picture | list[Picture], top: int = 5
    ) -> list[list[tuple[str, float]]]:
        """Returns the ``top`` most probable classes of each image, by name, with probabilities.

        Args:
          images: an image or several, as ``Card.preprocess`` takes.
        """
        require(self.architecture.num_classes > 0, f"{self.card.source} has no classifier")
        several = images if isinstance(images, list) else [images]
        batch = np.concatenate([self.card.preprocess(image) for image in several])
        scores = _probabilities(self.apply(), self.params, self.batch_stats, batch)
        probabilities, names = np.asarray(scores), self.class_names()
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        ordered = zip(probabilities, order, strict=True)
        return [[(names[i], float(row[i])) for i in best] for row, best in ordered]

    def class_names(self) -> list[str]:
        """Returns the classes of the card, else of the prepared training set, else numbers."""
        names, classes = self.card.classes, self.architecture.num_classes
        if not names:
            from resnet_jax.data import datasets  # needs the packages of training

            if self.card.data in datasets.prepared():
                names = datasets.describe(self.card.data).classes
        return list(names if len(names) == classes else map(str, range(classes)))


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(apply: Apply, params: Variables, batch_stats: Variables, images: Any) -> Any:
    return jax.nn.softmax(apply(params, batch_stats, images, train=False)[0])


def load_pretrained(
    source: Path | str,
    names: str = "",
    *,
    key: str | None = None,
    prefix: str | None = None,
    no_head: bool = False,
    network: Architecture | str | None = None,
    parts: Mapping[str, Part] = {},
    num_classes: int | None = None,
    allow_new_head: bool = False,
    view: Mapping[str, Any] = {},
    data: str = "",
    claimed_error: float | None = None,
) -> Pretrained:
    """Loads weights of this project, torchvision, timm, transformers or akamaster's CIFAR networks.

    Args:
      source: safetensors, npz or torch file, folder with one, a name of ``list_pretrained`` such as
        ``resnet50.a1_in1k``, or ``OWNER/NAME`` on the Hub.
      names: convention, such as torchvision; empty: found from the names.
      key: dictionary of a torch file, such as ``state_dict_ema``.
      prefix: prefix of the names, such as ``module.encoder_q.``; other names are left out.
      no_head: leave out names that no residual network has, such as projection heads; a network
        without a classifier has ``num_classes`` 0 and returns the pooled embedding.
      network: the network, or its name in the catalog. None: inferred from names and shapes.
      parts: fields of the inferred network: ``{"stem": "PooledSmallImageStem"}``.
      num_classes: with ``allow_new_head``, another number than the file's.
      allow_new_head: draw the classifier if it is missing or does not fit.
      view: fields of ``View`` that differ from the source's: ``{"mean": (0.5, 0.5, 0.5)}``.
      data: TFDS name of the training set. Empty: guessed from the number of classes.
      claimed_error: published top-1 error, percent.
    """
    choice, extra, notes, questions = None, {}, [], ""
    try:
        origin = hub.locate(source)
        groups, metadata = files.read(origin.path)
        network = catalog.architecture(network) if isinstance(network, str) else network
        view = {"deviation" if name == "std" else name: value for name, value in view.items()}
        if (own := metadata.get(card_lib.KEY)) is not None:
            require(names in ("", OWN), f"this project wrote it: leave out --as {names}")
            tensors, card = groups[""], card_lib.read(own, network)
            if network is not None:
                _check_network(network, own)
            card = replace(card, view=replace(card.view, **view), data=data or card.data)
        else:
            known = f"others are {', '.join(CONVENTIONS)}"
            require(names != OWN, f"not a file of this project ({known})")
            choice, others = search.find(groups, names, key, prefix)
            arrays = groups[choice.key]
            tensors = {name: arrays[theirs] for name, theirs in choice.sources.items()}
            heads = () if no_head else choice.heads
            outside = () if prefix is not None else choice.outside
            extra = {name: arrays[name].shape for name in (*heads, *outside)}
            if (exported := metadata.get(card_lib.EXPORTED_KEY)) is not None:
                origin = _exported(origin.path, card_lib.read(exported))
            origin = replace(
                origin,
                view={**origin.view, **view},
                parts={**({} if network else origin.parts), **parts},
                stated=hub.NETWORK_FIELDS if network else origin.stated | {*parts},
                data=data or origin.data,
            )
            card = _foreign(origin, choice, tensors, network)
            if no_head and _CLASSIFIERS.isdisjoint(tensors) and not allow_new_head:
                card = replace(card, architecture=replace(card.architecture, num_classes=0))
            assumed = list(inference.assumptions(card, choice.convention, tensors, origin))
            questions = "".join(f"\n{one.options}" for one in assumed if one.is_open)
            notes = [*_found(card, choice, extra), *others, *origin.notes]
            notes += [f"assumed: {one.text} (else: {one.options})" for one in assumed]
        if claimed_error is not None:
            card = replace(card, claimed_error=claimed_error)
        if num_classes not in (None, card.architecture.num_classes):
            # Other classes are of another data set.
            architecture = replace(card.architecture, num_classes=num_classes)
            card = replace(card, architecture=architecture, data=data, classes=())
        weights = _fill(card, tensors, choice, extra, allow_new_head)
        require(not questions, f"names and shapes do not state everything. Give:{questions}")
        card.check()
        return replace(weights, notes=tuple(notes))
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(source)) else f"{source}: {text}") from error


def _exported(path: Path, card: Card) -> hub.Source:
    """Returns what the card of weights that this project exported states of them."""
    parts, stated = {"stem": card.architecture.stem}, hub.NETWORK_FIELDS
    view, error = vars(card.view), card.claimed_error
    return hub.Source(path, view, parts, stated, card.classes, card.data, error)


def _new_classifier(shapes: Leaves, rngs: Rngs = 0) -> Leaves:
    """Returns the initial variables of the classifier, if a network of ``shapes`` has one."""
    zeros = {p: jnp.zeros(leaf.shape) for p, leaf in shapes.items() if p[1:3] == _CLASSIFIER}
    for path, leaf in zeros.items():
        if path[-1] == "kernel":
            zeros[path] = he_normal(rngs_of(rngs).params(), leaf.shape)
    return zeros


def _foreign(
    origin: hub.Source, choice: search.Choice, tensors: Arrays, network: Architecture | None
) -> Card:
    """Returns the card of foreign weights, whose counters of batches are moved to it."""
    counters = [n for n, a in tensors.items() if n.endswith(COUNTER) and a.size == 1]
    counts = {name: float(tensors.pop(name).item()) for name in counters}
    architecture = network or inference.infer({n: a.shape for n, a in tensors.items()})
    architecture = replace(architecture, **origin.parts)
    side, is_small = architecture.input_shape[0], inference.is_for_small_images(architecture)
    size = {"resize": 0, "crop": 0} if is_small else {"resize": side * 8 // 7, "crop": side}
    classes, has_head = architecture.num_classes, not _CLASSIFIERS.isdisjoint(tensors)
    dtypes = {choice.source(n): a.dtype.name for n, a in tensors.items() if a.dtype != np.float32}
    return Card(
        architecture=architecture,
        view=replace(IMAGENET_VIEW, **size | dict(origin.view)),
        source=origin.path.name,
        sha256=hashlib.sha256(origin.path.read_bytes()).hexdigest(),
        convention=choice.convention.name,
        prefix=choice.prefix,
        data=origin.data or (choice.convention.data(classes) if has_head else ""),
        classes=origin.classes if len(origin.classes) == classes else (),
        claimed_error=origin.claimed_error,
        dtypes=dtypes,
        counters=counts,
    )


def _found(card: Card, choice: search.Choice, extra: Mapping[str, Shape]) -> list[str]:
    """Returns where a network was found, and what it lacks."""
    names = {"names of": card.convention, "key": choice.key, "prefix": choice.prefix}
    found = ", ".join(f"{name} {printable(value)}" for name, value in names.items() if value)
    left = [name for name in (*choice.heads, *choice.outside) if name not in extra]
    listed = ", ".join(map(printable, left[:20])) + ", ..." * (len(left) > 20)
    headless = "no classifier: --allow-new-head --num-classes N draws one"
    is_headless = not card.architecture.num_classes
    return [f"found: {found}", *[f"left out: {listed}"] * bool(left), *[headless] * is_headless]


@functools.lru_cache(maxsize=8)
def abstract(
    architecture: Architecture, execution: Execution = PLAIN
) -> tuple[Apply, Variables, Variables]:
    """Returns a network as a function, and the shapes of its variables."""
    try:
        return jax.eval_shape(lambda: architecture.init(jax.random.key(0), execution=execution))
    except UserError:
        raise
    except Exception as error:  # constructors receive values of the file
        raise UserError(f"its network cannot be built: {error!r:.200}") from error


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
    tensors: Arrays,
    choice: search.Choice | None,
    extra: Mapping[str, Shape],
    allow_new_head: bool,
) -> Pretrained:
    """Returns the network with these tensors; each must have its place.

    Args:
      tensors: by torchvision's names, or this project's without ``choice``.
      extra: shapes of the file's other tensors, which are rejected.
    """
    variables, source = leaves(*abstract(card.architecture)[1:]), choice.source if choice else str
    places = torch_places(card.architecture, variables) if choice else own_places(variables)
    shapes = {name: array.shape for name, array in tensors.items()}
    expected = {place.name: place.shape for place in places}
    head = {place.name for place in places if place.path[1:3] == _CLASSIFIER}
    wrong = {name: None for name in expected | shapes if shapes.get(name) != expected.get(name)}
    drawn = head if allow_new_head and head & wrong.keys() else set()
    faults = {source(n): (shapes.get(n), expected.get(n)) for n in wrong if n not in drawn}
    faults |= {name: (shape, None) for name, shape in extra.items()}
    if faults:
        text = f"nothing was loaded, because {len(faults)} tensors do not fit:"
        for name, (shape, wanted) in list(faults.items())[:20]:
            text += f"\n{printable(name)}: {shape or 'missing'}, expected {wanted or 'none'}"
        if choice and extra and wrong.keys() <= head:
            text += f"\nThe network fits without them: {choice.options()}"
        elif wrong.keys() <= head:
            text += "\nOnly the classifier does not fit: --allow-new-head draws a new one"
        raise UserError(text)
    targets = {path: np.zeros(leaf.shape, np.float32) for path, leaf in variables.items()}
    for place in places:
        if place.name not in drawn:
            array = _check(source(place.name), tensors[place.name], place.path[-1] == "var")
            targets[place.path][place.index] = place.from_file(array)
    if drawn:
        targets |= _new_classifier(variables)
        card = replace(card, claimed_error=None, classes=())
    rows = [Row(p.ours, p.shape, "" if p.name in drawn else source(p.name)) for p in places]
    trees = unflatten_dict(jax.tree.map(jnp.asarray, targets))
    return Pretrained(card, trees["params"], trees.get("batch_stats", {}), tuple(rows))


def _check(name: str, array: np.ndarray, is_variance: bool) -> np.ndarray:
    """Returns a tensor as float32."""
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    is_floating, count = jnp.issubdtype(array.dtype, jnp.floating), (~np.isfinite(values)).sum()
    require(is_floating, f"{name} is {array.dtype.name}, not floating point")
    require(not count, f"{name} has {count} non-finite values of {array.size}")
    is_negative = is_variance and bool((values < 0).any())
    require(not is_negative, f"{name} is a variance and has negative values")
    return values
