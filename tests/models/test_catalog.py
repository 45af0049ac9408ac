"""Catalog of the papers' networks: gradients of every family; known and unknown names."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.kernels import quick_to_compile
from resnet_jax.models import (
    NETWORKS,
    Architecture,
    StochasticDepth,
    architecture,
    cifar_architecture,
    components,
    densenet_architecture,
    imagenet_architecture,
    shortcuts,
    wide_architecture,
)
from resnet_jax.models.blocks import Basic, Bottleneck, BottleneckV15, Branch, SingleLayer
from resnet_jax.models.catalog import known, load_part, name_of, read, variant, write
from resnet_jax.models.components import Factory, component
from resnet_jax.models.norms import BatchNorm, GroupNorm, NoNorm
from resnet_jax.models.orders import Fixup, FullPreactivation, Original
from resnet_jax.models.shortcuts import (
    Concatenation,
    DropoutShortcut,
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
from resnet_jax.models.stems import DeepStem, DenseTransition, ImageNetStem, NoTransition, SmallImageStem

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


# Names and their definitions by family.
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
        ("", None, "no network is called ''"),
        ("cifar_resnet" + "9" * 5000, None, "no network is called"),
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


def test_build_changes_fields() -> None:
    """25,557,032 parameters (papers.md A1) with the head of 1000 classes, 2048 weights and a bias each."""

    def parameters(name: str, **fields: Any) -> int:
        state = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(models.build(name, **fields, rngs=nnx.Rngs(0)), nnx.Param)))
        return sum(leaf.size for leaf in jax.tree.leaves(state))

    assert parameters("resnet50", num_classes=7) == 25_557_032 - 993 * 2049
    assert parameters("cifar_resnet20", shortcut="B") == parameters("cifar_resnet20", shortcut=Projection) == 272_474
    with pytest.raises(UserError, match="Architecture has no field 'classes'; did you mean num_classes"):
        models.build("resnet50", classes=3, rngs=nnx.Rngs(0))


# Networks by depth and width against the papers' tables and rules --------------------------------

# He et al. 2015, Table 1; ResNet-200 is He et al. 2016's, Section 4.2.
TABLE_1: dict[int, tuple[Factory, tuple[int, ...]]] = {
    18: (Basic, (2, 2, 2, 2)),
    34: (Basic, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
    200: (Bottleneck, (3, 24, 36, 3)),
}
# Fields of every network whose paper does not state others.
PLAIN: dict[str, Any] = dict(
    stem_features=0,
    order=Original,
    norm=BatchNorm,
    transition=NoTransition,
    stochastic_depth=StochasticDepth(survival=1.0),
    output_stride=0,
    dtype="float32",
)
SMALL_IMAGES: dict[str, Any] = PLAIN | dict(stem=SmallImageStem, input_shape=(32, 32, 3), num_classes=10)


def test_branches_are_figure_5s() -> None:
    """He et al. 2015: two 3x3; 1x1, 3x3 and 1x1 to four times the width, the stride in the first 1x1, of v1.5 in the 3x3."""
    assert component(Branch, kernels=(3, 3)) == Basic
    assert component(Branch, kernels=(1, 3, 1), expansion=4) == Bottleneck
    assert component(Branch, kernels=(1, 3, 1), expansion=4, stride_at=1) == BottleneckV15
    assert component(Branch, kernels=(3,)) == SingleLayer


def test_cifar_networks_are_those_of_section_4_2() -> None:
    """6n+2 layers, 16, 32 and 64 filters, option A in all of them."""
    for depth, n in ((8, 1), (20, 3), (56, 9), (110, 18), (1202, 200)):
        assert cifar_architecture(depth) == Architecture(
            **SMALL_IMAGES,
            stages=(n, n, n),
            features=(16, 32, 64),
            branch=Basic,
            shortcut=ZeroPad,
        )


def test_depth_counts_the_branchs_convolutions() -> None:
    """9n+2 for bottlenecks (He et al. 2016, Section 5: 164, 1001), 3n+2 for single layers (Table 3)."""
    for depth, branch, n in (
        (164, Bottleneck, 18),
        (1001, Bottleneck, 111),
        (29, BottleneckV15, 3),
        (110, SingleLayer, 36),
        (8, Branch, 1),
    ):
        assert cifar_architecture(depth, branch=branch).stages == (n, n, n)


def test_imagenet_networks_are_those_of_table_1() -> None:
    """Option B by default (Section 4.1: ResNet-50/101/152 use it); the stride in the first 1x1 as in the paper."""
    for depth, (branch, stages) in TABLE_1.items():
        assert imagenet_architecture(depth) == Architecture(
            **PLAIN,
            stages=stages,
            features=(64, 128, 256, 512),
            branch=branch,
            shortcut=Projection,
            stem=ImageNetStem,
            input_shape=(224, 224, 3),
            num_classes=1000,
        )
        v15 = BottleneckV15 if branch is Bottleneck else Basic
        assert imagenet_architecture(depth, stride_in_1x1=False) == dataclasses.replace(imagenet_architecture(depth), branch=v15)


def test_wide_networks_are_those_of_1605_07146() -> None:
    """Table 1: a stem of 16, groups of N = (depth - 4) / 6 blocks B(3, 3) of 16k, 32k and 64k; pre-activated, projected."""
    for depth, widen, n, features in ((40, 1, 6, (16, 32, 64)), (28, 10, 4, (160, 320, 640)), (10, 3, 1, (48, 96, 192))):
        assert wide_architecture(depth, widen) == Architecture(
            **SMALL_IMAGES | {"stem_features": 16, "order": FullPreactivation},
            stages=(n, n, n),
            features=features,
            branch=Basic,
            shortcut=Projection,
        )


def test_dense_networks_are_those_of_1608_06993() -> None:
    """Section 3: three equal stages; BC has 1x1 convolutions to 4k, halving transitions and a stem of 2k, the plain one a stem of 16."""
    for depth, growth, n, bottleneck in ((100, 12, 16, True), (40, 12, 12, False)):
        assert densenet_architecture(depth, growth, bottleneck=bottleneck) == Architecture(
            **SMALL_IMAGES
            | {
                "stem_features": 2 * growth if bottleneck else 16,
                "order": FullPreactivation,
                "transition": component(DenseTransition, compression=0.5 if bottleneck else 1.0),
            },
            stages=(n, n, n),
            features=(growth, growth, growth),
            branch=component(Branch, kernels=(1, 3), base_width=4 * 64) if bottleneck else component(Branch, kernels=(3,)),
            shortcut=Concatenation,
        )


def test_imagenet_dense_networks_are_those_of_table_1() -> None:
    for depth, stages, growth in (
        (121, (6, 12, 24, 16), 32),
        (169, (6, 12, 32, 32), 32),
        (201, (6, 12, 48, 32), 32),
        (161, (6, 12, 36, 24), 48),
    ):
        network = densenet_architecture(depth, imagenet=True)
        assert (network.stages, network.features, network.stem_features) == (stages, (growth,) * 4, 2 * growth)
        assert (network.stem, network.input_shape, network.num_classes) == (ImageNetStem, (224, 224, 3), 1000)
        assert network.transition == component(DenseTransition, compression=0.5)
        # Layers: the stem, two per block, three transitions, the classifier.
        assert 1 + 2 * sum(stages) + 3 + 1 == depth
    assert densenet_architecture(121, 16, imagenet=True).features == (16,) * 4


def test_further_fields_replace_the_papers() -> None:
    ours = cifar_architecture(14, shortcut=ProjectionEverywhere, num_classes=100, features=(4, 8, 8), input_shape=(8, 8, 1))
    assert (ours.stages, ours.shortcut, ours.num_classes) == ((2, 2, 2), ProjectionEverywhere, 100)
    assert (ours.features, ours.input_shape) == ((4, 8, 8), (8, 8, 1))
    theirs = imagenet_architecture(18, shortcut=NoShortcut, num_classes=7)
    assert (theirs.shortcut, theirs.num_classes, theirs.stages) == (NoShortcut, 7, (2, 2, 2, 2))
    wide = wide_architecture(16, 2, branch=component(Basic, dropout=0.3), shortcut=ZeroPad, features=(4, 8, 8))
    assert (wide.branch, wide.shortcut, wide.features) == (component(Branch, kernels=(3, 3), dropout=0.3), ZeroPad, (4, 8, 8))
    dense = densenet_architecture(40, 12, bottleneck=False, transition=component(DenseTransition, compression=0.25))
    assert dense.transition == component(DenseTransition, compression=0.25)


def test_invalid_depths_are_rejected_with_valid_ones() -> None:
    cases: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        *((cifar_architecture, (depth,), {}, rf"depth {depth} is not 6n\+2: .* 8, 14, 20, 26, ... layers") for depth in (-4, 2, 21)),
        (cifar_architecture, (1202,), {"branch": Bottleneck}, r"depth 1202 is not 9n\+2: .* 11, 20, 29, 38, ... layers"),
        (cifar_architecture, (111,), {"branch": SingleLayer}, r"depth 111 is not 3n\+2: .* 5, 8, 11, 14, ... layers"),
        (imagenet_architecture, (51,), {}, "depth 51: these networks have 18, 34, 50, 101, 152, 200 layers"),
        *((wide_architecture, (depth, 2), {}, rf"depth {depth} is not 6n\+4: .* 10, 16, 22, 28") for depth in (4, 20, 27)),
        (densenet_architecture, (39, 12), {"bottleneck": False}, r"depth 39 is not 3n\+4"),
        (densenet_architecture, (43, 12), {}, r"depth 43 is not 6n\+4"),
        (densenet_architecture, (100,), {}, "growth rate"),
        (densenet_architecture, (100,), {"imagenet": True}, "depth 100: these networks have 121, 161, 169, 201 layers"),
    ]
    for build, arguments, options, message in cases:
        with pytest.raises(UserError, match=message) as error:
            build(*arguments, **options)
        assert "\n" not in str(error.value)


# Short names of parts, variants of networks, and descriptions of networks in untrusted files -----

BASE = NETWORKS["cifar_resnet110"]
# He et al. 2015, Section 4.1: A zero padding, B projections where the width changes, C everywhere.
PARTS: dict[str, Factory] = {
    "none": NoShortcut,
    "A": ZeroPad,
    "B": Projection,
    "C": ProjectionEverywhere,
    "D": PooledProjection,
    "ReZero": LearnedScalar,
    "SkipInit": component(LearnedScalar, resize="project"),
    "ZeroPad": ZeroPad,
    "Bottleneck": Bottleneck,
    "FullPreactivation": FullPreactivation,
    "NoNorm": NoNorm,
    "DeepStem": DeepStem,
    "BatchNorm(group_size=64)": component(BatchNorm, group_size=64),
    "GroupNorm(num_groups=8)": component(GroupNorm, num_groups=8),
    "Branch(kernels=(3, 1, 3))": component(Branch, kernels=(3, 1, 3)),
    "Basic(dropout=0.3)": component(Basic, dropout=0.3),
    "BottleneckV15(base_width=100)": component(BottleneckV15, base_width=100),
    "DropoutShortcut( rate = 0.25 )": component(DropoutShortcut, rate=0.25),
    "ShortcutOnlyGating(bias=-6)": component(ShortcutOnlyGating, bias=-6.0),
    "Scaled(shortcut=0.5, branch=0.5)": component(Scaled, shortcut=0.5, branch=0.5),
    "SkipInit(initial=0.5)": component(LearnedScalar, resize="project", initial=0.5),
    "A(resize='project')": component(ZeroPad, resize="project"),
}


def test_short_names_are_read_and_written() -> None:
    for written, part in PARTS.items():
        assert load_part(written) == part
        assert load_part(name_of(part)) == part
    for name, part in known().items():
        assert load_part(name) == part
        assert load_part(name_of(part)) == part
        assert not name.startswith("_")
    assert {"Basic", "BottleneckV15", "SingleLayer", "FrozenBatchNorm", "ImageNetStem", "DenseTransition", "Fixup"} <= known().keys()
    assert shortcuts.OPTIONS.items() <= PARTS.items()


def test_class_of_a_file_is_written_as_its_reference(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("class Mine:\n    def __init__(self, *args, scale=1.0):\n        pass\n")
    mine = components.load(f"{tmp_path}/mine.py:Mine")
    assert name_of(mine) == f"{tmp_path}/mine.py:Mine"
    assert name_of(component(mine, scale=2)) == f"{tmp_path}/mine.py:Mine(scale=2)"
    assert variant("cifar_resnet20", shortcut=f"{tmp_path}/mine.py:Mine").shortcut is mine
    assert name_of(component(Bottleneck, groups=2)) == "Branch(expansion=4, groups=2, kernels=(1, 3, 1))"


def test_unknown_short_name_names_the_nearest() -> None:
    for written, message in (
        ("E", "'E' is no known class; "),
        ("Scalde(shortcut=1)", "'Scalde' is no known class; did you mean .*Scaled.*; for your own write FILE.py:CLASS"),
        ("ShortcutOnlyGating(bia=1)", "ShortcutOnlyGating takes no argument 'bia'; did you mean bias"),
        ("Scaled(0.5)", r"cannot be read: write Scaled\(argument=value"),
        ("missing.py:Half", "there is no file missing.py"),
    ):
        with pytest.raises(UserError, match=message):
            load_part(written)


def test_variant_changes_fields_alone() -> None:
    assert variant("cifar_resnet110") == BASE == cifar_architecture(110)
    assert variant("cifar_resnet26") == cifar_architecture(26), "any depth of a family"
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"num_classes": 100, "dtype": "bfloat16"}, {"num_classes": 100, "dtype": "bfloat16"}),
        ({"stages": [25, 25, 25], "input_shape": [8, 8, 1]}, {"stages": (25, 25, 25), "input_shape": (8, 8, 1)}),
        ({"stochastic_depth": StochasticDepth(kept=3)}, {"stochastic_depth": StochasticDepth(kept=3)}),
        ({"branch": "Bottleneck", "norm": "NoNorm"}, {"branch": Bottleneck, "norm": NoNorm}),
        ({"shortcut": NoShortcut}, {"shortcut": NoShortcut}),
    ]
    for fields, changed in changes:
        assert variant("cifar_resnet110", **fields) == dataclasses.replace(BASE, **changed)
    one, two = variant("cifar_resnet20", stages=[1, 1, 1], shortcut="B"), variant("cifar_resnet20", shortcut="Projection", stages=(1, 1, 1))
    assert len({one, two}) == 1
    # All three blocks own a projection.
    small = variant("cifar_resnet8", shortcut="C", order="FullPreactivation", num_classes=3, features=[4, 8, 8])
    assert models.count(small).projections == 3


def test_unknown_field_names_the_nearest() -> None:
    for fields, reason in ({"shortcuts": "B"}, "did you mean shortcut"), ({"build": 1}, ""):
        with pytest.raises(UserError, match=f"Architecture has no field '{next(iter(fields))}'.*{reason}"):
            variant("cifar_resnet20", **fields)


def test_description_is_read_as_written_in_json() -> None:
    for network in NETWORKS.values():
        assert read(json.loads(json.dumps(write(network)))) == network
    changed = variant("resnet50", shortcut="D", norm="BatchNorm(group_size=64)", stochastic_depth=StochasticDepth(survival=0.5))
    written = json.loads(json.dumps(write(changed)))
    assert read(written) == changed
    assert (written["branch"], written["shortcut"], written["norm"]) == ("Bottleneck", "PooledProjection", "BatchNorm(group_size=64)")


def test_description_never_imports_a_file(tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    (tmp_path / "mine.py").write_text(f"open({str(marker)!r}, 'w')\n\n\nclass Half:\n    pass\n")
    for text in (f"{tmp_path}/mine.py:Half", "os:system", f"{tmp_path}/mine.py:Half(a=1)"):
        with pytest.raises(UserError, match="a file cannot bring code along, so give the network itself"):
            read(write(BASE) | {"shortcut": text})
    assert not marker.exists()


def test_invalid_description_is_rejected() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"shortcutt": "B"}, "Architecture has no field 'shortcutt'; did you mean shortcut"),
        ({"shortcut": "BB"}, "'BB' is no known class"),
        ({"branch": "Branch(kernels=" + "3," * 200 + ")"}, "is 416 characters long"),
        ({"stages": [1] * 101, "features": [1] * 101}, "this describes no network: stages="),
        ({"features": [-1]}, "this describes no network: .*features="),
        ({"num_classes": 2**40}, "this describes no network: .*num_classes"),
        ({"input_shape": [32, 32]}, "this describes no network"),
        ({"dtype": "float64"}, "this describes no network"),
        ({"order": "ZeroPad"}, "this describes no network"),
        ({"stochastic_depth": {"keeps": 1}}, "this describes no network"),
        ({"stochastic_depth": {"kept": "1"}}, "this describes no network"),
    ]
    for fields, reason in cases:
        with pytest.raises(UserError, match=reason):
            read(write(BASE) | fields)
    with pytest.raises(UserError, match="this describes no network"):
        read({"stages": [1]})
