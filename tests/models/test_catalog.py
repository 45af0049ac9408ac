"""The papers' networks by name, and what an unknown name or depth is answered."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from resnet_jax import models
from resnet_jax.errors import UserError
from resnet_jax.models import Architecture, architecture, catalog, cifar_architecture, imagenet_architecture
from resnet_jax.models.blocks import BasicBlock, Bottleneck, BottleneckV15
from resnet_jax.models.shortcuts import NoShortcut, Projection, ProjectionEverywhere, ZeroPad
from resnet_jax.models.stems import ImageNetStem, SmallImageStem

# He et al. 2015, Table 1.
TABLE_1 = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


@pytest.mark.parametrize(("depth", "n"), [(8, 1), (20, 3), (32, 5), (44, 7), (56, 9), (110, 18), (1202, 200)])
def test_cifar_networks_are_those_of_section_4_2(depth: int, n: int) -> None:
    """6n+2 layers, 16, 32 and 64 filters, option A in all of them."""
    assert cifar_architecture(depth) == Architecture(
        stages=(n, n, n),
        features=(16, 32, 64),
        block=BasicBlock,
        shortcut=ZeroPad,
        stem=SmallImageStem,
        input_shape=(32, 32, 3),
        num_classes=10,
        dtype="float32",
    )


def test_the_depths_of_table_6() -> None:
    assert catalog.CIFAR_DEPTHS == (20, 32, 44, 56, 110, 1202)


@pytest.mark.parametrize("depth", TABLE_1)
def test_imagenet_networks_are_those_of_table_1(depth: int) -> None:
    """Option B where nothing else is said (Section 4.1: ResNet-50/101/152 use it); the stride in the first 1x1 as in the paper."""
    block, stages = TABLE_1[depth]
    assert imagenet_architecture(depth) == Architecture(
        stages=stages,
        features=(64, 128, 256, 512),
        block=block,
        shortcut=Projection,
        stem=ImageNetStem,
        input_shape=(224, 224, 3),
        num_classes=1000,
        dtype="float32",
    )
    v15 = imagenet_architecture(depth, stride_in_1x1=False).block
    assert v15 is (BottleneckV15 if block is Bottleneck else BasicBlock)


def test_further_fields_replace_the_papers() -> None:
    ours = cifar_architecture(
        14, shortcut=ProjectionEverywhere, num_classes=100, features=(4, 8, 8), input_shape=(8, 8, 1), dtype="bfloat16"
    )
    assert (ours.stages, ours.shortcut, ours.num_classes) == ((2, 2, 2), ProjectionEverywhere, 100)
    assert (ours.features, ours.input_shape, ours.dtype) == ((4, 8, 8), (8, 8, 1), "bfloat16")
    theirs = imagenet_architecture(18, shortcut=NoShortcut, num_classes=7)
    assert (theirs.shortcut, theirs.num_classes, theirs.stages) == (NoShortcut, 7, (2, 2, 2, 2))


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 9, 21, 1000])
def test_a_cifar_depth_that_is_not_6n_plus_2_is_refused_with_those_that_are(depth: int) -> None:
    with pytest.raises(UserError, match=rf"depth {depth} is not 6n\+2.*8, 14, 20.*\(20, 32, 44, 56, 110, 1202\)"):
        cifar_architecture(depth)


@pytest.mark.parametrize("depth", [0, 20, 51, 200])
def test_an_imagenet_depth_that_is_not_in_table_1_is_refused_with_those_that_are(depth: int) -> None:
    with pytest.raises(UserError, match=f"depth {depth}: .*18, 34, 50, 101, 152 layers"):
        imagenet_architecture(depth)


@pytest.mark.parametrize(
    ("name", "depth", "expected"),
    [
        ("resnet50", None, imagenet_architecture(50)),
        ("resnet", 50, imagenet_architecture(50)),
        ("imagenet_resnet", 34, imagenet_architecture(34)),
        ("imagenet_resnet101", None, imagenet_architecture(101)),
        ("plain34", None, imagenet_architecture(34, shortcut=NoShortcut)),
        ("imagenet_plain", 18, imagenet_architecture(18, shortcut=NoShortcut)),
        ("cifar_resnet", 110, cifar_architecture(110)),
        ("cifar_resnet110", None, cifar_architecture(110)),
        ("cifar_plain", 56, cifar_architecture(56, shortcut=NoShortcut)),
        ("cifar_plain20", None, cifar_architecture(20, shortcut=NoShortcut)),
    ],
)
def test_a_name_finds_its_network(name: str, depth: int | None, expected: Architecture) -> None:
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
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=rf"no network is called '{name}'; did you mean .*\b{suggestion}\b.*\?$"):
        architecture(name)


def test_a_name_like_no_other_is_answered_with_all() -> None:
    with pytest.raises(UserError, match="no network is called 'vgg'; there is ") as error:
        architecture("vgg")
    known = {
        "cifar_resnet",
        "cifar_plain",
        "imagenet_resnet",
        "imagenet_plain",
        *(f"{kind}{d}" for kind in ("resnet", "plain") for d in TABLE_1),
    }
    assert set(str(error.value).split("there is ")[1].split(", ")) == known


@pytest.mark.parametrize(("name", "depth"), [("cifar_resnet", None), ("resnet", None), ("resnet50", 50), ("cifar_plain20", 20)])
def test_a_depth_is_given_once(name: str, depth: int | None) -> None:
    with pytest.raises(UserError, match=f"'{name}': give the depth once"):
        architecture(name, depth)


@pytest.mark.parametrize(
    ("name", "message"),
    [("resnet51", "depth 51: .*18, 34, 50, 101, 152"), ("cifar_resnet21", r"depth 21 is not 6n\+2"), ("plain20", "depth 20:")],
)
def test_a_known_name_with_an_unknown_depth_is_answered_with_the_depths(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        architecture(name)


NAMED: list[tuple[Callable[..., Any], int]] = [
    (models.resnet18, 18),
    (models.resnet34, 34),
    (models.resnet50, 50),
    (models.resnet101, 101),
    (models.resnet152, 152),
]


def shapes(build: Callable[[], nnx.Module]) -> Any:
    """The shapes of the variables of a network that is traced and never computed."""
    return jax.tree.map(lambda leaf: leaf.shape, jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(build()))))


@pytest.mark.parametrize(("build", "depth"), NAMED)
def test_the_named_functions_are_named_and_documented(build: Callable[..., Any], depth: int) -> None:
    assert build.__name__ == build.__qualname__ == f"resnet{depth}"
    assert f"imagenet_architecture({depth}, " in (build.__doc__ or "")


def test_resnet50_builds_the_network_of_table_1_with_another_head() -> None:
    """25,557,032 parameters (papers.md A1) with the head of 1000 classes, 2048 weights and a bias each."""

    def build() -> tuple[jax.Array, Any]:
        model = models.resnet50(num_classes=7, rngs=nnx.Rngs(0))
        return model(jnp.zeros((2, 64, 64, 3))), nnx.to_pure_dict(nnx.state(model, nnx.Param))

    logits, params = jax.eval_shape(build)
    assert logits.shape == (2, 7)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 25_557_032 - 993 * 2049
    assert [len(units) for units in params["stages"].values()] == [3, 4, 6, 3]


def test_the_functions_build_what_the_architectures_say() -> None:
    assert shapes(lambda: models.resnet18(rngs=nnx.Rngs(0))) == shapes(lambda: imagenet_architecture(18).build(rngs=nnx.Rngs(0)))
    ours = shapes(lambda: models.cifar_resnet(depth=8, shortcut=Projection, num_classes=3, rngs=nnx.Rngs(0)))
    assert ours == shapes(lambda: cifar_architecture(8, shortcut=Projection, num_classes=3).build(rngs=nnx.Rngs(0)))
    assert ours["head"]["linear"]["kernel"] == (64, 3)
    assert "projection" in ours["stages"][1][0]["shortcut"]


def test_a_field_that_no_architecture_has_is_refused() -> None:
    with pytest.raises(TypeError, match="classes"):
        cifar_architecture(8, classes=3)
