"""Orders at the ends of a network and at its beginning; Fixup's initialisation. What units and networks compute: test_unit, test_resnet."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import random
from test_layers import filled, variables
from test_resnet import ENDS, units_of
from test_unit import FIGURE_4, numbered, scalars_and_norms

from resnet_jax.errors import UserError
from resnet_jax.models import ResNet
from resnet_jax.models.branches import Basic, Bottleneck, SingleLayer
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.models.layers import Bias, Multiplier, ReLU
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Fixup, FullPreactivation, Norm, Order, Original, ReluOnlyPreactivation, Sequence
from resnet_jax.models.shortcuts import LearnedScalar, PooledProjection, PooledZeroPad, Projection, ProjectionEverywhere, ZeroPad
from resnet_jax.models.stems import DeepStem, ImageNetStem, SmallImageStem
from resnet_jax.models.transitions import DenseTransition

WORDS: dict[type, str] = {BatchNorm: "BN", ReLU: "ReLU", Bias: "bias", Multiplier: "scale"}


def words(sequence: Sequence) -> str:
    return " ".join(WORDS[type(layer)] for layer in sequence.layers)


def abstract(**fields: Any) -> ResNet:
    """A network whose variables are shapes."""
    given = dict(stages=(2, 2), features=(4, 8), num_classes=3) | fields
    return nnx.merge(*jax.eval_shape(lambda: nnx.split(ResNet(**given, rngs=nnx.Rngs(0)))))


def initialised(**fields: Any) -> dict[str, Any]:
    """Variables of a network as it begins."""
    given = dict(num_classes=3, shortcut=ZeroPad) | fields

    def run(key: jax.Array) -> Any:
        return nnx.to_pure_dict(nnx.state(ResNet(**given, rngs=nnx.Rngs(key))))

    return jax.tree.map(np.float64, jax.jit(run, compiler_options=quick_to_compile())(jax.random.key(0)))


@pytest.mark.quick(2)
@pytest.mark.parametrize("order", ENDS)
def test_what_the_stem_ends_with_and_what_stands_before_the_classifier(order: type[Order]) -> None:
    """He et al. 2016, Section 3 and Appendix; max-pooling stands behind an activation whatever the order (their preact-ResNet-200)."""
    after_stem, before_classifier = ENDS[order]
    model = abstract(order=order)
    assert words(model.stem.after) == after_stem
    assert words(model.head.before) == before_classifier
    pooled = "bias ReLU" if order is Fixup else "BN ReLU"
    assert words(abstract(order=order, stem=ImageNetStem).stem.after) == pooled
    assert [words(after) for after in abstract(order=order, stem=DeepStem).stem.after] == [pooled] * 3


@pytest.mark.parametrize("order", FIGURE_4)
@pytest.mark.parametrize(("branch", "layers"), [(Basic, 2), (Bottleneck, 3)])
def test_a_unit_holds_the_layers_of_its_figure(order: type[Order], branch: Any, layers: int) -> None:
    unit = abstract(order=order, branch=branch).stages[1][1].stacked
    between = " conv ".join(words(after) for after in unit.branch.after)
    written = f"{words(unit.before)} conv {between} + {words(unit.after)}"
    assert written.split() == FIGURE_4[order](layers).split()


@pytest.mark.parametrize("order", FIGURE_4)
def test_the_first_unit_shares_under_the_two_preactivations_and_only_then_stands_apart(order: type[Order]) -> None:
    """Three equal units and one that strides, and two more: the first is of another structure where it shares its activation."""
    model = abstract(order=order, stages=(3, 3), features=(4, 8))
    shared = [stack.stacked.shared for stage in model.stages for stack in stage]
    preactivates, resizes = order in (FullPreactivation, ReluOnlyPreactivation), FIGURE_4[order](2).split()[0] != "conv"
    assert shared == ([True, False, True, False] if preactivates else [False, resizes, False])
    assert [stack.count for stage in model.stages for stack in stage] == ([1, 2, 1, 2] if preactivates else [3, 1, 2])


@pytest.mark.parametrize("order", FIGURE_4)
def test_a_transition_follows_the_order(order: type[Order]) -> None:
    """Huang et al. 2017, Section 3: BN and a 1x1 convolution; with pre-activation as in their implementation, BN, ReLU, conv."""
    row = FIGURE_4[order](1 if order is not Fixup else 2).split()
    between = abstract(order=order, transition=DenseTransition).transitions[1]
    before, after = row[: row.index("conv")], row[len(row) - row[::-1].index("conv") : row.index("+")]
    assert (words(between.before).split(), words(between.after).split()) == (before, after)


@pytest.mark.quick(1)
@pytest.mark.parametrize(("branch", "m"), [(Basic, 2), (Bottleneck, 3)])
def test_fixup_scales_he_initialisation_by_the_depth_and_ends_at_zero(branch: Any, m: int) -> None:
    """Zhang et al. 2019, Section 3.2: "scale the weight layers inside residual branches by L^(-1/(2m-2))", last ones and classifier 0."""
    values = initialised(stages=(4, 4), features=(32, 48), branch=branch, order=Fixup)
    units, checked = units_of(values), 0
    assert len(units) == 8
    for unit in units:
        *kernels, last = (conv["kernel"] for conv in numbered(unit["branch"]["convs"]))
        np.testing.assert_array_equal(last, np.zeros_like(last))
        for kernel in kernels:
            expected = np.sqrt(2 / np.prod(kernel.shape[:3])) * 8 ** (-1 / (2 * m - 2))
            assert kernel.std() == pytest.approx(expected, rel=5 / np.sqrt(2 * kernel.size))
            checked += 1
        for scalar in scalars_and_norms(unit):
            ((name, value),) = scalar.items()
            assert (value.shape, float(value)) == ((), 1 if name == "scale" else 0)
    assert checked == 8 * (m - 1)
    np.testing.assert_array_equal(values["head"]["linear"]["kernel"], np.zeros((48 if m == 2 else 192, 3)))
    stem = values["stem"]["conv"]["kernel"]
    assert stem.std() == pytest.approx(np.sqrt(2 / 27), rel=5 / np.sqrt(2 * stem.size))


def test_other_orders_initialise_by_he_and_end_nowhere_at_zero() -> None:
    values = initialised(stages=(2, 2), features=(32, 32), order=Original)
    for kernel in (conv["kernel"] for unit in units_of(values) for conv in numbered(unit["branch"]["convs"])):
        assert kernel.std() == pytest.approx(np.sqrt(2 / np.prod(kernel.shape[:3])), rel=5 / np.sqrt(2 * kernel.size))
    assert np.all(values["head"]["linear"]["kernel"] != 0)


@pytest.mark.parametrize(
    ("shortcut", "stem"),
    [
        (ZeroPad, SmallImageStem),
        (PooledZeroPad, ImageNetStem),
        (LearnedScalar, DeepStem),
        (Projection, SmallImageStem),
        (PooledProjection, SmallImageStem),
        (ProjectionEverywhere, SmallImageStem),
    ],
)
def test_fixup_has_no_normalisation_anywhere(shortcut: Any, stem: Any) -> None:
    """No normalisation: scalars, kernels and the classifier are all there is, whatever ``norm`` says."""
    model = abstract(order=Fixup, shortcut=shortcut, stem=stem)
    assert not [path for path, node in nnx.iter_graph(model) if isinstance(node, BatchNorm)]
    shapes = {leaf.shape for leaf in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))}
    assert not shapes


def test_fixup_refuses_branches_of_one_convolution() -> None:
    with pytest.raises(UserError, match=r"L\^\(-1/\(2m-2\)\).*m = 1") as error:
        abstract(order=Fixup, branch=SingleLayer)
    assert "\n" not in str(error.value)


def test_variables_of_an_order_are_parameters_and_statistics_by_their_kind() -> None:
    model = abstract(order=Fixup)
    assert set(map(type, (model.stem.after.layers[0].bias, model.head.before.layers[0].bias))) == {nnx.Param}
    assert variables(Multiplier(3, rngs=nnx.Rngs(0))) == {"scale": 1}
    assert variables(Bias(3, rngs=nnx.Rngs(0))) == {"bias": 0}


class Doubled(nnx.Module):
    """A normalisation of a user's, which knows nothing of what follows."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.full(features, -2.0))

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.scale[...] * x


class Open(Doubled):
    """One that takes anything, and ignores it."""

    def __call__(self, x: jax.Array, **more: Any) -> jax.Array:
        assert not more
        return super().__call__(x)


@pytest.mark.parametrize("norm", [Doubled, Open])
def test_a_relu_follows_a_normalisation_that_does_not_name_it(norm: Any) -> None:
    x = jnp.asarray([[1.0, -1.0], [-3.0, 0.5]]).reshape(2, 1, 1, 2)
    found = Sequence((Norm, ReLU, Bias, ReLU), 2, norm=norm, rngs=nnx.Rngs(0))(x, train=True)
    np.testing.assert_array_equal(found.reshape(2, 2), [[0, 2], [6, 0]])


@pytest.mark.parametrize("train", [True, False])
def test_a_normalisation_that_does_the_relus_work_leaves_nothing_to_do_for_it(train: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same values as of the two one after another; only the ReLU that stands right behind it is done, and that once."""
    made = filled(lambda rngs: Sequence((Norm, ReLU, Bias, ReLU), 3, norm=BatchNorm, rngs=rngs))
    x, calls = jnp.asarray(random(4, 3, 3, 3)), []
    given = ReLU.__call__
    monkeypatch.setattr(ReLU, "__call__", lambda self, x: calls.append(self) or given(self, x))
    norm, relu, bias, last = made.layers
    expected = last(bias(relu(norm(x, train=train))))
    # Statistics moved, which training does not look at, and inference does not move.
    calls.clear()
    np.testing.assert_array_equal(made(x, train=train), expected)
    assert [layer is last for layer in calls] == [True]
