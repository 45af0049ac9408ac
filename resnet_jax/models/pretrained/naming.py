"""The variables of a network as the tensors of a file: under torchvision's names and in torch's layout, or as they are."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from resnet_jax.configured import parts
from resnet_jax.errors import UserError
from resnet_jax.models.architecture import Architecture, Variables
from resnet_jax.models.shortcuts import PooledProjection

Part = Literal["params", "batch_stats"]
Shape = tuple[int, ...]

# Modules of ours, and of torch's; the convolutions of a deep stem stand in a sequence with their activations.
_STEM = {
    "conv": "conv1",
    "after/layers/0": "bn1",
    "convs/0": "conv1.0",
    "after/0/layers/0": "conv1.1",
    "convs/1": "conv1.3",
    "after/1/layers/0": "conv1.4",
    "convs/2": "conv1.6",
    "after/2/layers/0": "bn1",
}
_UNIT = (
    (r"branch/convs/(?P<index>\d+)", "conv{number}"),
    (r"branch/after/(?P<index>\d+)/layers/0", "bn{number}"),
    (r"branch/excitation/squeeze", "se.fc1"),
    (r"branch/excitation/excite", "se.fc2"),
    (r"shortcut/carry/(projection/)?conv", "downsample.{conv}"),
    (r"shortcut/carry/(projection/)?norm", "downsample.{norm}"),
)
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


@dataclass(frozen=True)
class Place:
    """Where a tensor of a file lies among the variables of a network."""

    name: str
    """In torchvision's convention, as ``layer1.0.conv1.weight``; of this project's own files, the whole path."""
    shape: Shape
    """In the file."""
    part: Part
    path: tuple[Any, ...]
    """Keys into the nested dictionaries of that part."""
    unit: int | None = None
    """Place along the first axis, where units are stacked; None: the whole array."""
    axes: int | None = None
    """Axes of our array where the file has torch's layout; None: the file has ours."""

    @property
    def ours(self) -> str:
        """Our name, as ``stages/0/0/stacked/branch/convs/0/kernel[2]``."""
        return "/".join(map(str, self.path)) + ("" if self.unit is None else f"[{self.unit}]")

    @property
    def is_head(self) -> bool:
        """Whether it belongs to the classifier, which other classes need anew."""
        return self.path[:2] == ("head", "linear")

    def from_file(self, array: np.ndarray) -> np.ndarray:
        """A tensor of the file in our layout: OIHW to HWIO, (out, in) or the 1x1 convolution (out, in, 1, 1) to (in, out)."""
        if self.axes == 4:
            return array.transpose(2, 3, 1, 0)
        return array.reshape(array.shape[:2]).T if self.axes == 2 else array

    def to_file(self, array: np.ndarray) -> np.ndarray:
        """Undoes ``from_file``."""
        if self.axes is None:
            return array
        return np.ascontiguousarray(array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T.reshape(self.shape))


def own_places(params: Variables, batch_stats: Variables) -> list[Place]:
    """Names every array of a network as this project's files do: ``params/stages/0/0/stacked/branch/convs/0/kernel``, units stacked."""
    both: list[tuple[Part, Variables]] = [("params", params), ("batch_stats", batch_stats)]
    return [
        Place("/".join((part, *map(str, keys))), tuple(leaf.shape), part, keys)
        for part, tree in both
        for keys, leaf in ((tuple(step.key for step in path), leaf) for path, leaf in jax.tree.leaves_with_path(tree))
    ]


def torch_places(architecture: Architecture, params: Variables, batch_stats: Variables) -> list[Place]:
    """Names every tensor of a network, in order of stem, stages, classifier.

    Args:
      architecture: the network.
      params, batch_stats: its variables, or their shapes.

    Raises:
      UserError: for a layer that torch's residual networks have no name for.
    """
    found = [*_torch_places("params", params, architecture), *_torch_places("batch_stats", batch_stats, architecture)]
    order = {"conv1": 0, "bn1": 1, "fc": 3}

    def key(place: Place) -> tuple[Any, ...]:
        first, *rest = place.name.split(".")
        return (order.get(first, 2), [(0, int(word), "") if word.isdigit() else (1, 0, word) for word in (first, *rest)])

    return sorted(found, key=key)


def _torch_places(part: Part, variables: Variables, architecture: Architecture) -> Iterator[Place]:
    leaves = jax.tree.leaves_with_path(variables)
    keyed = [(tuple(step.key for step in path), leaf) for path, leaf in leaves]
    units = {path[1:3]: leaf.shape[0] for path, leaf in keyed if path[0] == "stages"}
    pooled = issubclass(parts(architecture.shortcut)[0], PooledProjection)
    # ResNet-D averages before it projects, so torch's sequence begins with the average.
    beside = {"conv": int(pooled), "norm": int(pooled) + 1}
    for path, leaf in keyed:
        written = "/".join(map(str, path))
        if path[0] == "stages":
            stage, stack = path[1:3]
            begins = sum(count for (s, k), count in units.items() if s == stage and k < stack)
            module = _unit_module("/".join(map(str, path[4:-1])), written, beside)
            for index in range(leaf.shape[0]):
                name = f"layer{stage + 1}.{begins + index}.{module}.{_leaf(path[-1], written)}"
                yield Place(name, _torch_shape(module, leaf.shape[1:]), part, path, index, leaf.ndim - 1)
            continue
        module = "fc" if written.startswith("head/linear/") else _STEM.get("/".join(map(str, path[1:-1]))) if path[0] == "stem" else None
        if module is None:
            raise _nameless(written)
        yield Place(f"{module}.{_leaf(path[-1], written)}", _torch_shape(module, leaf.shape), part, path, None, leaf.ndim)


def _unit_module(local: str, written: str, beside: dict[str, int]) -> str:
    for pattern, module in _UNIT:
        match = re.fullmatch(pattern, local)
        if match:
            index = match.groupdict().get("index")
            return module.format(number=0 if index is None else int(index) + 1, **beside)
    raise _nameless(written)


def _leaf(key: Any, written: str) -> str:
    if key not in _LEAVES:
        raise _nameless(written)
    return _LEAVES[key]


def _nameless(written: str) -> UserError:
    return UserError(
        f"{written} has no counterpart in torch's residual networks: they have stems, branches, projections, squeeze-and-excitation and a "
        "classifier. Keep such weights in this project's own format (without --as)"
    )


def _torch_shape(module: str, shape: Shape) -> Shape:
    if len(shape) == 4:
        return (shape[3], shape[2], *shape[:2])
    turned = shape[::-1]
    return (*turned, 1, 1) if module.startswith("se.") and len(shape) == 2 else turned
