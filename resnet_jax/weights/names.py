"""Variables of a network as named tensors: torchvision's names, and those of other code bases."""

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from resnet_jax.errors import UserError, nearest, require
from resnet_jax.models.components import component, parts
from resnet_jax.models.resnet import Architecture, Variables
from resnet_jax.models.shortcuts import Concatenation, PooledProjection, ZeroPad

Shape = tuple[int, ...]
Keys = tuple[Any, ...]  # "params" or "batch_stats", then those of the variables
Leaves = dict[Keys, Any]
Templates = Mapping[str, str]
"""Module names to module names; ``{0}`` and ``{1}`` are numbers that count from 0 and from 1."""

# Shortcut of small-image networks without projections, as akamaster's.
PADDED = component(ZeroPad, resize="pad-both")
COUNTER = ".num_batches_tracked"
OWN = "resnet-jax"

_BLOCK, _RESNET_BLOCK = "stages.{0}.{0}", "layer{1}.{0}"
_DENSE_LAYER = "features.denseblock{1}.denselayer{1}"
# Our modules to torchvision's.
_RESNET = {
    "head.linear": "fc",
    "stem.conv": "conv1",
    "stem.after.layers.0": "bn1",
    **{f"stem.convs.{index}": f"conv1.{3 * index}" for index in range(3)},
    **{f"stem.after.{index}.layers.0": f"conv1.{3 * index + 1}" for index in range(2)},
    "stem.after.2.layers.0": "bn1",
    f"{_BLOCK}.branch.convs.{{0}}": f"{_RESNET_BLOCK}.conv{{1}}",
    f"{_BLOCK}.branch.after.{{0}}.layers.0": f"{_RESNET_BLOCK}.bn{{1}}",
    f"{_BLOCK}.branch.excitation.squeeze": f"{_RESNET_BLOCK}.se.fc1",
    f"{_BLOCK}.branch.excitation.excite": f"{_RESNET_BLOCK}.se.fc2",
    f"{_BLOCK}.shortcut.carry.conv": f"{_RESNET_BLOCK}.downsample.0",
    f"{_BLOCK}.shortcut.carry.norm": f"{_RESNET_BLOCK}.downsample.1",
    # ResNet-D averages before it projects: torch's sequence begins with the pooling.
    f"{_BLOCK}.shortcut.pooled.conv": f"{_RESNET_BLOCK}.downsample.1",
    f"{_BLOCK}.shortcut.pooled.norm": f"{_RESNET_BLOCK}.downsample.2",
}
_DENSENET = {
    "head.linear": "classifier",
    "head.before.layers.0": "features.norm5",
    "stem.conv": "features.conv0",
    "stem.after.layers.0": "features.norm0",
    f"{_BLOCK}.before.layers.0": f"{_DENSE_LAYER}.norm1",
    f"{_BLOCK}.branch.convs.{{0}}": f"{_DENSE_LAYER}.conv{{1}}",
    f"{_BLOCK}.branch.after.0.layers.0": f"{_DENSE_LAYER}.norm2",
    "transitions.{0}.before.layers.0": "features.transition{0}.norm",
    "transitions.{0}.conv": "features.transition{0}.conv",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_LEAVES |= {"mean": "running_mean", "var": "running_var"}


@functools.cache
def _pattern(template: str) -> tuple[re.Pattern[str], list[int]]:
    """Returns a template as a pattern, and the first value of each of its numbers."""
    pattern = re.sub(r"\\\{[01]\\\}", r"(\\d{1,9})", re.escape(template))
    return re.compile(pattern), [int(base) for base in re.findall(r"\{([01])\}", template)]


def _translate(templates: Templates, name: str) -> str | None:
    """Returns the name of a tensor by templates of modules; None if there is no template."""
    module, _, leaf = name.rpartition(".")
    for source, target in templates.items():
        pattern, bases = _pattern(source)
        if match := pattern.fullmatch(module):
            shifts = zip(match.groups(), bases, _pattern(target)[1], strict=True)
            numbers = (int(number) - base + shifted for number, base, shifted in shifts)
            return f"{re.sub('{[01]}', '{}', target).format(*numbers)}.{leaf}"
    return None


@dataclass(frozen=True)
class Place:
    """Place of a file's tensor among the variables of a network."""

    name: str
    """torchvision's, such as ``layer1.0.conv1.weight``; in this project's files, the path."""
    shape: Shape
    """In the file."""
    path: Keys
    index: int | EllipsisType = ...
    """Of the block along the first axis, if blocks are stacked."""
    axes: int | None = None
    """Axes of our array, if the file has torch's layout."""

    @property
    def ours(self) -> str:
        """Our name, such as ``stages/0/0/stacked/branch/convs/0/kernel[2]``."""
        return "/".join(map(str, self.path[1:])) + ("" if self.index is ... else f"[{self.index}]")

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """Converts OIHW to HWIO, and (out, in) or (out, in, 1, 1) to (in, out)."""
        if self.axes == 4:
            return array.transpose(2, 3, 1, 0)
        return array.reshape(array.shape[:2]).T if self.axes == 2 else array

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Undoes ``from_file``."""
        if self.axes is None:
            return array
        return array.transpose(3, 2, 0, 1) if self.axes == 4 else array.T.reshape(self.shape)


def leaves(params: Variables, batch_stats: Variables) -> Leaves:
    """Every variable by its keys."""
    return flatten_dict({"params": params, "batch_stats": batch_stats})


def own_places(variables: Leaves) -> list[Place]:
    """Places of this project's files."""
    return [Place("/".join(map(str, path)), a.shape, path) for path, a in variables.items()]


def torch_places(architecture: Architecture, variables: Leaves) -> list[Place]:
    """Places of torchvision's state dict; variables may be shapes."""
    cls = parts(architecture.shortcut)[0]
    templates = _DENSENET if issubclass(cls, Concatenation) else _RESNET
    carry = "pooled" if issubclass(cls, PooledProjection) else "carry"
    stacks = {path[2:4]: leaf.shape[0] for path, leaf in variables.items() if path[1] == "stages"}
    places = []
    for path, array in variables.items():
        is_stacked = path[1] == "stages"  # ("params", "stages", stage, stack, "stacked", ...)
        blocks: list[tuple[str, int | EllipsisType]] = [("", ...)]
        if is_stacked:
            stage, stack = path[2:4]
            first = sum(n for (s, k), n in stacks.items() if s == stage and k < stack)
            blocks = [(f"stages.{stage}.{first + i}.", i) for i in range(array.shape[0])]
        module = ".".join(map(str, path[5 if is_stacked else 1 : -1]))
        module = re.sub(r"\bcarry(\.projection)?\b", carry, module)
        shape = array.shape[is_stacked:]
        torch_shape = (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]
        if ".excitation." in module and len(shape) == 2:  # 1x1 convolutions in timm
            torch_shape = (*torch_shape, 1, 1)
        for block, index in blocks:
            leaf = _LEAVES.get(path[-1])
            name = _translate(templates, f"{block}{module}.{leaf}")
            if name is None or leaf is None:
                ours = "/".join(map(str, path[1:]))
                raise UserError(f"{ours} has no counterpart in torch's residual networks")
            places.append(Place(name, torch_shape, path, index, len(shape)))
    # Block 2 before block 10.
    return sorted(places, key=lambda place: [word.zfill(9) for word in place.name.split(".")])


@dataclass(frozen=True)
class Convention:
    """Names of one code base."""

    name: str
    description: str
    modules: Templates
    """torchvision's modules to those of the code base."""
    is_small: bool = False
    """Of small-image networks: no pooling in the stem, zero padding without projections."""

    def name_of(self, name: str) -> str | None:
        """Returns the code base's name for torchvision's; None if it has no such tensor."""
        return _translate(self.modules, name)

    @functools.cached_property
    def _inverse(self) -> Templates:
        inverse = {theirs: ours for ours, theirs in self.modules.items()} | _OLD_DENSENET
        # transformers' backbones and torchvision's model.features have no prefix.
        trunk = re.compile(r"(resnet|features)\.")
        return inverse | {trunk.sub("", name, count=1): ours for name, ours in inverse.items()}

    def standard(self, name: str) -> str | None:
        """Undoes ``name_of``."""
        return _translate(self._inverse, name)

    def data(self, num_classes: int) -> str:
        """Returns the TFDS name of the usual training set of so many classes."""
        sets = {10: "cifar10", 100: "cifar100"} if self.is_small else {1000: "imagenet2012"}
        return sets.get(num_classes, "")

    @functools.cached_property
    def anchors(self) -> list[str]:
        """Names of the first convolution, longer ones first."""
        stems = ("conv1", "conv1.0", "features.conv0")
        names = [name for name, ours in self._inverse.items() if ours in stems]
        return [f"{name}.weight" for name in sorted(names, key=len, reverse=True)]


_VARIANTS = re.compile(r"conv1\.|\.se\.|\.downsample\.2$")
_ALL = {name: name for name in (*_RESNET.values(), *_DENSENET.values())}
_PLAIN = {name: name for name in _ALL if not _VARIANTS.search(name)}
# Names in the files that torchvision serves.
_OLD_DENSENET = {f"{_DENSE_LAYER}.{m}.{{1}}": f"{_DENSE_LAYER}.{m}{{1}}" for m in ("norm", "conv")}
_CIFAR = {
    **{name: name for name in _PLAIN if re.match(r"conv1|bn1|layer.*\.(conv|bn)", name)},
    f"{_RESNET_BLOCK}.downsample.{{0}}": f"{_RESNET_BLOCK}.shortcut.{{0}}",
    "fc": "linear",
}
_STEM, _LAYER = "resnet.embedder.embedder", "resnet.encoder.stages.{0}.layers.{0}"
_TRANSFORMERS = {
    "conv1": f"{_STEM}.convolution",
    "bn1": f"{_STEM}.normalization",
    f"{_RESNET_BLOCK}.conv{{1}}": f"{_LAYER}.layer.{{0}}.convolution",
    f"{_RESNET_BLOCK}.bn{{1}}": f"{_LAYER}.layer.{{0}}.normalization",
    f"{_RESNET_BLOCK}.downsample.0": f"{_LAYER}.shortcut.convolution",
    f"{_RESNET_BLOCK}.downsample.1": f"{_LAYER}.shortcut.normalization",
    "fc": "classifier.1",
}
# Of nn.Sequential(*model.children()): ReLU, max pooling and average pooling count.
_CHILDREN = {"conv1": "0", "bn1": "1", "fc": "9"} | {
    name.replace("layer{1}", f"layer{n}"): name.replace("layer{1}", str(n + 3))
    for name in _PLAIN
    for n in range(1, 5)
    if name.startswith("layer")
}
CONVENTIONS: dict[str, Convention] = {
    one.name: one
    for one in (
        Convention("torchvision", "its ResNet (v1.5), ResNeXt, Wide ResNet, DenseNet", _PLAIN),
        Convention(
            "timm", "its resnet.py: also deep stems, ResNet-D, squeeze-and-excitation", _ALL
        ),
        Convention(
            "cifar-torch", "akamaster/pytorch_resnet_cifar10, options A and B", _CIFAR, True
        ),
        Convention("transformers", "its ResNet, as microsoft/resnet-50", _TRANSFORMERS),
        Convention("sequential", "nn.Sequential(*model.children()) of torchvision's", _CHILDREN),
    )
}


def convention(name: str) -> Convention:
    unknown = f"no convention of names is called {name!r}{nearest(name, CONVENTIONS)}"
    require(name in CONVENTIONS, unknown)
    return CONVENTIONS[name]
