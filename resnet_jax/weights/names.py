"""Variables of a network as named tensors: by torchvision's names, or by their paths."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import EllipsisType
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from resnet_jax.errors import UserError, nearest
from resnet_jax.models.components import Factory, component, parts
from resnet_jax.models.resnet import Architecture, Variables
from resnet_jax.models.shortcuts import PooledProjection, ZeroPad

Shape = tuple[int, ...]
Keys = tuple[Any, ...]  # "params" or "batch_stats", then those of the variables
Leaves = dict[Keys, Any]

COUNTER = ".num_batches_tracked"

# Our modules to torchvision's.
_MODULES = {
    "head/linear": "fc",
    "stem/conv": "conv1",
    "stem/after/layers/0": "bn1",
    **{f"stem/convs/{index}": f"conv1.{3 * index}" for index in range(3)},
    **{f"stem/after/{index}/layers/0": f"conv1.{3 * index + 1}" for index in range(2)},
    "stem/after/2/layers/0": "bn1",
    **{f"branch/convs/{index}": f"conv{index + 1}" for index in range(3)},
    **{f"branch/after/{index}/layers/0": f"bn{index + 1}" for index in range(3)},
    "branch/excitation/squeeze": "se.fc1",
    "branch/excitation/excite": "se.fc2",
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_LEAVES |= {"mean": "running_mean", "var": "running_var"}


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
    # ResNet-D averages before it projects, so torch's sequence begins with the pooling.
    first = int(issubclass(parts(architecture.shortcut)[0], PooledProjection))
    modules = dict(_MODULES)
    for index, layer in enumerate(("conv", "norm"), first):
        modules[f"shortcut/carry/{layer}"] = f"downsample.{index}"
        modules[f"shortcut/carry/projection/{layer}"] = f"downsample.{index}"
    stacks = {path[2:4]: leaf.shape[0] for path, leaf in variables.items() if path[1] == "stages"}
    places = []
    for path, array in variables.items():
        is_stacked = path[1] == "stages"  # ("params", "stages", stage, stack, "stacked", ...)
        module = modules.get("/".join(map(str, path[5 if is_stacked else 1 : -1])))
        if module is None or path[-1] not in _LEAVES:
            name = "/".join(map(str, path[1:]))
            raise UserError(f"{name} has no counterpart in torch's residual networks")
        blocks: list[tuple[str, int | EllipsisType]] = [("", ...)]
        if is_stacked:
            stage, stack = path[2:4]
            first = sum(n for (s, k), n in stacks.items() if s == stage and k < stack)
            blocks = [(f"layer{stage + 1}.{first + i}.", i) for i in range(array.shape[0])]
        shape = array.shape[is_stacked:]
        torch_shape = (*shape[:1:-1], *shape[:2]) if len(shape) == 4 else shape[::-1]
        if module.startswith("se.") and len(shape) == 2:  # 1x1 convolutions in timm
            torch_shape = (*torch_shape, 1, 1)
        for block, index in blocks:
            name = f"{block}{module}.{_LEAVES[path[-1]]}"
            places.append(Place(name, torch_shape, path, index, len(shape)))
    # Block 2 before block 10.
    return sorted(places, key=lambda place: [word.zfill(9) for word in place.name.split(".")])


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Names of one code base."""

    name: str
    description: str = ""
    words: Mapping[str, str] = field(default_factory=dict)
    """Words of its names to torchvision's, and back."""
    padded: Factory | None = None
    """Shortcut if no projection is stored."""
    has_variants: bool = False
    """Has deep stems, pooled projections, squeeze-and-excitation."""
    data: Mapping[int, str] = field(default_factory=lambda: {1000: "imagenet2012"})
    """Number of classes to TFDS name of the training set."""

    def rename(self, name: str) -> str:
        """Returns torchvision's name for the code base's; undoes itself."""
        return ".".join(self.words.get(word, word) for word in name.split("."))


_ALL = (
    Convention(name="torchvision", description="torchvision's ResNet, ResNeXt, Wide ResNet (v1.5)"),
    Convention(
        name="timm",
        description="timm's resnets (v1.5), ResNet-D and squeeze-and-excitation",
        has_variants=True,
    ),
    Convention(
        name="cifar-torch",
        description="akamaster/pytorch_resnet_cifar10, options A and B",
        words={"linear": "fc", "fc": "linear", "shortcut": "downsample", "downsample": "shortcut"},
        padded=component(ZeroPad, resize="pad-both"),
        data={10: "cifar10", 100: "cifar100"},
    ),
)
CONVENTIONS: dict[str, Convention] = {convention.name: convention for convention in _ALL}


def convention(name: str) -> Convention:
    if name not in CONVENTIONS:
        known = nearest(name, CONVENTIONS)
        raise UserError(f"give the convention of its names, not {name!r}{known}")
    return CONVENTIONS[name]
