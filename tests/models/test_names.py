"""Short names of parts, variants of networks, and descriptions of networks in untrusted files."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models import NETWORKS, StochasticDepth, cifar_architecture, components, shortcuts
from resnet_jax.models.blocks import Basic, Bottleneck, BottleneckV15, Branch
from resnet_jax.models.catalog import known, load_part, name_of, read, variant, write
from resnet_jax.models.components import Factory, component
from resnet_jax.models.norms import BatchNorm, GroupNorm, NoNorm
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.shortcuts import (
    DropoutShortcut,
    LearnedScalar,
    NoShortcut,
    PooledProjection,
    Projection,
    ProjectionEverywhere,
    Scaled,
    ShortcutOnlyGating,
    ZeroPad,
)
from resnet_jax.models.stems import DeepStem

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


def test_unknown_network_or_field_names_the_nearest() -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("cifar_resnet_110", {}, "no network is called 'cifar_resnet_110'; did you mean .*cifar_resnet110"),
        ("", {}, "no network is called ''"),
        ("cifar_resnet", {}, "give the depth once"),
        ("cifar_resnet20", {"shortcuts": "B"}, "Architecture has no field 'shortcuts'; did you mean shortcut"),
        ("cifar_resnet20", {"build": 1}, "Architecture has no field 'build'"),
    ]
    for name, fields, reason in cases:
        with pytest.raises(UserError, match=reason):
            variant(name, **fields)


def test_description_is_read_as_written_in_json() -> None:
    for architecture in NETWORKS.values():
        assert read(json.loads(json.dumps(write(architecture)))) == architecture
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
        ({"stages": [1] * 101, "features": [1] * 101}, "this describes no network.*: stages, features"),
        ({"features": [-1]}, "this describes no network.*: features"),
        ({"num_classes": 2**40}, "this describes no network.*: num_classes"),
        ({"input_shape": [32, 32]}, "this describes no network"),
        ({"dtype": "float64"}, "this describes no network"),
        ({"stochastic_depth": {"keeps": 1}}, "this describes no network"),
        ({"stochastic_depth": {"kept": "1"}}, "this describes no network"),
    ]
    for fields, reason in cases:
        with pytest.raises(UserError, match=reason):
            read(write(BASE) | fields)
    with pytest.raises(UserError, match="this describes no network"):
        read({"stages": [1]})
