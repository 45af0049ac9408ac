"""Which network tensors belong to: depth, widths, groups and shortcuts are read from their names and shapes."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from resnet_jax.configured import Configured, Factory, configured, parts
from resnet_jax.errors import UserError
from resnet_jax.models import names
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.branches import Basic, Bottleneck
from resnet_jax.models.catalog import NETWORKS
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm
from resnet_jax.models.pretrained.conventions import Convention
from resnet_jax.models.pretrained.naming import Shape
from resnet_jax.models.shortcuts import PooledProjection, Projection, ProjectionEverywhere
from resnet_jax.models.stems import DeepStem, SmallImageStem

Shapes = Mapping[str, Shape]


def infer(shapes: Shapes, convention: Convention) -> Architecture:
    """The network that tensors of these names and shapes make.

    Args:
      shapes: by torchvision's names, in torch's layout.
      convention: says what they do not show.

    Raises:
      UserError: where they make none, with what is missing.
    """
    units = _units(shapes)
    first = {name.removeprefix("layer1.0."): shape for name, shape in shapes.items() if name.startswith("layer1.0.")}
    kernels = tuple(first[f"conv{n}.weight"] for n in range(1, 4) if len(first.get(f"conv{n}.weight", ())) == 4)
    stem, in_features, stem_width = _stem(shapes, convention)
    if len(kernels) < 2:
        raise UserError("layer1.0.conv1.weight and layer1.0.conv2.weight are not both there: no residual unit begins with them")
    if min(min(kernel) for kernel in kernels) < 1:
        raise UserError(f"the convolutions of layer1.0 have shapes {kernels}: every size is at least 1")
    branch, expansion = _branch(kernels, first, convention)
    last = f"conv{len(kernels)}.weight"
    widths = [(shapes.get(f"layer{stage + 1}.0.{last}") or (0,))[0] for stage in range(len(units))]
    if min(widths) < 1 or any(width % expansion for width in widths):
        raise UserError(f"the units of its stages are {widths} channels wide: {last} is missing in one of them, or of another network")
    features = tuple(width // expansion for width in widths)
    head = shapes.get("fc.weight", ())
    small = stem is SmallImageStem
    return Architecture(
        stages=tuple(units),
        features=features,
        stem_features=0 if stem_width == features[0] else stem_width,
        branch=branch,
        shortcut=_shortcut(shapes, units, convention, free=expansion == 1 and stem_width == features[0]),
        stem=stem,
        input_shape=(32, 32, in_features) if small else (224, 224, in_features),
        num_classes=head[0] if len(head) == 2 else 1000,
    )


def differing(ours: Architecture, theirs: Architecture) -> list[str]:
    """Fields of two networks that make them different functions of their weights: not sizes of images, dtype, or how batches are seen."""
    return [
        field.name
        for field in dataclasses.fields(Architecture)
        if field.name not in ("input_shape", "dtype", "stochastic_depth") and _seen(ours, field.name) != _seen(theirs, field.name)
    ]


def compared(ours: Architecture, theirs: Architecture, fields: list[str]) -> str:
    """Some fields of two networks, for a message."""
    return "; ".join(f"{field}: {said(ours, field)} here, {said(theirs, field)} there" for field in fields)


def said(architecture: Architecture, field: str) -> str:
    """One field of a network as the command line takes it."""
    value: Any = getattr(architecture, field)
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return names.name_of(value) if isinstance(value, type | Configured) else str(value)


def known_as(architecture: Architecture) -> str:
    """The name in the catalog of a network, whatever its classes, with the one part that differs; else its units and widths."""
    nearest = {name: [field for field in differing(known, architecture) if field != "num_classes"] for name, known in NETWORKS.items()}
    wanted = _scored(architecture.branch)[1].items()
    name = min(nearest, key=lambda name: (len(nearest[name]), len(wanted ^ _scored(NETWORKS[name].branch)[1].items())))
    if len(nearest[name]) > 1 or nearest[name] in (["stages"], ["features"]):
        return f"a network of {architecture.stages} units, {architecture.features} wide"
    return name + "".join(f", {field} {said(architecture, field)}" for field in nearest[name])


def _seen(architecture: Architecture, field: str) -> Any:
    """One field as what it does."""
    if field == "stem_features":
        return architecture.stem_features or architecture.features[0]
    value = getattr(architecture, field)
    if field in ("norm", "branch"):
        return _scored(value)
    # A class without arguments is that class.
    return parts(value) if isinstance(value, type | Configured) else value


def _scored(factory: Factory) -> Any:
    """A normalisation or branch as scoring sees it: without what only matters while training."""
    made, arguments = parts(factory)
    for training in ("momentum", "group_size", "dropout"):
        arguments.pop(training, None)
    if made in (BatchNorm, FrozenBatchNorm):
        made, arguments = BatchNorm, {"epsilon": 1e-5} | arguments
    # Branch's own defaults, written or not, are one branch.
    defaults = {"kernels": (3, 3), "expansion": 1, "stride_at": 0, "groups": 1, "base_width": 64, "reduction": 0}
    return made, {name: value for name, value in arguments.items() if defaults.get(name) != value}


def _units(shapes: Shapes) -> list[int]:
    numbers = {(int(m[1]), int(m[2])) for name in shapes if (m := re.match(r"layer(\d{1,4})\.(\d{1,6})\.", name))}
    stages = {stage for stage, _ in numbers}
    counts = [len({unit for s, unit in numbers if s == stage}) for stage in sorted(stages)]
    if not stages or stages != set(range(1, len(stages) + 1)):
        raise UserError(
            "no stages layer1, layer2, ... of residual units are there" if not stages else f"stages {sorted(stages)} are not 1, 2, ..."
        )
    missing = [f"layer{s}.{u}" for s, count in enumerate(counts, 1) for u in range(count) if (s, u) not in numbers]
    if missing:
        raise UserError(f"units are missing: {', '.join(missing[:5])}")
    return counts


def _stem(shapes: Shapes, convention: Convention) -> tuple[Factory, int, int]:
    """Class, channels in, channels out."""
    deep = "conv1.0.weight" in shapes
    kernel, last = (
        shapes.get("conv1.0.weight" if deep else "conv1.weight", ()),
        shapes.get("conv1.6.weight" if deep else "conv1.weight", ()),
    )
    if len(kernel) != 4 or len(last) != 4 or kernel[1] < 1 or last[0] < 1:
        raise UserError("there is no first convolution (conv1.weight): these are no residual network's names")
    if deep:
        _has(convention, "deep stem", "conv1.0.weight")
        return DeepStem, kernel[1], last[0]
    return {3: SmallImageStem, 7: convention.stem}.get(kernel[2], convention.stem), kernel[1], last[0]


def _branch(kernels: tuple[Shape, ...], first: Shapes, convention: Convention) -> tuple[Factory, int]:
    """Class, and how much wider the branch ends than the stage's width is called."""
    inner, out = kernels[0][0], kernels[-1][0]
    options: dict[str, Any] = {}
    if "se.fc1.weight" in first:
        _has(convention, "squeeze-and-excitation", "layer1.0.se.fc1.weight")
        options["reduction"] = max(1, out // max(1, (first["se.fc1.weight"] or (0,))[0]))
    if len(kernels) == 2:
        return (configured(Basic, **options) if options else Basic), 1
    features = max(1, out // 4)
    groups = max(1, inner // kernels[1][1])
    base_width = inner // groups * 64 // features
    if groups != 1 or base_width != 64:
        options |= {"groups": groups, "base_width": base_width}
    if convention.stride_at:
        options["stride_at"] = convention.stride_at
    return (configured(Bottleneck, **options) if options else Bottleneck), 4


def _shortcut(shapes: Shapes, units: list[int], convention: Convention, *, free: bool) -> Factory:
    """``free``: the very first unit changes nothing, so that a projection in it says that all have one."""
    projected = {name.rpartition(".downsample.")[0] for name in shapes if ".downsample." in name}
    if not projected and convention.padded is not None:
        return convention.padded
    if any(name.endswith(".downsample.2.weight") for name in shapes):
        _has(convention, "pooled projection", "downsample.2.weight")
        return PooledProjection
    return ProjectionEverywhere if len(projected) == sum(units) and (free or sum(units) > len(units)) else Projection


def _has(convention: Convention, variant: str, name: str) -> None:
    if variant not in convention.variants:
        raise UserError(f"{name} is there, and {convention.name} has no {variant}: those are timm's names (--as timm)")
