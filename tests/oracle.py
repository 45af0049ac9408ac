"""NumPy float64 formulas of layers, residual blocks and networks, and comparisons with them."""

import copy
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from resnet_jax.kernels import quick_to_compile
from resnet_jax.models.orders import (
    Fixup,
    FullPreactivation,
    NormAfterAddition,
    Order,
    Original,
    ReluBeforeAddition,
    ReluOnlyPreactivation,
)

Pair = tuple[int, int]
Values = dict[Any, Any]
EPSILON, MOMENTUM = 1e-5, 0.9  # fb.resnet.torch, which has torch's defaults: eps 1e-5, momentum 0.1


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def filled(make: Callable[[nnx.Rngs], Any], seed: int = 0) -> Any:
    """Returns a module with NumPy's values: no scale is 1 and no running mean 0, and nothing is compiled."""
    graphdef, state = jax.eval_shape(lambda: nnx.split(make(nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        positive = path[-1].key in ("scale", "var")
        values = rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(0, 0.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state)))


def modules_of_blocks(model: Any) -> list[Any]:
    """Copies of the network's blocks, in order."""
    stacks = [(*nnx.split(stack.stacked), stack.count) for stacks in model.stages for stack in stacks]
    return [nnx.merge(graphdef, jax.tree.map(lambda a, i=i: a[i], state)) for graphdef, state, count in stacks for i in range(count)]


def variables(module: nnx.Module) -> Values:
    """Returns parameters and statistics, float64."""
    return jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(module)))


def call(module: Any, *inputs: Any, **keywords: Any) -> tuple[jax.Array, Values]:
    """Returns the output of a compiled call and the variables after it; the module does not change."""
    graphdef, state = nnx.split(module)

    def run(state: Any, inputs: Any) -> tuple[jax.Array, Any]:
        module = nnx.merge(graphdef, state, copy=True)
        return module(*inputs, **keywords), nnx.to_pure_dict(nnx.state(module))

    y, after = jax.jit(run, compiler_options=quick_to_compile())(state, inputs)
    return y, jax.tree.map(np.float64, after)


def close(actual: object, expected: object, tolerance: float = 1e-5) -> None:
    """Asserts equality to ``tolerance`` of the largest value."""
    actual, expected = np.float64(actual), np.float64(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def same_statistics(after: Any, expected: Any) -> None:
    """Asserts that the entries of ``expected`` are in ``after``, to float32's rounding."""
    for name, value in expected.items() if isinstance(expected, dict) else enumerate(expected):
        if isinstance(value, dict | list):
            same_statistics(after[name], value)
        else:
            np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-5, err_msg=str(name))


def follows(module: Any, formula: Callable[..., np.ndarray], *inputs: np.ndarray, **keywords: Any) -> None:
    """Asserts that a module is ``formula(variables, *inputs)``, and its gradients by variables and inputs too."""
    graphdef, state = nnx.split(module)
    point = {"variables": variables(module), "inputs": dict(enumerate(np.float64(x) for x in inputs))}
    expected = formula(point["variables"], *point["inputs"].values())
    cotangent = random(*expected.shape, seed=3)

    def run(at: Any) -> tuple[jax.Array, Any]:
        def apply(at: Any) -> jax.Array:
            return nnx.merge(graphdef, at["variables"], copy=True)(*at["inputs"].values(), **keywords)

        y, pull = jax.vjp(apply, at)
        return y, pull(jnp.asarray(cotangent))[0]

    at = {"variables": nnx.to_pure_dict(state), "inputs": {index: jnp.asarray(x, jnp.float32) for index, x in enumerate(inputs)}}
    y, slopes = jax.jit(run, compiler_options=quick_to_compile())(at)
    assert y.shape == expected.shape
    close(y, expected)
    same_slopes(slopes, point, lambda at: np.sum(formula(at["variables"], *at["inputs"].values()) * cotangent))


def slopes(module: Any, x: np.ndarray, weights: np.ndarray, modes: Sequence[bool] = (True, False)) -> dict[bool, Any]:
    """Returns, in training and not, the gradients of sum(weights * module(x)), its result and the variables after it."""
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def loss(inputs: Any, train: bool) -> tuple[jax.Array, Any]:
        module = nnx.merge(graphdef, inputs["params"], rest, copy=True)
        y = module(inputs["x"], train=train)
        return jnp.sum(y * weights), (y, nnx.to_pure_dict(nnx.state(module)))

    # Eager: most operations are those of another test and compiled already.
    inputs = {"params": nnx.to_pure_dict(params), "x": jnp.asarray(x)}
    return jax.tree.map(np.float64, {train: jax.grad(functools.partial(loss, train=train), has_aux=True)(inputs) for train in modes})


def same_slopes(gradients: Any, at: Any, formula: Callable[[Any], float], tolerance: float = 1e-5) -> None:
    """Compares gradients with central differences of a float64 formula, along a random direction of every array.

    ``formula`` takes a tree like ``at``, which has at least the arrays of ``gradients``.
    """
    rng, step, seen = np.random.default_rng(7), 1e-6, []
    for path, gradient in jax.tree.leaves_with_path(gradients):
        gradient = np.float64(gradient)
        direction, value = rng.standard_normal(gradient.shape), []
        for sign in (1, -1):
            moved = copy.deepcopy(at)
            leaf = functools.reduce(lambda tree, key: tree[key.key], path[:-1], moved)
            leaf[path[-1].key] = leaf[path[-1].key] + sign * step * direction
            value.append(formula(moved))
        seen.append((path, np.sum(gradient * direction), (value[0] - value[1]) / (2 * step), np.sum(np.abs(gradient * direction))))
    largest = max(scale for *_, scale in seen)
    for path, actual, expected, scale in seen:
        assert abs(actual - expected) <= tolerance * (scale + 0.1 * largest), (jax.tree_util.keystr(path), actual, expected, scale)


def he_distributed(weights: jax.Array, fan_in: int) -> None:
    """He et al. 2015b (arXiv 1502.01852), eq. 10: fan-in, and a normal distribution that is not truncated."""
    z = np.float64(weights).ravel() / np.sqrt(2 / fan_in)
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.std() - 1) < 5 / np.sqrt(2 * z.size)  # five standard errors: 4 to 5 %
    for sigmas, tail in ((2, 0.04550), (3, 0.00270)):  # two-sided tails
        assert abs((np.abs(z) > sigmas).mean() - tail) < 4 * np.sqrt(tail / z.size)


def convolve(x: np.ndarray, weights: np.ndarray, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair = (1, 1)) -> np.ndarray:
    """Sums padded pixel (i stride + a dilation, ...) times weights[a, b] over the taps (a, b)."""
    x, weights = np.pad(np.float64(x), ((0, 0), *padding, (0, 0))), np.float64(weights)
    sizes = [(x.shape[1 + d] - (weights.shape[d] - 1) * dilation[d] - 1) // strides[d] + 1 for d in (0, 1)]
    y = np.zeros((len(x), *sizes, weights.shape[3]))
    for a, b in itertools.product(*map(range, weights.shape[:2])):
        rows = slice(a * dilation[0], a * dilation[0] + (sizes[0] - 1) * strides[0] + 1, strides[0])
        columns = slice(b * dilation[1], b * dilation[1] + (sizes[1] - 1) * strides[1] + 1, strides[1])
        y += x[:, rows, columns] @ weights[a, b]
    return y


def convolved(x: np.ndarray, weights: np.ndarray, stride: int = 1, groups: int = 1, dilation: int = 1) -> np.ndarray:
    """A square convolution padded by dilation (kernel - 1) / 2 on all sides; each group of channels by itself."""
    if weights.shape[0] == 1:
        groups = dilation = 1
    pad = (dilation * (weights.shape[0] - 1) // 2,) * 2
    split = zip(np.split(x, groups, axis=3), np.split(weights, groups, axis=3), strict=True)
    return np.concatenate([convolve(part, w, (stride, stride), (pad, pad), (dilation, dilation)) for part, w in split], axis=3)


def normalize(x: np.ndarray, values: Values, *, train: bool) -> tuple[np.ndarray, Values]:
    """Ioffe and Szegedy 2015, algorithms 1 and 2: the result, and the running statistics after it."""
    x, running = np.float64(x), {name: values[name] for name in ("mean", "var")}
    used = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))} if train else running
    y = (x - used["mean"]) / np.sqrt(used["var"] + EPSILON) * values["scale"] + values["bias"]
    return y, {name: MOMENTUM * running[name] + (1 - MOMENTUM) * used[name] for name in running} if train else running


def project(values: Values, x: np.ndarray, stride: int, *, train: bool = False) -> tuple[np.ndarray, Values]:
    """A strided 1x1 convolution and a normalization (He et al. 2015, eq. 2)."""
    return normalize(convolved(x, values["conv"]["kernel"], stride), values["norm"], train=train)


def pad(x: np.ndarray, out_features: int, before: int = 0) -> np.ndarray:
    """Zeros behind the channels, ``before`` of them before."""
    return np.pad(x, ((0, 0), (0, 0), (0, 0), (before, out_features - x.shape[3] - before)))


def pool(x: np.ndarray, stride: int) -> np.ndarray:
    """Means of stride x stride pixels; at an edge, of those that exist."""
    rows, columns = (range(0, size, stride) for size in x.shape[1:3])
    y = np.zeros((len(x), len(rows), len(columns), x.shape[3]))
    for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        y[:, i, j] = x[:, row : row + stride, column : column + stride].mean((1, 2))
    return y


def excited(x: np.ndarray, values: Values) -> np.ndarray:
    """Hu et al. 2018 (arXiv 1709.01507), eqs. 2 to 4."""
    hidden = np.maximum(x.mean((1, 2)) @ values["squeeze"]["kernel"] + values["squeeze"]["bias"], 0)
    gates = 1 / (1 + np.exp(-(hidden @ values["excite"]["kernel"] + values["excite"]["bias"])))
    return x * gates[:, None, None]


# He et al. 2016, Figure 4 (a) to (e), of m convolutions; Zhang et al. 2019 (arXiv 1901.09321), Figure 1, right. "+" is the addition.
FIGURE_4: dict[type[Order], Callable[[int], str]] = {
    Original: lambda m: "conv" + " BN ReLU conv" * (m - 1) + " BN + ReLU",
    NormAfterAddition: lambda m: "conv" + " BN ReLU conv" * (m - 1) + " + BN ReLU",
    ReluBeforeAddition: lambda m: "conv BN ReLU " * m + "+",
    ReluOnlyPreactivation: lambda m: "ReLU conv BN " * m + "+",
    FullPreactivation: lambda m: "BN ReLU conv " * m + "+",
    Fixup: lambda m: "bias conv" + " bias ReLU bias conv" * (m - 1) + " scale bias + ReLU",
}
PREACTIVATED = (ReluOnlyPreactivation, FullPreactivation)
# He et al. 2016, Section 3 and Appendix: after the first convolution; before the classifier's pooling.
ENDS: dict[type[Order], tuple[str, str]] = {
    Original: ("BN ReLU", ""),
    NormAfterAddition: ("BN ReLU", ""),
    ReluBeforeAddition: ("BN ReLU", ""),
    ReluOnlyPreactivation: ("BN", "ReLU"),
    FullPreactivation: ("", "BN ReLU"),
    Fixup: ("bias ReLU", "bias"),
}


def numbered(tree: Values) -> list[Any]:
    return [tree[index] for index in sorted(tree)]


def layer(word: str, x: np.ndarray, values: Values, statistics: list[Any], *, train: bool) -> np.ndarray:
    """One layer by its name in ``FIGURE_4``; its running statistics after it are appended to ``statistics``."""
    if word == "BN":
        x, running = normalize(x, values, train=train)
        statistics.append(running)
        return x
    return x + values["bias"] if word == "bias" else x * values["scale"]


def row(words: str, x: np.ndarray, values: Values, statistics: list[Any], *, train: bool) -> np.ndarray:
    """Layers by name, one after another; ``values`` are those of an ``orders.Sequence``."""
    layers = iter(numbered(values.get("layers", {})))
    for word in words.split():
        x = np.maximum(x, 0) if word == "ReLU" else layer(word, x, next(layers), statistics, train=train)
    assert not [*layers]
    return x


def scalars_and_norms(values: Values) -> list[Values]:
    """Variables between a block's convolutions, in the order of application."""
    rows = [values.get("before", {}), *numbered(values["branch"].get("after", {})), values.get("after", {})]
    return [layer for row in rows for layer in numbered(row.get("layers", {}))]


def composed(
    values: Values,
    x: np.ndarray,
    order: type[Order],
    strides: Sequence[int],
    *,
    first: bool = False,
    train: bool = False,
    groups: int = 1,
    dilation: int = 1,
    multiplier: Any = 1.0,
    plain: bool = False,
) -> tuple[np.ndarray, list[Values]]:
    """A block with option A or B by the words of ``FIGURE_4``; its running statistics, the projection's last."""
    words, stride = FIGURE_4[order](len(strides)), int(np.prod(strides))
    carry = values.get("shortcut", {}).get("carry", {})
    between, kernels, of_shortcut, statistics = iter(scalars_and_norms(values)), iter(numbered(values["branch"]["convs"])), [], []
    strided, features = iter(strides), numbered(values["branch"]["convs"])[-1]["kernel"].shape[3]
    pre, beside, y = words.split("conv")[0], x, np.float64(x)
    shares = bool(pre) and (stride > 1 or features != x.shape[3] or (first and order in PREACTIVATED))
    if "excitation" in values["branch"]:
        words = words.replace("+", "SE +")
    for index, word in enumerate(words.split()):
        if index == len(pre.split()) and shares:
            beside = y
        if word == "conv":
            y = convolved(y, next(kernels)["kernel"], next(strided), groups, dilation)
        elif word == "ReLU":
            y = np.maximum(y, 0)
        elif word == "SE":
            y = excited(y, values["branch"]["excitation"])
        elif word == "+":
            if "projection" in carry:
                beside = convolved(beside, carry["projection"]["conv"]["kernel"], stride)
                if "BN" not in pre:
                    beside = layer("BN", beside, carry["projection"]["norm"], of_shortcut, train=train)
            else:
                beside = pad(beside[:, ::stride, ::stride], features)
            y = np.reshape(multiplier, (-1, 1, 1, 1)) * y + (0 if plain else beside)
        else:
            y = layer(word, y, next(between), statistics, train=train)
    assert not [*between, *kernels, *strided]
    return y, statistics + of_shortcut


def running(norms: Sequence[Values]) -> list[Values]:
    return [{name: norm[name] for name in ("mean", "var")} for norm in norms if "mean" in norm]


def statistics_of(values: Values) -> list[Values]:
    """Running statistics of a block in the order of ``composed``."""
    projection = values.get("shortcut", {}).get("carry", {}).get("projection", {})
    return running([*scalars_and_norms(values), projection.get("norm", {})])


def blocks_of(values: Values) -> list[Values]:
    """Variables of every block of a network, in order."""
    stacks = [stack["stacked"] for stage in numbered(values["stages"]) for stack in numbered(stage)]
    return [jax.tree.map(lambda a, i=i: a[i], stack) for stack in stacks for i in range(len(jax.tree.leaves(stack)[0]))]


def network(
    values: Values,
    x: np.ndarray,
    stages: Sequence[int],
    order: type[Order] = Original,
    *,
    strides: Callable[[int], tuple[int, ...]] = lambda s: (s, 1),
    permutation: Sequence[int] | None = None,
    multipliers: Any = None,
    train: bool = False,
    spread: Sequence[tuple[int, int]] | None = None,
    **options: Any,
) -> tuple[list[np.ndarray], np.ndarray, list[Any]]:
    """Maps, logits, and running statistics of stem, blocks (by block, not by position) and head; 3x3 stem.

    ``spread``: stride and dilation of every block's branch.
    """
    after_stem, before_classifier = ENDS[order]
    num_blocks, ends = blocks_of(values), [0, *itertools.accumulate(stages)]
    places = range(len(num_blocks)) if permutation is None else permutation
    shape = spread or [(2 if index in ends[1:] else 1, 1) for index in range(len(num_blocks))]
    stem, head, seen = [], [], {}
    x = row(after_stem, convolved(np.float64(x), values["stem"]["conv"]["kernel"]), values["stem"].get("after", {}), stem, train=train)
    maps = [x]
    for place, index in enumerate(places):
        stride, dilation = shape[place]
        factor = 1.0 if multipliers is None else multipliers[place]
        extra = dict(first=place == 0, train=train, dilation=dilation, multiplier=factor) | options
        x, seen[index] = composed(num_blocks[index], x, order, strides(stride), **extra)
        if place + 1 in ends:
            maps.append(x)
    y = row(before_classifier, x, values["head"].get("before", {}), head, train=train).mean((1, 2))
    logits = y @ values["head"]["linear"]["kernel"] + values["head"]["linear"]["bias"]
    return maps, logits, [stem, *(seen[index] for index in range(len(num_blocks))), head]


def all_statistics(values: Values) -> list[Any]:
    """Running statistics in the order of ``network``."""
    stem, head = (running(numbered(tree.get("layers", {}))) for tree in (values["stem"].get("after", {}), values["head"].get("before", {})))
    return [stem, *map(statistics_of, blocks_of(values)), head]
