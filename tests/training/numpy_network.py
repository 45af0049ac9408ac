"""A residual network of basic units and its training step once more, in NumPy and double precision, every derivative by hand.

The second opinion of ``test_step.py``. Nothing here comes from ``resnet_jax``, JAX or any autodiff; only the nesting of parameters is the
package's, so that two trees can be compared leaf by leaf: the variables of equal neighbouring units lie along a leading axis. Convolutions
are loops over their taps, slow and plain to read.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Tree = dict[Any, Any]

EPSILON = 1e-5
RUNNING = 0.9


def conv(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Cross-correlation of (n, h, w, i) with (k, k, i, o), padded by (k - 1) / 2 zeros on every side."""
    side = (kernel.shape[0] - 1) // 2
    padded = np.pad(x, ((0, 0), (side, side), (side, side), (0, 0)))
    height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
    out = np.zeros((x.shape[0], height, width, kernel.shape[3]))
    for a in range(kernel.shape[0]):
        for b in range(kernel.shape[1]):
            seen = padded[:, a : a + stride * (height - 1) + 1 : stride, b : b + stride * (width - 1) + 1 : stride]
            out += seen @ kernel[a, b]
    return out


def conv_backward(x: np.ndarray, kernel: np.ndarray, stride: int, dout: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the derivatives by ``x`` and by ``kernel``: every tap once more, the other way round."""
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


@dataclass
class _Norm:
    """What the derivative of a normalisation needs of its forward pass."""

    normalised: np.ndarray
    deviation: np.ndarray
    scale: np.ndarray


def norm(x: np.ndarray, p: Tree, s: Tree) -> tuple[np.ndarray, Tree, _Norm]:
    """Normalises by the batch's own mean and biased variance; returns the running ones as well."""
    mean, variance = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    deviation = np.sqrt(variance + EPSILON)
    normalised = (x - mean) / deviation
    running = {"mean": RUNNING * s["mean"] + (1 - RUNNING) * mean, "var": RUNNING * s["var"] + (1 - RUNNING) * variance}
    return normalised * p["scale"] + p["bias"], running, _Norm(normalised, deviation, p["scale"])


def norm_backward(saved: _Norm, dout: np.ndarray) -> tuple[np.ndarray, Tree]:
    """Ioffe and Szegedy 2015, Section 3: mean and variance are functions of the batch too."""
    axes = (0, 1, 2)
    dparams = {"scale": (dout * saved.normalised).sum(axes), "bias": dout.sum(axes)}
    dn = dout * saved.scale
    dx = (dn - dn.mean(axes) - saved.normalised * (dn * saved.normalised).mean(axes)) / saved.deviation
    return dx, dparams


def zero_pad(x: np.ndarray, stride: int, features: int) -> np.ndarray:
    """Option A: every stride-th pixel, zeros behind the channels."""
    return np.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (0, features - x.shape[3])))


def kernels(p: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Those of a unit's two convolutions."""
    convs = p["branch"]["convs"]
    return convs[0]["kernel"], convs[1]["kernel"]


def norms(p: Tree) -> tuple[Tree, Tree]:
    """What its two normalisations hold: scale and bias, or mean and variance."""
    return p["branch"]["after"][0]["layers"][0], p["branch"]["after"][1]["layers"][0]


def after(norm1: Tree, norm2: Tree) -> Tree:
    """Undoes ``norms``."""
    return {"branch": {"after": {0: {"layers": {0: norm1}}, 1: {"layers": {0: norm2}}}}}


def units(stages: Tree) -> list[tuple[tuple[int, int, int], int, Tree]]:
    """Stage, stack and place of every unit, its stride and its variables, which a stack holds along a leading axis."""
    found = []
    for i, stacks in stages.items():
        for j, stack in stacks.items():
            for k in range(len(next(iter(leaves(stack).values())))):
                found.append(((i, j, k), 2 if i > 0 and j == k == 0 else 1, each(lambda leaf, k=k: leaf[k], stack["stacked"])))
    return found


def stacked(found: dict[tuple[int, int, int], Tree]) -> Tree:
    """Undoes ``units``: places to trees, to the nested tree of stacks."""
    stages: Tree = {}
    for i, j, k in sorted(found):
        stages.setdefault(i, {}).setdefault(j, []).append(found[i, j, k])
    return {i: {j: {"stacked": each(lambda *all: np.stack(all), *trees)} for j, trees in stacks.items()} for i, stacks in stages.items()}


def unit(x: np.ndarray, p: Tree, s: Tree, stride: int) -> tuple[np.ndarray, Tree, Any]:
    """A basic unit in the original order: conv, norm, ReLU, conv, norm, add, ReLU."""
    (kernel1, kernel2), (norm1, norm2), (running1, running2) = kernels(p), norms(p), norms(s)
    a = conv(x, kernel1, stride)
    b, running1, saved1 = norm(a, norm1, running1)
    c = np.maximum(b, 0)
    d = conv(c, kernel2, 1)
    e, running2, saved2 = norm(d, norm2, running2)
    merged = e + zero_pad(x, stride, e.shape[3])
    return np.maximum(merged, 0), after(running1, running2), (x, b, c, merged, saved1, saved2, stride)


def unit_backward(saved: Any, p: Tree, dout: np.ndarray) -> tuple[np.ndarray, Tree]:
    """The derivative of ``unit`` by its input and its parameters."""
    x, b, c, merged, saved1, saved2, stride = saved
    kernel1, kernel2 = kernels(p)
    dmerged = dout * (merged > 0)
    dd, dnorm2 = norm_backward(saved2, dmerged)
    dc, dkernel2 = conv_backward(c, kernel2, 1, dd)
    da, dnorm1 = norm_backward(saved1, dc * (b > 0))
    dx, dkernel1 = conv_backward(x, kernel1, stride, da)
    dx[:, ::stride, ::stride] += dmerged[..., : x.shape[3]]
    return dx, {"branch": {"convs": {0: {"kernel": dkernel1}, 1: {"kernel": dkernel2}}} | after(dnorm1, dnorm2)["branch"]}


@dataclass
class Pass:
    """One forward and backward pass over a batch."""

    loss: float
    """Summed over the batch, nats."""
    errors: int
    gradients: Tree
    """Of the loss averaged over the batch."""
    batch_stats: Tree


def forward_backward(params: Tree, batch_stats: Tree, images: np.ndarray, labels: np.ndarray) -> Pass:
    """Cross-entropy of the network on a batch in training mode, its gradient, and the running statistics after it."""
    a = conv(images, params["stem"]["conv"]["kernel"], 1)
    b, running, saved_stem = norm(a, params["stem"]["after"]["layers"][0], batch_stats["stem"]["after"]["layers"][0])
    x = np.maximum(b, 0)
    every = [(*one, s) for one, (_, _, s) in zip(units(params["stages"]), units(batch_stats["stages"]), strict=True)]
    saved, stats = {}, {}
    for place, stride, p, s in every:
        x, stats[place], saved[place] = unit(x, p, s, stride)
    new_stats: Tree = {"stem": {"after": {"layers": {0: running}}}, "stages": stacked(stats)}
    pooled = x.mean(axis=(1, 2))
    linear = params["head"]["linear"]
    logits = pooled @ linear["kernel"] + linear["bias"]
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    count = len(labels)
    loss = -log_probabilities[np.arange(count), labels].sum()
    errors = int((logits.argmax(axis=1) != labels).sum())

    dlogits = (np.exp(log_probabilities) - np.eye(logits.shape[1])[labels]) / count
    gradients: Tree = {"head": {"linear": {"kernel": pooled.T @ dlogits, "bias": dlogits.sum(axis=0)}}}
    dx = np.broadcast_to((dlogits @ linear["kernel"].T)[:, None, None] / (x.shape[1] * x.shape[2]), x.shape)
    of_units = {}
    for place, _, p, _ in reversed(every):
        dx, of_units[place] = unit_backward(saved[place], p, dx)
    gradients["stages"] = stacked(of_units)
    da, dnorm = norm_backward(saved_stem, dx * (b > 0))
    _, dkernel = conv_backward(images, params["stem"]["conv"]["kernel"], 1, da)
    gradients["stem"] = {"conv": {"kernel": dkernel}, "after": {"layers": {0: dnorm}}}
    return Pass(float(loss), errors, gradients, new_stats)


def predict(params: Tree, batch_stats: Tree, images: np.ndarray) -> np.ndarray:
    """Logits of the network in evaluation: normalised by the running statistics."""

    def rest(x: np.ndarray, p: Tree, s: Tree) -> np.ndarray:
        return (x - s["mean"]) / np.sqrt(s["var"] + EPSILON) * p["scale"] + p["bias"]

    stem, entered = (tree["stem"]["after"]["layers"][0] for tree in (params, batch_stats))
    x = np.maximum(rest(conv(images, params["stem"]["conv"]["kernel"], 1), stem, entered), 0)
    for (_, stride, p), (_, _, s) in zip(units(params["stages"]), units(batch_stats["stages"]), strict=True):
        (kernel1, kernel2), (norm1, norm2), (running1, running2) = kernels(p), norms(p), norms(s)
        y = np.maximum(rest(conv(x, kernel1, stride), norm1, running1), 0)
        y = rest(conv(y, kernel2, 1), norm2, running2)
        x = np.maximum(y + zero_pad(x, stride, y.shape[3]), 0)
    linear = params["head"]["linear"]
    return x.mean(axis=(1, 2)) @ linear["kernel"] + linear["bias"]


@dataclass(frozen=True)
class Sgd:
    """``v = momentum v + g + decay w``, ``w = w - rate v``."""

    rate: float
    momentum: float
    decay: float

    def __call__(self, params: Tree, velocity: Tree, gradients: Tree) -> tuple[Tree, Tree]:
        """Returns the parameters and the velocity after a step."""
        velocity = each(lambda v, g, w: self.momentum * v + g + self.decay * w, velocity, gradients, params)
        return each(lambda w, v: w - self.rate * v, params, velocity), velocity


def each(function: Any, *trees: Tree) -> Any:
    """Applies a function to the leaves of trees of one structure."""
    if not isinstance(trees[0], dict):
        return function(*trees)
    assert all(tree.keys() == trees[0].keys() for tree in trees), [sorted(map(str, tree)) for tree in trees]
    return {key: each(function, *(tree[key] for tree in trees)) for key in trees[0]}


def leaves(tree: Tree, path: str = "") -> dict[str, np.ndarray]:
    """Returns path -> leaf, paths as ``stages/0/1/stacked/branch/convs/0/kernel``."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {name: leaf for key, value in tree.items() for name, leaf in leaves(value, f"{path}/{key}" if path else str(key)).items()}


def drawn(shapes: Tree, rng: np.random.Generator) -> Tree:
    """Parameters of these shapes: kernels around 0, scales and biases around 1."""
    return unflattened(
        {path: rng.normal(*((0, 0.5) if path[-1] == "kernel" else (1, 0.3)), shape) for path, shape in paths(shapes).items()}
    )


def paths(tree: Tree, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """Returns the keys on the way -> leaf."""
    if not isinstance(tree, dict):
        return {path: tree}
    return {name: leaf for key, value in tree.items() for name, leaf in paths(value, (*path, key)).items()}


def unflattened(found: dict[tuple[Any, ...], Any]) -> Tree:
    """Undoes ``paths``."""
    tree: Tree = {}
    for path, leaf in found.items():
        inner = tree
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = leaf
    return tree
