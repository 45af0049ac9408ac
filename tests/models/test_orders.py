"""Layers of every order in a network, and Fixup's initialization. Values: test_blocks.py, test_resnet.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_jax.errors import UserError
from resnet_jax.kernels import quick_to_compile
from resnet_jax.models import Architecture, ResNet
from resnet_jax.models.blocks import Basic, Bottleneck, SingleLayer
from resnet_jax.models.layers import Bias, Multiplier, Norm, ReLU, Sequence
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Fixup, Order
from resnet_jax.models.shortcuts import PooledProjection, PooledZeroPad, ProjectionEverywhere, ZeroPad
from resnet_jax.models.stems import DeepStem, DenseTransition, ImageNetStem

from oracle import ENDS, FIGURE_4, PREACTIVATED, blocks_of, filled, numbered, random, scalars_and_norms

WORDS: dict[type, str] = {BatchNorm: "BN", ReLU: "ReLU", Bias: "bias", Multiplier: "scale"}


def words(sequence: Sequence) -> str:
    return " ".join(WORDS[type(layer)] for layer in sequence.layers)


def abstract(**fields: Any) -> ResNet:
    """A network whose variables are shapes."""
    arguments = dict(stages=(2, 2), features=(4, 8), num_classes=3) | fields
    return nnx.merge(*jax.eval_shape(lambda: nnx.split(ResNet(Architecture(**arguments), rngs=nnx.Rngs(0)))))


def initialized(**fields: Any) -> dict[str, Any]:
    """Initial variables of a network."""

    def run(key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(ResNet(Architecture(num_classes=3, shortcut=ZeroPad, **fields), rngs=nnx.Rngs(key))))

    return jax.tree.map(np.float64, jax.jit(run, compiler_options=quick_to_compile())(jax.random.key(0)))


@pytest.mark.parametrize("order", FIGURE_4)
def test_stem_classifier_blocks_and_transition_have_the_layers_of_the_order(order: type[Order]) -> None:
    """He et al. 2016, Figure 4 and Appendix; max pooling follows an activation whatever the order (their preact-ResNet-200)."""
    model = abstract(order=order, stages=(3, 3))
    assert (words(model.stem.after), words(model.head.before)) == ENDS[order]
    pooled = "bias ReLU" if order is Fixup else "BN ReLU"
    assert words(abstract(order=order, stem=ImageNetStem, stages=(1,), features=(4,)).stem.after) == pooled
    assert [words(after) for after in abstract(order=order, stem=DeepStem, stages=(1,), features=(4,)).stem.after] == [pooled] * 3
    for branch, layers in ((Basic, 2), (Bottleneck, 3)):
        block = abstract(order=order, branch=branch).stages[1][1].stacked
        between = " conv ".join(words(after) for after in block.branch.after)
        assert f"{words(block.before)} conv {between} + {words(block.after)}".split() == FIGURE_4[order](layers).split()
    # The first block is of another structure where it shares its activation.
    shared = [stack.stacked.shared for stage in model.stages for stack in stage]
    resizes = FIGURE_4[order](2).split()[0] != "conv"
    assert shared == ([True, False, True, False] if order in PREACTIVATED else [False, resizes, False])
    assert [stack.count for stage in model.stages for stack in stage] == ([1, 2, 1, 2] if order in PREACTIVATED else [3, 1, 2])
    # Huang et al. 2017, Section 3, and their implementation: BN, ReLU, conv.
    row = FIGURE_4[order](1 if order is not Fixup else 2).split()
    transition = abstract(order=order, transition=DenseTransition).transitions[1]
    before, after = row[: row.index("conv")], row[len(row) - row[::-1].index("conv") : row.index("+")]
    assert (words(transition.before).split(), words(transition.after).split()) == (before, after)


@pytest.mark.parametrize(("branch", "m"), [(Basic, 2), (Bottleneck, 3)])
def test_fixup_scales_he_initialization_by_the_depth_and_ends_at_zero(branch: Any, m: int) -> None:
    """Zhang et al. 2019, Section 3.2: "scale the weight layers inside residual branches by L^(-1/(2m-2))", last ones and classifier 0."""
    values = initialized(stages=(4, 4), features=(32, 48), branch=branch, order=Fixup)
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


def test_fixup_has_no_normalization_and_rejects_branches_of_one_convolution() -> None:
    for shortcut, stem in ((PooledZeroPad, ImageNetStem), (PooledProjection, DeepStem), (ProjectionEverywhere, ImageNetStem)):
        model = abstract(order=Fixup, shortcut=shortcut, stem=stem)
        assert not [path for path, node in nnx.iter_graph(model) if isinstance(node, BatchNorm)]
    with pytest.raises(UserError, match=r"L\^\(-1/\(2m-2\)\).*m = 1"):
        abstract(order=Fixup, branch=SingleLayer)


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


def test_sequence_fuses_relu_into_norm_with_rectify(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same values as one after another; only the last ReLU is called."""
    sequence = filled(lambda rngs: Sequence((Norm, ReLU, Bias, ReLU), 3, norm=BatchNorm, rngs=rngs))
    x, calls, relu_call = jnp.asarray(random(4, 3, 3, 3)), [], ReLU.__call__
    norm, relu, bias, last = sequence.layers
    expected = last(bias(relu(norm(x, train=False))))
    monkeypatch.setattr(ReLU, "__call__", lambda self, x: calls.append(self) or relu_call(self, x))
    np.testing.assert_array_equal(sequence(x, train=False), expected)
    assert [layer is last for layer in calls] == [True]
