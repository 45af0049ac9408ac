"""Whole networks: sizes and names of maps, logits, statistics and gradients in NumPy, dtypes, dilation, rejected arguments."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_jax.errors import UserError
from resnet_jax.models import Architecture, Execution, ResNet
from resnet_jax.models.blocks import Basic, Bottleneck, BottleneckV15, Branch, SingleLayer
from resnet_jax.models.components import component
from resnet_jax.models.norms import GroupNorm
from resnet_jax.models.orders import Fixup, FullPreactivation, Order, Original, ReluOnlyPreactivation
from resnet_jax.models.resnet import Head
from resnet_jax.models.shortcuts import Concatenation, NoShortcut, Projection, ZeroPad
from resnet_jax.models.stems import DeepStem, DenseTransition, ImageNetStem, SmallImageStem
from resnet_jax.models.stochastic_depth import StochasticDepth

from oracle import (
    Values,
    all_statistics,
    call,
    close,
    filled,
    he_distributed,
    network,
    random,
    same_slopes,
    same_statistics,
    slopes,
    variables,
)

SMALL: dict[str, Any] = dict(stages=(1, 2), features=(4, 6), num_classes=5)
IMAGENET: dict[str, Any] = dict(stages=(1, 2, 2, 2), features=(4, 6, 8, 10), num_classes=3, branch=Bottleneck)
LOOP = Execution(blocks="loop")


def abstract(images: jax.ShapeDtypeStruct, train: bool = False, **fields: Any) -> tuple[Values, Any, Values, dict[str, int]]:
    """Returns shapes and dtypes of the maps, the logits and the variables, and the widths; nothing is computed."""
    widths = {}

    def run(images: jax.Array) -> Any:
        model = ResNet(Architecture(**SMALL | fields), rngs=nnx.Rngs(0))
        widths.update(model.widths)
        return model.features(images, train), model(images, train), nnx.to_pure_dict(nnx.state(model))

    return *jax.eval_shape(run, images), widths


def images(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def test_maps_have_their_names_and_the_papers_sizes() -> None:
    """He et al. 2015, Section 4.2 and Table 1; odd sizes: (9 - 1) // 2 + 1 = 5, then 3."""
    cases: list[tuple[dict[str, Any], int, dict[str, tuple[int, int]]]] = [
        (dict(stages=(2, 1, 1), features=(16, 32, 64)), 32, {"stem": (32, 16), "stage1": (32, 16), "stage2": (16, 32), "stage3": (8, 64)}),
        *(
            (
                dict(stages=(1, 1, 1, 1), features=(64, 128, 256, 512), branch=branch, stem=ImageNetStem),
                224,
                {"stem": (56, 64)} | {f"stage{i + 1}": (56 >> i, (64 << i) * expansion) for i in range(4)},
            )
            for branch, expansion in ((Basic, 1), (BottleneckV15, 4))
        ),
        (dict(stages=(1, 1, 1), features=(2, 2, 2)), 9, {"stem": (9, 2), "stage1": (9, 2), "stage2": (5, 2), "stage3": (3, 2)}),
        (dict(stem_features=3, shortcut=NoShortcut), 8, {"stem": (8, 3), "stage1": (8, 4), "stage2": (4, 6)}),
    ]
    for fields, size, expected in cases:
        maps, logits, _, widths = abstract(images(2, size, size, 3), **fields)
        assert {name: x.shape for name, x in maps.items()} == {name: (2, side, side, wide) for name, (side, wide) in expected.items()}
        assert list(widths.items()) == [(name, wide) for name, (_, wide) in expected.items()]
        assert logits.shape == (2, 5)
    for channels in (1, 12):
        assert abstract(images(2, 8, 5, channels), input_shape=(8, 5, channels))[0]["stage2"].shape == (2, 4, 3, 6)


@pytest.mark.parametrize("order", [Original, ReluOnlyPreactivation, FullPreactivation, Fixup])
def test_network_matches_stem_blocks_and_classifier_in_numpy(order: type[Order]) -> None:
    """Every map, the logits, the running statistics and the gradient, in training and not. Option B; Fixup: A."""
    stages = (1, 2)
    fields: dict[str, Any] = dict(stages=stages, features=(3, 4), order=order, num_classes=3, input_shape=(5, 4, 2))
    shortcut = ZeroPad if order is Fixup else Projection
    model = filled(lambda rngs: ResNet(Architecture(**fields, shortcut=shortcut), execution=LOOP, rngs=rngs))
    x, weights, values = random(2, 5, 4, 2), random(2, 3, seed=1), variables(model)
    for name, expected in zip(model.widths, network(values, x, stages, order)[0], strict=True):
        close(model.features(jnp.asarray(x))[name], expected)
    for train, (gradients, (logits, after)) in slopes(model, x, weights).items():
        _, expected, statistics = network(values, x, stages, order, train=train)
        close(logits, expected)
        same_statistics(all_statistics(after), statistics)

        def formula(at: Any, train: bool = train) -> float:
            return np.sum(weights * network(at["params"], at["x"], stages, order, train=train)[1])

        same_slopes(gradients, {"params": values, "x": np.float64(x)}, formula, tolerance=2e-5)


def test_bfloat16_is_the_dtype_of_maps_and_products_and_float32_that_of_variables_and_logits() -> None:
    for dtype, train, entering in (("bfloat16", True, "uint8"), ("bfloat16", False, "float32"), ("float32", True, "bfloat16")):
        maps, logits, state, _ = abstract(images(2, 8, 8, 3, dtype=entering), train, dtype=dtype)
        assert {x.dtype for x in maps.values()} == {jnp.dtype(dtype)}
        assert {leaf.dtype for leaf in jax.tree.leaves((state, logits))} == {jnp.dtype("float32")}

    for fields in ({"branch": Bottleneck, "order": FullPreactivation}, {"order": Fixup}):

        def run(images: jax.Array, fields: Any = fields) -> jax.Array:
            return ResNet(Architecture(**SMALL | fields, dtype="bfloat16"), rngs=nnx.Rngs(0))(images, train=True)

        text = jax.jit(run).lower(images(2, 8, 8, 3)).as_text()
        products = [line for line in text.splitlines() if "stablehlo.convolution(" in line or "stablehlo.dot_general" in line]
        assert len(products) > 4
        assert sum("bf16" not in line.split(" : ")[-1] for line in products) == 1  # the classifier


def test_bfloat16_has_the_logits_of_float32_to_its_rounding() -> None:
    x, logits = random(2, 8, 8, 3), {}
    for dtype in ("float32", "bfloat16"):
        logits[dtype], _ = call(filled(lambda rngs, dtype=dtype: ResNet(Architecture(**SMALL, dtype=dtype), rngs=rngs)), x)
    close(logits["bfloat16"], logits["float32"], tolerance=0.05)
    assert not np.array_equal(logits["bfloat16"], logits["float32"])


def test_user_normalization_replaces_all_layers() -> None:
    """One in the stem, two in each of three stacks of one block, one in the projection of stage 2."""
    *_, state, _ = abstract(images(2, 8, 8, 3), train=True, norm=nnx.RMSNorm)
    names = [path[-1].key for path, _ in jax.tree.leaves_with_path(state)]
    assert {name: names.count(name) for name in set(names)} == {"scale": 8, "kernel": 9, "bias": 1}


def test_incompatible_arguments_are_rejected_in_one_sentence() -> None:
    imagenet = dict(stages=(1,) * 4, features=(4,) * 4, stem=ImageNetStem)

    class Silent(SmallImageStem):
        stride = None  # pyright: ignore[reportAssignmentType]

    cases: list[tuple[dict[str, Any], str]] = [
        *(
            (dict(stages=stages, features=features), f"{re.escape(f'stages={stages} and features={features}')}.*equal lengths")
            for stages, features in (((2, 2), (4,)), ((), ()), ((100_000,) * 3, (1,) * 3))
        ),
        *((fields, "must be at least 1, got 0") for fields in (dict(stages=(2, 0)), dict(features=(0, 4)), dict(input_shape=(8, 8, 0)))),
        *((fields, "must be at least 0, got -1") for fields in (dict(num_classes=-1), dict(stem_features=-1))),
        (dict(shortcut=Concatenation), r"stride of 2.*DenseTransition"),
        (dict(shortcut=ZeroPad, features=(6, 4)), "6 features to 4.*projection"),
        (dict(branch=component(Basic, groups=3)), "groups=3 does not divide"),
        (dict(branch=component(Branch, kernels=(3, 4))), "4x4.*odd"),
        (dict(norm=component(GroupNorm, num_groups=4)), "num_groups=4.*does not divide 6"),
        (dict(output_stride=3), r"output_stride=3 is not possible with 2 stages.*one of \[1, 2\]"),
        (imagenet | dict(output_stride=64), r"one of \[4, 8, 16, 32\]"),
        (dict(stem=Silent, output_stride=8), "output_stride=8 is not possible"),
        (dict(transition=DenseTransition, output_stride=1), "this stem and DenseTransition"),
    ]
    for fields, message in cases:
        with pytest.raises(UserError, match=message) as error:
            jax.eval_shape(lambda f=fields: nnx.split(ResNet(Architecture(**SMALL | f), rngs=nnx.Rngs(0))))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"survival must be in \(0, 1\], got 0"):
        Architecture(**SMALL | {"stochastic_depth": StochasticDepth(survival=0.0)})


def test_field_of_another_type_is_rejected() -> None:
    wrong = dict(branch=3, order=ZeroPad, num_classes=True, stages=[1, 2], input_shape=(8, 8), dtype="float64")
    for field, value in (wrong | {"stochastic_depth": None}).items():
        with pytest.raises((UserError, TypeError), match=field):  # TypeError: of checked annotations
            Architecture(**SMALL | {field: value})


def user(call: Any, *, width: bool = True) -> type[nnx.Module]:
    """A class of a user with this call, and the attribute ``out_features`` or not."""

    class Users(nnx.Module):
        def __init__(self, in_features: int, features: int = 0, stride: int = 1, *, rngs: nnx.Rngs):
            if width:
                self.out_features = features

    Users.__call__ = call  # pyright: ignore[reportAttributeAccessIssue]
    return Users


def test_users_part_that_does_not_fit_is_rejected_at_construction() -> None:
    """By its class and the mismatch: its constructor, its call, the type and shape of its result."""

    class NoArguments(nnx.Module):
        def __init__(self) -> None:
            pass

    cases: list[tuple[str, Any, str]] = [
        ("shortcut", NoArguments, r"NoArguments cannot be in this network: .*__init__\(\) takes 1 positional argument but 4"),
        ("shortcut", user(lambda self, x: x), "Users cannot be in this network: .* takes 2 positional arguments but 3"),
        ("shortcut", user(lambda self, x, branch, more: x), "Users cannot be .*'more'"),
        ("shortcut", user(lambda self, x, branch: None), r"^Users must return shape \(1, 32, 32, 4\), got NoneType"),
        ("shortcut", user(lambda self, x, branch: branch[:, :1, :1]), r"Users must return shape .*, got \(1, 1, 1, 4\)"),
        ("shortcut", user(lambda self, x, branch: jnp.concatenate([branch] * 2, -1)), r"got \(1, 32, 32, 8\)"),
        ("branch", user(lambda self, x: None), r"^Users must return shape \(1, -1, -1, 4\), got NoneType"),
        ("branch", user(lambda self, x: x, width=False), "^Users must have its width as an attribute out_features"),
        ("branch", ZeroPad, "^branch=ZeroPad is for the shortcut, not for the branch"),
        ("shortcut", "Basic", "^shortcut=Basic is for the branch, not for the shortcut"),
        ("stem", DenseTransition, "^stem=DenseTransition is for the transition, not for the stem"),
        ("norm", nnx.Conv, "Conv cannot be in this network"),
        ("stem", user(lambda self, x: x), r"Users must return shape \(1, -1, -1, 4\), got \(1, 32, 32, 3\)"),
        ("norm", user(lambda self, x: x.mean()), r"Users must return shape \(1, 32, 32, 4\), got \(\)"),
    ]
    for field, cls, message in cases:
        with pytest.raises(UserError, match=message) as error:
            jax.eval_shape(lambda f=field, c=cls: nnx.split(ResNet(Architecture(**SMALL | {f: c}), rngs=nnx.Rngs(0))))
        assert "\n" not in str(error.value)


def test_images_of_another_layout_or_too_small_are_rejected() -> None:
    dense = dict(shortcut=Concatenation, transition=DenseTransition, branch=SingleLayer)
    for shape, fields, message in (
        ((2, 3, 8, 8), {}, r"images must be \(n, height, width, 3\), n at least 1, got \(2, 3, 8, 8\): channels are the last axis"),
        ((2, 8, 8, 1), {}, r"got \(2, 8, 8, 1\): channels"),
        ((0, 8, 8, 3), {}, r"n at least 1, got \(0, 8, "),
        ((2, 1, 1, 3), dense, r"DenseTransition must return shape .*, got \(2, 0, 0, "),
    ):
        with pytest.raises(UserError, match=message):
            abstract(images(*shape), **fields)


# Head --------------------------------------------------------------------------------------------


def test_head_averages_in_float32_and_starts_he_normal_without_bias() -> None:
    head, x = filled(lambda rngs: Head(6, 5, rngs=rngs)), jnp.asarray(2 + random(2, 8, 8, 6), "bfloat16")
    weights = variables(head)["linear"]
    close(call(head, x)[0], np.float64(x).mean((1, 2)) @ weights["kernel"] + weights["bias"], tolerance=1e-5)
    linear = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(Head(40, 200, rngs=nnx.Rngs(key)).linear)))(jax.random.key(7))
    he_distributed(linear["kernel"], 40)
    np.testing.assert_array_equal(linear["bias"], np.zeros(200))


# output_stride: dilation in place of strides (Chen et al. 2017, arXiv 1706.05587, Section 3.2) -----


def test_stages_beyond_the_output_stride_are_dilated() -> None:
    """As torchvision's replace_stride_with_dilation: a stage's first block keeps the dilation before. The variables are the same."""
    expected = {  # sides of the maps; stride and dilation of each stage's first 3x3 convolution, dilation of the second block's
        32: ((16, 8, 4, 2), [(1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)]),
        16: ((16, 8, 4, 4), [(1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)]),
        8: ((16, 8, 8, 8), [(1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)]),
        4: ((16, 16, 16, 16), [(1, 1), (1, 1, 2), (1, 2, 4), (1, 4, 8)]),
    }

    def run(stride: int) -> Any:
        model = ResNet(Architecture(**IMAGENET | {"branch": BottleneckV15}, stem=DeepStem, output_stride=stride), rngs=nnx.Rngs(0))
        return model.features(jnp.zeros((1, 64, 64, 3))), nnx.split(model)

    sizes = set()
    for output_stride, (sides, shapes) in expected.items():
        maps, (graphdef, state) = jax.eval_shape(lambda s=output_stride: run(s))
        assert [maps[f"stage{i}"].shape[1] for i in range(1, 5)] == list(sides)
        spreads = []
        for stage in nnx.merge(graphdef, state).stages:
            convs = [stack.stacked.branch.convs[1] for stack in stage for _ in range(stack.count)]
            spreads.append((convs[0].strides[0], *(conv.kernel_dilation[0] for conv in convs)))
        assert spreads == shapes
        sizes.add(sum(leaf.size for leaf in jax.tree.leaves(state)))
    assert len(sizes) == 1


def test_dilated_network_matches_its_formula() -> None:
    """Strides and dilations block by block as in torchvision, whose bottlenecks have one 3x3 convolution."""
    stages = (1, 3, 2)
    fields: dict[str, Any] = dict(stages=stages, features=(1, 1, 1), branch=BottleneckV15, shortcut=ZeroPad, input_shape=(6, 5, 2))
    model = filled(lambda rngs: ResNet(Architecture(**fields, output_stride=1), execution=Execution(blocks="scan"), rngs=rngs))
    x, spread = random(1, 6, 5, 2), [(1, 1), (1, 1), (1, 2), (1, 2), (1, 2), (1, 4)]
    close(call(model, x)[0], network(variables(model), x, stages, spread=spread, strides=lambda s: (1, s, 1))[1])
