"""What a unit computes beside its shortcut: kernels and widths of the papers, dropout inside, what is refused. Values: test_unit.py."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import close, random
from test_layers import filled, variables
from test_unit import convolved, excited, numbered

from resnet_jax.configured import configured
from resnet_jax.errors import UserError
from resnet_jax.models.architecture import Architecture
from resnet_jax.models.branches import Basic, Bottleneck, BottleneckV15, Branch, SingleLayer
from resnet_jax.models.norms import BatchNorm, GroupNorm, NoNorm
from resnet_jax.models.orders import Fixup, FullPreactivation, NormAfterAddition, Order, Original, ReluBeforeAddition, ReluOnlyPreactivation

RESNEXT = configured(BottleneckV15, groups=32, base_width=4)


@pytest.mark.parametrize(
    ("branch", "features", "kernels"),
    [
        # He et al. 2015, Figure 5: two 3x3; or 1x1, 3x3 and 1x1, the last four times as wide. Here from 5 channels.
        pytest.param(Basic, 4, [(3, 5, 4), (3, 4, 4)], id="Basic"),
        pytest.param(Bottleneck, 4, [(1, 5, 4), (3, 4, 4), (1, 4, 16)], id="Bottleneck"),
        pytest.param(BottleneckV15, 4, [(1, 5, 4), (3, 4, 4), (1, 4, 16)], id="BottleneckV15"),
        # He et al. 2016, Table 3.
        pytest.param(SingleLayer, 4, [(3, 5, 4)], id="SingleLayer"),
        # Zagoruyko and Komodakis 2016, Section 2: B(3,1,3), B(1,3).
        pytest.param(configured(Branch, kernels=(3, 1, 3)), 4, [(3, 5, 4), (1, 4, 4), (3, 4, 4)], id="B(3,1,3)"),
        pytest.param(configured(Branch, kernels=(1, 3)), 4, [(1, 5, 4), (3, 4, 4)], id="B(1,3)"),
        # Xie et al. 2017 (arXiv 1611.05431), Table 1, conv2: 1x1, 128; 3x3, 128, C=32; 1x1, 256. A group sees 128 / 32 = 4 channels.
        pytest.param(RESNEXT, 64, [(1, 5, 128), (3, 4, 128), (1, 128, 256)], id="ResNeXt-50-32x4d"),
        # Wide ResNet-50-2: the inside twice as wide.
        pytest.param(configured(BottleneckV15, base_width=128), 64, [(1, 5, 128), (3, 128, 128), (1, 128, 256)], id="WRN-50-2"),
        # Huang et al. 2017, Section 3: a 1x1 convolution to 4k channels.
        pytest.param(configured(Branch, kernels=(1, 3), base_width=256), 12, [(1, 5, 48), (3, 48, 12)], id="DenseNet-BC"),
    ],
)
def test_kernels_and_widths_are_the_papers(branch: Any, features: int, kernels: list[tuple[int, int, int]]) -> None:
    made = filled(lambda rngs: branch(5, features, 1, rngs=rngs))
    shapes = [conv["kernel"].shape for conv in numbered(variables(made)["convs"])]
    assert shapes == [(side, side, come, go) for side, come, go in kernels]
    assert made.out_features == kernels[-1][-1]


@pytest.mark.parametrize(("branch", "at"), [(Basic, 0), (Bottleneck, 0), (BottleneckV15, 1), (configured(Basic, stride_at=1), 1)])
def test_one_convolution_has_the_stride(branch: Any, at: int) -> None:
    made = filled(lambda rngs: branch(3, 4, 2, rngs=rngs))
    assert [conv.strides for conv in made.convs] == [(2, 2) if index == at else (1, 1) for index in range(len(made.convs))]


def test_the_two_bottlenecks_differ_in_where_the_stride_sits_and_in_nothing_else() -> None:
    x = jnp.asarray(random(2, 6, 6, 3))
    paper, v15 = (filled(lambda rngs, branch=branch: branch(3, 4, 2, rngs=rngs)) for branch in (Bottleneck, BottleneckV15))
    jax.tree.map(np.testing.assert_array_equal, variables(paper), variables(v15))
    ours, theirs = paper(x), v15(x)
    assert ours.shape == theirs.shape == (2, 3, 3, 16)
    assert np.abs(ours - theirs).max() > 0.1 * np.abs(ours).max()


@pytest.mark.parametrize("reduction", [0, 2])
def test_in_an_order_of_nothing_it_is_its_convolutions_alone(reduction: int) -> None:
    """Excitation comes last (Hu et al. 2018, Figure 3: after all of the branch)."""
    branch = filled(lambda rngs: Branch(3, 4, 2, kernels=(3, 1, 3), stride_at=2, reduction=reduction, order=Order, rngs=rngs))
    x, values = random(2, 6, 5, 3), variables(branch)
    y = np.float64(x)
    for conv, stride in zip(numbered(values["convs"]), (1, 1, 2), strict=True):
        y = convolved(y, conv["kernel"], stride)
    close(branch(jnp.asarray(x)), excited(y, values["excitation"]) if reduction else y)


def spread(branch: Any, kernels: tuple[Any, ...]) -> Any:
    for conv, kernel in zip(branch.convs, kernels, strict=True):
        conv.kernel[...] = jnp.asarray(kernel, jnp.float32).reshape(conv.kernel.shape)
    return branch


def test_dropout_drops_values_before_the_last_convolution_while_training_and_keeps_the_mean() -> None:
    """Wide ResNet, Section 2.4. Two inner channels of ones, weighted 1 and 10 at the end: 0, 1, 10 and 11 tell what was dropped."""
    rate = 0.3
    branch = Branch(1, 1, 1, kernels=(1, 1), base_width=128, dropout=rate, order=Order, rngs=nnx.Rngs(0))
    branch = spread(branch, ((1, 1), (1, 10)))
    x = jnp.ones((4, 32, 32, 1))
    np.testing.assert_array_equal(branch(x, train=False), jnp.full_like(x, 11))
    y = np.ravel(branch(x, train=True, key=jax.random.key(0))) * (1 - rate)
    expected = {0: rate**2, 1: (1 - rate) * rate, 10: rate * (1 - rate), 11: (1 - rate) ** 2}
    seen = {value: np.isclose(y, value, rtol=1e-5).mean() for value in expected}
    assert sum(seen.values()) == pytest.approx(1)
    for value, probability in expected.items():
        assert abs(seen[value] - probability) < 5 * np.sqrt(probability * (1 - probability) / y.size)
    assert y.mean() / (1 - rate) == pytest.approx(11, rel=5 * np.sqrt(rate / (1 - rate) / y.size))


def test_dropout_stands_behind_normalisation_and_activation() -> None:
    """Zagoruyko's reference: BN, ReLU, dropout, conv. What is dropped is zero, not what BN makes of a zero."""
    branch = Branch(1, 1, 1, kernels=(1, 1), dropout=0.5, order=FullPreactivation, rngs=nnx.Rngs(0))
    branch = spread(branch, ((1,), (1,)))
    branch.after[0].layers[0].bias[...] = jnp.full(1, 7.0)
    branch.after[0].layers[0].var[...] = jnp.full(1, 1.0)
    frozen = jnp.zeros((1, 8, 8, 1))
    assert set(np.unique(branch(frozen, train=True, key=jax.random.key(0)))) == {0, 14}


def test_dropout_needs_a_key_while_training_and_a_rate_of_0_none() -> None:
    x = jnp.ones((1, 2, 2, 1))
    with pytest.raises(UserError, match="dropout inside a branch is random while training: .*key="):
        Branch(1, 1, 1, dropout=0.1, rngs=nnx.Rngs(0))(x, train=True)
    Branch(1, 1, 1, rngs=nnx.Rngs(0))(x, train=True)


@pytest.mark.parametrize(("stride_at", "expected"), [(0, (2, 4, 1, 4)), (1, (2, 2, 1, 4)), (2, (2, 2, 1, 4)), (3, (2, 2, 1, 2))])
def test_dilation_is_of_the_larger_kernels_and_grows_behind_the_stride(stride_at: int, expected: tuple[int, ...]) -> None:
    options = dict(kernels=(3, 5, 1, 3), groups=2, base_width=32, stride_at=stride_at, dilation=(2, 4))
    made = filled(lambda rngs: Branch(4, 4, 1, **options, rngs=rngs))
    assert [conv.kernel_dilation for conv in made.convs] == [(d, d) for d in expected]
    assert [conv.feature_group_count for conv in made.convs] == [2, 2, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(kernels=()), r"kernels=\(\) has no convolution 0"),
        (dict(kernels=(3,), stride_at=1), "no convolution 1"),
        (dict(stride_at=-1), "no convolution -1"),
        (dict(kernels=(3, 2)), "2x2.*odd"),
        (dict(kernels=(0, 3)), "0x0.*odd"),
        (dict(groups=3), "3 groups do not divide a convolution from 4 to 12"),
        (dict(groups=0), "at least one channel"),
        (dict(base_width=1), "base_width=1.*at least one channel"),
        (dict(expansion=0), "expansion=0.*at least one channel"),
        (dict(dropout=1.0), "dropout=1.0 is no rate"),
        (dict(dropout=-0.1), "dropout=-0.1 is no rate"),
        (dict(reduction=16), "cannot reduce 4 features by 16"),
        (dict(reduction=-1), "reduc"),
    ],
)
def test_what_cannot_be_a_branch_is_refused_by_one_sentence(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        filled(lambda rngs: Branch(4, 4, 1, **arguments, rngs=rngs))
    assert "\n" not in str(error.value)


@pytest.mark.quick(6)
@pytest.mark.parametrize("order", [Original, ReluBeforeAddition, ReluOnlyPreactivation])
@pytest.mark.parametrize("norm", [BatchNorm, configured(GroupNorm, num_groups=2)], ids=str)
@pytest.mark.parametrize("branch", [Basic, BottleneckV15, configured(Basic, reduction=2), SingleLayer], ids=str)
def test_zero_scale_is_of_the_last_normalisation_alone_and_makes_the_branch_zero(branch: Any, norm: Any, order: type[Order]) -> None:
    """Goyal et al. 2017, Section 5.1: in training and scored; every other variable is that of the branch without it."""
    with_it, without = (branch(4, 4, 1, order=order, norm=norm, rngs=nnx.Rngs(0), **arguments) for arguments in ({"zero_scale": True}, {}))
    x = jnp.asarray(random(4, 6, 6, 4))
    for train in (True, False):
        assert not jnp.any(with_it(x, train=train))
        assert jnp.any(without(x, train=train))
    ours, theirs = (dict(jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(made, nnx.Param)))) for made in (with_it, without))
    changed = {jax.tree_util.keystr(path, simple=True, separator="/") for path in ours if np.any(ours[path] != theirs[path])}
    assert len(changed) == 1
    assert re.fullmatch(rf"after/{len(with_it.convs) - 1}/layers/\d+/scale", changed.pop())


@pytest.mark.quick(1)
@pytest.mark.parametrize("train", [True, False])
def test_a_network_of_zero_scales_is_its_shortcuts_at_the_beginning(train: bool) -> None:
    """Units of one width leave what the stem's ReLU gave; without, they do not."""
    x = jnp.asarray(random(4, 8, 8, 3))
    for branch, identity in ((configured(Basic, zero_scale=True), True), (Basic, False)):
        network = Architecture(stages=(3,), features=(8,), input_shape=(8, 8, 3), branch=branch).build(rngs=nnx.Rngs(0))
        found = network.features(x, train)
        assert np.array_equal(found["stage1"], found["stem"]) == identity


@pytest.mark.parametrize(
    ("order", "norm", "ends"),
    [
        (FullPreactivation, BatchNorm, "in no normalisation"),
        (NormAfterAddition, BatchNorm, "in no normalisation"),
        (Fixup, BatchNorm, "in no normalisation"),
        (Original, NoNorm, "in NoNorm, which has no scale"),
    ],
)
def test_zero_scale_is_refused_where_there_is_no_last_scale(order: type[Order], norm: Any, ends: str) -> None:
    with pytest.raises(UserError, match=rf"zero_scale.* {order.__name__} ends {ends}.* Original with BatchNorm"):
        filled(lambda rngs: Branch(4, 4, 1, zero_scale=True, order=order, norm=norm, rngs=rngs))


def test_the_named_branches_are_values() -> None:
    """So that experiments that name them are equal, and a further argument changes one."""
    assert configured(Branch, kernels=(1, 3, 1), expansion=4, stride_at=1) == BottleneckV15 == configured(Bottleneck, stride_at=1)
    assert hash(configured(Branch, kernels=(3, 3))) == hash(Basic)
    assert len({Basic, Bottleneck, BottleneckV15, SingleLayer}) == 4
