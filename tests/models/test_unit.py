"""The residual unit: every order of He et al. 2016, Figure 4, with every branch, against its composition in NumPy float64."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import close, convolve, random
from test_layers import filled, normalise, variables

from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models.branches import Basic, Bottleneck, BottleneckV15, Branch, SingleLayer
from resnet_jax.models.norms import GroupNorm, NoNorm
from resnet_jax.models.orders import (
    Fixup,
    FullPreactivation,
    NormAfterAddition,
    Order,
    Original,
    ReluBeforeAddition,
    ReluOnlyPreactivation,
)
from resnet_jax.models.shortcuts import (
    Concatenation,
    DropoutShortcut,
    NoShortcut,
    Projection,
    ProjectionEverywhere,
    ZeroPad,
)
from resnet_jax.models.unit import Unit

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

# Each with the stride of every convolution, where the unit has stride s, and its groups. He et al. 2015, Figure 5: the paper has the
# stride in the first 1x1, fb.resnet.torch and torchvision in the 3x3.
BRANCHES: dict[str, tuple[Any, Callable[[int], tuple[int, ...]], int]] = {
    "Basic": (Basic, lambda s: (s, 1), 1),
    "Bottleneck": (Bottleneck, lambda s: (s, 1, 1), 1),
    "BottleneckV15": (BottleneckV15, lambda s: (1, s, 1), 1),
    "SingleLayer": (SingleLayer, lambda s: (s,), 1),
    "B(3,1,3)": (configured(Branch, kernels=(3, 1, 3)), lambda s: (s, 1, 1), 1),
    "groups": (configured(BottleneckV15, groups=2, base_width=32), lambda s: (1, s, 1), 2),
    "reduction": (configured(Basic, reduction=2), lambda s: (s, 1), 1),
    "base_width": (configured(BottleneckV15, base_width=96), lambda s: (1, s, 1), 1),
}
COMBINATIONS = [(order, branch) for order in FIGURE_4 for branch in BRANCHES if (order, branch) != (Fixup, "SingleLayer")]


def numbered(tree: dict[int, Any]) -> list[Any]:
    return [tree[index] for index in sorted(tree)]


def scalars_and_norms(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Variables of what stands between a unit's convolutions, in the order in which x meets them."""
    rows = [values.get("before", {}), *numbered(values["branch"].get("after", {})), values.get("after", {})]
    return [layer for row in rows for layer in numbered(row.get("layers", {}))]


def convolved(x: np.ndarray, kernel: np.ndarray, stride: int = 1, groups: int = 1, dilation: int = 1) -> np.ndarray:
    """Padded by dilation (kernel - 1) / 2 on all sides; each group of channels by itself."""
    if kernel.shape[0] == 1:
        groups = dilation = 1
    pad = (dilation * (kernel.shape[0] - 1) // 2,) * 2
    split = zip(np.split(x, groups, axis=3), np.split(kernel, groups, axis=3), strict=True)
    return np.concatenate([convolve(part, k, (stride, stride), (pad, pad), (dilation, dilation)) for part, k in split], axis=3)


def padded(x: np.ndarray, features: int, stride: int) -> np.ndarray:
    """Option A (He et al. 2015, Section 3.3)."""
    x = x[:, ::stride, ::stride]
    return np.concatenate([x, np.zeros((*x.shape[:3], features - x.shape[3]))], axis=3)


def excited(x: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """Hu et al. 2018, eqs. 2 to 4."""
    hidden = np.maximum(x.mean((1, 2)) @ values["squeeze"]["kernel"] + values["squeeze"]["bias"], 0)
    gates = 1 / (1 + np.exp(-(hidden @ values["excite"]["kernel"] + values["excite"]["bias"])))
    return x * gates[:, None, None]


def layer(word: str, x: np.ndarray, values: dict[str, Any], statistics: list[Any], *, train: bool) -> np.ndarray:
    """One layer by its name in ``FIGURE_4``; running statistics afterwards are added to the list."""
    if word == "BN":
        x, running = normalise(x, values, train=train)
        statistics.append(running)
        return x
    return x + values["bias"] if word == "bias" else x * values["scale"]


def composed(
    values: dict[str, Any],
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
) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """A unit by the words of ``FIGURE_4``, and its running statistics afterwards: of the layers in order, then of the projection.

    Options A and B; a projection's place is taken by option A where there is none.
    """
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
                beside = padded(beside, features, stride)
            y = np.reshape(multiplier, (-1, 1, 1, 1)) * y + (0 if plain else beside)
        else:
            y = layer(word, y, next(between), statistics, train=train)
    assert not [*between, *kernels, *strided]
    return y, statistics + of_shortcut


def statistics_of(values: dict[str, Any]) -> list[dict[str, np.ndarray]]:
    """Running statistics of a unit in the order of ``composed``."""
    carry = values.get("shortcut", {}).get("carry", {})
    found = [*scalars_and_norms(values), carry.get("projection", {}).get("norm", {})]
    return [{name: norm[name] for name in ("mean", "var")} for norm in found if "mean" in norm]


def same_statistics(after: Any, expected: Any) -> None:
    """Equal trees of running statistics, to float32's rounding."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), after, expected)


def slopes(module: Any, x: np.ndarray, weights: np.ndarray, modes: Sequence[bool] = (True, False)) -> dict[bool, Any]:
    """Of sum(weights * module(x)) by parameters and x, and the result and the variables afterwards: in training and not.

    Not compiled as a whole: most operations are those of another test and compiled already.
    """
    graphdef, params, rest = nnx.split(module, nnx.Param, ...)

    def loss(inputs: Any, train: bool) -> tuple[jax.Array, Any]:
        unit = nnx.merge(graphdef, inputs["params"], rest, copy=True)
        y = unit(inputs["x"], train=train)
        return jnp.sum(y * weights), (y, nnx.to_pure_dict(nnx.state(unit)))

    def run(inputs: Any) -> Any:
        return {train: jax.grad(functools.partial(loss, train=train), has_aux=True)(inputs) for train in modes}

    inputs = {"params": nnx.to_pure_dict(params), "x": jnp.asarray(x)}
    return jax.tree.map(np.float64, run(inputs))


def same_slopes(gradients: Any, at: Any, formula: Callable[[Any], float], tolerance: float = 1e-5) -> None:
    """Gradients against central differences of a float64 formula, along a random direction of every array by itself.

    ``formula`` takes a tree like ``at``, which has at least the arrays of ``gradients``.
    """
    rng, step, seen = np.random.default_rng(7), 1e-6, []
    for path, gradient in jax.tree.leaves_with_path(gradients):
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


@pytest.mark.quick(4)
@pytest.mark.parametrize(("order", "branch"), COMBINATIONS, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_a_striding_unit_is_its_row_of_figure_4_and_so_is_its_gradient(order: type[Order], branch: str) -> None:
    """Forward, running statistics and gradient, in training and not. With a projection; Fixup, which normalises nothing, with option A."""
    both = branch in ("Basic", "Bottleneck", "reduction")
    made, strides, groups = BRANCHES[branch]
    shortcut = ZeroPad if order is Fixup else Projection
    unit = filled(lambda rngs: Unit(3, 4, 2, branch=made, shortcut=shortcut, order=order, rngs=rngs))
    x, values = random(2, 5, 4, 3), variables(unit)
    weights = random(2, 3, 2, unit.out_features, seed=1)
    if not both:
        close(unit(jnp.asarray(x)), composed(values, x, order, strides(2), groups=groups)[0])
    for train, (gradients, (y, after)) in slopes(unit, x, weights, (True, False) if both else (True,)).items():
        run = functools.partial(composed, order=order, strides=strides(2), groups=groups, train=train)
        expected, statistics = run(values, x)
        close(y, expected)
        same_statistics(statistics_of(after), statistics)

        def formula(at: Any, run: Any = run) -> float:
            return np.sum(weights * run(at["params"], at["x"])[0])

        same_slopes(gradients, {"params": values, "x": np.float64(x)}, formula)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("order", FIGURE_4)
def test_an_identity_unit_adds_its_raw_input_but_the_networks_first_adds_the_preactivation(order: type[Order], first: bool) -> None:
    """He et al. 2016, Appendix: "we adopt the first activation right after conv1 and before splitting into two paths"."""
    unit = filled(lambda rngs: Unit(4, 4, 1, order=order, first=first, rngs=rngs))
    x, values = random(2, 5, 4, 4), variables(unit)
    expected, other = (composed(values, x, order, (1, 1), first=flag)[0] for flag in (first, not first))
    close(unit(jnp.asarray(x)), expected)
    assert np.allclose(expected, other) is (order not in PREACTIVATED)


@pytest.mark.parametrize("order", FIGURE_4)
def test_a_plain_unit_is_its_branch_in_its_order(order: type[Order]) -> None:
    unit = filled(lambda rngs: Unit(3, 4, 2, shortcut=NoShortcut, order=order, rngs=rngs))
    x = random(2, 5, 4, 3)
    close(unit(jnp.asarray(x)), composed(variables(unit), x, order, (2, 1), plain=True)[0])


@pytest.mark.parametrize("order", FIGURE_4)
@pytest.mark.parametrize(("in_features", "stride"), [(3, 1), (4, 2)])
def test_a_unit_that_changes_width_or_size_alone_hands_over_its_preactivation(order: type[Order], in_features: int, stride: int) -> None:
    """He et al. 2016, Section 4.1: "these projection shortcuts are also with preactivation"."""
    unit = filled(lambda rngs: Unit(in_features, 4, stride, order=order, rngs=rngs))
    x = random(2, 5, 4, in_features)
    close(unit(jnp.asarray(x)), composed(variables(unit), x, order, (stride, 1))[0])


@pytest.mark.parametrize("shortcut", [Projection, ProjectionEverywhere])
@pytest.mark.parametrize("order", [order for order in FIGURE_4 if order is not Fixup])
def test_a_projection_is_normalised_unless_its_input_is(order: type[Order], shortcut: Any) -> None:
    values = variables(filled(lambda rngs: Unit(3, 4, 2, shortcut=shortcut, order=order, rngs=rngs)))
    carry = values["shortcut"]["carry"]
    assert ("norm" in carry.get("projection", carry)) is (order is not FullPreactivation)


@pytest.mark.parametrize("order", [FullPreactivation, ReluOnlyPreactivation, ReluBeforeAddition])
def test_a_concatenation_keeps_the_raw_input_beside_the_branch(order: type[Order]) -> None:
    """Huang et al. 2017 (arXiv 1608.06993), eq. 2, in the network's first unit too."""
    unit = filled(lambda rngs: Unit(3, 4, 1, shortcut=Concatenation, order=order, first=True, rngs=rngs))
    x = random(2, 5, 4, 3)
    close(unit(jnp.asarray(x)), np.concatenate([x, composed(variables(unit), x, order, (1, 1), plain=True)[0]], axis=3))
    assert unit.out_features == 7


def test_what_follows_the_addition_is_as_wide_as_the_concatenation() -> None:
    values = variables(filled(lambda rngs: Unit(3, 4, 1, shortcut=Concatenation, order=NormAfterAddition, rngs=rngs)))
    assert values["after"]["layers"][0]["scale"].shape == (7,)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("multiplier", [[0.0], [1.0], [-0.7], [0.0, 2.5]])
@pytest.mark.parametrize("order", [Original, NormAfterAddition, FullPreactivation])
def test_a_multiplier_is_a_factor_on_the_branch_of_all_images_or_of_each(order: type[Order], multiplier: list[float], train: bool) -> None:
    """It stands before the addition: what a shortcut carries, and what follows, is not multiplied."""
    unit = filled(lambda rngs: Unit(3, 4, 2, shortcut=Projection, order=order, rngs=rngs))
    x, values = random(2, 5, 4, 3), variables(unit)
    without = copy.deepcopy(unit)(jnp.asarray(x), train=train)
    actual = unit(jnp.asarray(x), train=train, multiplier=jnp.asarray(multiplier))
    expected, statistics = composed(values, x, order, (2, 1), train=train, multiplier=multiplier)
    close(actual, expected)
    same_statistics(statistics_of(variables(unit)), statistics)
    assert np.array_equal(actual, without) is (multiplier == [1.0])


def test_branch_and_shortcut_get_a_key_each_and_only_if_they_name_it() -> None:
    seen: dict[str, Any] = {}

    class Random(nnx.Module):
        def __init__(self, in_features: int, features: int, stride: int, rngs: nnx.Rngs):
            self.out_features = features

        def __call__(self, x: jax.Array, *, key: Any = None) -> jax.Array:
            seen["branch"] = key
            return x

    class Beside(nnx.Module):
        def __init__(self, in_features: int, features: int, stride: int, rngs: nnx.Rngs):
            pass

        def __call__(self, x: jax.Array, branch: jax.Array, *, key: Any) -> jax.Array:
            seen["shortcut"] = key
            return x + branch

    unit = Unit(2, 2, 1, branch=Random, shortcut=Beside, rngs=nnx.Rngs(0))
    unit(jnp.ones((1, 2, 2, 2)))
    assert seen == {"branch": None, "shortcut": None}
    unit(jnp.ones((1, 2, 2, 2)), key=jax.random.key(3))
    drawn = [jax.random.key_data(key).tolist() for key in (*seen.values(), jax.random.key(3))]
    assert len({tuple(key) for key in drawn}) == 3


def test_dropout_inside_and_beside_is_random_while_training_only_and_needs_a_key() -> None:
    unit = filled(lambda rngs: Unit(4, 4, 1, branch=configured(Basic, dropout=0.5), shortcut=DropoutShortcut, rngs=rngs))
    x = jnp.asarray(random(2, 5, 4, 4))
    one, again, other = (copy.deepcopy(unit)(x, train=True, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, other)
    np.testing.assert_array_equal(unit(x), unit(x, key=jax.random.key(0)))
    with pytest.raises(UserError, match="key=jax.random.key"):
        unit(x, train=True)


@pytest.mark.parametrize("branch", ["Basic", "BottleneckV15", "groups"])
def test_a_dilated_unit_spreads_its_3x3_kernels(branch: str) -> None:
    made, strides, groups = BRANCHES[branch]
    unit = filled(lambda rngs: Unit(3, 4, 1, branch=made, shortcut=Projection, dilation=(2, 2), rngs=rngs))
    x, values = random(2, 7, 6, 3), variables(unit)
    close(unit(jnp.asarray(x)), composed(values, x, Original, strides(1), groups=groups, dilation=2)[0])


class Twice(nnx.Module):
    """A branch of a user's, as short as it can be."""

    def __init__(self, in_features: int, features: int, stride: int, rngs: nnx.Rngs):
        self.out_features = features

    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * x


class Negated(nnx.Module):
    """A layer of a user's."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        pass

    def __call__(self, x: jax.Array) -> jax.Array:
        return -x


def test_a_users_branch_in_a_users_order() -> None:
    """By hand: -(x + 2 (-x)) = x, and where the unit is the first and shares, -(-x + 2 (-x)) = 3x."""

    class Upside(Order):
        before_convolution = (Negated,)
        after_addition = (Negated,)
        shares_first = True

    x = jnp.asarray(random(1, 2, 2, 3))
    for first, factor in ((False, 1), (True, 3)):
        unit = Unit(3, 3, 1, branch=Twice, order=Upside, first=first, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(unit(x), factor * x, rtol=1e-6)


def test_a_branch_that_does_not_name_dilation_is_refused_for_it() -> None:
    with pytest.raises(UserError, match="Twice.*cannot be dilated") as error:
        Unit(3, 3, 1, branch=Twice, dilation=(2, 2), rngs=nnx.Rngs(0))
    assert "\n" not in str(error.value)


def test_a_unit_makes_its_layers_and_its_shortcut_from_the_factories_it_is_given() -> None:
    made: list[tuple[Any, ...]] = []

    class Layer(nnx.Module):
        def __init__(self, *shape: int, dilation: int = 1, groups: int = 1, rngs: nnx.Rngs):
            made.append(shape)

    Unit(3, 4, 2, branch=Bottleneck, shortcut=Projection, conv=Layer, norm=Layer, rngs=nnx.Rngs(0))
    convolutions, norms = [(3, 4, 1, 2), (4, 4, 3, 1), (4, 16, 1, 1), (3, 16, 1, 2)], [(4,), (4,), (16,), (16,)]
    assert sorted(made) == sorted(convolutions + norms)


@pytest.mark.parametrize("norm", [configured(GroupNorm, num_groups=1), NoNorm])
@pytest.mark.parametrize("order", [Original, NormAfterAddition, FullPreactivation])
def test_a_normalisation_without_a_mode_stands_where_batch_normalisation_would(order: type[Order], norm: Any) -> None:
    """As many, as wide; the same result in training and not."""
    plain, other = (filled(lambda rngs, n=n: Unit(3, 4, 2, shortcut=Projection, order=order, rngs=rngs, **n)) for n in ({}, {"norm": norm}))
    widths = [[layer["bias"].shape for layer in scalars_and_norms(variables(unit))] for unit in (plain, other)]
    assert widths[0] == widths[1]
    x = jnp.asarray(random(2, 5, 4, 3))
    np.testing.assert_array_equal(other(x, train=True), other(x, train=False))


@pytest.mark.parametrize("order", FIGURE_4)
def test_a_unit_computes_in_the_dtype_of_its_input(order: type[Order]) -> None:
    unit = filled(lambda rngs: Unit(3, 4, 2, order=order, shortcut=Projection, rngs=rngs))
    x = jnp.asarray(random(2, 5, 4, 3))
    halved = unit(x.astype(jnp.bfloat16))
    assert halved.dtype == jnp.bfloat16
    close(halved, unit(x), tolerance=0.05)


def test_a_formula_with_a_float32_parameter_does_not_raise_the_networks_dtype() -> None:
    class Weighted(nnx.Module):
        def __init__(self, in_features: int, features: int, stride: int, rngs: nnx.Rngs):
            self.alpha = nnx.Param(jnp.ones(()))

        def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
            return x + self.alpha[...] * branch

    assert Unit(2, 2, 1, branch=Twice, shortcut=Weighted, rngs=nnx.Rngs(0))(jnp.ones((1, 2, 2, 2), jnp.bfloat16)).dtype == jnp.bfloat16
