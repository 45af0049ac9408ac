"""A network as a frozen value: what it builds, what it initialises, and the function that comes of it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import random

from resnet_jax.models import Apply, Architecture, Execution, ResNet
from resnet_jax.models.blocks import Bottleneck
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.models.shortcuts import NoShortcut, ZeroPad

SMALL = Architecture(stages=(1, 2), features=(2, 3), input_shape=(6, 6, 3), num_classes=4)


@pytest.fixture(scope="module")
def initialise() -> Any:
    """``SMALL.init``, compiled once."""
    return jax.jit(SMALL.init, compiler_options=quick_to_compile())


def initialised(architecture: Architecture, **options: Any) -> tuple[Apply, Any, Any]:
    """The abstract result of ``init``."""
    return jax.eval_shape(lambda key: architecture.init(key, **options), jax.random.key(0))


def close(actual: Any, expected: Any) -> None:
    """Equal trees of equal values, to the last digits that one compilation and another may differ in."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, expected)


def test_build_and_init_draw_the_same_parameters_from_the_same_key(initialise: Any) -> None:
    """``build(rngs=nnx.Rngs(key))`` and ``init(key)``, as the latter says; a seed is its key."""
    _, params, stats = initialise(jax.random.key(3))
    for rngs in (nnx.Rngs(jax.random.key(3)), nnx.Rngs(3)):
        model = SMALL.build(rngs=rngs)
        close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)
        close(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), stats)


def test_another_key_draws_other_weights_everywhere_and_the_same_key_the_same(initialise: Any) -> None:
    first, again, other = (initialise(jax.random.key(seed))[1] for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernels = [(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True) if np.ndim(a) > 1]
    assert len(kernels) == 9  # stem, six in three units, one projection, head
    assert all(np.all(np.asarray(a) != b) for a, b in kernels)


def test_build_draws_from_the_stream_it_is_given() -> None:
    """A second network from the same stream is another one."""
    rngs = nnx.Rngs(0)
    first, second = (np.asarray(SMALL.build(rngs=rngs).head.linear.kernel[...]) for _ in range(2))
    assert np.all(first != second)


def test_init_returns_plain_nested_dictionaries_of_float32() -> None:
    _, params, stats = initialised(dataclasses.replace(SMALL, dtype="bfloat16"))

    def plain(tree: Any) -> bool:
        return all(map(plain, tree.values())) if type(tree) is dict else type(tree) is jax.ShapeDtypeStruct

    assert plain(params)
    assert plain(stats)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {jnp.dtype("float32")}
    assert params["stages"][0][0]["conv1"]["kernel"].shape == (3, 3, 2, 2)
    assert stats["stem"]["norm"].keys() == {"mean", "var"}


def test_the_module_and_the_function_have_the_same_logits(initialise: Any) -> None:
    model, (apply, params, stats), x = SMALL.build(rngs=nnx.Rngs(0)), initialise(jax.random.key(0)), jnp.asarray(random(2, 6, 6, 3))
    graphdef, state = nnx.split(model)
    theirs = jax.jit(lambda state: nnx.merge(graphdef, state)(x), compiler_options=quick_to_compile())(state)
    ours = jax.jit(lambda p, s: apply(p, s, x, train=False)[0], compiler_options=quick_to_compile())(params, stats)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_apply_is_static_hashable_and_equal_for_the_same_architecture() -> None:
    """So that a jitted function of it compiles once."""
    one, other = initialised(SMALL)[0], initialised(dataclasses.replace(SMALL))[0]
    assert one == other
    assert hash(one) == hash(other)
    assert jax.tree.leaves(one) == []
    traced = []

    @jax.jit
    def classes(apply: Apply, params: Any, stats: Any, images: jax.Array) -> jax.Array:
        traced.append(apply)
        return jnp.zeros(jax.eval_shape(lambda: apply(params, stats, images, train=False))[0].shape)

    for architecture in (SMALL, dataclasses.replace(SMALL)):
        apply, params, stats = initialised(architecture)
        params, stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), (params, stats))
        assert classes(apply, params, stats, jnp.zeros((2, 6, 6, 3))).shape == (2, 4)
    assert len(traced) == 1


CHANGES: list[dict[str, Any]] = [
    {"shortcut": ZeroPad},
    {"shortcut": NoShortcut},
    {"stages": (2, 2)},
    {"block": Bottleneck},
    {"num_classes": 3},
    {"dtype": "bfloat16"},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_apply_differs_where_the_structure_does(changes: dict[str, Any]) -> None:
    assert initialised(dataclasses.replace(SMALL, **changes))[0] != initialised(SMALL)[0]


def test_only_training_moves_the_statistics_and_apply_changes_no_argument() -> None:
    apply, params, stats = initialised(SMALL)
    params = jax.tree.map(lambda leaf: jnp.asarray(random(*leaf.shape)), params)
    stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), stats)
    x = jnp.asarray(random(2, 6, 6, 3))

    @jax.jit
    def both(params: Any, stats: Any) -> Any:
        evaluated, trained = (apply(params, stats, x, train=train) for train in (False, True))
        return evaluated, trained, stats

    (evaluated, same), (trained, moved), untouched = both(params, stats)
    jax.tree.map(np.testing.assert_array_equal, stats, same)
    jax.tree.map(np.testing.assert_array_equal, stats, untouched)
    assert all(np.all(np.asarray(leaf) != 1) for leaf in jax.tree.leaves(moved))
    assert evaluated.dtype == trained.dtype == jnp.float32
    assert np.abs(evaluated - trained).max() > 0.01


def test_gradients_reach_every_parameter_and_only_parameters() -> None:
    """Traced: the gradient's tree is the parameters' tree, in float32, under bfloat16 too."""
    apply, params, stats = initialised(dataclasses.replace(SMALL, dtype="bfloat16"))
    x = jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32)
    slopes = jax.eval_shape(jax.grad(lambda p, s, x: apply(p, s, x, train=True)[0].sum()), params, stats, x)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), slopes) == jax.tree.map(lambda a: (a.shape, a.dtype), params)


def test_an_architecture_is_a_frozen_hashable_value() -> None:
    assert dataclasses.replace(SMALL) == SMALL
    narrow = dataclasses.replace(SMALL, num_classes=3)
    assert {SMALL, dataclasses.replace(SMALL), narrow} == {SMALL, narrow}
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.num_classes = 3  # pyright: ignore[reportAttributeAccessIssue]


def test_every_field_reaches_the_network() -> None:
    fields = dict(stages=(1, 3), features=(4, 6), block=Bottleneck, shortcut=NoShortcut, input_shape=(8, 6, 2), num_classes=7)
    apply, params, _ = initialised(Architecture(**fields, dtype="bfloat16"), execution=Execution(blocks="loop"))
    assert {name: len(units) for name, units in params["stages"].items()} == {0: 1, 1: 3}
    assert params["stem"]["conv"]["kernel"].shape == (3, 3, 2, 4)
    assert params["stages"][1][0]["conv3"]["kernel"].shape == (1, 1, 6, 24)
    assert not any("shortcut" in jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params))
    assert params["head"]["linear"]["kernel"].shape == (24, 7)
    model = jax.eval_shape(lambda key: nnx.merge(apply.graphdef, *Architecture(**fields).init(key)[1:]), jax.random.key(0))
    assert isinstance(model, ResNet)
    assert (model.dtype, model.scan) == ("bfloat16", False)
