"""Residual blocks: every order of He et al. 2016, Figure 4, with every branch, in NumPy float64."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_jax.errors import UserError
from resnet_jax.kernels import quick_to_compile
from resnet_jax.models import Architecture
from resnet_jax.models.blocks import Basic, Bottleneck, BottleneckV15, Branch, ResidualBlock, SingleLayer
from resnet_jax.models.components import component
from resnet_jax.models.layers import Bias, Norm, ReLU, Sequence
from resnet_jax.models.norms import BatchNorm, GroupNorm, NoNorm
from resnet_jax.models.orders import Fixup, FullPreactivation, NormAfterAddition, Order, Original, ReluBeforeAddition, ReluOnlyPreactivation
from resnet_jax.models.shortcuts import Concatenation, NoShortcut, Projection, ZeroPad

from oracle import (
    FIGURE_4,
    blocks_of,
    call,
    close,
    composed,
    filled,
    numbered,
    random,
    same_slopes,
    same_statistics,
    scalars_and_norms,
    slopes,
    statistics_of,
    variables,
)

# Branch, strides of its convolutions where the block has stride s, and groups. He et al. 2015, Figure 5: the paper has the
# stride in the first 1x1, fb.resnet.torch and torchvision in the 3x3.
BRANCHES: dict[str, tuple[Any, Callable[[int], tuple[int, ...]], int]] = {
    "Basic": (Basic, lambda s: (s, 1), 1),
    "Bottleneck": (Bottleneck, lambda s: (s, 1, 1), 1),
    "BottleneckV15": (BottleneckV15, lambda s: (1, s, 1), 1),
    "SingleLayer": (SingleLayer, lambda s: (s,), 1),
    "B(3,1,3)": (component(Branch, kernels=(3, 1, 3)), lambda s: (s, 1, 1), 1),
    "groups": (component(BottleneckV15, groups=2, base_width=32), lambda s: (1, s, 1), 2),
    "reduction": (component(Basic, reduction=2), lambda s: (s, 1), 1),
    "base_width": (component(BottleneckV15, base_width=96), lambda s: (1, s, 1), 1),
}


def is_its_composition(order: type[Order], branch: str, modes: tuple[bool, ...]) -> None:
    factory, strides, groups = BRANCHES[branch]
    shortcut = ZeroPad if order is Fixup else Projection
    block = filled(lambda rngs: ResidualBlock(3, 4, 2, branch=factory, shortcut=shortcut, order=order, rngs=rngs))
    x, values = random(2, 5, 4, 3), variables(block)
    weights = random(2, 3, 2, block.out_features, seed=1)
    for train, (gradients, (y, after)) in slopes(block, x, weights, modes).items():
        run = functools.partial(composed, order=order, strides=strides(2), groups=groups, train=train)
        expected, statistics = run(values, x)
        close(y, expected)
        same_statistics(statistics_of(after), statistics)
        same_slopes(gradients, {"params": values, "x": np.float64(x)}, lambda at, run=run: np.sum(weights * run(at["params"], at["x"])[0]))


@pytest.mark.parametrize("order", FIGURE_4)
def test_strided_block_matches_figure_4_with_its_gradient(order: type[Order]) -> None:
    """In training and not, with a projection; Fixup, which normalizes nothing, with option A. Bottlenecks in training."""
    is_its_composition(order, "Basic", (True, False))
    is_its_composition(order, "Bottleneck", (True,))


@pytest.mark.parametrize("branch", sorted(BRANCHES.keys() - {"Basic", "Bottleneck"}))
def test_block_matches_its_composition_for_every_branch(branch: str) -> None:
    is_its_composition(Original, branch, (True,))


@pytest.mark.parametrize("order", FIGURE_4)
def test_block_adds_its_input_or_the_shared_preactivation(order: type[Order]) -> None:
    """He et al. 2016, Appendix: "we adopt the first activation right after conv1 and before splitting into two paths".

    Section 4.1: "these projection shortcuts are also with preactivation", if width or resolution changes. A plain block is its branch.
    """
    for in_features, stride, options in ((4, 1, {}), (4, 1, {"first": True}), (3, 1, {}), (4, 2, {}), (3, 2, {"shortcut": NoShortcut})):
        block = filled(lambda rngs, a=in_features, s=stride, o=options: ResidualBlock(a, 4, s, order=order, rngs=rngs, **o))
        x, first, plain = random(2, 5, 4, in_features), "first" in options, "shortcut" in options
        expected = composed(variables(block), x, order, (stride, 1), first=first, plain=plain)[0]
        close(block(jnp.asarray(x)), expected)


def test_concatenation_keeps_the_input() -> None:
    """Huang et al. 2017 (arXiv 1608.06993), eq. 2, in the network's first block too."""
    x = random(2, 5, 4, 3)
    for order in (FullPreactivation, ReluBeforeAddition):
        block = filled(lambda rngs, o=order: ResidualBlock(3, 4, 1, shortcut=Concatenation, order=o, first=True, rngs=rngs))
        close(block(jnp.asarray(x)), np.concatenate([x, composed(variables(block), x, order, (1, 1), plain=True)[0]], axis=3))
        assert block.out_features == 7
    values = variables(filled(lambda rngs: ResidualBlock(3, 4, 1, shortcut=Concatenation, order=NormAfterAddition, rngs=rngs)))
    assert values["after"]["layers"][0]["scale"].shape == (7,)


class Recorded(nnx.Module):
    """A user's branch and a user's shortcut, which stores its key."""

    def __init__(self, in_features: int, features: int, stride: int, rngs: nnx.Rngs):
        self.out_features, self.key = features, nnx.Cache(jax.random.key(0))

    def __call__(self, x: jax.Array, branch: Any = 0, *, key: Any) -> jax.Array:
        self.key[...] = key
        return x + branch


def test_branch_and_shortcut_receive_different_keys() -> None:
    block, key = ResidualBlock(2, 2, 1, branch=Recorded, shortcut=Recorded, rngs=nnx.Rngs(0)), jax.random.key(3)
    block(jnp.ones((1, 2, 2, 2)), key=key)
    keys = [block.branch.key[...], block.shortcut.key[...], key]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 3


class Twice(nnx.Module):
    """A user's branch, with the contract's arguments only."""

    def __init__(self, in_features: int, features: int, stride: int, rngs: nnx.Rngs):
        self.out_features = features

    def __call__(self, x: jax.Array) -> jax.Array:
        return 2 * x


class Negated(nnx.Module):
    """A user's layer."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        pass

    def __call__(self, x: jax.Array) -> jax.Array:
        return -x


def test_user_branch_runs_in_a_user_order() -> None:
    """By hand: -(x + 2 (-x)) = x, and where the block is the first and shares, -(-x + 2 (-x)) = 3x."""

    class Upside(Order):
        before_convolution = (Negated,)
        after_addition = (Negated,)
        shares_first = True

    x = jnp.asarray(random(1, 2, 2, 3))
    for first, factor in ((False, 1), (True, 3)):
        block = ResidualBlock(3, 3, 1, branch=Twice, order=Upside, first=first, rngs=nnx.Rngs(0))
        np.testing.assert_allclose(block(x), factor * x, rtol=1e-6)


def test_float32_parameter_of_a_shortcut_keeps_the_network_dtype() -> None:
    class Weighted(nnx.Module):
        def __init__(self, in_features: int, features: int, stride: int, rngs: nnx.Rngs):
            self.alpha = nnx.Param(jnp.ones(()))

        def __call__(self, x: jax.Array, branch: jax.Array) -> jax.Array:
            return x + self.alpha[...] * branch

    assert (
        ResidualBlock(2, 2, 1, branch=Twice, shortcut=Weighted, rngs=nnx.Rngs(0))(jnp.ones((1, 2, 2, 2), jnp.bfloat16)).dtype
        == jnp.bfloat16
    )


# Branches ----------------------------------------------------------------------------------------


def test_kernels_and_widths_are_the_papers() -> None:
    """Of every convolution: kernel size, input channels of a group, output channels. Others: counts of parameters in test_counts.py."""
    for branch, features, kernels in (
        # Zagoruyko and Komodakis 2016, Section 2.
        (component(Branch, kernels=(3, 1, 3)), 4, [(3, 5, 4), (1, 4, 4), (3, 4, 4)]),
        # Xie et al. 2017 (arXiv 1611.05431), Table 1, conv2: 1x1, 128; 3x3, 128, C=32; 1x1, 256.
        (component(BottleneckV15, groups=32, base_width=4), 64, [(1, 5, 128), (3, 4, 128), (1, 128, 256)]),
        # DenseNet-BC (Huang et al. 2017, Section 3): a 1x1 convolution to 4k channels.
        (component(Branch, kernels=(1, 3), base_width=256), 12, [(1, 5, 48), (3, 48, 12)]),
    ):
        module = filled(lambda rngs, b=branch, f=features: b(5, f, 1, rngs=rngs))
        shapes = [conv["kernel"].shape for conv in numbered(variables(module)["convs"])]
        assert shapes == [(side, side, come, go) for side, come, go in kernels]
        assert module.out_features == kernels[-1][-1]


def test_dilation_is_of_the_larger_kernels_and_grows_behind_the_stride() -> None:
    for stride_at, expected in ((0, (2, 4, 1, 4)), (1, (2, 2, 1, 4)), (3, (2, 2, 1, 2))):
        options = dict(kernels=(3, 5, 1, 3), groups=2, base_width=32, stride_at=stride_at, dilation=(2, 4))
        module = filled(lambda rngs, o=options: Branch(4, 4, 1, **o, rngs=rngs))
        assert [conv.kernel_dilation for conv in module.convs] == [(d, d) for d in expected]
        assert [conv.feature_group_count for conv in module.convs] == [2, 2, 1, 2]


def with_kernels(branch: Any, *kernels: tuple[int, ...]) -> Any:
    for conv, kernel in zip(branch.convs, kernels, strict=True):
        conv.kernel[...] = jnp.asarray(kernel, jnp.float32).reshape(conv.kernel.shape)
    return branch


def test_dropout_drops_values_before_the_last_convolution_in_training_and_keeps_the_mean() -> None:
    """Wide ResNet, Section 2.4. Two inner channels of ones, weighted 1 and 10: 0, 1, 10 and 11 tell which was dropped."""
    rate = 0.3
    branch = with_kernels(Branch(1, 1, 1, kernels=(1, 1), base_width=128, dropout=rate, order=Order, rngs=nnx.Rngs(0)), (1, 1), (1, 10))
    x = jnp.ones((4, 32, 32, 1))
    np.testing.assert_array_equal(branch(x, train=False), jnp.full_like(x, 11))
    y = np.ravel(branch(x, train=True, key=jax.random.key(0))) * (1 - rate)
    expected = {0: rate**2, 1: (1 - rate) * rate, 10: rate * (1 - rate), 11: (1 - rate) ** 2}
    seen = {value: np.isclose(y, value, rtol=1e-5).mean() for value in expected}
    assert sum(seen.values()) == pytest.approx(1)
    for value, probability in expected.items():
        assert abs(seen[value] - probability) < 5 * np.sqrt(probability * (1 - probability) / y.size)


def test_dropout_follows_normalization_and_activation_and_needs_a_key() -> None:
    """Zagoruyko's reference: BN, ReLU, dropout, conv. A dropped value is zero, not BN's image of zero."""
    branch = with_kernels(Branch(1, 1, 1, kernels=(1, 1), dropout=0.5, order=FullPreactivation, rngs=nnx.Rngs(0)), (1,), (1,))
    branch.after[0].layers[0].bias[...] = jnp.full(1, 7.0)
    assert set(np.unique(branch(jnp.zeros((1, 8, 8, 1)), train=True, key=jax.random.key(0)))) == {0, 14}
    with pytest.raises(UserError, match="dropout inside a branch is random in training: .*key="):
        branch(jnp.zeros((1, 8, 8, 1)), train=True)


def test_invalid_branches_are_rejected_in_one_sentence() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        (dict(kernels=()), r"kernels=\(\) has no convolution 0"),
        (dict(kernels=(3,), stride_at=1), "no convolution 1"),
        (dict(kernels=(3, 2)), "2x2.*odd"),
        (dict(groups=3), "groups=3 does not divide 4 to 12"),
        (dict(groups=0), "at least one channel"),
        (dict(base_width=1), "at least one channel.*base_width=1"),
        (dict(expansion=0), "at least one channel.*expansion=0"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (dict(dropout=-0.1), "dropout must be"),
        (dict(reduction=16), "reduction=16: give 1 to 4"),
        (dict(reduction=-1), "reduction=-1"),
        *((dict(zero_scale=True, order=order), f"zero_scale.*{order.__name__}") for order in (FullPreactivation, Fixup)),
        (dict(zero_scale=True, norm=NoNorm), "zero_scale.*Original with BatchNorm"),
        (dict(kernels=(3,), order=Fixup, num_blocks=2), r"L\^\(-1/\(2m-2\)\).*m = 1"),
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message) as error:
            filled(lambda rngs, a=arguments: Branch(4, 4, 1, **a, rngs=rngs))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="Twice.*cannot be dilated"):
        ResidualBlock(3, 3, 1, branch=Twice, dilation=(2, 2), rngs=nnx.Rngs(0))


def initialized(branch: Any, order: Any, norm: Any, **arguments: Any) -> Any:
    """A branch as it is initialized, compiled."""

    def run(key: jax.Array) -> Any:
        return nnx.split(branch(4, 4, 1, order=order, norm=norm, rngs=nnx.Rngs(key), **arguments))

    return nnx.merge(*jax.jit(run, compiler_options=quick_to_compile())(jax.random.key(0)))


@pytest.mark.parametrize(
    ("branch", "norm", "order"),
    [
        (Basic, BatchNorm, Original),
        (BottleneckV15, component(GroupNorm, num_groups=2), ReluOnlyPreactivation),
        (component(Basic, reduction=2), BatchNorm, ReluBeforeAddition),
    ],
)
def test_zero_scale_zeroes_the_last_normalization_and_the_branch(branch: Any, norm: Any, order: type[Order]) -> None:
    """Goyal et al. 2017, Section 5.1."""
    zero, other = (initialized(branch, order, norm, **arguments) for arguments in ({"zero_scale": True}, {}))
    x = jnp.asarray(random(4, 6, 6, 4))
    for train in (True, False):
        assert not np.any(call(zero, x, train=train)[0])
    assert np.any(call(other, x, train=True)[0])
    ours, theirs = (dict(jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(module, nnx.Param)))) for module in (zero, other))
    changed = [jax.tree_util.keystr(path, simple=True, separator="/") for path in ours if np.any(ours[path] != theirs[path])]
    assert len(changed) == 1
    assert re.fullmatch(rf"after/{len(zero.convs) - 1}/layers/\d+/scale", changed[0])


# Orders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("branch", "m"), [(Basic, 2), (Bottleneck, 3)])
def test_fixup_scales_he_initialization_by_the_depth_and_ends_at_zero(branch: Any, m: int) -> None:
    """Zhang et al. 2019, Section 3.2: "scale the weight layers inside residual branches by L^(-1/(2m-2))", last ones and classifier 0."""
    architecture = Architecture(stages=(4, 4), features=(32, 48), num_classes=3, branch=branch, order=Fixup, shortcut=ZeroPad)
    _, params, statistics = jax.jit(architecture.init, compiler_options=quick_to_compile())(jax.random.key(0))
    values = jax.tree.map(np.float64, params)
    assert not jax.tree.leaves(statistics)
    num_blocks = blocks_of(values)
    assert len(num_blocks) == 8
    for block in num_blocks:
        *kernels, last = (conv["kernel"] for conv in numbered(block["branch"]["convs"]))
        np.testing.assert_array_equal(last, np.zeros_like(last))
        assert len(kernels) == m - 1
        for kernel in kernels:
            expected = np.sqrt(2 / np.prod(kernel.shape[:3])) * 8 ** (-1 / (2 * m - 2))
            assert kernel.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * kernel.size))
        for scalar in scalars_and_norms(block):
            ((name, value),) = scalar.items()
            assert (value.shape, float(value)) == ((), 1 if name == "scale" else 0)
    np.testing.assert_array_equal(values["head"]["linear"]["kernel"], np.zeros((48 if m == 2 else 192, 3)))
    stem = values["stem"]["conv"]["kernel"]
    assert stem.std() == pytest.approx(np.sqrt(2 / 27), rel=5 / np.sqrt(2 * stem.size))


class Doubled(nnx.Module):
    """A user's normalization, without the argument ``rectify``."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.full(features, -2.0))

    def __call__(self, x: jax.Array, **more: Any) -> jax.Array:
        assert not more.get("rectify")
        return self.scale[...] * x


def test_sequence_applies_relu_after_norm_without_rectify() -> None:
    x = jnp.asarray([[1.0, -1.0], [-3.0, 0.5]]).reshape(2, 1, 1, 2)
    y = Sequence((Norm, ReLU, Bias, ReLU), 2, norm=Doubled, rngs=nnx.Rngs(0))(x, train=True)
    np.testing.assert_array_equal(y.reshape(2, 2), [[0, 2], [6, 0]])
