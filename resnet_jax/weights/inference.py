"""Inference of a network from names and shapes of its tensors, and comparison of networks."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from resnet_jax.errors import UserError
from resnet_jax.models import catalog
from resnet_jax.models.blocks import Basic, Bottleneck
from resnet_jax.models.catalog import NETWORKS
from resnet_jax.models.components import Component, Factory, component, parts
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm
from resnet_jax.models.resnet import Architecture
from resnet_jax.models.shortcuts import PooledProjection, Projection, ProjectionEverywhere
from resnet_jax.models.stems import DeepStem, ImageNetStem, SmallImageStem
from resnet_jax.weights.names import Convention, Shape

Shapes = Mapping[str, Shape]


def infer(shapes: Shapes, convention: Convention) -> Architecture:
    """Returns the network of tensors with these torchvision names and torch shapes."""
    blocks = _blocks(shapes)
    first = {
        name.removeprefix("layer1.0."): shape
        for name, shape in shapes.items()
        if name.startswith("layer1.0.")
    }
    kernels = tuple(
        first[f"conv{n}.weight"] for n in range(1, 4) if len(first.get(f"conv{n}.weight", ())) == 4
    )
    deep = "conv1.0.weight" in shapes
    stem_kernel, stem_out = (
        shapes.get(f"conv1.{n}.weight" if deep else "conv1.weight", ()) for n in (0, 6)
    )
    if len(stem_kernel) != 4 or len(stem_out) != 4 or min(*stem_kernel, *stem_out) < 1:
        raise UserError("there is no first convolution (conv1.weight)")
    if deep:
        _require(convention, "deep stem")
    if len(kernels) < 2 or min(min(kernel) for kernel in kernels) < 1:
        raise UserError("there is no residual block at layer1.0 (conv1.weight, conv2.weight)")
    branch, expansion = _branch(kernels, first, convention)
    last = f"conv{len(kernels)}.weight"
    widths = [(shapes.get(f"layer{stage + 1}.0.{last}") or (0,))[0] for stage in range(len(blocks))]
    if min(widths) < 1 or any(width % expansion for width in widths):
        raise UserError(f"the blocks of its stages are {widths} channels wide by {last}")
    features = tuple(width // expansion for width in widths)
    head = shapes.get("fc.weight", ())
    small = not deep and stem_kernel[2] == 3
    return Architecture(
        stages=tuple(blocks),
        features=features,
        stem_features=0 if stem_out[0] == features[0] else stem_out[0],
        branch=branch,
        shortcut=_shortcut(
            shapes, blocks, convention, same_size=expansion == 1 and stem_out[0] == features[0]
        ),
        stem=DeepStem if deep else SmallImageStem if small else ImageNetStem,
        input_shape=(32, 32, stem_kernel[1]) if small else (224, 224, stem_kernel[1]),
        num_classes=head[0] if len(head) == 2 else 1000,
    )


def differing(ours: Architecture, theirs: Architecture) -> list[str]:
    """Returns the fields that make two networks different functions of their weights."""
    fields = [
        f.name
        for f in dataclasses.fields(Architecture)
        if f.name not in ("input_shape", "dtype", "stochastic_depth")
    ]
    return [field for field in fields if _scored(ours, field) != _scored(theirs, field)]


def compared(ours: Architecture, theirs: Architecture, fields: list[str]) -> str:
    """Returns fields of two networks for a message."""
    return "; ".join(
        f"{field}: {field_text(ours, field)} here, {field_text(theirs, field)} there"
        for field in fields
    )


def field_text(architecture: Architecture, field: str) -> str:
    """Returns one field of a network as the command line takes it."""
    value: Any = getattr(architecture, field)
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return catalog.name_of(value) if isinstance(value, type | Component) else str(value)


def known_as(architecture: Architecture) -> str:
    """Returns the nearest name in the catalog, with the one part that differs; else blocks and widths."""
    differences = [
        ([f for f in differing(known, architecture) if f != "num_classes"], name)
        for name, known in NETWORKS.items()
    ]
    fields, name = min(differences, key=lambda pair: len(pair[0]))
    if len(fields) > 1 or fields in (["stages"], ["features"]):
        return f"a network of {architecture.stages} blocks, {architecture.features} wide"
    return name + "".join(f", {field} {field_text(architecture, field)}" for field in fields)


def _scored(architecture: Architecture, field: str) -> Any:
    """Returns one field without what only matters for training."""
    if field == "stem_features":
        return architecture.stem_features or architecture.features[0]
    value = getattr(architecture, field)
    if field not in ("norm", "branch"):
        return parts(value) if isinstance(value, type | Component) else value
    cls, arguments = parts(value)
    if cls in (BatchNorm, FrozenBatchNorm):
        cls, arguments = BatchNorm, {"epsilon": 1e-5} | arguments
    training = ("momentum", "group_size", "dropout", "zero_scale")
    # Defaults of Branch, stated or not.
    defaults = {
        "kernels": (3, 3),
        "expansion": 1,
        "stride_at": 0,
        "groups": 1,
        "base_width": 64,
        "reduction": 0,
    }
    return cls, {
        name: value
        for name, value in arguments.items()
        if name not in training and defaults.get(name) != value
    }


def _blocks(shapes: Shapes) -> list[int]:
    numbers = {
        (int(m[1]), int(m[2]))
        for name in shapes
        if (m := re.match(r"layer(\d{1,4})\.(\d{1,6})\.", name))
    }
    stages = sorted({stage for stage, _ in numbers})
    counts = [len({block for s, block in numbers if s == stage}) for stage in stages]
    if not stages or stages != list(range(1, len(stages) + 1)):
        raise UserError(f"its stages are {stages}, not layer1, layer2, ...")
    for place in [
        (stage, block) for stage, count in enumerate(counts, 1) for block in range(count)
    ]:
        if place not in numbers:
            raise UserError("there is no block layer{}.{}".format(*place))
    return counts


def _branch(
    kernels: tuple[Shape, ...], first: Shapes, convention: Convention
) -> tuple[Factory, int]:
    """Returns the class and its expansion."""
    inner, out = kernels[0][0], kernels[-1][0]
    options: dict[str, Any] = {}
    if "se.fc1.weight" in first:
        _require(convention, "squeeze-and-excitation")
        options["reduction"] = max(1, out // max(1, (first["se.fc1.weight"] or (0,))[0]))
    if len(kernels) == 2:
        return (component(Basic, **options) if options else Basic), 1
    groups = max(1, inner // kernels[1][1])
    base_width = inner // groups * 64 // max(1, out // 4)
    if groups != 1 or base_width != 64:
        options |= {"groups": groups, "base_width": base_width}
    return component(Bottleneck, stride_at=1, **options), 4


def _shortcut(
    shapes: Shapes, blocks: list[int], convention: Convention, *, same_size: bool
) -> Factory:
    # Where the first block changes neither size nor width (same_size), its projection means that all blocks have one.
    projected = {name.rpartition(".downsample.")[0] for name in shapes if ".downsample." in name}
    if not projected and convention.padded is not None:
        return convention.padded
    if any(name.endswith(".downsample.2.weight") for name in shapes):
        _require(convention, "pooled projection")
        return PooledProjection
    everywhere = len(projected) == sum(blocks) and (same_size or sum(blocks) > len(blocks))
    return ProjectionEverywhere if everywhere else Projection


def _require(convention: Convention, variant: str) -> None:
    if variant not in convention.variants:
        raise UserError(f"{convention.name} has no {variant}; timm has (--as timm)")
