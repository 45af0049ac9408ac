"""Shortcuts against their formulas in NumPy float64, and classes that a user writes elsewhere in whole networks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_blocks import branch, project
from test_convolution import close, random
from test_layers import call, conv, filled, normalise, variables

from resnet_jax.models import shortcuts
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.execution import Execution
from resnet_jax.models.layers import BatchNorm, Conv
from resnet_jax.models.resnet import ResNet
from resnet_jax.models.shortcuts import NoShortcut, Projection, ProjectionEverywhere, ZeroPad
from resnet_jax.models.stems import SmallImageStem


def zero_pad(x: np.ndarray, out_features: int, stride: int) -> np.ndarray:
    """Every stride-th pixel, and zeros behind the channels (He et al. 2015, Section 3.3, option A)."""
    y = np.zeros((len(x), -(-x.shape[1] // stride), -(-x.shape[2] // stride), out_features))
    y[..., : x.shape[3]] = x[:, ::stride, ::stride]
    return y


def pair(in_features: int, out_features: int, stride: int, size: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """What meets in a unit: its input, and its branch's output."""
    small = -(-size // stride)
    return random(2, size, size, in_features), random(2, small, small, out_features, seed=1)


def test_the_names_of_the_paper() -> None:
    """He et al. 2015, Section 4.1: options A, B and C."""
    assert {"none": NoShortcut, "A": ZeroPad, "B": Projection, "C": ProjectionEverywhere} == shortcuts.OPTIONS


@pytest.mark.parametrize("stride", [1, 2])
def test_no_shortcut_is_the_branch_alone(stride: int) -> None:
    x, y = pair(3, 5, stride)
    np.testing.assert_array_equal(call(NoShortcut(3, 5, stride, nnx.Rngs(0)), x, y)[0], y)


@pytest.mark.parametrize(("in_features", "out_features", "stride"), [(4, 4, 1), (3, 5, 1), (4, 4, 2), (3, 6, 2)])
def test_zero_pad_is_the_subsampled_input_with_zeros_behind_its_channels(in_features: int, out_features: int, stride: int) -> None:
    shortcut = ZeroPad(in_features, out_features, stride, nnx.Rngs(0))
    x, y = pair(in_features, out_features, stride)
    close(call(shortcut, x, y)[0], zero_pad(x, out_features, stride) + y, tolerance=1e-6)
    assert variables(shortcut) == {}


def test_zero_pad_refuses_to_shrink_and_says_what_to_use() -> None:
    with pytest.raises(ValueError, match="8 features to 4.*Projection"):
        ZeroPad(8, 4, 1, nnx.Rngs(0))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("in_features", "out_features", "stride"), [(4, 4, 1), (3, 5, 2)])
def test_projection_everywhere_is_a_normalised_strided_1x1_convolution(
    in_features: int, out_features: int, stride: int, train: bool
) -> None:
    shortcut = filled(lambda rngs: ProjectionEverywhere(in_features, out_features, stride, rngs))
    (x, y), values = pair(in_features, out_features, stride), variables(shortcut)
    assert values["conv"]["kernel"].shape == (1, 1, in_features, out_features)
    expected, running = project(values, x, stride, train=train)
    actual, after = call(shortcut, x, y, train=train)
    close(actual, expected + y)
    for name, value in running.items():
        np.testing.assert_allclose(after["norm"][name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("in_features", "out_features", "stride"), [(3, 5, 1), (4, 4, 2), (3, 6, 2)])
def test_projection_projects_where_size_or_width_changes(in_features: int, out_features: int, stride: int, train: bool) -> None:
    shortcut = filled(lambda rngs: Projection(in_features, out_features, stride, rngs))
    x, y = pair(in_features, out_features, stride)
    expected, _ = project(variables(shortcut)["projection"], x, stride, train=train)
    close(call(shortcut, x, y, train=train)[0], expected + y)


def test_projection_is_the_identity_where_nothing_changes() -> None:
    shortcut = Projection(4, 4, 1, nnx.Rngs(0))
    x, y = pair(4, 4, 1)
    close(call(shortcut, x, y, train=True)[0], np.float64(x) + y, tolerance=1e-6)
    assert variables(shortcut) == {}


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
        assert mode.keys() == {"train"}
        return self.conv(x) + branch


Formula = Callable[[dict[str, Any], np.ndarray, int, int], np.ndarray]
USERS: dict[type[nnx.Module], Formula] = {
    Minimal: lambda v, x, out, s: 0.5 * zero_pad(x, out, s),
    KeywordOnly: lambda v, x, out, s: x[:, ::s, ::s] @ v["mix"]["kernel"] + v["mix"]["bias"],
    AsksForTrain: lambda v, x, out, s: 0.5 * zero_pad(x, out, s),
    AsksForFactories: lambda v, x, out, s: conv(normalise(x, v["norm"], train=False)[0], v["conv"]["kernel"], s),
    TakesAnything: lambda v, x, out, s: conv(x, v["conv"]["kernel"], s),
}


def network(values: dict[str, Any], x: np.ndarray, features: tuple[int, ...], shortcut: Formula) -> np.ndarray:
    """Logits of a network of basic units in inference mode: stem, units, mean over pixels, linear layer."""
    x = np.maximum(normalise(conv(x, values["stem"]["conv"]["kernel"], 1), values["stem"]["norm"], train=False)[0], 0)
    for stage, wide in enumerate(features):
        for index, unit in values["stages"][stage].items():
            stride = 2 if stage and not index else 1
            y, _ = branch(unit, x, (stride, 1))
            x = np.maximum(shortcut(unit.get("shortcut", {}), x, wide, stride) + y, 0)
    return x.mean((1, 2)) @ values["head"]["linear"]["kernel"] + values["head"]["linear"]["bias"]


@pytest.mark.parametrize("blocks", ["loop", "scan"])
@pytest.mark.parametrize("shortcut", USERS)
def test_a_users_class_works_in_a_whole_network(shortcut: type[nnx.Module], blocks: Any) -> None:
    """Logits of loop and scan equal the network's formula in float64 with the user's formula in it."""
    features, execution = (3, 5), Execution(blocks=blocks)
    structure: dict[str, Any] = dict(stages=(1, 3), features=features, block=BasicBlock, stem=SmallImageStem, num_classes=4)
    model = filled(lambda rngs: ResNet(**structure, shortcut=shortcut, execution=execution, rngs=rngs))
    x = random(2, 6, 6, 3)
    close(call(model, x)[0], network(variables(model), x, features, USERS[shortcut]))


def test_train_reaches_the_call_that_names_it_and_no_other() -> None:
    x, y = (jnp.asarray(a) for a in pair(3, 3, 1))
    asks = AsksForTrain(3, 3, 1, nnx.Rngs(0))
    np.testing.assert_array_equal(shortcuts.merge(asks, x, y, train=True), y)
    for shortcut, train in ((asks, False), (Minimal(3, 3, 1, nnx.Rngs(0)), True), (Minimal(3, 3, 1, nnx.Rngs(0)), False)):
        np.testing.assert_array_equal(shortcuts.merge(shortcut, x, y, train=train), 0.5 * x + y)


def test_a_shortcut_gets_the_networks_own_factories_where_it_names_them() -> None:
    offered = {"conv": lambda *shape, **rngs: "our conv", "norm": lambda *shape, **rngs: "our norm"}

    class OnlyNorm(nnx.Module):
        def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs, norm: Any = None, other: Any = "untouched"):
            self.made, self.other = norm(out_features, rngs=rngs), other

    both = shortcuts.make(AsksForFactories, 3, 5, 2, **offered, rngs=nnx.Rngs(0))
    assert (both.conv, both.norm) == ("our conv", "our norm")
    one = shortcuts.make(OnlyNorm, 3, 5, 2, **offered, rngs=nnx.Rngs(0))
    assert (one.made, one.other) == ("our norm", "untouched")
    assert shortcuts.make(Minimal, 3, 5, 2, **offered, rngs=nnx.Rngs(0)).missing == 2
    built_in = shortcuts.make(Projection, 3, 5, 2, conv=Conv, norm=BatchNorm, rngs=nnx.Rngs(0))
    assert isinstance(built_in.projection.norm, BatchNorm)


class Gain(nnx.Module):
    """ReZero's scalar, a float32 parameter, on the branch."""

    def __init__(self, in_features: int, out_features: int, stride: int, rngs: nnx.Rngs):
        self.inner = ZeroPad(in_features, out_features, stride, rngs)
        self.alpha = nnx.Param(jnp.zeros(()))

    def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
        return self.inner(x, self.alpha[...] * branch)


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
