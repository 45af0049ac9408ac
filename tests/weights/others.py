"""Weights as other code bases store them, with names and shapes independent of the code under test."""

import itertools
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from resnet_jax.kernels import quick_to_compile
from resnet_jax.weights import Pretrained
from resnet_jax.weights.names import CONVENTIONS

from drawn import images, tensor

GOLDEN = Path(__file__).parents[1] / "golden" / "torch"
COUNTER = "num_batches_tracked"
Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, np.ndarray]


def golden(name: str) -> tuple[np.ndarray, Shapes]:
    """Logits of a torch network with drawn tensors, and the shapes of its tensors by name."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        names, shapes = str(file["names"]).split("\n"), json.loads(str(file["shapes"]))
        return file["logits"], dict(zip(names, map(tuple, shapes), strict=True))


def convention_of(name: str) -> str:
    """Returns the convention of a golden network's names."""
    return {"cifar": "cifar-torch", "timm": "timm", "transformers": "transformers"}.get(name.partition("_")[0], "torchvision")


def norm(name: str, width: int) -> Shapes:
    """torch's BatchNorm2d."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {**{f"{name}.{leaf}": (width,) for leaf in leaves}, f"{name}.{COUNTER}": ()}


def shapes(
    stages: Sequence[int] = (1, 1),
    widths: Sequence[int] = (4, 8),
    *,
    bottleneck: bool = False,
    kernel: int = 7,
    classes: int = 3,
    channels: int = 3,
    projected: bool = True,
) -> Shapes:
    """torchvision's ResNet: one block after another, a projection where size or width changes."""
    state: Shapes = {"conv1.weight": (widths[0], channels, kernel, kernel), **norm("bn1", widths[0])}
    comes = widths[0]
    for stage, (num_blocks, width) in enumerate(zip(stages, widths, strict=True)):
        goes = 4 * width if bottleneck else width
        convs = [(comes, width, 1), (width, width, 3), (width, goes, 1)] if bottleneck else [(comes, width, 3), (width, goes, 3)]
        for block in range(num_blocks):
            name = f"layer{stage + 1}.{block}"
            for index, (inputs, outputs, side) in enumerate(convs, 1):
                inputs = comes if index == 1 else inputs
                state |= {f"{name}.conv{index}.weight": (outputs, inputs, side, side), **norm(f"{name}.bn{index}", outputs)}
            if projected and block == 0 and (stage or comes != goes):
                state |= {f"{name}.downsample.0.weight": (goes, comes, 1, 1), **norm(f"{name}.downsample.1", goes)}
            comes = goes
    return state | {"fc.weight": (classes, comes), "fc.bias": (classes,)}


def filled(shapes: Mapping[str, tuple[int, ...]]) -> Tensors:
    """Drawn by name; the counters count up, so that no two are the same."""
    counts = itertools.count(7)
    return {name: np.asarray(next(counts)) if name.endswith(COUNTER) else tensor(name, shape) for name, shape in shapes.items()}


def renamed(tensors: Tensors, names: str) -> Tensors:
    """Tensors of torchvision's names in those of another convention."""
    return {str(CONVENTIONS[names].name_of(name)): array for name, array in tensors.items()}


def written(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] = {}) -> Path:
    """A safetensors file of them."""
    safetensors.numpy.save_file(dict(tensors), path, dict(metadata))
    return path


def stored(path: Path) -> Tensors:
    """Returns the tensors of a file."""
    with safetensors.safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def metadata(path: Path) -> dict[str, str]:
    with safetensors.safe_open(path, framework="numpy") as file:
        return file.metadata()


def identical(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> None:
    """The same names, dtypes, shapes and bytes."""
    assert first.keys() == second.keys()
    for name, array in first.items():
        other = second[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        assert np.ascontiguousarray(array).tobytes() == np.ascontiguousarray(other).tobytes(), name


def logits(weights: Pretrained, x: np.ndarray) -> np.ndarray:
    """Returns the logits of NHWC images."""
    return np.asarray(_run(weights.apply(), weights.params, weights.batch_stats, np.ascontiguousarray(x)))


@partial(jax.jit, static_argnums=0, compiler_options=quick_to_compile())
def _run(apply: Any, params: Any, batch_stats: Any, x: Any) -> Any:
    return apply(params, batch_stats, x, train=False)[0]


def inputs_of(name: str) -> np.ndarray:
    """Returns the input images of a golden network, NHWC."""
    return images(32 if name.startswith("cifar") else 128).transpose(0, 2, 3, 1)


def apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the largest logit."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
