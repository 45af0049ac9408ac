"""Normalization layers against their formulas in NumPy float64; groups of images on several devices."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from resnet_jax import kernels
from resnet_jax.errors import UserError
from resnet_jax.kernels import quick_to_compile
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm, NoNorm, Nothing, freeze, thaw
from resnet_jax.models.orders import NormAfterAddition
from resnet_jax.models.resnet import Architecture
from resnet_jax.models.shortcuts import ShortcutOnlyGating
from resnet_jax.models.stems import DeepStem

from oracle import Values, call, close, filled, follows, normalize, random, same_statistics, variables


def normalize_groups(x: np.ndarray, values: Values, size: int, *, train: bool) -> tuple[np.ndarray, Values]:
    """Neighboring images by themselves; running statistics average those that each group alone would leave."""
    parts = [normalize(part, values, train=train) for part in np.split(np.float64(x), len(x) // (size or len(x)))]
    return np.concatenate([y for y, _ in parts]), {name: np.mean([after[name] for _, after in parts], 0) for name in ("mean", "var")}


@pytest.mark.parametrize("choice", ["plain", "gpu"])
def test_batch_norm_is_its_formula(choice: Any) -> None:
    """Groups differ in mean and spread, and evaluation has none; the second channel's variance is about epsilon."""
    x = random(4, 3, 2, 3) * np.linspace(0.5, 2, 4, dtype=np.float32)[:, None, None, None] + random(4, 1, 1, 3, seed=1)
    x, spread = x * np.float32([1, 3e-3, 2]), random(4, 3, 2, 3)
    for group_size, train in ((0, True), (0, False), (1, True), (2, True), (2, False)):
        norm = filled(lambda rngs, g=group_size: BatchNorm(3, group_size=g, rngs=rngs))
        size = group_size if train else 0
        expected, running = normalize_groups(x, variables(norm), size, train=train)
        with kernels.active(choice):
            y, after = call(norm, x, train=train)
            if train and size != 1:
                follows(norm, lambda v, x, g=size: normalize_groups(x, v, g, train=True)[0], spread, train=True)
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-4)
        same_statistics(after, running)
        for name in running:
            assert np.array_equal(after[name], variables(norm)[name]) is not train


def test_momentum_and_epsilon_are_arguments() -> None:
    norm, x = filled(lambda rngs: BatchNorm(2, momentum=0.25, epsilon=0.5, rngs=rngs)), random(3, 2, 2, 2)
    (y, after), values = call(norm, x, train=True), variables(norm)
    mean, var = np.float64(x).mean((0, 1, 2)), np.float64(x).var((0, 1, 2))
    close(y, (x - mean) / np.sqrt(var + 0.5) * values["scale"] + values["bias"])
    same_statistics(after, {"mean": 0.25 * values["mean"] + 0.75 * mean, "var": 0.25 * values["var"] + 0.75 * var})


def test_invalid_normalizations_are_rejected() -> None:
    with pytest.raises(UserError, match="axis_name='data'.: no such axis is mapped; use jax.shard_map"):
        BatchNorm(2, axis_name="data", rngs=nnx.Rngs(0))(jnp.ones((1, 2, 2, 2)), train=True)
    with pytest.raises(UserError, match="group_size or axis_name"):
        BatchNorm(2, axis_name="data", group_size=2, rngs=nnx.Rngs(0))
    cases: list[tuple[Any, int, str]] = [
        *((component(BatchNorm, **{name: -1}), 2, f"BatchNorm.{name} must be ") for name in ("group_size", "epsilon", "momentum")),
        (GroupNorm, 48, r"GroupNorm\(num_groups=32\) does not divide 48 features"),
        (component(GroupNorm, num_groups=0), 48, r"GroupNorm\(num_groups=0\)"),
    ]
    for norm, features, message in cases:
        with pytest.raises(UserError, match=message):
            norm(features, rngs=nnx.Rngs(0))
    norm, x = BatchNorm(2, group_size=4, rngs=nnx.Rngs(0)), jnp.asarray(random(6, 2, 2, 2))
    with pytest.raises(UserError, match="group_size=4.* does not divide a batch of 6 images"):
        norm(x, train=True)
    assert norm(x, train=False).shape == x.shape


def test_batch_norm_of_bfloat16_has_float32_statistics() -> None:
    """65,536 values near 1: sums in bfloat16 would be wrong in the third digit."""
    norm = BatchNorm(1, group_size=8, rngs=nnx.Rngs(0))
    x = jnp.asarray(1 + random(16, 64, 64, 1), jnp.bfloat16)
    y, after = call(norm, x, train=True)
    expected, running = normalize_groups(np.float64(x), variables(norm), 8, train=True)
    for name, value in running.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5)
    assert y.dtype == jnp.bfloat16
    close(y, expected, tolerance=2**-8)


@pytest.mark.parametrize("group_size", [0, 4])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_groups_are_the_same_on_one_device_and_on_eight(kind: AxisType, group_size: int) -> None:
    """Two images per device: a group reaches over two or all of them. Value, gradients, statistics."""
    norm = filled(lambda rngs: BatchNorm(3, group_size=group_size, rngs=rngs))
    x, cotangent = random(16, 3, 3, 3) + random(16, 1, 1, 3, seed=1), random(16, 3, 3, 3, seed=2)
    graphdef, state = nnx.split(norm)

    def run(state: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        def forward(state: Any, x: jax.Array) -> Any:
            module = nnx.merge(graphdef, state, copy=True)
            return module(x, train=True), nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

        y, pull, statistics = jax.vjp(forward, state, x, has_aux=True)
        return y, pull(cotangent), statistics

    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    state, inputs, compiled = nnx.to_pure_dict(state), (x, cotangent), jax.jit(run, compiler_options=quick_to_compile())
    one = compiled(state, *map(jnp.asarray, inputs))
    with jax.set_mesh(mesh):
        replicated = jax.device_put(state, NamedSharding(mesh, P()))
        eight = compiled(replicated, *jax.device_put(inputs, NamedSharding(mesh, P("data"))))
    assert {shard.data.shape for shard in eight[0].addressable_shards} == {(2, 3, 3, 3)}
    jax.tree.map(lambda ours, theirs: close(ours, theirs, tolerance=3e-6), eight, one)
    expected, running = normalize_groups(x, variables(norm), group_size, train=True)
    close(eight[0], expected)
    same_statistics(eight[2], running)


def test_other_normalizations_are_their_formulas_and_keep_the_dtype() -> None:
    """Wu and He 2018, eqs. 1 to 4 and 7: over the pixels and neighboring channels of one image."""

    def group_norm(v: Values, x: np.ndarray) -> np.ndarray:
        grouped = x.reshape(*x.shape[:3], 2, -1)
        mean, var = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
        return ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * v["scale"] + v["bias"]

    formulas: dict[Any, Any] = {
        FrozenBatchNorm: lambda v, x: normalize(x, v, train=False)[0],
        component(GroupNorm, num_groups=2): group_norm,
        NoNorm: lambda v, x: x + v["bias"],
        Nothing: lambda v, x: x,
    }
    x = random(2, 3, 4, 6) * np.float32([1, 2, 1, 0.5, 3, 1]) + np.float32([0, 1, 0, -1, 0, 2])
    for norm, formula in formulas.items():
        module = filled(lambda rngs, norm=norm: norm(6, rngs=rngs))
        follows(module, formula, x)
        assert module(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
    start = {"scale": np.ones(3), "bias": np.zeros(3), "mean": np.zeros(3), "var": np.ones(3)}
    for norm in (BatchNorm, FrozenBatchNorm):
        jax.tree.map(np.testing.assert_array_equal, variables(norm(3, rngs=nnx.Rngs(0))), start)
    assert not nnx.to_pure_dict(nnx.state(FrozenBatchNorm(3, rngs=nnx.Rngs(0)), nnx.Param))


def test_freeze_converts_the_variables_of_a_network_and_thaw_undoes_it() -> None:
    """The frozen network has the logits of the trained one in evaluation, and training does not change its statistics."""
    shortcut = component(ShortcutOnlyGating, resize="project")
    fields: dict[str, Any] = dict(shortcut=shortcut, order=NormAfterAddition, stem=DeepStem)
    architecture = Architecture(stages=(1, 2), features=(4, 6), input_shape=(8, 8, 3), num_classes=3, **fields)
    model = filled(lambda rngs: architecture.build(rngs=rngs))
    params, batch_stats = (nnx.to_pure_dict(state) for state in nnx.split(model, nnx.Param, ...)[1:])
    trained, frozen = freeze(params, batch_stats)
    jax.tree.map(np.testing.assert_array_equal, thaw(trained, frozen), (params, batch_stats))
    apply, *wanted = jax.eval_shape(dataclasses.replace(architecture, norm=FrozenBatchNorm).init, jax.random.key(0))
    assert jax.tree.map(lambda leaf: leaf.shape, [trained, frozen]) == jax.tree.map(lambda leaf: leaf.shape, wanted)

    images = random(2, 8, 8, 3)
    expected, _ = call(model, images)
    assert np.ptp(expected) > 0.1
    assert freeze(params, {}) == thaw(params, {}) == (params, {})
    run = jax.jit(apply, static_argnames="train", compiler_options=quick_to_compile())
    for train in (False, True):
        logits, after = run(trained, frozen, images, train=train)
        close(logits, expected, tolerance=1e-6)
        jax.tree.map(np.testing.assert_array_equal, after, frozen)
