"""Residual branches: kernels and widths of the papers, dropout, zero_scale, rejected arguments. Values: test_unit.py."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_jax.errors import UserError
from resnet_jax.models.blocks import Basic, Bottleneck, BottleneckV15, Branch, SingleLayer
from resnet_jax.models.components import component
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.models.norms import BatchNorm, GroupNorm, NoNorm
from resnet_jax.models.orders import Fixup, FullPreactivation, Order, Original, ReluBeforeAddition, ReluOnlyPreactivation

from oracle import call, close, convolved, excited, filled, numbered, random, variables

# Branch, width, and of each convolution: kernel size, input channels of a group, output channels. From 5 channels.
PAPERS: list[tuple[Any, int, list[tuple[int, int, int]]]] = [
    # He et al. 2015, Figure 5; He et al. 2016, Table 3; Zagoruyko and Komodakis 2016, Section 2.
    (Basic, 4, [(3, 5, 4), (3, 4, 4)]),
    (Bottleneck, 4, [(1, 5, 4), (3, 4, 4), (1, 4, 16)]),
    (BottleneckV15, 4, [(1, 5, 4), (3, 4, 4), (1, 4, 16)]),
    (SingleLayer, 4, [(3, 5, 4)]),
    (component(Branch, kernels=(3, 1, 3)), 4, [(3, 5, 4), (1, 4, 4), (3, 4, 4)]),
    # Xie et al. 2017 (arXiv 1611.05431), Table 1, conv2: 1x1, 128; 3x3, 128, C=32; 1x1, 256.
    (component(BottleneckV15, groups=32, base_width=4), 64, [(1, 5, 128), (3, 4, 128), (1, 128, 256)]),
    # Wide ResNet-50-2; DenseNet-BC (Huang et al. 2017, Section 3): a 1x1 convolution to 4k channels.
    (component(BottleneckV15, base_width=128), 64, [(1, 5, 128), (3, 128, 128), (1, 128, 256)]),
    (component(Branch, kernels=(1, 3), base_width=256), 12, [(1, 5, 48), (3, 48, 12)]),
]


def test_kernels_and_widths_are_the_papers() -> None:
    for branch, features, kernels in PAPERS:
        module = filled(lambda rngs, b=branch, f=features: b(5, f, 1, rngs=rngs))
        shapes = [conv["kernel"].shape for conv in numbered(variables(module)["convs"])]
        assert shapes == [(side, side, come, go) for side, come, go in kernels]
        assert module.out_features == kernels[-1][-1]


def test_one_convolution_has_the_stride() -> None:
    """The two bottlenecks differ in nothing else."""
    for branch, at in ((Basic, 0), (Bottleneck, 0), (BottleneckV15, 1), (component(Basic, stride_at=1), 1)):
        module = filled(lambda rngs, b=branch: b(3, 4, 2, rngs=rngs))
        assert [conv.strides for conv in module.convs] == [(2, 2) if index == at else (1, 1) for index in range(len(module.convs))]
    assert component(Bottleneck, stride_at=1) == BottleneckV15


def test_dilation_is_of_the_larger_kernels_and_grows_behind_the_stride() -> None:
    for stride_at, expected in ((0, (2, 4, 1, 4)), (1, (2, 2, 1, 4)), (3, (2, 2, 1, 2))):
        options = dict(kernels=(3, 5, 1, 3), groups=2, base_width=32, stride_at=stride_at, dilation=(2, 4))
        module = filled(lambda rngs, o=options: Branch(4, 4, 1, **o, rngs=rngs))
        assert [conv.kernel_dilation for conv in module.convs] == [(d, d) for d in expected]
        assert [conv.feature_group_count for conv in module.convs] == [2, 2, 1, 2]


def test_branch_in_an_empty_order_is_convolutions_and_excitation() -> None:
    """Excitation comes last (Hu et al. 2018, Figure 3)."""
    branch = filled(lambda rngs: Branch(3, 4, 2, kernels=(3, 1, 3), stride_at=2, reduction=2, order=Order, rngs=rngs))
    x, values = random(2, 6, 5, 3), variables(branch)
    y = np.float64(x)
    for conv, stride in zip(numbered(values["convs"]), (1, 1, 2), strict=True):
        y = convolved(y, conv["kernel"], stride)
    close(branch(jnp.asarray(x)), excited(y, values["excitation"]))


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
    ]
    for arguments, message in cases:
        with pytest.raises(UserError, match=message) as error:
            filled(lambda rngs, a=arguments: Branch(4, 4, 1, **a, rngs=rngs))
        assert "\n" not in str(error.value)


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
