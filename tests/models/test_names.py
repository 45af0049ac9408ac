"""Short names of parts, and networks with some of their fields changed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models import NETWORKS, Architecture, StochasticDepth, cifar_architecture
from resnet_jax.models.branches import Basic, Bottleneck, BottleneckV15, Branch
from resnet_jax.models.names import known, load_part, name_of, read, variant, write
from resnet_jax.models.norms import BatchNorm, GroupNorm, NoNorm
from resnet_jax.models.orders import FullPreactivation, NormAfterAddition
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
from resnet_jax.models.stems import DeepStem, ImageNetStem
from resnet_jax.models.transitions import DenseTransition

BASE = NETWORKS["cifar_resnet110"]


def test_without_fields_it_is_the_network_of_the_catalog() -> None:
    assert variant("cifar_resnet110") == BASE == cifar_architecture(110)
    assert variant("cifar_resnet26") == cifar_architecture(26), "any depth of a family"


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({"num_classes": 100}, {"num_classes": 100}),
        ({"stages": [25, 25, 25]}, {"stages": (25, 25, 25)}),
        ({"features": [32, 64, 128], "stem_features": 16}, {"features": (32, 64, 128), "stem_features": 16}),
        ({"input_shape": [8, 8, 1]}, {"input_shape": (8, 8, 1)}),
        ({"stages": (2, 2, 2)}, {"stages": (2, 2, 2)}),
        ({"dtype": "bfloat16"}, {"dtype": "bfloat16"}),
        ({"output_stride": 8}, {"output_stride": 8}),
        ({"stochastic_depth": StochasticDepth(survival=0.5)}, {"stochastic_depth": StochasticDepth(survival=0.5)}),
        ({"stochastic_depth": StochasticDepth(kept=3)}, {"stochastic_depth": StochasticDepth(kept=3)}),
        ({"branch": "Bottleneck"}, {"branch": Bottleneck}),
        ({"branch": "BottleneckV15(base_width=100)"}, {"branch": configured(BottleneckV15, base_width=100)}),
        ({"branch": "Branch(kernels=(3, 1, 3))"}, {"branch": configured(Branch, kernels=(3, 1, 3))}),
        ({"branch": "Basic(dropout=0.3)"}, {"branch": configured(Basic, dropout=0.3)}),
        ({"order": "FullPreactivation"}, {"order": FullPreactivation}),
        ({"order": "NormAfterAddition"}, {"order": NormAfterAddition}),
        ({"norm": "BatchNorm(group_size=64)"}, {"norm": configured(BatchNorm, group_size=64)}),
        ({"norm": "GroupNorm(num_groups=8)"}, {"norm": configured(GroupNorm, num_groups=8)}),
        ({"norm": "NoNorm"}, {"norm": NoNorm}),
        ({"stem": "ImageNetStem"}, {"stem": ImageNetStem}),
        ({"stem": "DeepStem"}, {"stem": DeepStem}),
        ({"transition": "DenseTransition(compression=0.5)"}, {"transition": configured(DenseTransition, compression=0.5)}),
        ({"shortcut": "Scaled(shortcut=0.5, branch=0.5)"}, {"shortcut": configured(Scaled, shortcut=0.5, branch=0.5)}),
        ({"shortcut": "ShortcutOnlyGating(bias=-6)"}, {"shortcut": configured(ShortcutOnlyGating, bias=-6.0)}),
        ({"shortcut": "DropoutShortcut(rate=0.5)"}, {"shortcut": configured(DropoutShortcut, rate=0.5)}),
        ({"shortcut": NoShortcut}, {"shortcut": NoShortcut}),
        ({"shortcut": configured(Scaled, shortcut=0.5)}, {"shortcut": configured(Scaled, shortcut=0.5)}),
    ],
    ids=str,
)
def test_fields_are_changed_and_the_others_stay(fields: dict[str, Any], changed: dict[str, Any]) -> None:
    assert variant("cifar_resnet110", **fields) == dataclasses.replace(BASE, **changed)


@pytest.mark.parametrize(
    ("letter", "shortcut"),
    [
        ("none", NoShortcut),
        ("A", ZeroPad),
        ("B", Projection),
        ("C", ProjectionEverywhere),
        ("D", PooledProjection),
        ("ReZero", LearnedScalar),
        ("SkipInit", configured(LearnedScalar, resize="project")),
    ],
)
def test_the_papers_letters_name_shortcuts(letter: str, shortcut: Any) -> None:
    """He et al. 2015, Section 4.1: A zero padding, B projections where the width changes, C everywhere."""
    assert variant("resnet34", shortcut=letter).shortcut == shortcut
    assert variant("resnet34", shortcut=letter).stages == (3, 4, 6, 3)


def test_a_variant_can_be_hashed_and_equals_its_like() -> None:
    """Lists as TOML has them become tuples; equal networks are counted once."""
    one, two = variant("cifar_resnet20", stages=[1, 1, 1], shortcut="B"), variant("cifar_resnet20", shortcut="Projection", stages=(1, 1, 1))
    assert one == two
    assert len({one, two}) == 1


def test_the_catalog_is_not_changed() -> None:
    before = dict(NETWORKS)
    variant("cifar_resnet110", shortcut="C", num_classes=7)
    assert before == NETWORKS


def test_a_part_of_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from flax import nnx\n\n\nclass Half(nnx.Module):\n    pass\n")
    assert variant("cifar_resnet20", shortcut=f"{tmp_path}/mine.py:Half").shortcut.__name__ == "Half"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("cifar_resnet_110", {}, "no network is called 'cifar_resnet_110'; did you mean .*cifar_resnet110"),
        ("resnet5O", {}, "no network is called 'resnet5O'; did you mean .*resnet"),
        ("", {}, "no network is called ''"),
        ("cifar_resnet", {}, "give the depth once"),
        ("cifar_resnet20", {"shortcuts": "B"}, "Architecture has no field 'shortcuts'; did you mean shortcut"),
        ("cifar_resnet20", {"classes": 100}, "Architecture has no field 'classes'; did you mean num_classes"),
        ("cifar_resnet20", {"depth": 20}, "Architecture has no field 'depth'"),
        ("cifar_resnet20", {"build": 1}, "Architecture has no field 'build'"),
        ("cifar_resnet20", {"shortcut": "Scalled(shortcut=0.5)"}, "'Scalled' is no known class; did you mean Scaled"),
        ("cifar_resnet20", {"shortcut": "a"}, "'a' is no known class"),
        ("cifar_resnet20", {"shortcut": ""}, "'' is no known class"),
        ("cifar_resnet20", {"branch": "Botleneck"}, "'Botleneck' is no known class; did you mean .*Bottleneck"),
        ("cifar_resnet20", {"order": "FullPreActivation"}, "'FullPreActivation' is no known class; did you mean FullPreactivation"),
        ("cifar_resnet20", {"norm": "BatchNorm(group=64)"}, "BatchNorm takes no argument 'group'; did you mean group_size"),
        ("cifar_resnet20", {"norm": "BatchNorm(64)"}, "cannot be read: write BatchNorm"),
        ("cifar_resnet20", {"shortcut": "Scaled(shortcut=0.5"}, "cannot be read: write Scaled"),
        ("cifar_resnet20", {"shortcut": "missing.py:Half"}, "there is no file missing.py"),
    ],
)
def test_what_is_unknown_is_answered_with_the_nearest(name: str, fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        variant(name, **fields)


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (NoShortcut, "none"),
        (ZeroPad, "A"),
        (Projection, "B"),
        (configured(LearnedScalar, resize="project"), "SkipInit"),
        (configured(Scaled, shortcut=0.5), "Scaled(shortcut=0.5)"),
        (Bottleneck, "Bottleneck"),
        (FullPreactivation, "FullPreactivation"),
        (configured(BatchNorm, group_size=64), "BatchNorm(group_size=64)"),
        (configured(BottleneckV15, groups=32, base_width=4), None),
    ],
    ids=str,
)
def test_a_name_is_read_back_as_the_same_part(part: Any, name: str | None) -> None:
    """Whichever of its names is written; a part derived from a class is written as that class with its arguments."""
    assert load_part(name_of(part)) == part
    if name is not None:
        assert load_part(name) == part


def test_every_known_name_is_read_back() -> None:
    assert {"Basic", "Bottleneck", "BatchNorm", "Original", "Fixup", "ZeroPad", "ImageNetStem", "NoTransition", "A", "C"} <= known().keys()
    for name, part in known().items():
        assert load_part(name) == part
        assert load_part(name_of(part)) == part
    assert not any(name.startswith("_") for name in known())


def test_it_is_an_architecture_that_builds() -> None:
    made = variant("cifar_resnet8", shortcut="C", order="FullPreactivation", num_classes=3, features=[4, 8, 8])
    assert isinstance(made, Architecture)
    from resnet_jax import models

    # All three units own a projection.
    assert models.count(made).projections == 3


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_of_the_catalog_is_read_as_it_was_written_in_json(name: str) -> None:
    assert read(json.loads(json.dumps(write(NETWORKS[name])))) == NETWORKS[name]


def test_a_network_is_written_with_the_short_names_of_its_parts() -> None:
    changed = variant("resnet50", shortcut="D", norm="BatchNorm(group_size=64)", stochastic_depth=StochasticDepth(survival=0.5))
    written = json.loads(json.dumps(write(changed)))
    assert written == {
        "stages": [3, 4, 6, 3],
        "features": [64, 128, 256, 512],
        "stem_features": 0,
        "branch": "Bottleneck",
        "order": "Original",
        "shortcut": "PooledProjection",
        "stem": "ImageNetStem",
        "norm": "BatchNorm(group_size=64)",
        "transition": "NoTransition",
        "stochastic_depth": {"survival": 0.5, "rule": "linear", "drops": "batch", "scaled": "test"},
        "output_stride": 0,
        "input_shape": [224, 224, 3],
        "num_classes": 1000,
        "dtype": "float32",
    }
    assert read(written) == changed


def test_a_part_of_ones_own_is_written_by_its_reference_and_never_read(tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    (tmp_path / "mine.py").write_text("from flax import nnx\n\n\nclass Half(nnx.Module):\n    pass\n")
    written = write(variant("cifar_resnet20", shortcut=f"{tmp_path}/mine.py:Half"))
    assert written["shortcut"].endswith("mine.py:Half")
    (tmp_path / "mine.py").write_text(f"open({str(marker)!r}, 'w')\n\n\nclass Half:\n    pass\n")
    for text in (written["shortcut"], "os:system", f"{tmp_path}/mine.py:Half(a=1)"):
        with pytest.raises(UserError, match="a file cannot bring code along, so give the network itself"):
            read({**written, "shortcut": text})
    assert not marker.exists()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"shortcutt": "B"}, "Architecture has no field 'shortcutt'; did you mean shortcut"),
        ({"shortcut": "BB"}, "'BB' is no known class"),
        ({"branch": "Branch(kernels=" + "3," * 200 + ")"}, "characters long, which no part of ours is"),
        ({"input_shape": [32, 32]}, "this describes no network"),
        ({"stages": [1] * 101, "features": [1] * 101}, "this describes no network.*: stages"),
        ({"features": [-1]}, "this describes no network.*: features"),
        ({"num_classes": 2**40}, "this describes no network.*: num_classes"),
        ({"dtype": "float64"}, "this describes no network"),
        ({"stochastic_depth": {"keeps": 1}}, "this describes no network"),
        ({"stochastic_depth": {"kept": "1"}}, "this describes no network"),
    ],
)
def test_what_describes_no_network_is_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        read(write(BASE) | fields)


def test_what_lacks_a_field_without_default_is_refused() -> None:
    with pytest.raises(UserError, match="this describes no network"):
        read({"stages": [1]})
