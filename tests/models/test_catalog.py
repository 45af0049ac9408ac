"""The papers' networks by name: that each computes and learns, what a name finds, and what an unknown one is answered."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from resnet_jax import models
from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models import NETWORKS, Architecture, StochasticDepth, architecture, catalog, cifar_architecture, imagenet_architecture
from resnet_jax.models.branches import Basic, Bottleneck, BottleneckV15, SingleLayer
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.models.orders import Fixup, FullPreactivation
from resnet_jax.models.shortcuts import NoShortcut, PooledProjection, PooledZeroPad, Projection, ZeroPad
from resnet_jax.models.stems import DeepStem, SmallImageStem

# He et al. 2015, Table 1; He et al. 2016, Section 4.2.
IMAGENET_DEPTHS = (18, 34, 50, 101, 152, 200)


def marked(exhaustive: set[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.exhaustive] if name in exhaustive else []) for name in NETWORKS]


def reduced(full: Architecture) -> Architecture:
    """Two stages of two units and one, narrower, on small images; everything else as it is. Networks that differ in depth become one."""
    features = full.features
    while features[0] > 32:
        features = tuple(wide // 2 for wide in features)
    side = 8 if full.stem is SmallImageStem else 32
    return dataclasses.replace(full, stages=(2, 1), features=features[:2], input_shape=(side, side, 3), num_classes=7)


Learned = list[tuple[np.ndarray, dict[str, float]]]


@functools.cache
def learned(small: Architecture) -> Learned:
    """Logits of a training pass at initialisation and the norm of the gradient of every parameter: float32 and bfloat16, compiled once."""

    def both(key: jax.Array, images: jax.Array, labels: jax.Array) -> list[tuple[jax.Array, Any]]:
        found = []
        for dtype in ("float32", "bfloat16"):
            apply, params, batch_stats = dataclasses.replace(small, dtype=dtype).init(key)

            def loss_of(params: Any, apply: models.Apply = apply, batch_stats: Any = batch_stats) -> tuple[jax.Array, jax.Array]:
                logits, _ = apply(params, batch_stats, images, train=True, key=key)
                return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

            gradients, logits = jax.grad(loss_of, has_aux=True)(params)
            found.append((logits, jax.tree.map(lambda g: jnp.linalg.norm(g.astype(jnp.float32).ravel()), gradients)))
        return found

    rng = np.random.default_rng(3)
    images = rng.normal(size=(4, *small.input_shape)).astype(np.float32)
    found = jax.device_get(jax.jit(both, compiler_options=quick_to_compile())(jax.random.key(0), images, np.arange(4)))
    return [(logits, {jax.tree_util.keystr(path): float(norm) for path, norm in jax.tree.leaves_with_path(g)}) for logits, g in found]


# One network with each part that there is; the others take seconds each to compile.
QUICK = {"resnet18", "resnet50", "cifar_resnet20", "cifar_plain20", "cifar_fixup110", "cifar_preresnet110", "cifar_seresnet110"}
QUICK |= {"cifar_stochastic110", "cifar_densenet40_12", "wrn16_4"}


@pytest.mark.quick(1)
@pytest.mark.parametrize("name", marked(set(NETWORKS) - QUICK))
def test_a_network_answers_and_every_parameter_learns(name: str) -> None:
    """Finite logits and gradients at initialisation, in both precisions, which agree.

    No gradient is zero but those of Fixup (its last kernels and its classifier begin at zero) and of dropped branches.
    """
    small = reduced(NETWORKS[name])
    (single, gradients), (half, of_half) = learned(small)
    for logits in (single, half):
        assert logits.shape == (4, 7)
        assert logits.dtype == np.float32
        assert np.isfinite(logits).all()
    for norms in (gradients, of_half):
        assert np.isfinite(list(norms.values())).all()
        assert any(norms.values())
    if small.order is not Fixup:
        assert np.ptp(single) > 0.1
        assert 0 < np.abs(single - half).max() < 0.1 * np.abs(single).max()
    if small.order is not Fixup and small.stochastic_depth.survival == 1:
        assert not [path for path, norm in gradients.items() if norm == 0]


@pytest.mark.quick(3)
@pytest.mark.parametrize("name", marked(set(NETWORKS) - QUICK))
def test_the_whole_network_is_traced_at_its_own_size(name: str) -> None:
    """Logits of its classes. Counts (test_counts) trace every network once more."""
    full = NETWORKS[name]

    def logits(key: jax.Array, images: jax.Array) -> jax.Array:
        apply, params, batch_stats = full.init(key, execution=models.Execution(blocks="scan"))
        return apply(params, batch_stats, images, train=False)[0]

    found = jax.eval_shape(logits, jax.eval_shape(lambda: jax.random.key(0)), jax.ShapeDtypeStruct((2, *full.input_shape), jnp.uint8))
    small = name.startswith(("cifar", "wrn", "resnext29"))
    assert (found.shape, found.dtype) == ((2, 10 if small else 1000), jnp.float32)
    assert full.input_shape == ((32, 32, 3) if small else (224, 224, 3))


def test_the_depths_of_table_6() -> None:
    assert catalog.CIFAR_DEPTHS == (20, 32, 44, 56, 110, 1202)


# Names and what makes them what they are; the rest is the family's (see test_families).
NAMED = {
    **{f"resnet{d}": imagenet_architecture(d) for d in IMAGENET_DEPTHS},
    **{f"plain{d}": imagenet_architecture(d, shortcut=NoShortcut) for d in IMAGENET_DEPTHS},
    **{f"preresnet{d}": imagenet_architecture(d, order=FullPreactivation) for d in IMAGENET_DEPTHS},
    **{f"resnet{d}_v15": imagenet_architecture(d, branch=BottleneckV15) for d in (50, 101, 152, 200)},
    "resnet34_d": imagenet_architecture(34, shortcut=PooledProjection, stem=DeepStem),
    "resnet50_d": imagenet_architecture(50, branch=BottleneckV15, shortcut=PooledProjection, stem=DeepStem),
    "seresnet18": imagenet_architecture(18, branch=configured(Basic, reduction=16)),
    "seresnet50": imagenet_architecture(50, branch=configured(Bottleneck, reduction=16)),
    "seresnext50_32x4d": imagenet_architecture(50, branch=configured(BottleneckV15, groups=32, base_width=4, reduction=16)),
    "resnext101_64x4d": imagenet_architecture(101, branch=configured(BottleneckV15, groups=64, base_width=4)),
    "wide_resnet101_2": imagenet_architecture(101, branch=configured(BottleneckV15, base_width=128)),
    "cifar_resnet110": cifar_architecture(110),
    "cifar_plain56": cifar_architecture(56, shortcut=NoShortcut),
    "cifar_resnet164": cifar_architecture(164, branch=Bottleneck, shortcut=Projection),
    "cifar_preresnet110": cifar_architecture(110, shortcut=Projection, order=FullPreactivation),
    "cifar_preresnet1001": cifar_architecture(1001, branch=Bottleneck, shortcut=Projection, order=FullPreactivation),
    "cifar_resnet110_single": cifar_architecture(110, branch=SingleLayer),
    "cifar_preresnet110_single": cifar_architecture(110, branch=SingleLayer, shortcut=Projection, order=FullPreactivation),
    # Huang et al. 2016, Section 4: p_L = 0.5, linear, a whole batch at once, made up for at test time.
    "cifar_stochastic110": cifar_architecture(
        110, shortcut=PooledZeroPad, stochastic_depth=StochasticDepth(survival=0.5, rule="linear", drops="batch", scaled="test")
    ),
    "wrn28_10_dropout": models.wide_architecture(28, 10, branch=configured(Basic, dropout=0.3)),
    "resnext29_8x64d": cifar_architecture(
        29, branch=configured(BottleneckV15, groups=8, base_width=64), shortcut=Projection, features=(64, 128, 256)
    ),
    "cifar_seresnet164": cifar_architecture(164, branch=configured(Bottleneck, reduction=16), shortcut=Projection),
    "cifar_fixup110": cifar_architecture(110, order=Fixup),
    "cifar_densenet_bc100_12": models.densenet_architecture(100, 12),
    "densenet201": models.densenet_architecture(201, imagenet=True),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_name_is_its_papers_network(name: str) -> None:
    assert NETWORKS[name] == architecture(name) == NAMED[name]


def test_all_names_are_different_networks() -> None:
    assert len(set(NETWORKS.values())) == len(NETWORKS)


@pytest.mark.parametrize(
    ("name", "depth", "expected"),
    [
        ("resnet", 50, imagenet_architecture(50)),
        ("imagenet_resnet", 34, imagenet_architecture(34)),
        ("imagenet_resnet101", None, imagenet_architecture(101)),
        ("plain", 34, imagenet_architecture(34, shortcut=NoShortcut)),
        ("imagenet_plain", 18, imagenet_architecture(18, shortcut=NoShortcut)),
        ("preresnet", 200, imagenet_architecture(200, order=FullPreactivation)),
        ("imagenet_preresnet152", None, imagenet_architecture(152, order=FullPreactivation)),
        ("cifar_resnet", 110, cifar_architecture(110)),
        ("cifar_resnet", 26, cifar_architecture(26)),
        ("cifar_resnet26", None, cifar_architecture(26)),
        ("cifar_plain", 56, cifar_architecture(56, shortcut=NoShortcut)),
        ("cifar_plain62", None, cifar_architecture(62, shortcut=NoShortcut)),
        ("cifar_preresnet", 20, cifar_architecture(20, order=FullPreactivation, shortcut=Projection)),
        # Published as bottlenecks, and no 6n+2.
        ("cifar_resnet", 164, cifar_architecture(164, branch=Bottleneck, shortcut=Projection)),
        ("cifar_preresnet", 1001, cifar_architecture(1001, branch=Bottleneck, shortcut=Projection, order=FullPreactivation)),
    ],
)
def test_a_name_and_a_depth_find_their_network(name: str, depth: int | None, expected: Architecture) -> None:
    assert architecture(name, depth) == expected


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("resnt50", "resnet50"),
        ("rezznet50", "resnet50"),
        ("plan34", "plain34"),
        ("cifar_resnets", "cifar_resnet"),
        ("cifar-resnet", "cifar_resnet"),
        ("imagenet-plain18", "imagenet_plain"),
        ("wrn28x10", "wrn28_10"),
        ("resnet50d", "resnet50_d"),
        ("resnext50", "resnext50_32x4d"),
        ("densnet121", "densenet121"),
        ("seresnet-50", "seresnet50"),
    ],
)
@pytest.mark.parametrize("depth", [None, 50])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, suggestion: str, depth: int | None) -> None:
    with pytest.raises(UserError, match=rf"^no network is called '{name}'; did you mean .*\b{suggestion}\b.*\?$"):
        architecture(name, depth)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(UserError, match="no network is called 'vgg'; there is ") as error:
        architecture("vgg")
    listed = str(error.value).split("there is ")[1].split(", ")
    assert {"cifar_resnet", "cifar_plain", "imagenet_preresnet", "resnet200", "wrn28_10", "resnext29_8x64d", "densenet161"} <= set(listed)
    assert len(listed) == len(set(listed)) >= len(NETWORKS)


@pytest.mark.parametrize(("name", "depth"), [("cifar_resnet", None), ("resnet", None), ("resnet50", 50), ("cifar_plain20", 20)])
def test_a_depth_is_given_once(name: str, depth: int | None) -> None:
    with pytest.raises(UserError, match=f"^'{name}': give the depth once"):
        architecture(name, depth)


@pytest.mark.parametrize("name", ["wrn28_10", "resnet50_d", "resnext50_32x4d", "densenet121", "seresnet50", "cifar_fixup110"])
def test_a_network_that_is_no_family_takes_no_depth(name: str) -> None:
    with pytest.raises(UserError, match=f"^'{name}' has its depth in its name: leave out --depth 50$"):
        architecture(name, 50)


@pytest.mark.parametrize(
    ("name", "depth", "message"),
    [
        ("resnet51", None, "^depth 51: .*18, 34, 50, 101, 152, 200 layers$"),
        ("resnet", 51, "^depth 51: "),
        ("cifar_resnet21", None, r"^depth 21 is not 6n\+2: "),
        ("cifar_plain", 165, r"^depth 165 is not 6n\+2: "),
        ("plain20", None, "^depth 20: "),
        ("cifar_preresnet", 0, r"^depth 0 is not 6n\+2: "),
    ],
)
def test_a_known_name_with_an_unknown_depth_is_answered_with_the_depths(name: str, depth: int | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        architecture(name, depth)


def shapes(build: Callable[[], nnx.Module]) -> Any:
    """The shapes of the variables of a network that is traced and never computed."""
    return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(build()))))


@pytest.mark.parametrize("depth", IMAGENET_DEPTHS)
def test_the_named_functions_are_named_and_documented(depth: int) -> None:
    build = getattr(models, f"resnet{depth}")
    assert build.__name__ == build.__qualname__ == f"resnet{depth}"
    assert f"imagenet_architecture({depth}, " in (build.__doc__ or "")


@pytest.mark.parametrize("build", [models.resnet50, functools.partial(models.build, "resnet50")], ids=["resnet50", "build"])
def test_resnet50_builds_the_network_of_table_1_with_another_head(build: Callable[..., nnx.Module]) -> None:
    """25,557,032 parameters (papers.md A1) with the head of 1000 classes, 2048 weights and a bias each."""

    def run() -> tuple[jax.Array, Any]:
        model = build(num_classes=7, rngs=nnx.Rngs(0))
        return model(jnp.zeros((2, 64, 64, 3))), nnx.to_pure_dict(nnx.state(model, nnx.Param))

    logits, params = jax.eval_shape(run)
    assert logits.shape == (2, 7)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 25_557_032 - 993 * 2049
    kernels = [
        [stack["stacked"]["branch"]["convs"][0]["kernel"].shape[0] for stack in stacks.values()] for stacks in params["stages"].values()
    ]
    assert kernels == [[1, 2], [1, 3], [1, 5], [1, 2]]


def test_the_functions_build_what_the_architectures_say() -> None:
    assert shapes(lambda: models.resnet18(rngs=nnx.Rngs(0))) == shapes(lambda: imagenet_architecture(18).build(rngs=nnx.Rngs(0)))
    ours = shapes(lambda: models.cifar_resnet(depth=8, shortcut=Projection, num_classes=3, rngs=nnx.Rngs(0)))
    assert ours == shapes(lambda: cifar_architecture(8, shortcut=Projection, num_classes=3).build(rngs=nnx.Rngs(0)))
    assert ours["head"]["linear"]["kernel"] == (64, 3)
    assert "projection" in ours["stages"][1][0]["stacked"]["shortcut"]["carry"]


def test_build_takes_names_and_fields() -> None:
    def ours() -> nnx.Module:
        return models.build("cifar_preresnet110", stages=(1, 2), features=(4, 8), shortcut=ZeroPad, num_classes=3, rngs=nnx.Rngs(0))

    expected = Architecture(stages=(1, 2), features=(4, 8), order=FullPreactivation, shortcut=ZeroPad, num_classes=3)
    assert shapes(ours) == shapes(lambda: expected.build(rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match="did you mean .*cifar_preresnet110"):
        models.build("cifar_preresnt110", rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="classes"):
        models.build("resnet50", classes=3, rngs=nnx.Rngs(0))
