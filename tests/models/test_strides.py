"""output_stride: later stages dilated instead of strided (Chen et al. 2017, arXiv 1706.05587, Section 3.2)."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from test_convolution import close, random
from test_layers import filled, variables
from test_resnet import network

from resnet_jax.errors import UserError
from resnet_jax.models import Execution, ResNet
from resnet_jax.models.branches import Basic, Bottleneck, BottleneckV15, SingleLayer
from resnet_jax.models.orders import FullPreactivation, Original
from resnet_jax.models.shortcuts import NoShortcut, Projection, ZeroPad
from resnet_jax.models.stems import DeepStem, ImageNetStem, SmallImageStem
from resnet_jax.models.strides import stage_strides
from resnet_jax.models.transitions import DenseTransition, NoTransition

LOOP = Execution(blocks="loop")


def test_every_stage_strides_but_the_first_where_nothing_is_asked() -> None:
    assert stage_strides(4, 0, ImageNetStem, NoTransition) == [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]
    assert stage_strides(3, 0, SmallImageStem, DenseTransition) == [(1, 1, 1)] * 3


@pytest.mark.parametrize(
    ("output_stride", "expected"),
    [
        (32, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        # torchvision's replace_stride_with_dilation=[False, False, True]: the stage's first unit keeps the dilation before.
        (16, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]),
        (8, [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]),
        (4, [(1, 1, 1), (1, 1, 2), (1, 2, 4), (1, 4, 8)]),
    ],
)
def test_what_is_not_strided_is_dilated_by_as_much(output_stride: int, expected: list[tuple[int, int, int]]) -> None:
    """Stride of the first unit, its dilation, the others' dilation, for each stage of an ImageNet network."""
    assert stage_strides(4, output_stride, ImageNetStem, NoTransition) == expected


IMAGENET: dict[str, Any] = dict(stages=(1, 2, 2, 2), features=(4, 6, 8, 10), num_classes=3, branch=Bottleneck)


@pytest.mark.quick(1)
@pytest.mark.parametrize(
    ("output_stride", "sides", "stem"),
    [
        (32, (16, 8, 4, 2), ImageNetStem),
        (16, (16, 8, 4, 4), ImageNetStem),
        (8, (16, 8, 8, 8), ImageNetStem),
        (8, (16, 8, 8, 8), DeepStem),
    ],
)
def test_the_last_maps_are_as_fine_as_asked_and_the_variables_the_same(output_stride: int, sides: tuple[int, ...], stem: Any) -> None:
    def run(stride: int) -> Any:
        model = ResNet(**IMAGENET, stem=stem, output_stride=stride, rngs=nnx.Rngs(0))
        return model.features(jnp.zeros((1, 64, 64, 3))), nnx.to_pure_dict(nnx.state(model))

    maps, state = jax.eval_shape(lambda: run(output_stride))
    expected = {f"stage{i}": (1, side, side, wide) for i, (side, wide) in enumerate(zip(sides, (16, 24, 32, 40), strict=True), 1)}
    assert {name: x.shape for name, x in maps.items()} == {"stem": (1, 16, 16, 4)} | expected

    def per_unit(stacks: Any) -> dict[str, Any]:
        """Shapes of each stage's variables, however its units are stacked."""
        found: dict[str, Any] = {}
        for index, stage in stacks["stages"].items():
            for stack in stage.values():
                for path, leaf in jax.tree.leaves_with_path(stack["stacked"]):
                    found.setdefault(f"{index}{jax.tree_util.keystr(path)}", []).extend([leaf.shape[1:]] * leaf.shape[0])
        return found

    strided = jax.eval_shape(lambda: run(0))[1]
    assert per_unit(state) == per_unit(strided)
    assert jax.tree.structure(state) == jax.tree.structure(strided)


SAME_WHERE_STRIDED = [
    pytest.param(SingleLayer, Original, NoShortcut, id="SingleLayer"),
    pytest.param(BottleneckV15, Original, Projection, id="BottleneckV15", marks=pytest.mark.slow),
    pytest.param(BottleneckV15, FullPreactivation, ZeroPad, id="BottleneckV15-preactivated"),
    pytest.param(Basic, Original, ZeroPad, id="Basic", marks=pytest.mark.slow),
    pytest.param(Bottleneck, Original, Projection, id="Bottleneck", marks=pytest.mark.slow),
]


@pytest.mark.quick(1)
@pytest.mark.parametrize(("branch", "order", "shortcut"), SAME_WHERE_STRIDED)
def test_where_the_strided_network_looks_the_dilated_sees_the_same(branch: Any, order: Any, shortcut: Any) -> None:
    """What atrous convolution is for (Chen et al. 2017, Section 3.1): from the same variables, every map of the dilated network,
    subsampled, is that of the strided one.
    """
    fields: dict[str, Any] = dict(stages=(1, 2, 2), features=(3, 4, 5), branch=branch, order=order, shortcut=shortcut, num_classes=2)
    graphdef, state = nnx.split(filled(lambda rngs: ResNet(**fields, execution=LOOP, rngs=rngs)))
    x = jnp.asarray(random(1, 8, 4, 3))
    strided = nnx.merge(graphdef, state, copy=True).features(x)
    for output_stride, factors in ((2, (1, 1, 1, 2)), (1, (1, 1, 2, 4))):
        made = jax.eval_shape(
            lambda stride=output_stride: nnx.split(ResNet(**fields, output_stride=stride, execution=LOOP, rngs=nnx.Rngs(0)))
        )
        dilated = nnx.merge(made[0], state, copy=True).features(x)
        for factor, name in zip(factors, strided, strict=True):
            assert dilated[name].shape[1:3] == tuple(factor * side for side in strided[name].shape[1:3])
            close(dilated[name][:, ::factor, ::factor], strided[name])


@pytest.mark.parametrize("blocks", ["loop", "scan"])
def test_a_dilated_network_is_its_formula(blocks: Any) -> None:
    """Two stages dilated: strides and dilations unit by unit as in torchvision, whose bottlenecks have one 3x3 convolution."""
    stages = (1, 3, 2)
    fields: dict[str, Any] = dict(stages=stages, features=(1, 1, 1), branch=BottleneckV15, shortcut=ZeroPad, num_classes=2, in_features=2)
    model = filled(lambda rngs: ResNet(**fields, output_stride=1, execution=Execution(blocks=blocks), rngs=rngs))
    x, spread = random(1, 6, 5, 2), [(1, 1), (1, 1), (1, 2), (1, 2), (1, 2), (1, 4)]
    maps, logits, _ = network(variables(model), x, stages, spread=spread, strides=lambda s: (1, s, 1))
    actual = model.features(jnp.asarray(x))
    for name, expected in zip(actual, maps, strict=True):
        close(actual[name], expected)
    close(model.head(actual["stage3"]), logits)


class Silent(SmallImageStem):
    """A stem of a user's that does not say what it subsamples."""

    stride = None  # pyright: ignore[reportAssignmentType]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(stages=(1, 1), features=(4, 6), output_stride=16), "with 2 stages behind a stem of stride 4 it is one of [4, 8]"),
        (dict(output_stride=2), "it is one of [4, 8, 16, 32]"),
        (dict(output_stride=64), "it is one of [4, 8, 16, 32]"),
        (dict(output_stride=12), "it is one of [4, 8, 16, 32]"),
        (dict(output_stride=-8), "it is one of [4, 8, 16, 32]"),
        (dict(stem=SmallImageStem, output_stride=16), "behind a stem of stride 1 it is one of [1, 2, 4, 8]"),
        (dict(stem=Silent, output_stride=8), "the stem Silent does not say its stride"),
        (dict(transition=DenseTransition, output_stride=8), "DenseTransition cannot be dilated"),
    ],
)
def test_an_output_stride_that_cannot_be_had_is_refused_by_one_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)) as error:
        jax.eval_shape(lambda: nnx.split(ResNet(**IMAGENET | dict(stem=ImageNetStem) | fields, rngs=nnx.Rngs(0))))
    assert str(error.value).startswith(f"output_stride={fields['output_stride']} cannot be had")
    assert "\n" not in str(error.value)


def test_a_users_branch_without_dilation_is_refused_where_it_would_be_needed() -> None:
    class Same(nnx.Module):
        def __init__(self, in_features: int, features: int, stride: int, rngs: nnx.Rngs):
            self.out_features = in_features

        def __call__(self, x: jax.Array) -> jax.Array:
            return x

    with pytest.raises(UserError, match="Same.*cannot be dilated"):
        ResNet(stages=(1, 2), features=(2, 2), num_classes=2, branch=Same, output_stride=1, rngs=nnx.Rngs(0))


def test_output_stride_leaves_the_result_a_whole_networks() -> None:
    """Logits of a batch, one for each class, from images of an odd size: 4 pixels of the image to one of the map, rounded up."""
    model = filled(lambda rngs: ResNet(**IMAGENET, stem=ImageNetStem, output_stride=8, rngs=rngs))
    maps, logits = jax.eval_shape(lambda x: (model.features(x), model(x)), jnp.zeros((2, 37, 29, 3)))
    assert maps["stage4"].shape == (2, 5, 4, 40)
    assert logits.shape == (2, 3)
