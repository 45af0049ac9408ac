"""Shortcuts against their formulas in NumPy float64, forward and gradient, and classes that a user writes elsewhere in whole networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import close, random
from test_layers import call, conv, filled, follows, normalise, project, same_statistics, variables
from test_resizing import CARRIES, UNCHANGED, zero_pad

import resnet_jax.shortcuts
from resnet_jax.configured import Factory, configured
from resnet_jax.errors import UserError
from resnet_jax.models import asking, shortcuts
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.execution import Execution, quick_to_compile
from resnet_jax.models.layers import Conv
from resnet_jax.models.norms import BatchNorm, NoNorm
from resnet_jax.models.orders import Order
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import (
    Concatenation,
    DropoutShortcut,
    ExclusiveGating,
    LearnedScalar,
    NoShortcut,
    PooledProjection,
    PooledZeroPad,
    Projection,
    ProjectionEverywhere,
    Scaled,
    ShortcutOnlyGating,
    ZeroPad,
)
from resnet_jax.models.stems import SmallImageStem

Values = dict[str, Any]
# In and out features, stride; test_resizing has more.
SHAPES = [UNCHANGED, (3, 6, 2)]


def pair(in_features: int, out_features: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """What meets in a unit: its input, and its branch's output."""
    return random(2, 5, 6, in_features), random(2, -(-5 // stride), -(-6 // stride), out_features, seed=1)


def gate(values: Values, x: np.ndarray, stride: int) -> np.ndarray:
    """He et al. 2016, Section 3.1: "g(x) = sigma(W_g x + b_g)", "a 1x1 convolutional layer"."""
    return 1 / (1 + np.exp(-(conv(x, values["gate"]["kernel"], stride) + values["gate_bias"])))


# Of the variables, x as it is carried, the branch, and the gate where there is one.
Merge = Callable[[Values, np.ndarray, np.ndarray, np.ndarray | None], np.ndarray]


def add(v: Values, x: np.ndarray, y: np.ndarray, g: np.ndarray | None) -> np.ndarray:
    return x + y


# Factory, the name of how it carries x, and what is made of both.
MERGES: dict[str, tuple[Factory, str, Merge]] = {
    "ZeroPad": (ZeroPad, "pad", add),
    "Projection": (Projection, "project", add),
    "ProjectionEverywhere": (ProjectionEverywhere, "project-always", add),
    "PooledProjection": (PooledProjection, "pool-project", add),
    "PooledZeroPad": (PooledZeroPad, "pool-pad", add),
    "Scaled": (Scaled, "pad", lambda v, x, y, g: 0.5 * x + 0.5 * y),
    "Scaled(0.25, 3)": (configured(Scaled, shortcut=0.25, branch=3.0, resize="project"), "project", lambda v, x, y, g: 0.25 * x + 3 * y),
    "ExclusiveGating": (ExclusiveGating, "pad", lambda v, x, y, g: (1 - g) * x + g * y),
    "ExclusiveGating, projecting": (configured(ExclusiveGating, resize="project"), "project", lambda v, x, y, g: (1 - g) * x + g * y),
    "ShortcutOnlyGating": (ShortcutOnlyGating, "pad", lambda v, x, y, g: (1 - g) * x + y),
    "ShortcutOnlyGating, pooling": (
        configured(ShortcutOnlyGating, resize="pool-project"),
        "pool-project",
        lambda v, x, y, g: (1 - g) * x + y,
    ),
    "LearnedScalar": (LearnedScalar, "pad", lambda v, x, y, g: x + v["alpha"] * y),
    "SkipInit": (shortcuts.OPTIONS["SkipInit"], "project", lambda v, x, y, g: x + v["alpha"] * y),
    "DropoutShortcut at test": (configured(DropoutShortcut, rate=0.3), "pad", lambda v, x, y, g: 0.7 * x + y),
}


@pytest.mark.quick(15)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("name", "train"),
    [(name, train) for name in MERGES for train in (True, False) if "project" in MERGES[name][1] or train != ("at test" in name)],
)
def test_a_shortcut_is_its_formula(name: str, shape: tuple[int, int, int], train: bool) -> None:
    """He et al. 2015, eqs. 1 and 2; 2016, Section 3.1; ReZero, eq. 3. By x, the branch and every parameter."""
    (factory, how, merge), (_, out, stride) = MERGES[name], shape

    def formula(values: Values, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        g = gate(values, x, stride) if "gate" in values else None
        return merge(values, CARRIES[how](values.get("carry", {}), x, out, stride, train), y, g)

    follows(filled(lambda rngs: factory(*shape, rngs)), formula, *pair(*shape), train=train)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_shortcut_is_the_branch_alone(shape: tuple[int, int, int]) -> None:
    """He et al. 2015, Section 3.3, "Plain Network"."""
    x, y = pair(*shape)
    np.testing.assert_array_equal(call(NoShortcut(*shape, nnx.Rngs(0)), x, y)[0], y)
    follows(NoShortcut(*shape, nnx.Rngs(0)), lambda v, x, y: y + 0 * x.sum(), x, y)


@pytest.mark.parametrize(("in_features", "out_features"), [(3, 2), (2, 5)])
def test_a_concatenation_has_x_before_the_branch(in_features: int, out_features: int) -> None:
    """DenseNet (Huang et al. 2017), eq. 2: "[x_0, x_1, ...]", the growth appended. Any widths meet."""
    shortcut = Concatenation(in_features, out_features, 1, nnx.Rngs(0))
    assert shortcut.merged_features == in_features + out_features
    follows(shortcut, lambda v, x, y: np.concatenate([x, y], -1), *pair(in_features, out_features, 1))


def test_a_concatenation_refuses_a_stride_and_says_what_to_use() -> None:
    with pytest.raises(UserError, match="cannot follow a stride of 2: give the network a transition"):
        Concatenation(3, 2, 2, nnx.Rngs(0))


@pytest.mark.parametrize(("name", "shape"), [("pad", UNCHANGED), ("pad", (3, 5, 2)), ("project", (3, 5, 2))])
def test_dropout_drops_while_it_trains_and_does_not_scale(name: str, shape: tuple[int, int, int]) -> None:
    """He et al. 2016, Section 3.1, after Hinton et al. 2012: the mask is found in the result, all else is its formula."""
    key, (_, out, stride), (x, y) = jax.random.key(3), shape, pair(*shape)
    shortcut = filled(lambda rngs: DropoutShortcut(*shape, rngs, resize=name))

    def carried(values: Values, x: np.ndarray) -> np.ndarray:
        return CARRIES[name](values.get("carry", {}), np.float64(x), out, stride, True)

    whole = carried(variables(shortcut), x)
    mask = np.abs(np.float64(call(shortcut, x, y, train=True, key=key)[0]) - y) > np.abs(whole) / 2
    assert mask[whole != 0].any()
    assert not mask[whole != 0].all()
    follows(shortcut, lambda v, x, y: carried(v, x) * mask + y, x, y, train=True, key=key)


def dropped(rate: float, seed: int, shape: tuple[int, ...] = (8, 16, 16, 16)) -> np.ndarray:
    """Where dropout took away an input of ones."""
    shortcut, zeros = DropoutShortcut(shape[3], shape[3], 1, nnx.Rngs(0), rate=rate), jnp.zeros(shape)
    kept = np.asarray(call(shortcut, zeros + 1, zeros, train=True, key=jax.random.key(seed))[0])
    assert set(np.unique(kept)) <= {0, 1}
    return kept == 0


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_dropout_drops_values_one_by_one_at_its_rate(rate: float) -> None:
    """As often, and as often unlike the neighbour along every axis, as independent draws: to five standard errors."""
    mask = dropped(rate, 0)
    assert abs(mask.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / mask.size)
    unlike = 2 * rate * (1 - rate)
    for axis in range(4):
        changes = np.diff(mask, axis=axis)
        assert abs(changes.mean() - unlike) < 5 * np.sqrt(2 * unlike * (1 - unlike) / changes.size)  # neighbours share a draw


def test_dropout_is_drawn_from_its_key() -> None:
    first, again, other = (dropped(0.5, seed, (2, 8, 8, 8)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert abs((first == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(first.size)
    assert not dropped(0.0, 1, (2, 8, 8, 8)).any()


def test_dropout_scales_by_one_half_at_test_time_where_nothing_else_is_said() -> None:
    """He et al. 2016, Section 3.1 and Table 1: rate 0.5. A key changes nothing then."""
    (x, y), shortcut = pair(*UNCHANGED), DropoutShortcut(*UNCHANGED, nnx.Rngs(0))
    close(call(shortcut, x, y, train=False)[0], 0.5 * np.float64(x) + y, tolerance=1e-6)
    np.testing.assert_array_equal(*(call(shortcut, x, y, train=False, key=key)[0] for key in (None, jax.random.key(0))))


def test_dropout_without_a_key_is_refused_in_a_sentence() -> None:
    x, y = (jnp.asarray(a) for a in pair(*UNCHANGED))
    with pytest.raises(UserError, match="dropout on the shortcut is random while training: call the network with key="):
        DropoutShortcut(*UNCHANGED, nnx.Rngs(0))(x, y, train=True)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_dropout_refuses_what_is_no_rate(rate: float) -> None:
    with pytest.raises(UserError, match=f"DropoutShortcut\\(rate={rate}\\): give 0 or more and less than 1"):
        DropoutShortcut(*UNCHANGED, nnx.Rngs(0), rate=rate)


# What one is of another.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("factory", "same"),
    [
        pytest.param(configured(Scaled, shortcut=1.0, branch=1.0), ZeroPad, id="Scaled(1,1)"),
        pytest.param(configured(Scaled, shortcut=0.0, branch=1.0), NoShortcut, id="Scaled(0,1)"),
        pytest.param(configured(ShortcutOnlyGating, bias=-30.0), ZeroPad, id="a gate that is shut"),
        pytest.param(configured(ExclusiveGating, bias=30.0), NoShortcut, id="a gate that is open"),
        pytest.param(configured(LearnedScalar, initial=1.0), ZeroPad, id="LearnedScalar(1)"),
        pytest.param(configured(DropoutShortcut, rate=0.0), ZeroPad, id="DropoutShortcut(0)"),
    ],
)
def test_at_its_ends_a_shortcut_is_a_simpler_one(factory: Factory, same: Any, shape: tuple[int, int, int]) -> None:
    """He et al. 2016, Section 3.1: lambda = 1 is the identity shortcut, 0 the plain network; 1 - g likewise."""
    x, y = pair(*shape)
    shortcut, simpler = factory(*shape, nnx.Rngs(0)), same(*shape, nnx.Rngs(0))
    if hasattr(shortcut, "gate"):
        shortcut.gate.kernel[...] = jnp.zeros(shortcut.gate.kernel.shape)
    wanted = call(simpler, x, y, **({"train": False} if same is ZeroPad else {}))[0]
    for train in (True, False):
        actual = call(shortcut, x, y, train=train, **({"key": jax.random.key(0)} if hasattr(shortcut, "rate") else {}))[0]
        if factory == configured(ExclusiveGating, bias=30.0):
            close(actual, wanted, tolerance=1e-6)
        else:
            np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_learned_scalar_carries_x_alone_at_first(shape: tuple[int, int, int]) -> None:
    """ReZero, Section 3: alpha begins at 0, so every unit is the identity."""
    x, y = pair(*shape)
    shortcut = LearnedScalar(*shape, nnx.Rngs(0))
    assert variables(shortcut) == {"alpha": 0}
    np.testing.assert_array_equal(call(shortcut, x, y, train=True)[0], np.float32(zero_pad(x, *shape[1:])))


def test_skipinit_projects_and_starts_at_zero() -> None:
    """De and Smith 2020, Section 4: a scalar, initially 0, at the end of each branch; beside it a projection where sizes change."""
    shortcut = filled(lambda rngs: shortcuts.OPTIONS["SkipInit"](3, 5, 2, rngs))
    assert variables(shortcut)["carry"]["projection"]["conv"]["kernel"].shape == (1, 1, 3, 5)
    assert variables(shortcuts.OPTIONS["SkipInit"](4, 4, 1, nnx.Rngs(0))) == {"alpha": 0}


@pytest.mark.parametrize("gating", [ExclusiveGating, ShortcutOnlyGating])
@pytest.mark.parametrize(("arguments", "bias"), [({}, -6), ({"bias": -7.0}, -7), ({"bias": -3}, -3)])
def test_gates_start_shut(gating: Any, arguments: dict[str, float], bias: float) -> None:
    """He et al. 2016, Table 1: the best initial b_g is -6; a bias for each channel of the branch, a 1x1 kernel."""
    values = variables(configured(gating, **arguments)(3, 5, 2, nnx.Rngs(0)))
    np.testing.assert_array_equal(values["gate_bias"], np.full(5, bias))
    assert values["gate"]["kernel"].shape == (1, 1, 3, 5)
    assert values["gate"]["kernel"].std() > 0.1  # drawn: sqrt(2 / 3) is expected


def test_a_gate_far_from_zero_keeps_its_digits() -> None:
    """1 - sigmoid(20) in float32 is 0; sigmoid(-20) is 2.061e-9."""
    shortcut = configured(ExclusiveGating, bias=20.0)(1, 1, 1, nnx.Rngs(0))
    shortcut.gate.kernel[...] = jnp.zeros((1, 1, 1, 1))
    one = jnp.ones((1, 1, 1, 1))
    np.testing.assert_allclose(call(shortcut, one, 0 * one, train=True)[0], np.exp(-20) / (1 + np.exp(-20)), rtol=1e-5)


def test_the_names_of_the_papers() -> None:
    """He et al. 2015, Section 4.1: options A, B and C; D as in ResNet-D."""
    assert {
        "none": NoShortcut,
        "A": ZeroPad,
        "B": Projection,
        "C": ProjectionEverywhere,
        "D": PooledProjection,
        "ReZero": LearnedScalar,
        "SkipInit": configured(LearnedScalar, resize="project"),
    } == shortcuts.OPTIONS


def test_all_shortcuts_are_found_where_a_reader_looks_first() -> None:
    public = {name for name, value in vars(shortcuts).items() if isinstance(value, type) and value.__module__ == shortcuts.__name__}
    assert {name for name in public if name[0] != "_"} | {"OPTIONS"} == set(resnet_jax.shortcuts.__all__)
    assert all(getattr(resnet_jax.shortcuts, name) is getattr(shortcuts, name) for name in resnet_jax.shortcuts.__all__)


@pytest.mark.parametrize("factory", [ZeroPad, Scaled, LearnedScalar, ShortcutOnlyGating, DropoutShortcut])
def test_what_pads_refuses_to_shrink_and_says_what_to_use(factory: Any) -> None:
    with pytest.raises(ValueError, match="8 features to 4.*Projection"):
        factory(8, 4, 1, nnx.Rngs(0))


def test_a_projection_shrinks() -> None:
    shape = (6, 4, 1)
    follows(
        filled(lambda rngs: Projection(*shape, rngs)),
        lambda v, x, y: project(v["carry"]["projection"], x, 1)[0] + y,
        *pair(*shape),
        train=False,
    )


@pytest.mark.parametrize("factory", [Projection, ProjectionEverywhere, configured(ShortcutOnlyGating, resize="project")], ids=str)
def test_the_statistics_of_a_shortcuts_normalisation_run_in_training(factory: Factory) -> None:
    shape = (3, 5, 2)
    shortcut = filled(lambda rngs: factory(*shape, rngs))
    carry = variables(shortcut)["carry"]
    x, y = pair(*shape)
    after = call(shortcut, x, y, train=True)[1]["carry"]
    _, running = project(carry.get("projection", carry), x, 2, train=True)
    same_statistics(after.get("projection", after)["norm"], running)


# Classes as a user writes them: nothing of the package is inherited or registered.


class Minimal(nnx.Module):
    """Half of option A; no more than what the contract names."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        self.missing, self.stride = out_features - in_features, stride

    def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        return 0.5 * jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0),) * 3 + ((0, self.missing),)) + branch


class KeywordOnly(nnx.Module):
    """Keyword-only ``rngs`` and a layer of its own."""

    def __init__(self, in_features: int, out_features: int, stride: int, *, rngs: nnx.Rngs):
        self.stride = stride
        self.mix = nnx.Linear(in_features, out_features, rngs=rngs)

    def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        return self.mix(x[:, :: self.stride, :: self.stride]) + branch


class AsksForTrain(Minimal):
    """Drops what travels beside the branch while it trains."""

    def __call__(self, x: jax.Array, branch: jax.Array, train: bool) -> jax.Array:
        return branch if train else super().__call__(x, branch)


class AsksForFactories(nnx.Module):
    """The network's own layers, in the other order."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs, *, conv: Any, norm: Any):
        self.norm = norm(in_features, rngs=rngs)
        self.conv = conv(in_features, out_features, 1, stride, rngs=rngs)

    def __call__(self, x: jax.Array, branch: jax.Array, *, train: bool = False) -> jax.Array:
        return self.conv(self.norm(x, train=train)) + branch


class TakesAnything(nnx.Module):
    """Whatever the package has to offer, by **kwargs."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs, **layers: Any):
        assert layers.keys() == {"conv", "norm"}
        self.conv = layers["conv"](in_features, out_features, 3, stride, rngs=rngs)

    def __call__(self, x: jax.Array, branch: jax.Array, **mode: Any) -> jax.Array:
        assert mode.keys() == {"train", "key"}
        return self.conv(x) + branch


class AsksForKey(Minimal):
    """Noise beside the branch, where there is a key."""

    def __call__(self, x: jax.Array, branch: jax.Array, *, key: Any = None) -> jax.Array:
        noise = 0 if key is None else jax.random.normal(key, branch.shape)
        return super().__call__(x, branch) + noise


Formula = Callable[[Values, np.ndarray, int, int], np.ndarray]
USERS: dict[type[nnx.Module], Formula] = {
    Minimal: lambda v, x, out, s: 0.5 * zero_pad(x, out, s),
    KeywordOnly: lambda v, x, out, s: x[:, ::s, ::s] @ v["mix"]["kernel"] + v["mix"]["bias"],
    AsksForTrain: lambda v, x, out, s: 0.5 * zero_pad(x, out, s),
    AsksForFactories: lambda v, x, out, s: conv(normalise(x, v["norm"], train=False)[0], v["conv"]["kernel"], s),
    AsksForKey: lambda v, x, out, s: 0.5 * zero_pad(x, out, s),
    TakesAnything: lambda v, x, out, s: conv(x, v["conv"]["kernel"], s),
}


def branch(values: Values, x: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
    """Convolution and normalisation in turn, ReLU between them but not at the end."""
    for index, stride in enumerate(strides):
        x = conv(np.maximum(x, 0) if index else x, values["convs"][index]["kernel"], stride)
        x = normalise(x, values["after"][index]["layers"][0], train=False)[0]
    return x


def network(values: Values, x: np.ndarray, features: tuple[int, ...], shortcut: Formula) -> np.ndarray:
    """Logits of a network of basic units in inference mode: stem, units, mean over pixels, linear layer."""
    stem = values["stem"]
    x = np.maximum(normalise(conv(x, stem["conv"]["kernel"], 1), stem["after"]["layers"][0], train=False)[0], 0)
    for stage, wide in enumerate(features):
        for index, stack in values["stages"][stage].items():
            for i in range(len(stack["stacked"]["branch"]["convs"][0]["kernel"])):
                unit = jax.tree.map(lambda a, i=i: a[i], stack["stacked"])
                stride = 2 if stage and not index and not i else 1
                x = np.maximum(shortcut(unit.get("shortcut", {}), x, wide, stride) + branch(unit["branch"], x, (stride, 1)), 0)
    return x.mean((1, 2)) @ values["head"]["linear"]["kernel"] + values["head"]["linear"]["bias"]


@pytest.mark.quick(3)
@pytest.mark.parametrize("blocks", ["loop", "scan"])
@pytest.mark.parametrize("shortcut", USERS)
def test_a_users_class_works_in_a_whole_network(shortcut: type[nnx.Module], blocks: Any) -> None:
    """Logits of loop and scan equal the network's formula in float64 with the user's formula in it."""
    features, execution = (3, 5), Execution(blocks=blocks)
    structure: dict[str, Any] = dict(stages=(1, 3), features=features, stem=SmallImageStem, num_classes=4)
    model = filled(lambda rngs: ResNet(**structure, shortcut=shortcut, execution=execution, rngs=rngs))
    x = random(2, 6, 6, 3)
    close(call(model, x)[0], network(variables(model), x, features, USERS[shortcut]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_users_class_is_differentiated(shape: tuple[int, int, int]) -> None:
    """Made and called as a unit makes and calls them, alone."""
    for factory, formula in USERS.items():
        shortcut = filled(lambda rngs, factory=factory: asking.make(factory, *shape, conv=Conv, norm=BatchNorm, rngs=rngs))
        x, y = pair(*shape)
        asked = Asking(shortcut)
        follows(asked, lambda v, x, y, formula=formula: formula(v.get("part", {}), x, *shape[1:]) + y, x, y)


class Asking(nnx.Module):
    """Calls a part in inference mode."""

    def __init__(self, part: nnx.Module):
        self.part = part

    def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        return asking.call(self.part, x, branch, train=False, key=None)


def test_train_reaches_the_call_that_names_it_and_no_other() -> None:
    x, y = (jnp.asarray(a) for a in pair(3, 3, 1))
    asks = AsksForTrain(3, 3, 1, nnx.Rngs(0))
    np.testing.assert_array_equal(asking.call(asks, x, y, train=True, key=None), y)
    for shortcut, train in ((asks, False), (Minimal(3, 3, 1, nnx.Rngs(0)), True), (Minimal(3, 3, 1, nnx.Rngs(0)), False)):
        np.testing.assert_array_equal(asking.call(shortcut, x, y, train=train, key=None), 0.5 * x + y)


def test_a_key_reaches_the_call_that_names_it_and_no_other() -> None:
    (x, y), key = (jnp.asarray(a) for a in pair(3, 3, 1)), jax.random.key(5)
    asks, minimal = (factory(3, 3, 1, nnx.Rngs(0)) for factory in (AsksForKey, Minimal))
    np.testing.assert_array_equal(asking.call(asks, x, y, train=True, key=key), 0.5 * x + y + jax.random.normal(key, y.shape))
    np.testing.assert_array_equal(asking.call(minimal, x, y, train=True, key=key), 0.5 * x + y)


@pytest.mark.parametrize("blocks", ["loop", "scan"])
def test_a_network_hands_every_unit_a_key_of_its_own(blocks: Any) -> None:
    """Units of zero branches and no normalisation that only add noise: their number is the variance of the last map."""

    class Noise(NoShortcut):
        def __call__(self, x: jax.Array, branch: jax.Array, *, key: Any) -> jax.Array:
            return x + jax.random.normal(key, branch.shape)

    class Bare(Order):
        after_stem = ()

    structure: dict[str, Any] = dict(stages=(4,), features=(8,), order=Bare, norm=NoNorm, num_classes=2, execution=Execution(blocks=blocks))
    model = filled(lambda rngs: ResNet(**structure, shortcut=Noise, rngs=rngs))
    graphdef, state = nnx.split(model)
    images = jnp.zeros((4, 16, 16, 3))

    def last(key: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).features(images, True, key=key)["stage1"]

    last = jax.jit(last, compiler_options=quick_to_compile())
    noise, again, other = (np.float64(last(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(noise, again)
    assert abs(np.mean(noise * other)) < 5 * 4 / np.sqrt(noise.size)
    # One key for all would give 16. The variance of a sample variance of n normal values is 2 sigma^4 / n.
    assert abs(noise.var() - 4) < 5 * 4 * np.sqrt(2 / noise.size)


def test_a_shortcut_gets_the_networks_own_factories_where_it_names_them() -> None:
    offered: Any = {"conv": lambda *shape, **rngs: "our conv", "norm": lambda *shape, **rngs: "our norm"}

    class OnlyNorm(nnx.Module):
        def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs, norm: Any = None, other: Any = "untouched"):
            self.made, self.other = norm(out_features, rngs=rngs), other

    both = asking.make(AsksForFactories, 3, 5, 2, **offered, rngs=nnx.Rngs(0))
    assert (both.conv, both.norm) == ("our conv", "our norm")
    one = asking.make(OnlyNorm, 3, 5, 2, **offered, rngs=nnx.Rngs(0))
    assert (one.made, one.other) == ("our norm", "untouched")
    assert asking.make(Minimal, 3, 5, 2, **offered, rngs=nnx.Rngs(0)).missing == 2
    built_in = asking.make(Projection, 3, 5, 2, conv=Conv, norm=BatchNorm, rngs=nnx.Rngs(0))
    assert isinstance(built_in.carry.projection.norm, BatchNorm)


def test_what_a_factory_carries_is_not_offered_again() -> None:
    """And what it does not, is: arguments given by ``configured`` and those of the network come together."""

    class Named(nnx.Module):
        def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs, norm: Any = None, conv: Any = None):
            self.names = (norm, conv)

    given = configured(Named, norm="mine")
    assert asking.make(given, 3, 5, 1, norm="the network's", conv="the network's", rngs=nnx.Rngs(0)).names == ("mine", "the network's")
    assert asking.make(configured(Scaled, shortcut=0.25), 3, 5, 1, conv=Conv, norm=BatchNorm, rngs=nnx.Rngs(0)).factors == (0.25, 0.5)


def test_names_tells_what_a_constructor_takes() -> None:
    for factory, expected in {
        Minimal: False,
        AsksForFactories: True,
        TakesAnything: True,
        Scaled: True,
        configured(Scaled, branch=1.0): True,
    }.items():
        assert asking.names(factory, "norm") is expected
    assert not asking.names(Scaled, "dilation")  # its **layers are those of the class it derives from


class Gain(nnx.Module):
    """ReZero's scalar, a float32 parameter, on the branch."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        self.inner = ZeroPad(in_features, out_features, stride, rngs)
        self.alpha = nnx.Param(jnp.zeros(()))

    def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        return self.inner(x, self.alpha[...] * branch, train=False)


class Louder(ZeroPad):
    """Hands on what it does not know."""

    def __init__(self, *args: Any, scale: float = 2.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.scale = scale


@pytest.mark.parametrize("blocks", ["loop", "scan"])
@pytest.mark.parametrize("shortcut", [Gain, Louder])
def test_a_float32_parameter_does_not_raise_the_dtype_of_a_network(shortcut: type[nnx.Module], blocks: Any) -> None:
    architecture = Architecture(stages=(3, 3), features=(4, 8), input_shape=(8, 8, 3), shortcut=shortcut, dtype="bfloat16")
    model = jax.eval_shape(lambda: nnx.split(architecture.build(rngs=nnx.Rngs(0), execution=Execution(blocks=blocks))))
    maps = jax.eval_shape(lambda m, x: nnx.merge(*m).features(x, train=True), model, jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8))
    assert {x.dtype for x in maps.values()} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("factory", "same"),
    [(configured(Scaled, shortcut=1.0, branch=1.0), ZeroPad), (configured(Scaled, shortcut=0.0, branch=1.0), NoShortcut)],
    ids=["identity", "plain"],
)
def test_constant_scaling_ends_at_the_residual_and_the_plain_network(factory: Factory, same: Any) -> None:
    structure: dict[str, Any] = dict(stages=(1, 2), features=(3, 4), num_classes=3)
    scaled, simpler = (filled(lambda rngs, s=s: ResNet(**structure, shortcut=s, rngs=rngs)) for s in (factory, same))
    x = random(2, 6, 6, 3)
    close(call(scaled, x)[0], call(simpler, x)[0], tolerance=1e-6)
