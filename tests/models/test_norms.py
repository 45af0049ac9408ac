"""Normalisations against their formulas in NumPy float64, forward and gradient; groups of images wherever the images lie."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_convolution import close, random
from test_layers import call, filled, follows, normalise, same_statistics, variables

from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm, NoNorm, Nothing, freeze, thaw
from resnet_jax.models.orders import FullPreactivation, NormAfterAddition, Original
from resnet_jax.models.shortcuts import Projection, ShortcutOnlyGating
from resnet_jax.models.stems import DeepStem, SmallImageStem

Values = dict[str, Any]


def normalise_groups(x: np.ndarray, values: Values, size: int, *, train: bool) -> tuple[np.ndarray, Values]:
    """Neighbouring images by themselves; the running statistics are the averages of what each group alone would leave."""
    parts = [normalise(part, values, train=train) for part in np.split(np.float64(x), len(x) // (size or len(x)))]
    return np.concatenate([y for y, _ in parts]), {name: np.mean([after[name] for _, after in parts], 0) for name in ("mean", "var")}


def test_normalisation_starts_as_the_identity() -> None:
    start = {"scale": np.ones(3), "bias": np.zeros(3), "mean": np.zeros(3), "var": np.ones(3)}
    for norm in (BatchNorm, FrozenBatchNorm):
        jax.tree.map(np.testing.assert_array_equal, variables(norm(3, rngs=nnx.Rngs(0))), start)
    jax.tree.map(np.testing.assert_array_equal, variables(NoNorm(3, rngs=nnx.Rngs(0))), {"bias": np.zeros(3)})
    grouped = {"scale": np.ones(4), "bias": np.zeros(4)}
    jax.tree.map(np.testing.assert_array_equal, variables(GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))), grouped)


def test_batch_norm_by_hand() -> None:
    """One channel holds 1, 2, 3, 6: mean 3, biased variance (4 + 1 + 0 + 9) / 4 = 3.5 (unbiased: 14 / 3)."""
    norm = BatchNorm(1, rngs=nnx.Rngs(0))
    y, after = call(norm, jnp.asarray([1.0, 2.0, 3.0, 6.0]).reshape(2, 2, 1, 1), train=True)
    # From the start values 0 and 1: 0.9 * 0 + 0.1 * 3 and 0.9 * 1 + 0.1 * 3.5.
    np.testing.assert_allclose([after["mean"][0], after["var"][0]], [0.3, 1.25], rtol=1e-6)
    np.testing.assert_allclose(np.ravel(y), np.array([-2, -1, 0, 3]) / np.sqrt(3.50001), rtol=1e-5, atol=1e-6)


def test_batch_norm_of_groups_by_hand() -> None:
    """Images of one pixel, 1, 3 and 2, 8: means 2 and 5, biased variances 1 and 9; on average 3.5 and 5."""
    norm = BatchNorm(1, group_size=2, rngs=nnx.Rngs(0))
    y, after = call(norm, jnp.asarray([1.0, 3.0, 2.0, 8.0]).reshape(4, 1, 1, 1), train=True)
    np.testing.assert_allclose([after["mean"][0], after["var"][0]], [0.35, 0.9 + 0.5], rtol=1e-6)
    np.testing.assert_allclose(np.ravel(y), [-1, 1, -1, 1], rtol=1e-4)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("group_size", [0, 1, 2, 4])
def test_batch_norm_is_its_formula(group_size: int, train: bool) -> None:
    """Ioffe and Szegedy 2015, algorithms 1 and 2; the groups differ in mean and spread, and in inference there are none."""
    norm = filled(lambda rngs: BatchNorm(3, group_size=group_size, rngs=rngs))
    x = random(4, 3, 2, 3) * np.linspace(0.5, 2, 4, dtype=np.float32)[:, None, None, None] + random(4, 1, 1, 3, seed=1)
    size = group_size if train else 0
    follows(norm, lambda v, x: normalise_groups(x, v, size, train=train)[0], x, train=train)
    running, after = normalise_groups(x, variables(norm), size, train=train)[1], call(norm, x, train=train)[1]
    for name, value in running.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-6)
        assert np.array_equal(after[name], variables(norm)[name]) is not train
    for name in ("scale", "bias"):
        np.testing.assert_array_equal(after[name], variables(norm)[name])


@pytest.mark.parametrize("train", [True, False])
def test_epsilon_is_where_the_formula_has_it(train: bool) -> None:
    """The variance of the second channel is about epsilon, so that another epsilon would show."""
    norm = filled(lambda rngs: BatchNorm(3, rngs=rngs))
    norm.var[...] = norm.var[...] * jnp.asarray([1, 1e-5, 1])
    x = random(4, 3, 3, 3) * np.float32([1, 3e-3, 2]) + np.float32([0.5, 0, -1])
    expected, running = normalise(x, variables(norm), train=train)
    y, after = call(norm, x, train=train)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    for name, value in running.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-7)


def test_momentum_and_epsilon_are_chosen() -> None:
    norm, x = filled(lambda rngs: BatchNorm(2, momentum=0.25, epsilon=0.5, rngs=rngs)), random(3, 2, 2, 2)
    (y, after), values = call(norm, x, train=True), variables(norm)
    mean, var = np.float64(x).mean((0, 1, 2)), np.float64(x).var((0, 1, 2))
    close(y, (x - mean) / np.sqrt(var + 0.5) * values["scale"] + values["bias"])
    same_statistics(after, {"mean": 0.25 * values["mean"] + 0.75 * mean, "var": 0.25 * values["var"] + 0.75 * var})


def test_a_group_of_the_whole_batch_is_the_global_statistic() -> None:
    x = random(4, 3, 3, 2)
    grouped, whole = (call(filled(lambda rngs, g=g: BatchNorm(2, group_size=g, rngs=rngs)), x, train=True) for g in (4, 0))
    jax.tree.map(np.testing.assert_array_equal, grouped, whole)


@pytest.mark.parametrize(("images", "group_size"), [(6, 4), (2, 4), (5, 2)])
def test_a_batch_that_does_not_split_into_groups_is_refused_in_training_only(images: int, group_size: int) -> None:
    norm, x = BatchNorm(2, group_size=group_size, rngs=nnx.Rngs(0)), jnp.asarray(random(images, 2, 2, 2))
    message = f"a batch of {images} images does not split into BatchNorm groups of {group_size}: use a multiple of {group_size}"
    with pytest.raises(UserError, match=message):
        norm(x, train=True)
    np.testing.assert_allclose(norm(x, train=False), np.float64(x) / np.sqrt(1.00001), rtol=1e-5)


def test_a_negative_group_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"BatchNorm\(group_size=-1\): give the number of images of a group, or 0"):
        BatchNorm(2, group_size=-1, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("group_size", [0, 8])
def test_batch_norm_of_bfloat16_has_float32_statistics_and_a_bfloat16_result(group_size: int) -> None:
    """65,536 values near 1: sums in bfloat16 would be wrong in the third digit."""
    norm = BatchNorm(1, group_size=group_size, rngs=nnx.Rngs(0))
    x = jnp.asarray(1 + random(16, 64, 64, 1), jnp.bfloat16)
    y, after = call(norm, x, train=True)
    expected, running = normalise_groups(np.float64(x), variables(norm), group_size, train=True)
    for name, value in running.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5)
    assert y.dtype == jnp.bfloat16
    close(y, expected, tolerance=2**-8)
    state = jax.eval_shape(lambda: (lambda m: (m(x, train=True), nnx.to_pure_dict(nnx.state(m)))[1])(BatchNorm(1, rngs=nnx.Rngs(0))))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("group_size", [0, 2, 4, 8, 16])
def test_groups_are_the_same_on_one_device_and_on_eight(group_size: int) -> None:
    """Two images a device: a group is one device's, or reaches over two, four or all of them. Value, gradients, statistics."""
    norm = filled(lambda rngs: BatchNorm(3, group_size=group_size, rngs=rngs))
    x, cotangent = random(16, 3, 3, 3) + random(16, 1, 1, 3, seed=1), random(16, 3, 3, 3, seed=2)
    graphdef, state = nnx.split(norm)

    def run(state: Any, x: jax.Array, cotangent: jax.Array) -> Any:
        def forward(state: Any, x: jax.Array) -> Any:
            module = nnx.merge(graphdef, state, copy=True)
            return module(x, train=True), nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

        y, pull, statistics = jax.vjp(forward, state, x, has_aux=True)
        return y, pull(cotangent), statistics

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    inputs = nnx.to_pure_dict(state), jnp.asarray(x), jnp.asarray(cotangent)
    one = jax.jit(run, compiler_options=quick_to_compile())(*inputs)
    eight = jax.jit(run, in_shardings=(whole, split, split), out_shardings=(split, (whole, split), whole))(*inputs)
    assert {shard.data.shape for shard in eight[0].addressable_shards} == {(2, 3, 3, 3)}
    jax.tree.map(lambda ours, theirs: close(ours, theirs, tolerance=3e-6), eight, one)
    expected, running = normalise_groups(x, variables(norm), group_size, train=True)
    close(eight[0], expected)
    same_statistics(eight[2], running)


def test_frozen_batch_norm_is_the_formula_of_inference_and_has_no_parameters() -> None:
    norm, x = filled(lambda rngs: FrozenBatchNorm(3, rngs=rngs)), random(3, 4, 2, 3)
    assert not nnx.to_pure_dict(nnx.state(norm, nnx.Param))
    follows(norm, lambda v, x: normalise(x, v, train=False)[0], x)
    jax.tree.map(np.testing.assert_array_equal, call(norm, x)[1], variables(norm))


@pytest.mark.parametrize(("features", "num_groups"), [(6, 1), (6, 2), (6, 6)])
def test_group_norm_is_its_formula(features: int, num_groups: int) -> None:
    """Wu and He 2018, eqs. 1 to 4 and 7: over the pixels and neighbouring channels of one image."""

    def formula(v: Values, x: np.ndarray) -> np.ndarray:
        grouped = x.reshape(*x.shape[:3], num_groups, -1)
        mean, var = grouped.mean((1, 2, 4), keepdims=True), grouped.var((1, 2, 4), keepdims=True)
        return ((grouped - mean) / np.sqrt(var + 1e-5)).reshape(x.shape) * v["scale"] + v["bias"]

    norm = filled(lambda rngs: GroupNorm(features, num_groups=num_groups, rngs=rngs))
    follows(norm, formula, random(2, 3, 4, features) * np.float32([1, 2, 1, 0.5, 3, 1]) + np.float32([0, 1, 0, -1, 0, 2]))


@pytest.mark.parametrize(("features", "num_groups"), [(16, 32), (6, 4)])
def test_group_norm_refuses_groups_that_do_not_divide(features: int, num_groups: int) -> None:
    with pytest.raises(UserError, match=rf"GroupNorm\(num_groups={num_groups}\) does not divide {features} features"):
        GroupNorm(features, num_groups=num_groups, rngs=nnx.Rngs(0))


def test_group_norm_has_32_groups_as_in_the_paper() -> None:
    with pytest.raises(UserError, match="num_groups=32"):
        GroupNorm(48, rngs=nnx.Rngs(0))
    assert variables(GroupNorm(64, rngs=nnx.Rngs(0)))["scale"].shape == (64,)


def test_no_norm_is_a_bias_a_channel_and_nothing_is_nothing() -> None:
    follows(filled(lambda rngs: NoNorm(3, rngs=rngs)), lambda v, x: x + v["bias"], random(2, 3, 2, 3))
    follows(Nothing(3, rngs=nnx.Rngs(0)), lambda v, x: x, random(2, 3, 2, 3))
    assert variables(Nothing(3, rngs=nnx.Rngs(0))) == {}


@pytest.mark.parametrize("norm", [FrozenBatchNorm, configured(GroupNorm, num_groups=2), NoNorm, Nothing], ids=str)
def test_a_normalisation_keeps_the_dtype_of_its_input(norm: Any) -> None:
    module, x = filled(lambda rngs: norm(4, rngs=rngs)), random(2, 3, 3, 4)
    y, _ = call(module, jnp.asarray(x, jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    close(y, call(module, np.float32(jnp.asarray(x, jnp.bfloat16)))[0], tolerance=2**-7)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module))} <= {jnp.dtype("float32")}


ARCHITECTURES = {
    "Original": Architecture(stages=(1, 2), features=(4, 6), shortcut=Projection, stem=SmallImageStem),
    "FullPreactivation": Architecture(stages=(2, 1), features=(4, 4), shortcut=Projection, order=FullPreactivation),
    "gated-deep-stem": Architecture(
        stages=(1, 2), features=(4, 6), shortcut=configured(ShortcutOnlyGating, resize="project"), order=NormAfterAddition, stem=DeepStem
    ),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_freeze_makes_variables_of_the_same_network_with_frozen_normalisation(name: str) -> None:
    """The frozen network has the logits of the trained one in inference, in training too, and training leaves its statistics."""
    architecture = dataclasses.replace(ARCHITECTURES[name], input_shape=(8, 8, 3), num_classes=3)
    model = filled(lambda rngs: architecture.build(rngs=rngs))
    params, batch_stats = (nnx.to_pure_dict(state) for state in nnx.split(model, nnx.Param, ...)[1:])
    before = jax.tree.map(np.asarray, (params, batch_stats))
    trained, frozen = freeze(params, batch_stats)
    jax.tree.map(np.testing.assert_array_equal, (params, batch_stats), before)  # the arguments stay as they are

    with_frozen = dataclasses.replace(architecture, norm=FrozenBatchNorm)
    apply, *wanted = jax.eval_shape(with_frozen.init, jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: leaf.shape, [trained, frozen])
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, wanted)
    leaves = len(jax.tree.leaves(params)), len(jax.tree.leaves(batch_stats))
    assert (len(jax.tree.leaves(trained)), len(jax.tree.leaves(frozen))) == (leaves[0] - leaves[1], 2 * leaves[1])

    images = random(2, 8, 8, 3)
    expected, _ = call(model, images)
    assert np.ptp(expected) > 0.1
    run = jax.jit(apply, static_argnames="train", compiler_options=quick_to_compile())
    for train in (False, True):
        logits, after = run(trained, frozen, images, train=train)
        close(logits, expected, tolerance=1e-6)
        jax.tree.map(np.testing.assert_array_equal, after, frozen)


def test_freeze_of_what_has_no_batch_norm_changes_nothing() -> None:
    params = {"a": {"kernel": np.ones(2)}, "b": np.zeros(1)}
    assert freeze(params, {}) == (params, {})


@pytest.mark.quick(1)
@pytest.mark.parametrize("order", [Original, FullPreactivation])
def test_thaw_undoes_freeze(order: Any) -> None:
    """Of a whole network, key by key; one without normalisations is left as it is."""
    model = Architecture(stages=(2, 1), features=(4, 8), shortcut=Projection, order=order, input_shape=(8, 8, 3))
    _, params, batch_stats = jax.jit(model.init, compiler_options=quick_to_compile())(jax.random.key(0))
    frozen = freeze(params, batch_stats)
    assert jax.tree.structure(frozen[1]) != jax.tree.structure(batch_stats)
    jax.tree.map(np.testing.assert_array_equal, thaw(*frozen), (params, batch_stats))
    assert thaw(params, {}) == (params, {})
    none = dataclasses.replace(model, norm=NoNorm)
    plain = jax.jit(none.init, compiler_options=quick_to_compile())(jax.random.key(0))[1:]
    jax.tree.map(np.testing.assert_array_equal, thaw(*plain), plain)
