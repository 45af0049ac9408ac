"""Variables of a network as named tensors: in torchvision's names and torch's layout, or by their paths."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from resnet_jax.errors import UserError, nearest
from resnet_jax.models.components import Factory, component, parts
from resnet_jax.models.resnet import Architecture, Variables
from resnet_jax.models.shortcuts import PooledProjection, ZeroPad
from resnet_jax.weights.card import IMAGENET_VIEW, View

Part = Literal["params", "batch_stats"]
Shape = tuple[int, ...]
Path = tuple[Any, ...]

# Our modules to torchvision's.
_MODULES = (
    (r"head/linear", "fc"),
    (r"stem/conv", "conv1"),
    (r"stem/after/layers/0|stem/after/2/layers/0", "bn1"),
    (r"stem/convs/0", "conv1.0"),
    (r"stem/after/0/layers/0", "conv1.1"),
    (r"stem/convs/1", "conv1.3"),
    (r"stem/after/1/layers/0", "conv1.4"),
    (r"stem/convs/2", "conv1.6"),
    (r"stages/branch/convs/(?P<index>\d+)", "conv{number}"),
    (r"stages/branch/after/(?P<index>\d+)/layers/0", "bn{number}"),
    (r"stages/branch/excitation/squeeze", "se.fc1"),
    (r"stages/branch/excitation/excite", "se.fc2"),
    (r"stages/shortcut/carry/(projection/)?conv", "downsample.{conv}"),
    (r"stages/shortcut/carry/(projection/)?norm", "downsample.{norm}"),
)
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclass(frozen=True)
class Place:
    """The place of a file's tensor among the variables of a network."""

    name: str
    """In torchvision's names, such as ``layer1.0.conv1.weight``; in this project's files, the path."""
    shape: Shape
    """In the file."""
    part: Part
    path: Path
    """Keys into the nested dictionaries of that part."""
    block: int | None = None
    """Index along the first axis if blocks are stacked. None: the whole array."""
    axes: int | None = None
    """Axes of our array if the file has torch's layout. None: the file has ours."""

    @property
    def ours(self) -> str:
        """Our name, such as ``stages/0/0/stacked/branch/convs/0/kernel[2]``."""
        return "/".join(map(str, self.path)) + ("" if self.block is None else f"[{self.block}]")

    @property
    def is_head(self) -> bool:
        """True for tensors of the classifier."""
        return self.path[:2] == ("head", "linear")

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """Converts OIHW to HWIO, and (out, in) or (out, in, 1, 1) to (in, out)."""
        if self.axes == 4:
            return array.transpose(2, 3, 1, 0)
        return array.reshape(array.shape[:2]).T if self.axes == 2 else array

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Undoes ``from_file``."""
        if self.axes is None:
            return array
        return np.ascontiguousarray(
            array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T.reshape(self.shape)
        )


def leaves(tree: Variables) -> list[tuple[Path, Any]]:
    """Returns path and array of every variable."""
    return [
        (tuple(step.key for step in path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def own_places(params: Variables, batch_stats: Variables) -> list[Place]:
    """Returns the places of this project's files."""
    both: list[tuple[Part, Variables]] = [("params", params), ("batch_stats", batch_stats)]
    return [
        Place("/".join((part, *map(str, path))), tuple(leaf.shape), part, path)
        for part, tree in both
        for path, leaf in leaves(tree)
    ]


def torch_places(
    architecture: Architecture, params: Variables, batch_stats: Variables
) -> list[Place]:
    """Returns the places of torchvision's state dict in the order stem, stages, classifier; variables may be shapes."""
    places = [
        *_torch_places("params", params, architecture),
        *_torch_places("batch_stats", batch_stats, architecture),
    ]
    order = {"conv1": 0, "bn1": 1, "fc": 3}

    def key(place: Place) -> tuple[Any, ...]:
        words = place.name.split(".")
        return order.get(words[0], 2), [
            (0, int(word), "") if word.isdigit() else (1, 0, word) for word in words
        ]

    return sorted(places, key=key)


def _torch_places(part: Part, variables: Variables, architecture: Architecture) -> Iterator[Place]:
    variable_leaves = leaves(variables)
    stacks = {path[1:3]: leaf.shape[0] for path, leaf in variable_leaves if path[0] == "stages"}
    # ResNet-D averages before it projects, so torch's sequence begins with the pooling.
    pooled = int(issubclass(parts(architecture.shortcut)[0], PooledProjection))
    for path, leaf in variable_leaves:
        if path[0] != "stages":
            module = _module(path, path[:-1], pooled)
            yield Place(
                f"{module}.{_LEAVES[path[-1]]}",
                _torch_shape(module, leaf.shape),
                part,
                path,
                None,
                leaf.ndim,
            )
            continue
        stage, stack = path[1:3]
        module = _module(path, ("stages", *path[4:-1]), pooled)
        first = sum(count for (s, k), count in stacks.items() if s == stage and k < stack)
        for index in range(leaf.shape[0]):
            name = f"layer{stage + 1}.{first + index}.{module}.{_LEAVES[path[-1]]}"
            yield Place(
                name, _torch_shape(module, leaf.shape[1:]), part, path, index, leaf.ndim - 1
            )


def _module(path: Path, keys: Path, pooled: int) -> str:
    for pattern, module in _MODULES:
        match = re.fullmatch(pattern, "/".join(map(str, keys)))
        if match and path[-1] in _LEAVES:
            number = int(match.groupdict().get("index") or 0) + 1
            return module.format(number=number, conv=pooled, norm=pooled + 1)
    raise UserError(f"{'/'.join(map(str, path))} has no counterpart in torch's residual networks")


def _torch_shape(module: str, shape: Shape) -> Shape:
    if len(shape) == 4:
        return (shape[3], shape[2], *shape[:2])
    return (*shape[::-1], 1, 1) if module.startswith("se.") and len(shape) == 2 else shape[::-1]


COUNTER = ".num_batches_tracked"


@dataclass(frozen=True, kw_only=True)
class Convention:
    """Names of one code base, mapped to and from torchvision's, such as ``layer1.0.conv1.weight``."""

    name: str
    description: str
    """For help texts."""
    to_torchvision: Callable[[str], str | None] = lambda name: name
    """None for a name that the code base does not have."""
    from_torchvision: Callable[[str], str] = lambda name: name
    padded: Factory | None = None
    """Shortcut if no projection is stored. None: there always is a projection."""
    variants: frozenset[str] = frozenset()
    """Beyond basic blocks and bottlenecks: "deep stem", "pooled projection", "squeeze-and-excitation"."""
    view: View = IMAGENET_VIEW
    data: tuple[tuple[int, str], ...] = ((1000, "imagenet2012"),)
    """Number of classes to TFDS name of the training set."""


def _to_cifar_torch(name: str) -> str:
    return re.sub(r"^fc\.", "linear.", name).replace(".downsample.", ".shortcut.")


def _from_cifar_torch(name: str) -> str | None:
    if name.startswith("fc.") or ".downsample." in name:
        return None
    return re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample.")


_ALL = (
    Convention(
        name="torchvision", description="torchvision's ResNet, ResNeXt and Wide ResNet (v1.5)"
    ),
    Convention(
        name="timm",
        description="timm's resnets (v1.5), with deep stems, pooled projections (D) and squeeze-and-excitation",
        variants=frozenset({"deep stem", "pooled projection", "squeeze-and-excitation"}),
    ),
    Convention(
        name="cifar-torch",
        description="akamaster/pytorch_resnet_cifar10: option A, half of the missing channels on each side, or option B",
        to_torchvision=_from_cifar_torch,
        from_torchvision=_to_cifar_torch,
        padded=component(ZeroPad, resize="pad-both"),
        view=View(mean=IMAGENET_VIEW.mean, deviation=IMAGENET_VIEW.deviation),
        data=((10, "cifar10"), (100, "cifar100")),
    ),
)
CONVENTIONS: dict[str, Convention] = {convention.name: convention for convention in _ALL}


def convention(name: str) -> Convention:
    """Returns a convention by its name. Raises UserError for an unknown one."""
    if name not in CONVENTIONS:
        raise UserError(
            f"{name!r} is not a known convention of tensor names{nearest(name, CONVENTIONS)}"
        )
    return CONVENTIONS[name]
