"""The whole network: what its maps are called and how large they are, what it computes in, what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import close, random
from test_layers import call, filled

from resnet_jax.models import ResNet
from resnet_jax.models.blocks import BasicBlock, Bottleneck, BottleneckV15
from resnet_jax.models.shortcuts import NoShortcut, Projection
from resnet_jax.models.stems import ImageNetStem, SmallImageStem

SMALL: dict[str, Any] = dict(
    stages=(1, 2), features=(4, 6), block=BasicBlock, shortcut=Projection, stem=SmallImageStem, num_classes=5, in_features=3
)


def abstract(images: jax.ShapeDtypeStruct, train: bool = False, **fields: Any) -> tuple[dict[str, Any], Any, Any]:
    """Shapes and dtypes of the maps, the logits and the variables; nothing is computed."""

    def run(images: jax.Array) -> Any:
        model = ResNet(**(SMALL | fields), rngs=nnx.Rngs(0))
        return model.features(images, train), model(images, train), nnx.to_pure_dict(nnx.state(model))

    return jax.eval_shape(run, images)


def images(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize(
    ("fields", "size", "expected"),
    [
        # Section 4.2: 32, 16 and 8 pixels with 16, 32 and 64 filters.
        pytest.param(
            dict(stages=(2, 1, 1), features=(16, 32, 64)),
            32,
            {"stem": (32, 16), "stage1": (32, 16), "stage2": (16, 32), "stage3": (8, 64)},
            id="CIFAR",
        ),
        # Table 1: 56, 28, 14 and 7 pixels; a bottleneck is four times as wide outside as inside.
        *(
            pytest.param(
                dict(stages=(1, 1, 1, 1), features=(64, 128, 256, 512), block=block, stem=ImageNetStem),
                224,
                {"stem": (56, 64)} | {f"stage{i + 1}": (56 >> i, (64 << i) * block.expansion) for i in range(4)},
                id=block.__name__,
            )
            for block in (BasicBlock, Bottleneck, BottleneckV15)
        ),
        # Odd sizes: (9 - 1) // 2 + 1 = 5, then 3.
        pytest.param(
            dict(stages=(1, 1, 1), features=(2, 2, 2)), 9, {"stem": (9, 2), "stage1": (9, 2), "stage2": (5, 2), "stage3": (3, 2)}, id="odd"
        ),
        pytest.param(dict(stages=(3,), features=(4,)), 8, {"stem": (8, 4), "stage1": (8, 4)}, id="one-stage"),
    ],
)
@pytest.mark.parametrize("shortcut", [NoShortcut, Projection])
def test_the_maps_have_their_names_and_the_papers_sizes(
    fields: dict[str, Any], size: int, expected: dict[str, tuple[int, int]], shortcut: type[nnx.Module]
) -> None:
    maps, logits, _ = abstract(images(2, size, size, 3), shortcut=shortcut, **fields)
    assert {name: x.shape for name, x in maps.items()} == {name: (2, side, side, wide) for name, (side, wide) in expected.items()}
    assert logits.shape == (2, 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_may_have_any_channels_and_need_not_be_square(channels: int) -> None:
    maps, _, _ = abstract(images(2, 8, 5, channels), in_features=channels)
    assert maps["stage2"].shape == (2, 4, 3, 6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("entering", ["float32", "bfloat16", "uint8"])
def test_it_computes_in_its_dtype_and_keeps_logits_parameters_and_statistics_in_float32(dtype: Any, train: bool, entering: str) -> None:
    maps, logits, state = abstract(images(2, 8, 8, 3, dtype=entering), train, dtype=dtype)
    assert {x.dtype for x in maps.values()} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize("shortcut", [NoShortcut, Projection])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_every_convolution_of_a_bfloat16_network_is_one_of_bfloat16(block: Any, shortcut: Any) -> None:
    def run(images: jax.Array) -> jax.Array:
        return ResNet(**SMALL | dict(block=block, shortcut=shortcut, dtype="bfloat16"), rngs=nnx.Rngs(0))(images, train=True)

    text = jax.jit(run).lower(images(2, 8, 8, 3)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.convolution(" in line or "stablehlo.dot_general" in line]
    # What is added up in float32 is the head: one matrix product.
    assert len(products) > 4
    assert sum("bf16" not in line.split(" : ")[-1] for line in products) == 1


def test_bfloat16_gives_the_logits_of_float32_to_its_rounding() -> None:
    x, logits = random(2, 8, 8, 3), {}
    for dtype in ("float32", "bfloat16"):
        model = filled(lambda rngs, dtype=dtype: ResNet(**SMALL, dtype=dtype, rngs=rngs))
        logits[dtype], _ = call(model, x)
    close(logits["bfloat16"], logits["float32"], tolerance=0.05)
    assert not np.array_equal(logits["bfloat16"], logits["float32"])


def test_the_normalisation_it_is_given_is_the_only_one() -> None:
    """A user's layer replaces batch normalisation in stem, branches and projections: there are no running statistics then."""

    class Scale(nnx.Module):
        def __init__(self, features: int, *, rngs: nnx.Rngs):
            self.gamma = nnx.Param(jnp.ones(features))

        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            return x * self.gamma[...]

    _, _, state = abstract(images(2, 8, 8, 3), train=True, norm=Scale)
    names = [path[-1].key for path, _ in jax.tree.leaves_with_path(state)]
    # One in the stem, two in each of three units, one in the projection of stage 2.
    assert {name: names.count(name) for name in set(names)} == {"gamma": 8, "kernel": 9, "bias": 1}


@pytest.mark.parametrize("stages_features", [((), ()), ((2, 2), (4,)), ((2,), (4, 8)), ((2, 0), (4, 8)), ((2, -1), (4, 8))])
def test_stages_without_a_width_or_a_unit_are_refused_by_their_values(stages_features: tuple[Any, Any]) -> None:
    stages, features = stages_features
    with pytest.raises(ValueError, match="at least one unit for every stage") as error:
        ResNet(**SMALL | dict(stages=stages, features=features), rngs=nnx.Rngs(0))
    assert f"stages={stages}" in str(error.value)
    assert f"features={features}" in str(error.value)


def test_training_mode_is_an_argument_that_moves_the_statistics_in_place() -> None:
    model = filled(lambda rngs: ResNet(**SMALL, rngs=rngs))
    x = jnp.asarray(random(2, 8, 8, 3))
    graphdef, before = nnx.split(model)

    @jax.jit
    def both(before: Any) -> Any:
        model = nnx.merge(graphdef, before, copy=True)
        evaluated = model(x)
        unmoved = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        trained = model(x, train=True)
        return evaluated, trained, unmoved, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    evaluated, trained, unmoved, moved = both(before)
    start = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    jax.tree.map(np.testing.assert_array_equal, start, unmoved)
    assert all(np.all(np.asarray(a) != b) for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(moved), strict=True))
    assert np.abs(evaluated - trained).max() > 0.01
