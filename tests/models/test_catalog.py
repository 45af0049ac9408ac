"""Catalog of the papers' networks: gradients of every family; known and unknown names."""

import dataclasses
import doctest
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import resnet_jax
from flax import nnx
from resnet_jax import create_model, models
from resnet_jax.errors import UserError
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
from resnet_jax.models.catalog import read, variant, write
from resnet_jax.models.components import Factory, component, known, name_of, parse
from resnet_jax.models.norms import NoNorm
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
    ShortcutOnlyGating,
    ZeroPad,
)
from resnet_jax.models.stems import DeepStem, DenseTransition

# Names and their definitions; parameters and multiply-adds of most networks are in test_counts.py.
NAMED = {
    "resnet101_v15": imagenet_architecture(101, branch=BottleneckV15),
    "resnet50_d": imagenet_architecture(50, branch=BottleneckV15, shortcut=PooledProjection, stem=DeepStem),
    "seresnet18": imagenet_architecture(18, branch=component(Basic, reduction=16)),
    "seresnext50_32x4d": imagenet_architecture(50, branch=component(BottleneckV15, groups=32, base_width=4, reduction=16)),
    "wide_resnet101_2": imagenet_architecture(101, branch=component(BottleneckV15, base_width=128)),
    "cifar_plain56": cifar_architecture(56, shortcut=NoShortcut),
    "cifar_preresnet1001": cifar_architecture(1001, branch=Bottleneck, shortcut=Projection, order=FullPreactivation),
    "cifar_preresnet110_single": cifar_architecture(110, branch=SingleLayer, shortcut=Projection, order=FullPreactivation),
    # Huang et al. 2016, Section 4: p_L = 0.5, linear, per batch, scaled in evaluation.
    "cifar_stochastic110": cifar_architecture(
        110, shortcut=PooledZeroPad, stochastic_depth=StochasticDepth(survival=0.5, rule="linear", drops="batch", scaled="test")
    ),
    "wrn28_10_dropout": wide_architecture(28, 10, branch=component(Basic, dropout=0.3)),
    "resnext29_8x64d": cifar_architecture(
        29, branch=component(BottleneckV15, groups=8, base_width=64), shortcut=Projection, features=(64, 128, 256)
    ),
    "cifar_fixup110": cifar_architecture(110, order=Fixup),
    # Any depth of a family.
    "imagenet_preresnet152": imagenet_architecture(152, order=FullPreactivation),
    "cifar_resnet26": cifar_architecture(26),
    "cifar_plain62": cifar_architecture(62, shortcut=NoShortcut),
}


def test_names_are_the_papers_networks() -> None:
    assert {name: architecture(name) for name in NAMED} == NAMED
    for name, depth in (("resnet", 50), ("cifar_plain", 56), ("imagenet_preresnet", 152), ("cifar_resnet", 164), ("cifar_preresnet", 1001)):
        assert architecture(name, depth) == architecture(f"{name}{depth}")
    assert len(set(NETWORKS.values())) == len(NETWORKS) == 101
    for name, network in NETWORKS.items():
        small = name.startswith(("cifar", "wrn", "resnext29"))
        assert (network.input_shape, network.num_classes) == (((32, 32, 3), 10) if small else ((224, 224, 3), 1000))


def test_build_changes_fields() -> None:
    """25,557,032 parameters (papers.md A1) with the head of 1000 classes, 2048 weights and a bias each."""

    def parameters(name: str, **fields: Any) -> int:
        state = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(create_model(name, **fields, rngs=nnx.Rngs(0)), nnx.Param)))
        return sum(leaf.size for leaf in jax.tree.leaves(state))

    assert parameters("resnet50", num_classes=7) == 25_557_032 - 993 * 2049
    assert parameters("cifar_resnet20", shortcut="B") == parameters("cifar_resnet20", shortcut=Projection) == 272_474
    assert parameters("cifar_resnet20", in_features=5, num_classes=0) == 269_722 + 2 * 9 * 16 - 650
    assert parameters("cifar_resnet20", norm=functools.partial(nnx.GroupNorm, num_groups=8)) == 269_722
    assert doctest.testmod(models.catalog) == (0, 1)
    assert doctest.testmod(resnet_jax) == (0, 6)


def test_families_are_the_papers() -> None:
    """He et al. 2015, Section 4.2: 6n+2 layers, option A. Zagoruyko and Komodakis 2016, Table 1: depth 6n+4 of B(3, 3), pre-activated.

    Huang et al. 2017, Section 3: BC has 1x1 convolutions to 4k, halving transitions and a stem of 2k, the plain one a stem of 16.
    """
    for depth, n in ((8, 1), (110, 18), (1202, 200)):
        ours = Architecture(stages=(n, n, n), features=(16, 32, 64), branch=Basic, shortcut=ZeroPad, order=Original)
        assert cifar_architecture(depth) == ours
    # 9n+2 for bottlenecks (He et al. 2016, Section 5: 164, 1001), 3n+2 for single layers (Table 3).
    for depth, branch, n in ((1001, Bottleneck, 111), (29, BottleneckV15, 3), (110, SingleLayer, 36), (8, Branch, 1)):
        assert cifar_architecture(depth, branch=branch).stages == (n, n, n)
    projected = dict(order=FullPreactivation, shortcut=Projection)
    for depth, widen, n, features in ((40, 1, 6, (16, 32, 64)), (28, 10, 4, (160, 320, 640))):
        ours = Architecture(stages=(n, n, n), features=features, stem_features=16, branch=Basic, **projected)
        assert wide_architecture(depth, widen) == ours
    for depth, growth, n, bottleneck, stem_features, compression, branch in (
        (100, 12, 16, True, 24, 0.5, component(Branch, kernels=(1, 3), base_width=4 * 64)),
        (40, 12, 12, False, 16, 1.0, component(Branch, kernels=(3,))),
    ):
        transition = component(DenseTransition, compression=compression)
        dense = dict(order=FullPreactivation, shortcut=Concatenation, transition=transition, branch=branch)
        ours = Architecture(stages=(n, n, n), features=(growth,) * 3, stem_features=stem_features, **dense)
        assert densenet_architecture(depth, growth, bottleneck=bottleneck) == ours
    assert densenet_architecture(121, 16, imagenet=True).features == (16,) * 4


def test_further_fields_replace_the_papers() -> None:
    fields: dict[str, Any] = dict(shortcut=ProjectionEverywhere, num_classes=7, stem_features=5, input_shape=(8, 8, 1))
    for build, arguments in (
        (cifar_architecture, (14,)),
        (imagenet_architecture, (18,)),
        (wide_architecture, (16, 2)),
        (densenet_architecture, (40, 12)),
    ):
        assert build(*arguments, **fields) == dataclasses.replace(build(*arguments), **fields)


def test_unknown_names_depths_and_fields_are_rejected_with_those_that_exist() -> None:
    cases: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        (architecture, ("resnet50_e",), {}, "no network is called 'resnet50_e'; did you mean resnet50"),
        (architecture, ("",), {}, "no network is called ''"),
        (architecture, ("cifar_resnet" + "9" * 5000,), {}, "no network is called"),
        (architecture, ("vgg",), {}, "there is .*cifar_resnet.*densenet161.* and .* more"),
        *((architecture, (name, 50), {}, f"^'{name}': give the depth once, leave out --depth 50") for name in ("resnet50", "resnet50_d")),
        (architecture, ("cifar_resnet",), {}, "^'cifar_resnet': give the depth once"),
        *((architecture, name, {}, "^depth 51: .*18, 34, 50, 101, 152, 200 layers") for name in (("resnet51",), ("resnet", 51))),
        (architecture, ("cifar_plain", 165), {}, r"^depth 165 is not 6n\+2: "),
        *((cifar_architecture, (depth,), {}, rf"depth {depth} is not 6n\+2: .* 8, 14, 20, 26, ... layers") for depth in (-4, 2, 21)),
        (cifar_architecture, (1202,), {"branch": Bottleneck}, r"depth 1202 is not 9n\+2: .* 11, 20, 29, 38, ... layers"),
        (cifar_architecture, (111,), {"branch": SingleLayer}, r"depth 111 is not 3n\+2: .* 5, 8, 11, 14, ... layers"),
        *((wide_architecture, (depth, 2), {}, rf"depth {depth} is not 6n\+4: .* 10, 16, 22, 28") for depth in (4, 20, 27)),
        (densenet_architecture, (39, 12), {"bottleneck": False}, r"depth 39 is not 3n\+4"),
        (densenet_architecture, (43, 12), {}, r"depth 43 is not 6n\+4"),
        (densenet_architecture, (100,), {}, "growth rate"),
        (densenet_architecture, (100,), {"imagenet": True}, "depth 100: these networks have 121, 161, 169, 201 layers"),
        (variant, ("resnet20",), {}, "no network is called 'resnet20'; did you mean cifar_resnet20"),
        (create_model, ("resnet18.a1_in1k",), {}, "resnet18.a1_in1k names pretrained weights: give pretrained=True"),
        (create_model, ("resnet50",), {"classes": 3, "rngs": nnx.Rngs(0)}, "Architecture has no field 'classes'; did you mean num_classes"),
        (variant, ("cifar_resnet20",), {"build": 1}, "Architecture has no field 'build'"),
        (parse, ("E",), {}, "'E' is no known class; "),
        (parse, ("Scalde(shortcut=1)",), {}, "'Scalde' is no known class; did you mean .*Scaled.*; for your own write FILE.py:CLASS"),
        (parse, ("ShortcutOnlyGating(bia=1)",), {}, "ShortcutOnlyGating takes no argument 'bia'; did you mean bias"),
        (parse, ("Scaled(0.5)",), {}, r"cannot be read: write Scaled\(argument=value"),
        (parse, ("missing.py:Half",), {}, "there is no file missing.py"),
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
    "Bottleneck": Bottleneck,
    "Branch(kernels=(3, 1, 3))": component(Branch, kernels=(3, 1, 3)),
    "BottleneckV15(base_width=100)": component(BottleneckV15, base_width=100),
    "DropoutShortcut( rate = 0.25 )": component(DropoutShortcut, rate=0.25),
    "ShortcutOnlyGating(bias=-6)": component(ShortcutOnlyGating, bias=-6.0),
    "SkipInit(initial=0.5)": component(LearnedScalar, resize="project", initial=0.5),
    "A(resize='project')": component(ZeroPad, resize="project"),
}


def test_short_names_are_read_and_written() -> None:
    for written, part in PARTS.items():
        assert parse(written) == part
        assert parse(name_of(part)) == part
    for name, part in known().items():
        assert parse(name) == part
        assert parse(name_of(part)) == part
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


def test_variant_changes_fields_alone() -> None:
    assert variant("cifar_resnet110") == BASE == cifar_architecture(110)
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"num_classes": 100, "dtype": jnp.bfloat16}, {"num_classes": 100, "dtype": "bfloat16"}),
        ({"stages": [25, 25, 25], "input_shape": [8, 8, 1]}, {"stages": (25, 25, 25), "input_shape": (8, 8, 1)}),
        ({"stochastic_depth": StochasticDepth(kept=3)}, {"stochastic_depth": StochasticDepth(kept=3)}),
        ({"branch": "Bottleneck", "norm": "NoNorm"}, {"branch": Bottleneck, "norm": NoNorm}),
        ({"shortcut": "B", "order": FullPreactivation}, {"shortcut": Projection, "order": FullPreactivation}),
    ]
    for fields, changed in changes:
        assert variant("cifar_resnet110", **fields) == dataclasses.replace(BASE, **changed)


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
        ({"features": [-1]}, "this describes no network: model.features must be at least 1, got -1"),
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
