"""The whole network: what its maps are called and how large they are, what it computes, in what, and what it refuses."""

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import close, random
from test_layers import call, filled, variables
from test_unit import composed, convolved, layer, numbered, same_slopes, same_statistics, slopes, statistics_of

from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models import Execution, ResNet
from resnet_jax.models.branches import Basic, Bottleneck, BottleneckV15, Branch, SingleLayer
from resnet_jax.models.depth import StochasticDepth
from resnet_jax.models.norms import BatchNorm, GroupNorm, NoNorm
from resnet_jax.models.orders import (
    Fixup,
    FullPreactivation,
    NormAfterAddition,
    Order,
    Original,
    ReluBeforeAddition,
    ReluOnlyPreactivation,
)
from resnet_jax.models.shortcuts import Concatenation, NoShortcut, Projection, ZeroPad
from resnet_jax.models.stems import ImageNetStem
from resnet_jax.models.transitions import DenseTransition

SMALL: dict[str, Any] = dict(stages=(1, 2), features=(4, 6), num_classes=5, in_features=3)
LOOP = Execution(blocks="loop")

# He et al. 2016, Section 3 and Appendix: what follows the first convolution, and what precedes the classifier's pooling. (d) and (e): the
# first activation is the first unit's, and the last is "an extra activation right after its element-wise addition". Fixup: Zhang et al.
ENDS: dict[type[Order], tuple[str, str]] = {
    Original: ("BN ReLU", ""),
    NormAfterAddition: ("BN ReLU", ""),
    ReluBeforeAddition: ("BN ReLU", ""),
    ReluOnlyPreactivation: ("BN", "ReLU"),
    FullPreactivation: ("", "BN ReLU"),
    Fixup: ("bias ReLU", "bias"),
}


def units_of(values: dict[str, Any]) -> list[dict[str, Any]]:
    """Variables of every unit, in order."""
    stacks = [stack["stacked"] for stage in numbered(values["stages"]) for stack in numbered(stage)]
    return [jax.tree.map(lambda a, i=i: a[i], stack) for stack in stacks for i in range(len(jax.tree.leaves(stack)[0]))]


def row(words: str, x: np.ndarray, values: dict[str, Any], statistics: list[Any], *, train: bool) -> np.ndarray:
    """Layers by their names, one after another."""
    layers = iter(numbered(values.get("layers", {})))
    for word in words.split():
        x = np.maximum(x, 0) if word == "ReLU" else layer(word, x, next(layers), statistics, train=train)
    assert not [*layers]
    return x


def network(
    values: dict[str, Any],
    x: np.ndarray,
    stages: Sequence[int],
    order: type[Order] = Original,
    *,
    strides: Callable[[int], tuple[int, ...]] = lambda s: (s, 1),
    permutation: Sequence[int] | None = None,
    multipliers: Any = None,
    train: bool = False,
    spread: Sequence[tuple[int, int]] | None = None,
    **options: Any,
) -> tuple[list[np.ndarray], np.ndarray, list[Any]]:
    """Maps, logits, and the running statistics afterwards of stem, units (by unit, not by place) and head; 3x3 stem.

    ``spread``: stride and dilation of every unit's branch.
    """
    after_stem, before_classifier = ENDS[order]
    units, ends = units_of(values), [0, *itertools.accumulate(stages)]
    places = range(len(units)) if permutation is None else permutation
    shape = spread or [(2 if index in ends[1:] else 1, 1) for index in range(len(units))]
    stem, head, seen = [], [], {}
    x = row(after_stem, convolved(np.float64(x), values["stem"]["conv"]["kernel"]), values["stem"].get("after", {}), stem, train=train)
    maps = [x]
    for place, index in enumerate(places):
        stride, dilation = shape[place]
        factor = 1.0 if multipliers is None else multipliers[place]
        extra = dict(first=place == 0, train=train, dilation=dilation, multiplier=factor) | options
        x, seen[index] = composed(units[index], x, order, strides(stride), **extra)
        if place + 1 in ends:
            maps.append(x)
    y = row(before_classifier, x, values["head"].get("before", {}), head, train=train).mean((1, 2))
    logits = y @ values["head"]["linear"]["kernel"] + values["head"]["linear"]["bias"]
    return maps, logits, [stem, *(seen[index] for index in range(len(units))), head]


def all_statistics(values: dict[str, Any]) -> list[Any]:
    """Running statistics in the order of ``network``."""

    def of(tree: dict[str, Any]) -> list[Any]:
        return [{name: norm[name] for name in ("mean", "var")} for norm in numbered(tree.get("layers", {})) if "mean" in norm]

    return [of(values["stem"].get("after", {})), *map(statistics_of, units_of(values)), of(values["head"].get("before", {}))]


def abstract(images: jax.ShapeDtypeStruct, train: bool = False, **fields: Any) -> tuple[dict[str, Any], Any, Any, dict[str, int]]:
    """Shapes and dtypes of the maps, the logits and the variables, and the widths; nothing is computed."""
    widths = {}

    def run(images: jax.Array) -> Any:
        model = ResNet(**(SMALL | fields), rngs=nnx.Rngs(0))
        widths.update(model.widths)
        return model.features(images, train), model(images, train), nnx.to_pure_dict(nnx.state(model))

    return *jax.eval_shape(run, images), widths


def images(*shape: int, dtype: str = "float32") -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.quick(5)
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
                dict(stages=(1, 1, 1, 1), features=(64, 128, 256, 512), branch=branch, stem=ImageNetStem),
                224,
                {"stem": (56, 64)} | {f"stage{i + 1}": (56 >> i, (64 << i) * expansion) for i in range(4)},
                id=name,
            )
            for name, branch, expansion in (("Basic", Basic, 1), ("Bottleneck", Bottleneck, 4), ("V15", BottleneckV15, 4))
        ),
        # Odd sizes: (9 - 1) // 2 + 1 = 5, then 3.
        pytest.param(
            dict(stages=(1, 1, 1), features=(2, 2, 2)), 9, {"stem": (9, 2), "stage1": (9, 2), "stage2": (5, 2), "stage3": (3, 2)}, id="odd"
        ),
        pytest.param(dict(stages=(3,), features=(4,)), 8, {"stem": (8, 4), "stage1": (8, 4)}, id="one-stage"),
        pytest.param(dict(stem_features=3), 8, {"stem": (8, 3), "stage1": (8, 4), "stage2": (4, 6)}, id="a-stem-of-another-width"),
    ],
)
@pytest.mark.parametrize("shortcut", [NoShortcut, Projection])
def test_the_maps_have_their_names_and_the_papers_sizes(
    fields: dict[str, Any], size: int, expected: dict[str, tuple[int, int]], shortcut: type[nnx.Module]
) -> None:
    maps, logits, _, widths = abstract(images(2, size, size, 3), shortcut=shortcut, **fields)
    assert {name: x.shape for name, x in maps.items()} == {name: (2, side, side, wide) for name, (side, wide) in expected.items()}
    assert widths == {name: wide for name, (_, wide) in expected.items()}
    assert list(widths) == list(expected)
    assert logits.shape == (2, 5)


def test_a_dense_network_grows_with_every_unit_and_is_compressed_between_blocks() -> None:
    """Huang et al. 2017, Sections 3: k0 + k (l - 1) channels, floor(theta m) behind a transition. 7 + 2*3 = 13; 6 + 3*3 = 15."""
    dense = dict(order=FullPreactivation, shortcut=Concatenation, transition=configured(DenseTransition, compression=0.5))
    fields = dict(stages=(2, 3), features=(3, 3), stem_features=7, branch=SingleLayer)
    maps, _, state, widths = abstract(images(2, 9, 8, 3), **dense, **fields)
    assert {name: x.shape for name, x in maps.items()} == {"stem": (2, 9, 8, 7), "stage1": (2, 9, 8, 13), "stage2": (2, 4, 4, 15)}
    assert widths == {"stem": 7, "stage1": 13, "stage2": 15}
    assert state["head"]["linear"]["kernel"].shape == (15, 5)


@pytest.mark.parametrize("channels", [1, 2, 3, 12])
def test_images_may_have_any_channels_and_need_not_be_square(channels: int) -> None:
    maps, *_ = abstract(images(2, 8, 5, channels), in_features=channels)
    assert maps["stage2"].shape == (2, 4, 3, 6)


NETWORKS = [
    pytest.param(order, stages, name, id=f"{order.__name__}-{name}")
    for order, stages, name in (*((order, (1, 2), "Basic") for order in ENDS), (FullPreactivation, (2,), "Bottleneck"))
]
BY_NAME: dict[str, tuple[Any, Callable[[int], tuple[int, ...]]]] = {
    "Basic": (Basic, lambda s: (s, 1)),
    "Bottleneck": (Bottleneck, lambda s: (s, 1, 1)),
}


@pytest.mark.quick(1)
@pytest.mark.parametrize(("order", "stages", "branch"), NETWORKS)
def test_a_network_is_stem_units_and_classifier_in_numpy(order: type[Order], stages: tuple[int, ...], branch: str) -> None:
    """Every map, the logits, the running statistics and the gradient, in training and not. Option B; Fixup: A.

    Under pre-activation the first unit shares its activation, what BN has normalised is projected as it is, and the last map is
    activated before the classifier (He et al. 2016, Appendix).
    """
    made, strides = BY_NAME[branch]
    fields: dict[str, Any] = dict(stages=stages, features=(3, 4)[: len(stages)], branch=made, order=order, num_classes=3, in_features=2)
    shortcut = ZeroPad if order is Fixup else Projection
    model = filled(lambda rngs: ResNet(**fields, shortcut=shortcut, execution=LOOP, rngs=rngs))
    x, weights, values = random(2, 5, 4, 2), random(2, 3, seed=1), variables(model)
    for name, expected in zip(model.widths, network(values, x, stages, order, strides=strides)[0], strict=True):
        close(model.features(jnp.asarray(x))[name], expected)
    for train, (gradients, (logits, after)) in slopes(model, x, weights).items():
        _, expected, statistics = network(values, x, stages, order, strides=strides, train=train)
        close(logits, expected)
        same_statistics(all_statistics(after), statistics)

        def formula(at: Any, train: bool = train) -> float:
            return np.sum(weights * network(at["params"], at["x"], stages, order, strides=strides, train=train)[1])

        same_slopes(gradients, {"params": values, "x": np.float64(x)}, formula, tolerance=2e-5)


@pytest.mark.quick(4)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("entering", ["float32", "bfloat16", "uint8"])
def test_it_computes_in_its_dtype_and_keeps_logits_parameters_and_statistics_in_float32(dtype: Any, train: bool, entering: str) -> None:
    maps, logits, state, _ = abstract(images(2, 8, 8, 3, dtype=entering), train, dtype=dtype)
    assert {x.dtype for x in maps.values()} == {jnp.dtype(dtype)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert logits.dtype == jnp.float32


@pytest.mark.quick(2)
@pytest.mark.parametrize("shortcut", [NoShortcut, Projection])
@pytest.mark.parametrize(("branch", "order"), [(Basic, Original), (Bottleneck, FullPreactivation), (Basic, Fixup)])
def test_every_convolution_of_a_bfloat16_network_is_one_of_bfloat16(branch: Any, order: Any, shortcut: Any) -> None:
    def run(images: jax.Array) -> jax.Array:
        fields = dict(branch=branch, shortcut=shortcut, order=order, dtype="bfloat16")
        return ResNet(**SMALL | fields, rngs=nnx.Rngs(0))(images, train=True)

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

    *_, state, _ = abstract(images(2, 8, 8, 3), train=True, norm=Scale)
    names = [path[-1].key for path, _ in jax.tree.leaves_with_path(state)]
    # One in the stem, two in each of three stacks of one unit, one in the projection of stage 2.
    assert {name: names.count(name) for name in set(names)} == {"gamma": 8, "kernel": 9, "bias": 1}
    assert state["stages"][0][0]["stacked"]["branch"]["after"][0]["layers"][0]["gamma"].shape == (1, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(
            (dict(stages=stages, features=features), f"{re.escape(f'stages={stages} and features={features}')}.*unit for every stage")
            for stages, features in (((2, 2), (4,)), ((2,), (4, 8)), ((2, 0), (4, 8)), ((2, -1), (4, 8)))
        ),
        (dict(shortcut=Concatenation), r"concatenation cannot follow a stride of 2.*DenseTransition"),
        (dict(shortcut=ZeroPad, features=(6, 4)), "6 features to 4.*projection"),
        (dict(branch=configured(Basic, groups=3)), "3 groups do not divide"),
        (dict(branch=configured(Branch, kernels=(3, 4))), "4x4.*odd"),
        (dict(branch=configured(Branch, kernels=())), r"kernels=\(\)"),
        (dict(branch=configured(Basic, dropout=1.5)), "dropout=1.5"),
        (dict(branch=configured(Basic, reduction=16)), "cannot reduce 4 features by 16"),
        (dict(shortcut=configured(Projection, resize="projekt")), "resize='projekt'.*did you mean.*project"),
        (dict(shortcut=configured(Projection, resize="nothing-like-it")), "resize='nothing-like-it'.*there is pad, pad-both, pool-pad"),
        (dict(norm=configured(GroupNorm, num_groups=4)), "num_groups=4.*does not divide 6"),
        (dict(norm=configured(BatchNorm, group_size=-2)), "group_size=-2"),
        (dict(order=Fixup, branch=SingleLayer), "m = 1"),
        (dict(transition=configured(DenseTransition, compression=0.0)), "compression=0"),
        (dict(stochastic_depth=StochasticDepth(survival=0.0)), "survival is 0"),
        (dict(output_stride=3), "output_stride=3 cannot be had"),
        (dict(features=(0, 4)), "features"),
        (dict(stem_features=-1), "stem_features"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_fails_at_construction_with_one_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        jax.eval_shape(lambda: nnx.split(ResNet(**SMALL | fields, rngs=nnx.Rngs(0))))
    assert "\n" not in str(error.value)


def test_nothing_at_all_is_no_network() -> None:
    with pytest.raises(UserError, match="at least one unit"):
        ResNet(**SMALL | dict(stages=(), features=()), rngs=nnx.Rngs(0))


def test_training_mode_is_an_argument_that_moves_the_statistics_in_place() -> None:
    model = filled(lambda rngs: ResNet(**SMALL, rngs=rngs))
    x = jnp.asarray(random(2, 8, 8, 3))
    start = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
    graphdef, before = nnx.split(model)

    @jax.jit
    def both(before: Any) -> Any:
        model = nnx.merge(graphdef, before, copy=True)
        evaluated = model(x)
        unmoved = nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))
        trained = model(x, train=True)
        return evaluated, trained, unmoved, nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    evaluated, trained, unmoved, moved = both(before)
    jax.tree.map(np.testing.assert_array_equal, start, unmoved)
    assert all(np.all(np.asarray(a) != b) for a, b in zip(jax.tree.leaves(start), jax.tree.leaves(moved), strict=True))
    assert np.abs(evaluated - trained).max() > 0.01


def test_a_new_head_has_other_classes_and_leaves_the_trunk_alone() -> None:
    model = filled(lambda rngs: ResNet(**SMALL, execution=LOOP, order=FullPreactivation, rngs=rngs))
    before = variables(model)
    model.new_head(7, rngs=nnx.Rngs(3))
    after = variables(model)
    new, old = after["head"].pop("linear"), before["head"].pop("linear")
    jax.tree.map(np.testing.assert_array_equal, after, before)
    assert (old["kernel"].shape, new["kernel"].shape) == ((6, 5), (6, 7))
    assert 0.3 < new["kernel"].std() / np.sqrt(2 / 6) < 3
    np.testing.assert_array_equal(new["bias"], np.zeros(7))
    x = jnp.asarray(random(2, 8, 8, 3))
    last = np.maximum(random(2, 4, 4, 6), 0)
    np.testing.assert_allclose(model.head.linear(jnp.asarray(last.mean((1, 2)))), last.mean((1, 2)) @ new["kernel"], rtol=1e-4, atol=1e-5)
    assert model(x).shape == (2, 7)


def test_without_normalisation_every_channel_has_a_bias_instead() -> None:
    *_, state, _ = abstract(images(2, 8, 8, 3), norm=NoNorm)
    names = [path[-1].key for path, _ in jax.tree.leaves_with_path(state)]
    assert {name: names.count(name) for name in set(names)} == {"kernel": 9, "bias": 9}
