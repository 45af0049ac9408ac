"""Shortcuts against their formulas in NumPy float64, with gradients, and users' classes in whole networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_jax.errors import UserError
from resnet_jax.kernels import quick_to_compile
from resnet_jax.models import Architecture, Execution, ResNet, components, shortcuts
from resnet_jax.models.components import Factory, component
from resnet_jax.models.layers import Conv
from resnet_jax.models.norms import BatchNorm, NoNorm
from resnet_jax.models.orders import Order
from resnet_jax.models.shortcuts import (
    RESIZES,
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

from oracle import Values, call, convolved, filled, follows, normalize, pad, pool, project, random, variables

# In and out features, stride.
UNCHANGED, CHANGED = (4, 4, 1), (3, 6, 2)

Resize = Callable[[Values, np.ndarray, int, int, bool], np.ndarray]
# He et al. 2015, Section 3.3; akamaster's resnet.py: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, planes//4, planes//4)).
FORMULAS: dict[str, Resize] = {
    "pad": lambda v, x, out, s, train: pad(x[:, ::s, ::s], out),
    "pad-both": lambda v, x, out, s, train: pad(x[:, ::s, ::s], out, (out - x.shape[3]) // 2),
    "pool-pad": lambda v, x, out, s, train: pad(pool(x, s), out),
    "project": lambda v, x, out, s, train: project(v["projection"], x, s, train=train)[0] if v else x,
    "pool-project": lambda v, x, out, s, train: project(v["projection"], pool(x, s), 1, train=train)[0] if v else x,
    "project-always": lambda v, x, out, s, train: project(v, x, s, train=train)[0],
}


def pair(in_features: int, out_features: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Input of a block, and its branch's output."""
    return random(2, 5, 6, in_features), random(2, -(-5 // stride), -(-6 // stride), out_features, seed=1)


def gate(values: Values, x: np.ndarray, stride: int) -> np.ndarray:
    """He et al. 2016, Section 3.1: "g(x) = sigma(W_g x + b_g)", "a 1x1 convolutional layer"."""
    return 1 / (1 + np.exp(-(convolved(x, values["gate"]["kernel"], stride) + values["gate_bias"])))


Merge = Callable[[Values, np.ndarray, np.ndarray, Any], np.ndarray]
# Factory, its resize, and the formula of variables, resized x, branch and gate.
MERGES: dict[str, tuple[Factory, str, Merge]] = {
    "ZeroPad": (ZeroPad, "pad", lambda v, x, y, g: x + y),
    "pad-both": (component(ZeroPad, resize="pad-both"), "pad-both", lambda v, x, y, g: x + y),
    "Projection": (Projection, "project", lambda v, x, y, g: x + y),
    "ProjectionEverywhere": (ProjectionEverywhere, "project-always", lambda v, x, y, g: x + y),
    "PooledProjection": (PooledProjection, "pool-project", lambda v, x, y, g: x + y),
    "PooledZeroPad": (PooledZeroPad, "pool-pad", lambda v, x, y, g: x + y),
    "Scaled": (Scaled, "pad", lambda v, x, y, g: 0.5 * x + 0.5 * y),
    "Scaled(0.25, 3)": (component(Scaled, shortcut=0.25, branch=3.0, resize="project"), "project", lambda v, x, y, g: 0.25 * x + 3 * y),
    "ExclusiveGating": (ExclusiveGating, "pad", lambda v, x, y, g: (1 - g) * x + g * y),
    "ShortcutOnlyGating": (component(ShortcutOnlyGating, resize="pool-project"), "pool-project", lambda v, x, y, g: (1 - g) * x + y),
    "LearnedScalar": (LearnedScalar, "pad", lambda v, x, y, g: x + v["alpha"] * y),
    "SkipInit": (shortcuts.OPTIONS["SkipInit"], "project", lambda v, x, y, g: x + v["alpha"] * y),
    "DropoutShortcut in evaluation": (component(DropoutShortcut, rate=0.3), "pad", lambda v, x, y, g: 0.7 * x + y),
}


@pytest.mark.parametrize("name", MERGES)
def test_shortcut_matches_its_formula(name: str) -> None:
    """He et al. 2015, eqs. 1 and 2; 2016, Section 3.1; ReZero, eq. 3. Where shapes change, and where they do not."""
    factory, how, merge = MERGES[name]
    for shape, train in ((CHANGED, "evaluation" not in name), (UNCHANGED, False)):
        _, out, stride = shape

        def formula(values: Values, x: np.ndarray, y: np.ndarray, out: int = out, stride: int = stride, train: bool = train) -> np.ndarray:
            g = gate(values, x, stride) if "gate" in values else None
            return merge(values, FORMULAS[how](values.get("carry", {}), x, out, stride, train), y, g)

        follows(filled(lambda rngs, shape=shape: factory(*shape, rngs)), formula, *pair(*shape), train=train)
    assert RESIZES.keys() == FORMULAS.keys() == {how for _, how, _ in MERGES.values()}


def test_no_shortcut_is_the_branch_and_concatenation_appends_it() -> None:
    """He et al. 2015, Section 3.3, "Plain Network"; DenseNet (Huang et al. 2017), eq. 2."""
    x, y = pair(*CHANGED)
    np.testing.assert_array_equal(NoShortcut(*CHANGED, nnx.Rngs(0))(jnp.asarray(x), jnp.asarray(y)), y)
    shortcut = Concatenation(3, 2, 1, nnx.Rngs(0))
    assert shortcut.merged_features == 5
    follows(shortcut, lambda v, x, y: np.concatenate([x, y], -1), *pair(3, 2, 1))


def test_invalid_shortcuts_are_rejected() -> None:
    cases: list[tuple[Any, tuple[int, int, int], str]] = [
        (Concatenation, (3, 2, 2), "stride of 2: use DenseTransition"),
        *(
            (factory, (8, 4, 1), "cannot shrink 8 features to 4: use a projection")
            for factory in (ZeroPad, PooledZeroPad, ShortcutOnlyGating)
        ),
        *((component(DropoutShortcut, rate=rate), UNCHANGED, f"rate must be in .*, got {rate}") for rate in (-0.1, 1.0)),
        (component(ZeroPad, resize="projet"), UNCHANGED, "resize='projet' is unknown; did you mean .*project"),
    ]
    for factory, shape, message in cases:
        with pytest.raises(UserError, match=message):
            factory(*shape, nnx.Rngs(0))


# Dropout -----------------------------------------------------------------------------------------


def test_dropout_masks_its_formula_in_training() -> None:
    """He et al. 2016, Section 3.1, after Hinton et al. 2012: not rescaled; the mask is found in the result."""
    key, shape, rate = jax.random.key(3), (3, 16, 2), 0.3
    x, y = random(4, 17, 18, 3), random(4, 9, 9, 16, seed=1)
    shortcut = filled(lambda rngs: DropoutShortcut(*shape, rngs, resize="project", rate=rate))

    def resized(values: Values, x: np.ndarray) -> np.ndarray:
        return FORMULAS["project"](values["carry"], np.float64(x), 16, 2, True)

    def mask(seed: int) -> np.ndarray:
        merged = call(shortcut, x, y, train=True, key=jax.random.key(seed))[0]
        return np.abs(np.float64(merged) - y) > np.abs(resized(variables(shortcut), x)) / 2

    kept = mask(3)
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)
    # As often unlike the neighbor along every axis as independent draws, to five standard errors; neighbors share a draw.
    unlike = 2 * rate * (1 - rate)
    for axis in range(4):
        changes = np.diff(kept, axis=axis)
        assert abs(changes.mean() - unlike) < 5 * np.sqrt(2 * unlike * (1 - unlike) / changes.size)
    assert abs((mask(4) != kept).mean() - unlike) < 5 * np.sqrt(unlike * (1 - unlike) / kept.size)
    follows(shortcut, lambda v, x, y: resized(v, x) * kept + y, x, y, train=True, key=key)
    with pytest.raises(UserError, match="dropout on the shortcut is random in training"):
        shortcut(jnp.asarray(x), jnp.asarray(y), train=True)


# Limits and initial values -----------------------------------------------------------------------


def test_initial_values_are_the_papers() -> None:
    """ReZero, Section 3: alpha is 0. He et al. 2016, Table 1: the best initial b_g is -6; a 1x1 kernel, a bias per channel."""
    x, y = map(jnp.asarray, pair(*CHANGED))
    rezero = LearnedScalar(*CHANGED, nnx.Rngs(0))
    assert variables(rezero) == {"alpha": 0}
    np.testing.assert_array_equal(rezero(x, y, train=True), np.float32(pad(np.asarray(x)[:, ::2, ::2], 6)))
    for factory, bias in ((ExclusiveGating, -6), (ShortcutOnlyGating, -6), (component(ExclusiveGating, bias=-3), -3)):
        values = variables(factory(3, 5, 2, nnx.Rngs(0)))
        np.testing.assert_array_equal(values["gate_bias"], np.full(5, bias))
        assert values["gate"]["kernel"].shape == (1, 1, 3, 5)


def test_saturated_gate_keeps_its_digits() -> None:
    """1 - sigmoid(20) in float32 is 0; sigmoid(-20) is 2.061e-9."""
    shortcut = component(ExclusiveGating, bias=20.0)(1, 1, 1, nnx.Rngs(0))
    shortcut.gate.kernel[...] = jnp.zeros((1, 1, 1, 1))
    one = jnp.ones((1, 1, 1, 1))
    np.testing.assert_allclose(shortcut(one, 0 * one, train=True), np.exp(-20) / (1 + np.exp(-20)), rtol=1e-5)


# Users' classes: nothing of the package is inherited or registered -------------------------------


class Minimal(nnx.Module):
    """Half of option A, with the contract's arguments only."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        self.missing, self.stride = out_features - in_features, stride

    def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        return 0.5 * jnp.pad(x[:, :: self.stride, :: self.stride], ((0, 0),) * 3 + ((0, self.missing),)) + branch


class NamesFactories(nnx.Module):
    """The network's own layers, normalization first; ``rngs`` by keyword."""

    def __init__(self, in_features: int, out_features: int, stride: int, *, conv: Any, norm: Any, rngs: nnx.Rngs):
        self.norm = norm(in_features, rngs=rngs)
        self.conv = conv(in_features, out_features, 1, stride, rngs=rngs)

    def __call__(self, x: jax.Array, branch: jax.Array, *, train: bool) -> jax.Array:
        return self.conv(self.norm(x, train=train)) + branch


class TakesAnything(nnx.Module):
    """All optional arguments, by **kwargs."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs, **layers: Any):
        assert layers.keys() == {"conv", "norm"}
        self.conv = layers["conv"](in_features, out_features, 3, stride, rngs=rngs)

    def __call__(self, x: jax.Array, branch: jax.Array, **mode: Any) -> jax.Array:
        assert mode.keys() == {"train", "key"}
        return self.conv(x) + branch


USERS: dict[type[nnx.Module], Callable[[Values, np.ndarray, int, int], np.ndarray]] = {
    Minimal: lambda v, x, out, s: 0.5 * pad(x[:, ::s, ::s], out),
    NamesFactories: lambda v, x, out, s: convolved(normalize(x, v["norm"], train=False)[0], v["conv"]["kernel"], s),
    TakesAnything: lambda v, x, out, s: convolved(x, v["conv"]["kernel"], s),
}


class InEvaluation(nnx.Module):
    """Calls a part as a block does."""

    def __init__(self, part: nnx.Module):
        self.part = part

    def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        return self.part(x, branch, **components.accepted(self.part, train=False, key=None))


@pytest.mark.parametrize("factory", USERS)
def test_user_shortcut_matches_its_formula(factory: type[nnx.Module]) -> None:
    """Constructed and called as a block does, with gradients."""
    part = filled(lambda rngs: components.make(factory, *CHANGED, conv=Conv, norm=BatchNorm, rngs=rngs))
    follows(InEvaluation(part), lambda v, x, y: USERS[factory](v.get("part", {}), x, *CHANGED[1:]) + y, *pair(*CHANGED))


def test_blocks_receive_different_keys() -> None:
    """Blocks without branch and normalization that only add noise: their number is the variance of the last map."""

    class Noise(NoShortcut):
        def __call__(self, x: jax.Array, branch: jax.Array, *, key: Any) -> jax.Array:
            return x + jax.random.normal(key, branch.shape)

    class Bare(Order):
        after_stem = ()

    structure: dict[str, Any] = dict(stages=(4,), features=(8,), order=Bare, norm=NoNorm, shortcut=Noise)
    model = filled(lambda rngs: ResNet(Architecture(**structure), execution=Execution(blocks="scan"), rngs=rngs))
    graphdef, state = nnx.split(model)

    def last(key: jax.Array) -> jax.Array:
        return nnx.merge(graphdef, state).features(jnp.zeros((4, 16, 16, 3)), True, key=key)["stage1"]

    last = jax.jit(last, compiler_options=quick_to_compile())
    noise, again, other = (np.float64(last(jax.random.key(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(noise, again)
    assert abs(np.mean(noise * other)) < 5 * 4 / np.sqrt(noise.size)
    # One key for all would give 16. The variance of a sample variance of n normal values is 2 sigma^4 / n.
    assert abs(noise.var() - 4) < 5 * 4 * np.sqrt(2 / noise.size)
