"""Stems and transitions against their composition in NumPy float64, with gradients."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from resnet_jax.errors import UserError
from resnet_jax.models.orders import Fixup, FullPreactivation, Order, Original, ReluOnlyPreactivation
from resnet_jax.models.stems import DeepStem, DenseTransition, ImageNetStem, NoTransition, SmallImageStem

from oracle import ENDS, FIGURE_4, Values, call, convolved, filled, follows, random, row, variables


def max_pool(x: np.ndarray) -> np.ndarray:
    """3x3 at stride 2, padded by one pixel (fb.resnet.torch)."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = ((size - 3) // 2 + 1 for size in x.shape[1:3])
    y = np.zeros((len(x), rows, columns, x.shape[3]))
    for i, j in np.ndindex(rows, columns):
        y[:, i, j] = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    return y


def small_image(values: Values, x: np.ndarray, order: type[Order]) -> np.ndarray:
    """He et al. 2015, Section 4.2: 3x3 at full resolution."""
    assert values["conv"]["kernel"].shape == (3, 3, 3, 4)
    return row(ENDS[order][0], convolved(x, values["conv"]["kernel"]), values.get("after", {}), [], train=True)


def imagenet(values: Values, x: np.ndarray, order: type[Order]) -> np.ndarray:
    """He et al. 2015, Table 1: 7x7 and max pooling, each at stride 2. He et al. 2016: it pools what is activated, whatever the order."""
    assert values["conv"]["kernel"].shape == (7, 7, 3, 4)
    words = "bias ReLU" if order is Fixup else "BN ReLU"
    return max_pool(row(words, convolved(x, values["conv"]["kernel"], 2), values["after"], [], train=True))


def deep(values: Values, x: np.ndarray, order: type[Order]) -> np.ndarray:
    """He et al. 2018, Figure 2b: 3x3, 32, stride 2; 3x3, 32; 3x3, 64; max pool at stride 2. Here with 4 features."""
    assert [values["convs"][i]["kernel"].shape for i in range(3)] == [(3, 3, 3, 2), (3, 3, 2, 2), (3, 3, 2, 4)]
    words = "bias ReLU" if order is Fixup else "BN ReLU"
    for index, stride in enumerate((2, 1, 1)):
        x = row(words, convolved(x, values["convs"][index]["kernel"], stride), values["after"][index], [], train=True)
    return max_pool(x)


FORMULAS = {SmallImageStem: small_image, ImageNetStem: imagenet, DeepStem: deep}


@pytest.mark.parametrize("stem", FORMULAS)
def test_stem_matches_its_formula_in_every_order(stem: Any) -> None:
    for order in FIGURE_4 if stem is SmallImageStem else (FullPreactivation, Fixup):
        module = filled(lambda rngs, order=order: stem(3, 4, order=order, rngs=rngs))
        follows(module, lambda v, x, order=order: FORMULAS[stem](v, x, order), random(1, 13, 10, 3), train=True)
    images = jax.ShapeDtypeStruct((1, 64, 32, 3), np.float32)
    shape = jax.eval_shape(lambda x: stem(3, 4, rngs=nnx.Rngs(0))(x), images).shape
    assert shape == (1, 64 // stem.stride, 32 // stem.stride, 4)


# Transitions -------------------------------------------------------------------------------------


def halved(x: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels; a last odd row or column is dropped."""
    height, width = (size // 2 for size in x.shape[1:3])
    return x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2, -1).mean((2, 4))


@pytest.mark.parametrize(
    ("order", "before", "after"),
    [(FullPreactivation, "BN ReLU", ""), (Original, "", "BN"), (ReluOnlyPreactivation, "ReLU", "BN"), (Fixup, "bias", "scale bias")],
)
def test_dense_transition_is_a_1x1_convolution_and_2x2_means(order: type[Order], before: str, after: str) -> None:
    """DenseNet, Section 3; floor(theta m) features."""
    module = filled(lambda rngs: DenseTransition(5, compression=0.5, order=order, rngs=rngs))
    assert (module.out_features, module.stride) == (2, 2)

    def formula(v: Values, x: np.ndarray) -> np.ndarray:
        x = row(before, x, v.get("before", {}), [], train=True) @ v["conv"]["kernel"][0, 0]
        return halved(row(after, x, v.get("after", {}), [], train=True))

    follows(module, formula, random(2, 4, 5, 5), train=True)


def test_transitions_have_a_width_and_a_stride() -> None:
    """0.35 * 180 is 63, and 62.99999999999999 in floating point."""
    module, x = NoTransition(3, rngs=nnx.Rngs(0)), random(2, 3, 4, 3)
    np.testing.assert_array_equal(call(module, x)[0], x)
    assert (module.out_features, module.stride, variables(module)) == (3, 1, {})
    assert filled(lambda rngs: DenseTransition(180, compression=0.35, rngs=rngs)).out_features == 63
    for features, compression in ((4, 0.0), (4, 1.5), (3, 0.1)):
        with pytest.raises(UserError, match=rf"DenseTransition\(compression={compression}\)"):
            DenseTransition(features, compression=compression, rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="use 2 or more"):
        DeepStem(3, 1, rngs=nnx.Rngs(0))
