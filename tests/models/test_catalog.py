"""Catalog of the papers' networks: gradients of every family; known and unknown names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models import NETWORKS, Architecture, StochasticDepth, architecture, cifar_architecture, imagenet_architecture
from resnet_jax.models.blocks import Basic, Bottleneck, BottleneckV15, SingleLayer
from resnet_jax.models.components import component
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.models.orders import Fixup, FullPreactivation
from resnet_jax.models.shortcuts import NoShortcut, PooledProjection, PooledZeroPad, Projection, ZeroPad
from resnet_jax.models.stems import DeepStem, SmallImageStem

# He et al. 2015, Table 1; He et al. 2016, Section 4.2.
IMAGENET_DEPTHS = (18, 34, 50, 101, 152, 200)
# One network of every family.
FAMILIES = ("resnet50", "cifar_plain20", "cifar_fixup110", "cifar_preresnet110", "cifar_stochastic110", "seresnext50_32x4d")
FAMILIES += ("cifar_densenet40_12", "wrn16_8_dropout")


def reduced(full: Architecture) -> Architecture:
    """Two stages of one block, narrower, on small images."""
    features = full.features
    while features[0] > 32:
        features = tuple(wide // 2 for wide in features)
    side = 8 if full.stem is SmallImageStem else 32
    return dataclasses.replace(full, stages=(1, 1), features=features[:2], input_shape=(side, side, 3), num_classes=7)


@pytest.mark.parametrize("name", FAMILIES)
def test_network_has_finite_logits_and_gradients(name: str) -> None:
    """Finite logits and gradients in bfloat16.

    No gradient is zero but those of Fixup (its last weights and its classifier begin at zero) and of dropped branches.
    """
    small = dataclasses.replace(reduced(NETWORKS[name]), dtype="bfloat16")

    def run(key: jax.Array, images: jax.Array, labels: jax.Array) -> Any:
        apply, params, batch_stats = small.init(key)

        def loss_of(params: Any) -> tuple[jax.Array, jax.Array]:
            logits, _ = apply(params, batch_stats, images, train=True, key=key)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), logits

        gradients, logits = jax.grad(loss_of, has_aux=True)(params)
        return logits, jax.tree.map(lambda g: jnp.linalg.norm(g.astype(jnp.float32).ravel()), gradients)

    images = np.random.default_rng(3).normal(size=(4, *small.input_shape)).astype(np.float32)
    logits, norms = jax.jit(run, compiler_options=quick_to_compile())(jax.random.key(0), images, jnp.arange(4))
    assert (logits.shape, logits.dtype) == ((4, 7), jnp.float32)
    assert np.isfinite(logits).all()
    assert np.isfinite(jax.tree.leaves(norms)).all()
    if small.order is not Fixup:
        assert np.ptp(logits) > 0.1
        zero = [path for path, norm in jax.tree.leaves_with_path(norms) if norm == 0]
        assert not zero or small.stochastic_depth.survival < 1
    assert any(jax.tree.leaves(norms))


# Names and their definitions by family, see test_families.py.
NAMED = {
    **{f"resnet{d}": imagenet_architecture(d) for d in IMAGENET_DEPTHS},
    **{f"plain{d}": imagenet_architecture(d, shortcut=NoShortcut) for d in IMAGENET_DEPTHS},
    **{f"preresnet{d}": imagenet_architecture(d, order=FullPreactivation) for d in IMAGENET_DEPTHS},
    **{f"resnet{d}_v15": imagenet_architecture(d, branch=BottleneckV15) for d in (50, 101, 152, 200)},
    "resnet34_d": imagenet_architecture(34, shortcut=PooledProjection, stem=DeepStem),
    "resnet50_d": imagenet_architecture(50, branch=BottleneckV15, shortcut=PooledProjection, stem=DeepStem),
    "seresnet18": imagenet_architecture(18, branch=component(Basic, reduction=16)),
    "seresnet50": imagenet_architecture(50, branch=component(Bottleneck, reduction=16)),
    "seresnext50_32x4d": imagenet_architecture(50, branch=component(BottleneckV15, groups=32, base_width=4, reduction=16)),
    "resnext101_64x4d": imagenet_architecture(101, branch=component(BottleneckV15, groups=64, base_width=4)),
    "wide_resnet101_2": imagenet_architecture(101, branch=component(BottleneckV15, base_width=128)),
    "cifar_resnet110": cifar_architecture(110),
    "cifar_plain56": cifar_architecture(56, shortcut=NoShortcut),
    "cifar_resnet164": cifar_architecture(164, branch=Bottleneck, shortcut=Projection),
    "cifar_preresnet110": cifar_architecture(110, shortcut=Projection, order=FullPreactivation),
    "cifar_preresnet1001": cifar_architecture(1001, branch=Bottleneck, shortcut=Projection, order=FullPreactivation),
    "cifar_resnet110_single": cifar_architecture(110, branch=SingleLayer),
    "cifar_preresnet110_single": cifar_architecture(110, branch=SingleLayer, shortcut=Projection, order=FullPreactivation),
    # Huang et al. 2016, Section 4: p_L = 0.5, linear, per batch, scaled in evaluation.
    "cifar_stochastic110": cifar_architecture(
        110, shortcut=PooledZeroPad, stochastic_depth=StochasticDepth(survival=0.5, rule="linear", drops="batch", scaled="test")
    ),
    "wrn28_10_dropout": models.wide_architecture(28, 10, branch=component(Basic, dropout=0.3)),
    "resnext29_8x64d": cifar_architecture(
        29, branch=component(BottleneckV15, groups=8, base_width=64), shortcut=Projection, features=(64, 128, 256)
    ),
    "cifar_seresnet164": cifar_architecture(164, branch=component(Bottleneck, reduction=16), shortcut=Projection),
    "cifar_fixup110": cifar_architecture(110, order=Fixup),
    "cifar_densenet_bc100_12": models.densenet_architecture(100, 12),
    "densenet201": models.densenet_architecture(201, imagenet=True),
}


def test_names_are_the_papers_networks() -> None:
    assert {name: architecture(name) for name in NAMED} == NAMED
    assert len(set(NETWORKS.values())) == len(NETWORKS) == 101
    for name, network in NETWORKS.items():
        small = name.startswith(("cifar", "wrn", "resnext29"))
        assert (network.input_shape, network.num_classes) == (((32, 32, 3), 10) if small else ((224, 224, 3), 1000))


def test_name_and_depth_select_a_network() -> None:
    for name, depth, expected in [
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
    ]:
        assert architecture(name, depth) == expected


def test_unknown_names_and_depths_are_rejected_with_those_that_exist() -> None:
    cases: list[tuple[str, int | None, str]] = [
        ("resnet50_e", None, "no network is called 'resnet50_e'; did you mean resnet50"),
        ("vgg", None, "there is .*cifar_resnet.*densenet161.*wrn28_10"),
        *((name, 50, f"^'{name}': give the depth once, leave out --depth 50") for name in ("resnet50", "wrn28_10", "resnet50_d")),
        ("cifar_resnet", None, "^'cifar_resnet': give the depth once"),
        ("resnet51", None, "^depth 51: .*18, 34, 50, 101, 152, 200 layers"),
        ("resnet", 51, "^depth 51: "),
        ("cifar_plain", 165, r"^depth 165 is not 6n\+2: "),
    ]
    for name, depth, message in cases:
        with pytest.raises(UserError, match=message):
            architecture(name, depth)


def shapes(build: Any) -> Any:
    """Shapes of the variables of a network, traced."""
    return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(build()))))


def test_build_changes_fields() -> None:
    """25,557,032 parameters (papers.md A1) with the head of 1000 classes, 2048 weights and a bias each."""
    fields: dict[str, Any] = dict(num_classes=7)
    params = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(models.build("resnet50", **fields, rngs=nnx.Rngs(0)), nnx.Param)))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 25_557_032 - 993 * 2049
    ours = shapes(lambda: models.build("cifar_resnet8", shortcut=Projection, **fields, rngs=nnx.Rngs(0)))
    assert ours == shapes(lambda: cifar_architecture(8, shortcut=Projection, num_classes=7).build(rngs=nnx.Rngs(0)))
    small = shapes(lambda: models.build("cifar_preresnet110", stages=(1, 2), features=(4, 8), shortcut=ZeroPad, **fields, rngs=nnx.Rngs(0)))
    expected = Architecture(stages=(1, 2), features=(4, 8), order=FullPreactivation, shortcut=ZeroPad, num_classes=7)
    assert small == shapes(lambda: expected.build(rngs=nnx.Rngs(0)))
    with pytest.raises(TypeError, match="classes"):
        models.build("resnet50", classes=3, rngs=nnx.Rngs(0))
