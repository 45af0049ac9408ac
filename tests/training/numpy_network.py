"""A residual network of basic blocks and its training step in NumPy, float64, with gradients derived by hand.

Independent of the package and of autodiff. Only the nesting of parameters is that of the package: variables of
equal neighboring blocks lie along a leading axis. Convolutions are loops over their taps.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import oracle
from oracle import convolved

Tree = dict[Any, Any]


def conv_backward(x: np.ndarray, kernel: np.ndarray, stride: int, dout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the gradients of ``x`` and of ``kernel``."""
    side = (kernel.shape[0] - 1) // 2
    padded = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    dpadded, dkernel = np.zeros_like(padded), np.zeros_like(kernel)
    height, width = dout.shape[1:3]
    for a in range(kernel.shape[0]):
        for b in range(kernel.shape[1]):
            rows, columns = slice(a, a + stride * (height - 1) + 1, stride), slice(b, b + stride * (width - 1) + 1, stride)
            dpadded[:, rows, columns] += dout @ kernel[a, b].T
            dkernel[a, b] = np.einsum("nhwi,nhwo->io", padded[:, rows, columns], dout)
    return dpadded[:, side : side + x.shape[1], side : side + x.shape[2]], dkernel


def norm(x: np.ndarray, p: Tree, s: Tree) -> tuple[np.ndarray, Tree, Any]:
    """Returns batch normalization in training, the running statistics after it, and the values that ``norm_backward`` needs."""
    y, running = oracle.normalize(x, p | s, train=True)
    deviation = np.sqrt(x.var(axis=(0, 1, 2)) + oracle.EPSILON)
    return y, running, ((x - x.mean(axis=(0, 1, 2))) / deviation, deviation, p["scale"])


def norm_backward(saved: Any, dout: np.ndarray) -> tuple[np.ndarray, Tree]:
    """Ioffe and Szegedy 2015, Section 3: mean and variance are functions of the batch too."""
    normalized, deviation, scale = saved
    axes = (0, 1, 2)
    dparams = {"scale": (dout * normalized).sum(axes), "bias": dout.sum(axes)}
    dn = dout * scale
    dx = (dn - dn.mean(axes) - normalized * (dn * normalized).mean(axes)) / deviation
    return dx, dparams


def kernels(p: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernels of a block's two convolutions."""
    convs = p["branch"]["convs"]
    return convs[0]["kernel"], convs[1]["kernel"]


def norms(p: Tree) -> tuple[Tree, Tree]:
    """Returns scale and bias, or mean and variance, of a block's two normalizations."""
    return p["branch"]["after"][0]["layers"][0], p["branch"]["after"][1]["layers"][0]


def branch_of(norm1: Tree, norm2: Tree, **convs: Tree) -> Tree:
    """Inverse of ``norms``, with further entries of the branch."""
    return {"branch": {"after": {0: {"layers": {0: norm1}}, 1: {"layers": {0: norm2}}}, **convs}}


def units(stages: Tree) -> list[tuple[tuple[int, int, int], int, Tree]]:
    """Returns (stage, stack, position), stride and variables of every block."""
    found = []
    for i, stacks in stages.items():
        for j, stack in stacks.items():
            for k in range(len(next(iter(leaves(stack).values())))):
                found.append(((i, j, k), 2 if i > 0 and j == k == 0 else 1, each(lambda leaf, k=k: leaf[k], stack["stacked"])))
    return found


def stacked(found: dict[tuple[int, int, int], Tree]) -> Tree:
    """Inverse of ``units``: returns the nested tree of stacks."""
    stages: Tree = {}
    for i, j, k in sorted(found):
        stages.setdefault(i, {}).setdefault(j, []).append(found[i, j, k])
    return {i: {j: {"stacked": each(lambda *all: np.stack(all), *trees)} for j, trees in stacks.items()} for i, stacks in stages.items()}


def unit(x: np.ndarray, p: Tree, s: Tree, stride: int, branch: float = 1.0) -> tuple[np.ndarray, Tree, Any]:
    """A basic block in the original order, conv, norm, ReLU, conv, norm, add, ReLU, with a factor on the branch."""
    (kernel1, kernel2), (norm1, norm2), (running1, running2) = kernels(p), norms(p), norms(s)
    a = convolved(x, kernel1, stride)
    b, running1, saved1 = norm(a, norm1, running1)
    c = np.maximum(b, 0)
    d = convolved(c, kernel2, 1)
    e, running2, saved2 = norm(d, norm2, running2)
    merged = branch * e + oracle.pad(x[:, ::stride, ::stride], e.shape[3])
    return np.maximum(merged, 0), branch_of(running1, running2), (x, b, c, merged, saved1, saved2, stride, branch)


def unit_backward(saved: Any, p: Tree, dout: np.ndarray) -> tuple[np.ndarray, Tree]:
    """Gradients of ``unit`` with respect to its input and its parameters."""
    x, b, c, merged, saved1, saved2, stride, branch = saved
    kernel1, kernel2 = kernels(p)
    dmerged = dout * (merged > 0)
    dd, dnorm2 = norm_backward(saved2, branch * dmerged)
    dc, dkernel2 = conv_backward(c, kernel2, 1, dd)
    da, dnorm1 = norm_backward(saved1, dc * (b > 0))
    dx, dkernel1 = conv_backward(x, kernel1, stride, da)
    dx[:, ::stride, ::stride] += dmerged[..., : x.shape[3]]
    return dx, branch_of(dnorm1, dnorm2, convs={0: {"kernel": dkernel1}, 1: {"kernel": dkernel2}})


def forward(params: Tree, batch_stats: Tree, images: np.ndarray, branches: Sequence[float] | None = None) -> tuple[np.ndarray, Tree, Any]:
    """Logits in training, running statistics, and the values that ``backward`` needs. ``branches``: factors by block."""
    blocks = list(zip(units(params["stages"]), units(batch_stats["stages"]), strict=True))
    a = convolved(images, params["stem"]["conv"]["kernel"], 1)
    b, running, saved_stem = norm(a, params["stem"]["after"]["layers"][0], batch_stats["stem"]["after"]["layers"][0])
    x = np.maximum(b, 0)
    saved, stats = [], {}
    for ((place, stride, p), (_, _, s)), branch in zip(blocks, branches or [1.0] * len(blocks), strict=True):
        x, stats[place], of_unit = unit(x, p, s, stride, branch)
        saved.append((place, p, of_unit))
    pooled = x.mean(axis=(1, 2))
    logits = pooled @ params["head"]["linear"]["kernel"] + params["head"]["linear"]["bias"]
    new_stats: Tree = {"stem": {"after": {"layers": {0: running}}}, "stages": stacked(stats)}
    return logits, new_stats, (images, b, saved_stem, saved, x.shape, pooled)


def backward(params: Tree, saved: Any, dlogits: np.ndarray) -> Tree:
    """Returns the gradients of the parameters."""
    images, b, saved_stem, saved_units, shape, pooled = saved
    gradients: Tree = {"head": {"linear": {"kernel": pooled.T @ dlogits, "bias": dlogits.sum(axis=0)}}}
    dpooled = dlogits @ params["head"]["linear"]["kernel"].T
    dx = np.broadcast_to(dpooled[:, None, None] / (shape[1] * shape[2]), shape)
    of_units = {}
    for place, p, of_unit in reversed(saved_units):
        dx, of_units[place] = unit_backward(of_unit, p, dx)
    gradients["stages"] = stacked(of_units)
    da, dnorm = norm_backward(saved_stem, dx * (b > 0))
    _, dkernel = conv_backward(images, params["stem"]["conv"]["kernel"], 1, da)
    gradients["stem"] = {"conv": {"kernel": dkernel}, "after": {"layers": {0: dnorm}}}
    return gradients


def each(function: Any, *trees: Tree) -> Any:
    """Applies a function to the leaves of trees of one structure."""
    return jax.tree.map(function, *trees)


def leaves(tree: Tree) -> dict[str, np.ndarray]:
    """Returns path -> leaf, paths as ``stages/0/1/stacked/branch/convs/0/kernel``."""
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def drawn(arrays: Tree, rng: np.random.Generator) -> Tree:
    """Parameters like these: kernels around 0, scales and biases around 1."""

    def draw(path: Any, array: Any) -> np.ndarray:
        return rng.normal(*((0, 0.5) if path[-1].key == "kernel" else (1, 0.3)), array.shape)

    return jax.tree.map_with_path(draw, arrays)
