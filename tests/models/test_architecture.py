"""``Architecture`` as a frozen value: modules, initial variables, and the function ``Apply``."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_jax.kernels import quick_to_compile
from resnet_jax.models import Apply, Architecture, Execution, StochasticDepth
from resnet_jax.models.blocks import Bottleneck
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm
from resnet_jax.models.orders import FullPreactivation, NormAfterAddition
from resnet_jax.models.shortcuts import Concatenation, NoShortcut, Scaled, ZeroPad
from resnet_jax.models.stems import DenseTransition, ImageNetStem

from oracle import random

SMALL = Architecture(stages=(1, 2), features=(2, 3), input_shape=(6, 6, 3), num_classes=4)


def initialized(architecture: Architecture, **options: Any) -> tuple[Apply, Any, Any]:
    """The abstract result of ``init``."""
    return jax.eval_shape(lambda key: architecture.init(key, **options), jax.random.key(0))


def close(actual: Any, expected: Any) -> None:
    """Equal trees of equal values, to the last digits that one compilation and another may differ in."""
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), actual, expected)


def test_build_and_init_draw_the_same_parameters_from_the_same_key() -> None:
    """``build(rngs=nnx.Rngs(key))`` and ``init(key)``, as documented there; a seed is its key."""
    _, params, stats = jax.jit(SMALL.init, compiler_options=quick_to_compile())(jax.random.key(3))
    for rngs in (nnx.Rngs(jax.random.key(3)), nnx.Rngs(3)):
        model = SMALL.build(rngs=rngs)
        close(nnx.to_pure_dict(nnx.state(model, nnx.Param)), params)
        close(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)), stats)
    nnx.eval_shape(lambda: SMALL.build(rngs=np.int64(3)))


def test_init_returns_plain_nested_dictionaries_of_float32() -> None:
    _, params, stats = initialized(dataclasses.replace(SMALL, dtype="bfloat16"))

    def plain(tree: Any) -> bool:
        return all(map(plain, tree.values())) if type(tree) is dict else type(tree) is jax.ShapeDtypeStruct

    assert plain(params)
    assert plain(stats)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {jnp.dtype("float32")}
    assert params["stages"][0][0]["stacked"]["branch"]["convs"][0]["kernel"].shape == (1, 3, 3, 2, 2)
    assert stats["stem"]["after"]["layers"][0].keys() == {"mean", "var"}


def test_apply_is_static_and_compiles_once_for_the_same_architecture() -> None:
    traced = []

    @jax.jit
    def run(apply: Apply, params: Any, stats: Any, images: jax.Array) -> jax.Array:
        traced.append(apply)
        return apply(params, stats, images, train=False)[0]

    for architecture in (SMALL, dataclasses.replace(SMALL)):
        jax.eval_shape(run, *initialized(architecture), jax.ShapeDtypeStruct((2, 6, 6, 3), jnp.float32))
    assert len(traced) == 1
    assert jax.tree.leaves(traced[0]) == []


DENSE = dict(shortcut=Concatenation, transition=DenseTransition)
CHANGES: list[dict[str, Any]] = [
    {"shortcut": ZeroPad},
    {"shortcut": Scaled},
    {"shortcut": component(Scaled, shortcut=0.25)},
    {"order": NormAfterAddition},
    {"norm": component(BatchNorm, momentum=0.99)},
    DENSE,
    DENSE | {"transition": component(DenseTransition, compression=0.5)},
    {"stochastic_depth": StochasticDepth(survival=0.5)},
    {"stochastic_depth": StochasticDepth(survival=0.5, drops="image")},
    {"output_stride": 1},
    {"dtype": "bfloat16"},
]


def test_apply_differs_where_the_structure_does() -> None:
    """Every change is another value and another function, no two of them equal; spelled out again it is the same value."""
    architectures = [SMALL, *(dataclasses.replace(SMALL, **changes) for changes in CHANGES)]
    assert len(set(architectures)) == len(architectures)
    applies = [initialized(architecture)[0] for architecture in architectures]
    assert len(set(applies)) == len(applies)
    assert initialized(dataclasses.replace(SMALL, input_shape=(9, 7, 3)))[0] == applies[0]


def test_every_field_reaches_the_network() -> None:
    fields: dict[str, Any] = dict(
        stages=(1, 3),
        features=(4, 6),
        stem_features=5,
        branch=Bottleneck,
        order=FullPreactivation,
        shortcut=NoShortcut,
        stem=ImageNetStem,
        norm=component(GroupNorm, num_groups=1),
        stochastic_depth=StochasticDepth(survival=0.7),
        output_stride=4,
        input_shape=(8, 6, 2),
        num_classes=7,
        dtype="bfloat16",
    )
    assert fields.keys() == {field.name for field in dataclasses.fields(Architecture)} - {"transition"}
    apply, params, stats = initialized(Architecture(**fields), execution=Execution(blocks="loop", remat=True))
    assert not jax.tree.leaves(stats)
    assert params["stem"]["conv"]["kernel"].shape == (7, 7, 2, 5)
    last = params["stages"][1][1]["stacked"]["branch"]["convs"]
    assert [last[index]["kernel"].shape for index in range(3)] == [(2, 1, 1, 24, 6), (2, 3, 3, 6, 6), (2, 1, 1, 6, 24)]
    assert params["head"]["linear"]["kernel"].shape == (24, 7)
    assert params["head"]["before"]["layers"][0].keys() == {"scale", "bias"}
    model = jax.eval_shape(lambda p, s: nnx.merge(apply.graphdef, p, s), params, stats)
    stack = model.stages[1][1]
    assert [[stack.count for stack in stage] for stage in model.stages] == [[1], [1, 2]]
    assert (model.dtype, stack.scan, stack.remat, model.stochastic_depth.survival) == ("bfloat16", False, True, 0.7)
    assert stack.stacked.branch.convs[1].kernel_dilation == (2, 2)


@pytest.mark.parametrize("norm", [component(BatchNorm, momentum=0.7, group_size=2), FrozenBatchNorm], ids=str)
def test_apply_updates_statistics_as_the_module_does(norm: Any) -> None:
    """Twice, so that the previous ones count; the function updates them after the network, the module within it."""
    model = dataclasses.replace(SMALL, norm=norm).build(rngs=nnx.Rngs(0), execution=Execution(blocks="scan"))
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)
    apply, params, stats = Apply(graphdef), nnx.to_pure_dict(params), nnx.to_pure_dict(stats)
    for seed in (1, 2):
        images = jnp.asarray(random(4, 6, 6, 3, seed=seed))
        nnx.jit(lambda model, images: model(images, train=True))(model, images)
        _, stats = jax.jit(functools.partial(apply, train=True))(params, stats, images)
        close(stats, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))
