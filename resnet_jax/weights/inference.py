"""Inference of a network from names and shapes of its tensors, and comparison of networks."""

import dataclasses
import inspect
import re
from collections import Counter
from collections.abc import Mapping

from resnet_jax.errors import UserError
from resnet_jax.models import catalog
from resnet_jax.models.blocks import Basic, Bottleneck
from resnet_jax.models.catalog import NETWORKS
from resnet_jax.models.components import Factory, component, parts
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm
from resnet_jax.models.resnet import Architecture
from resnet_jax.models.shortcuts import PooledProjection, Projection, ProjectionEverywhere
from resnet_jax.models.stems import DeepStem, ImageNetStem, SmallImageStem
from resnet_jax.weights.names import Convention, Shape

_NOT_SCORED = ("input_shape", "dtype", "stochastic_depth")
_TRAINING = ("momentum", "group_size", "dropout", "zero_scale")


def infer(shapes: Mapping[str, Shape], convention: Convention) -> Architecture:
    """Returns the network of these torchvision names and torch shapes."""

    def kernel(name: str) -> Shape:
        shape = shapes.get(name, ())
        if len(shape) != 4 or min(shape) < 1:
            raise UserError(f"there is no convolution {name}")
        return shape

    matches = (re.match(r"(layer\d+)\.\d+", name) for name in shapes)
    counts = Counter(stage for _, stage in {(m[0], m[1]) for m in matches if m})
    stages = tuple(counts[f"layer{n}"] for n in range(1, len(counts) + 1))
    is_deep = "conv1.0.weight" in shapes
    stem = kernel("conv1.0.weight" if is_deep else "conv1.weight")
    stem_features = kernel("conv1.6.weight" if is_deep else "conv1.weight")[0]
    is_small = not is_deep and stem[2] == 3

    depth = 3 if "layer1.0.conv3.weight" in shapes else 2
    first, second, last = (kernel(f"layer1.0.conv{n}.weight") for n in (1, 2, depth))
    expansion, branch = (1, Basic) if depth == 2 else (4, component(Bottleneck, stride_at=1))
    options = {}
    if "layer1.0.se.fc1.weight" in shapes:
        options["reduction"] = max(1, last[0] // kernel("layer1.0.se.fc1.weight")[0])
    groups = max(1, first[0] // second[1])
    base_width = first[0] // groups * 64 // max(1, last[0] // expansion)
    if depth == 3 and (groups, base_width) != (1, 64):
        options |= {"groups": groups, "base_width": base_width}
    last_kernels = [kernel(f"layer{n + 1}.0.conv{depth}.weight") for n in range(len(stages))]
    features = tuple(shape[0] // expansion for shape in last_kernels)

    projected = {name.rpartition(".downsample.")[0] for name in shapes if ".downsample." in name}
    # Where the first block changes neither size nor width, its projection means that all have one.
    changes = expansion > 1 or stem_features != features[0]
    shortcut: Factory = Projection
    if not projected and convention.padded is not None:
        shortcut = convention.padded
    elif any(name.endswith(".downsample.2.weight") for name in shapes):
        shortcut = PooledProjection
    elif len(projected) == sum(stages) and not (changes and sum(stages) == len(stages)):
        shortcut = ProjectionEverywhere

    head = shapes.get("fc.weight", ())
    return Architecture(
        stages=stages,
        features=features,
        stem_features=0 if stem_features == features[0] else stem_features,
        branch=component(branch, **options) if options else branch,
        shortcut=shortcut,
        stem=DeepStem if is_deep else SmallImageStem if is_small else ImageNetStem,
        input_shape=(32, 32, stem[1]) if is_small else (224, 224, stem[1]),
        num_classes=head[0] if len(head) == 2 else 1000,
    )


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
