"""Inference of a network from names and shapes of its tensors, and comparison of networks."""

import dataclasses
import inspect
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from resnet_jax.errors import require
from resnet_jax.models import catalog
from resnet_jax.models.blocks import Basic, Bottleneck, Branch
from resnet_jax.models.catalog import NETWORKS
from resnet_jax.models.components import Factory, component, parts
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.resnet import Architecture
from resnet_jax.models.shortcuts import (
    Concatenation,
    PooledProjection,
    Projection,
    ProjectionEverywhere,
)
from resnet_jax.models.stems import DeepStem, DenseTransition, ImageNetStem, SmallImageStem
from resnet_jax.weights.card import Card
from resnet_jax.weights.hub import Source
from resnet_jax.weights.names import PADDED, Convention, Shape

_NOT_SCORED = ("input_shape", "dtype", "stochastic_depth")
_TRAINING = ("momentum", "group_size", "dropout", "zero_scale")


def infer(shapes: Mapping[str, Shape]) -> Architecture:
    """Returns the network of these torchvision names and torch shapes."""
    is_dense = "features.conv0.weight" in shapes
    fields = _densenet(shapes) if is_dense else _resnet(shapes)
    stem = _kernel(shapes, "features.conv0.weight" if is_dense else _stem(shapes))
    is_small = fields["stem"] is SmallImageStem
    head = shapes.get("classifier.weight" if is_dense else "fc.weight", ())
    return Architecture(
        input_shape=(32, 32, stem[1]) if is_small else (224, 224, stem[1]),
        num_classes=head[0] if len(head) == 2 else 0,
        **fields,
    )


def _kernel(shapes: Mapping[str, Shape], name: str) -> Shape:
    shape = shapes.get(name, ())
    require(len(shape) == 4 and min(shape) > 0, f"there is no convolution {name}")
    return shape


def _stages(shapes: Mapping[str, Shape], block: str) -> tuple[int, ...]:
    matches = (re.match(block, name) for name in shapes)
    counts = Counter(stage for stage, _ in {m.groups() for m in matches if m})
    return tuple(counts[str(n)] for n in range(1, len(counts) + 1))


def _stem(shapes: Mapping[str, Shape]) -> str:
    return "conv1.0.weight" if "conv1.0.weight" in shapes else "conv1.weight"


def _densenet(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    stages = _stages(shapes, r"features\.denseblock(\d+)\.denselayer(\d+)\.")
    layer = "features.denseblock1.denselayer1.conv"
    first, stem = _kernel(shapes, f"{layer}1.weight"), _kernel(shapes, "features.conv0.weight")
    branch, growth = {"kernels": (3,)}, first[0]
    if f"{layer}2.weight" in shapes:
        growth = _kernel(shapes, f"{layer}2.weight")[0]
        branch = {"kernels": (1, 3), "base_width": first[0] * 64 // growth}
    reduced = shapes.get("features.transition1.conv.weight", (1, 2))
    return {
        "stages": stages,
        "features": (growth,) * len(stages),
        "stem_features": stem[0],
        "branch": component(Branch, **branch),
        "order": FullPreactivation,
        "shortcut": Concatenation,
        "stem": SmallImageStem if stem[2] == 3 else ImageNetStem,
        "transition": component(DenseTransition, compression=reduced[0] / reduced[1]),
    }


def _resnet(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    stages = _stages(shapes, r"layer(\d+)\.(\d+)\.")
    is_deep = _stem(shapes) == "conv1.0.weight"
    stem = _kernel(shapes, _stem(shapes))
    stem_features = _kernel(shapes, "conv1.6.weight" if is_deep else "conv1.weight")[0]

    depth = 3 if "layer1.0.conv3.weight" in shapes else 2
    first, second, last = (_kernel(shapes, f"layer1.0.conv{n}.weight") for n in (1, 2, depth))
    expansion, branch = (1, Basic) if depth == 2 else (4, component(Bottleneck, stride_at=1))
    options = {}
    if "layer1.0.se.fc1.weight" in shapes:
        squeezed = _kernel(shapes, "layer1.0.se.fc1.weight")[0]
        options["reduction"] = max(1, last[0] // squeezed)
    groups = max(1, first[0] // second[1])
    base_width = first[0] // groups * 64 // max(1, last[0] // expansion)
    if depth == 3 and (groups, base_width) != (1, 64):
        options |= {"groups": groups, "base_width": base_width}
    names = (f"layer{n + 1}.0.conv{depth}.weight" for n in range(len(stages)))
    features = tuple(_kernel(shapes, name)[0] // expansion for name in names)

    projected = {name.rpartition(".downsample.")[0] for name in shapes if ".downsample." in name}
    # Where the first block changes neither size nor width, its projection means that all have one.
    changes = expansion > 1 or stem_features != features[0]
    shortcut: Factory = Projection
    if not projected and len(stages) > 1:
        shortcut = PADDED
    elif any(name.endswith(".downsample.2.weight") for name in shapes):
        shortcut = PooledProjection
    elif len(projected) == sum(stages) and not (changes and sum(stages) == len(stages)):
        shortcut = ProjectionEverywhere
    return {
        "stages": stages,
        "features": features,
        "stem_features": 0 if stem_features == features[0] else stem_features,
        "branch": component(branch, **options) if options else branch,
        "shortcut": shortcut,
        "stem": DeepStem if is_deep else SmallImageStem if stem[2] == 3 else ImageNetStem,
    }


class Assumption(NamedTuple):
    """A property of weights that names and shapes do not state."""

    text: str
    options: str
    is_open: bool = False
    """It has to be given: another value is as likely, and makes another function."""


def assumptions(
    card: Card, convention: Convention, tensors: Collection[str], source: Source
) -> Iterator[Assumption]:
    """Yields what is assumed of an inferred network beyond its tensors and ``source``."""
    network, view = card.architecture, card.view
    stem, (branch, options) = parts(network.stem)[0], parts(network.branch)
    is_small, is_cifar = is_for_small_images(network), convention.is_small
    is_akamaster = is_cifar and network.features == (16, 32, 64)
    is_projected = any(".downsample." in name for name in tensors)
    is_strided = options.pop("stride_at", None) is not None
    if "stem" not in source.stated:
        text = _STEMS.get(stem, "3x3 convolution at stride 1, no pooling")
        option = f"--stem {_SMALL if is_small else 'NAME'}"
        yield Assumption(text, option, is_small and not is_cifar)
    if "branch" not in source.stated and is_strided:
        option = f'--branch "{catalog.name_of(component(branch, **options))}" (in the first 1x1)'
        yield Assumption("stride of bottlenecks in the 3x3", option)
    if "shortcut" not in source.stated and network.shortcut == PADDED and not is_projected:
        option = "--shortcut \"ZeroPad(resize='pad-both')\", A (all behind x) or none (plain)"
        text = "no projections, half of the zero channels before x"
        yield Assumption(text, option, not is_cifar)
    if not {"mean", "deviation"} <= source.view.keys():
        channels = network.input_shape[2]
        option = f"--mean and --std, {channels} of each, of pixels in [0, 1]"
        is_open = channels != 3 or (is_small and not is_akamaster)
        yield Assumption("ImageNet's mean and std", option, is_open)
    if "norm" not in source.stated:
        yield Assumption("BatchNorm's epsilon 1e-05", '--norm "BatchNorm(epsilon=0.001)"')
    if source.view.keys().isdisjoint({"resize", "crop", "interpolation"}):
        text = f"resize {view.resize}, crop {view.crop}, {view.interpolation}"
        yield Assumption(text, "--resize, --crop, --interpolation")
    if card.data and not source.data:
        yield Assumption(f"training set {card.data}", "--data NAME")


_SMALL = "SmallImageStem, or PooledSmallImageStem with 3x3 max pooling at stride 2"
_STEMS = {
    DeepStem: "three 3x3 convolutions, the first at stride 2, then max pooling",
    ImageNetStem: "7x7 convolution at stride 2, then max pooling",
}


def is_for_small_images(network: Architecture) -> bool:
    """Returns whether the stem keeps the size of images, which are then not resized."""
    return parts(network.stem)[0] not in _STEMS


def differing(ours: Architecture, theirs: Architecture) -> dict[str, str]:
    """Returns the fields that make networks different functions, described."""
    fields = (f.name for f in dataclasses.fields(Architecture) if f.name not in _NOT_SCORED)
    return {
        name: f"{name}: {field_text(ours, name)} here, {field_text(theirs, name)} there"
        for name in fields
        if _scored(ours, name) != _scored(theirs, name)
    }


def _scored(architecture: Architecture, field: str) -> object:
    """Returns a field without defaults and what only matters in training."""
    value: object = getattr(architecture, field)
    if field == "stem_features":
        return value or architecture.features[0]
    if not isinstance(value, Factory):
        return value
    cls, arguments = parts(value)
    cls = BatchNorm if cls is FrozenBatchNorm else cls
    ignored = _TRAINING if field in ("norm", "branch") else ()
    defaults = inspect.signature(cls.__init__).parameters
    return cls, {
        name: argument
        for name, argument in arguments.items()
        if name not in ignored and (name not in defaults or defaults[name].default != argument)
    }


def field_text(architecture: Architecture, field: str) -> str:
    """Returns one field of a network as the command line takes it."""
    value: object = getattr(architecture, field)
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return catalog.name_of(value) if isinstance(value, Factory) else str(value)


def known_as(architecture: Architecture) -> str:
    """Returns the nearest name in the catalog and what differs, or blocks and widths."""
    differences = [
        (differing(known, architecture).keys() - {"num_classes"}, name)
        for name, known in NETWORKS.items()
    ]
    fields, name = min(differences, key=lambda pair: len(pair[0]))
    if len(fields) > 1 or fields & {"stages", "features"}:
        return f"a network of {architecture.stages} blocks, {architecture.features} wide"
    return name + "".join(f", {field} {field_text(architecture, field)}" for field in fields)
