"""The stems against their composition in NumPy float64, forward and gradient."""

import itertools
import math
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from test_convolution import random
from test_layers import call, conv, filled, follows, layered, normalise, same_statistics, variables

from resnet_jax.errors import UserError
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import Fixup, FullPreactivation, Order, Original, ReluOnlyPreactivation
from resnet_jax.models.stems import CeilPooledStem, DeepStem, ImageNetStem, SmallImageStem

# After the convolution: at full resolution, and where pooling follows. He et al. 2016, Appendix: "the first activation right after conv1
# and before splitting into two paths" is the first unit's; an ImageNet stem pools what is activated.
AFTER: dict[type[Order], tuple[str, str]] = {
    Original: ("norm relu", "norm relu"),
    FullPreactivation: ("", "norm relu"),
    ReluOnlyPreactivation: ("norm", "norm relu"),
    Fixup: ("bias relu", "bias relu"),
}
CASES = [(order, train) for order in AFTER for train in (True, False) if train or order is Original]


def max_pool(x: np.ndarray) -> np.ndarray:
    """3x3 windows at stride 2, one pixel of minus infinity around the image (He et al. 2015, Table 1; padding as fb.resnet.torch)."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = ((size - 3) // 2 + 1 for size in x.shape[1:3])
    y = np.zeros((len(x), height, width, x.shape[3]))
    for i, j in itertools.product(range(height), range(width)):
        y[:, i, j] = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    return y


@pytest.mark.parametrize(("order", "train"), CASES)
def test_small_image_stem_is_a_3x3_convolution_at_full_resolution(order: type[Order], train: bool) -> None:
    """He et al. 2015, Section 4.2: "The first layer is 3x3 convolutions"."""
    stem = filled(lambda rngs: SmallImageStem(3, 4, order=order, rngs=rngs))

    def formula(v: dict[str, Any], x: np.ndarray) -> np.ndarray:
        assert v["conv"]["kernel"].shape == (3, 3, 3, 4)
        return layered(v.get("after", {}), AFTER[order][0], conv(x, v["conv"]["kernel"], 1), train=train)

    x = random(2, 5, 4, 3)
    assert formula(variables(stem), x).shape == (2, 5, 4, 4)
    follows(stem, formula, x, train=train)


@pytest.mark.quick(2)
@pytest.mark.parametrize(("size", "out", "order", "train"), [(16, 4, Original, True), *((13, 4, *case) for case in CASES)])
def test_imagenet_stem_is_a_7x7_convolution_and_a_3x3_max_pooling_each_at_stride_2(
    size: int, out: int, order: type[Order], train: bool
) -> None:
    """He et al. 2015, Table 1: conv1 is 7x7, 64, stride 2; conv2_x begins with a 3x3 max pool, stride 2. Here with 4 features."""
    stem = filled(lambda rngs: ImageNetStem(3, 4, order=order, rngs=rngs))

    def formula(v: dict[str, Any], x: np.ndarray) -> np.ndarray:
        assert v["conv"]["kernel"].shape == (7, 7, 3, 4)
        return max_pool(layered(v["after"], AFTER[order][1], conv(x, v["conv"]["kernel"], 2), train=train))

    x = random(1, size, size, 3)
    assert formula(variables(stem), x).shape == (1, out, out, 4)
    follows(stem, formula, x, train=train)


def ceil_max_pool(x: np.ndarray) -> np.ndarray:
    """Caffe's pooling_layer.cpp, 3x3 at stride 2 without padding: ceil((n - 3) / 2) + 1 windows from the first pixel on, the last cut."""
    height, width = (math.ceil((size - 3) / 2) + 1 for size in x.shape[1:3])
    y = np.zeros((len(x), height, width, x.shape[3]))
    for i, j in itertools.product(range(height), range(width)):
        y[:, i, j] = x[:, 2 * i : min(2 * i + 3, x.shape[1]), 2 * j : min(2 * j + 3, x.shape[2])].max((1, 2))
    return y


@pytest.mark.quick(3)
@pytest.mark.parametrize(("height", "width", "out"), [(16, 13, (4, 3)), (17, 18, (4, 4)), (11, 12, (3, 3)), (4, 3, (1, 1))])
@pytest.mark.parametrize("train", [True, False])
def test_ceil_pooled_stem_pools_as_caffe_does(height: int, width: int, out: tuple[int, int], train: bool) -> None:
    """Behind the convolution lie even and odd sizes: 8 and 7, 9 and 9, 6 and 6, 2 and 2."""
    stem = filled(lambda rngs: CeilPooledStem(3, 4, rngs=rngs))

    def formula(v: dict[str, Any], x: np.ndarray) -> np.ndarray:
        return ceil_max_pool(layered(v["after"], "norm relu", conv(x, v["conv"]["kernel"], 2), train=train))

    x = random(2, height, width, 3)
    assert formula(variables(stem), x).shape == (2, *out, 4)
    follows(stem, formula, x, train=train)


def test_where_windows_begin_is_seen() -> None:
    """224 pixels: 112 behind the convolution, 56 behind either pooling, of other numbers."""
    x = random(1, 32, 32, 3)
    one, other = (call(filled(lambda rngs, made=made: made(3, 4, rngs=rngs)), x, train=False)[0] for made in (CeilPooledStem, ImageNetStem))
    assert one.shape == other.shape == (1, 8, 8, 4)
    assert np.abs(np.asarray(one) - np.asarray(other)).max() > 0.01


@pytest.mark.quick(2)
@pytest.mark.parametrize(("order", "train"), CASES)
def test_deep_stem_is_three_3x3_convolutions_and_a_3x3_max_pooling(order: type[Order], train: bool) -> None:
    """He et al. 2018, Figure 2b: 3x3, 32, stride 2; 3x3, 32; 3x3, 64; max pool at stride 2. Here with 4 features."""
    stem = filled(lambda rngs: DeepStem(3, 4, order=order, rngs=rngs))

    def formula(v: dict[str, Any], x: np.ndarray) -> np.ndarray:
        assert [v["convs"][i]["kernel"].shape for i in range(3)] == [(3, 3, 3, 2), (3, 3, 2, 2), (3, 3, 2, 4)]
        for index, stride in enumerate((2, 1, 1)):
            x = layered(v["after"][index], AFTER[order][1], conv(x, v["convs"][index]["kernel"], stride), train=train)
        return max_pool(x)

    x = random(2, 12, 9, 3)
    assert formula(variables(stem), x).shape == (2, 3, 3, 4)
    follows(stem, formula, x, train=train)


@pytest.mark.parametrize("stem", [SmallImageStem, ImageNetStem])
def test_the_statistics_of_a_stem_run_in_training(stem: Any) -> None:
    module, x = filled(lambda rngs: stem(3, 4, rngs=rngs)), random(2, 12, 9, 3)
    values, stride = variables(module), 1 if stem is SmallImageStem else 2
    _, running = normalise(conv(x, values["conv"]["kernel"], stride), values["after"]["layers"][0], train=True)
    same_statistics(call(module, x, train=True)[1]["after"]["layers"][0], running)
    jax.tree.map(np.testing.assert_array_equal, call(module, x, train=False)[1], values)


def test_the_statistics_of_a_deep_stem_run_in_training() -> None:
    module, x = filled(lambda rngs: DeepStem(3, 4, rngs=rngs)), np.float64(random(2, 12, 9, 3))
    values, after = variables(module), call(module, np.float32(x), train=True)[1]
    for index, stride in enumerate((2, 1, 1)):
        y, running = normalise(conv(x, values["convs"][index]["kernel"], stride), values["after"][index]["layers"][0], train=True)
        same_statistics(after["after"][index]["layers"][0], running)
        x = np.maximum(y, 0)


@pytest.mark.parametrize("stem", [SmallImageStem, ImageNetStem, CeilPooledStem, DeepStem])
def test_a_stem_says_what_it_subsamples(stem: Any) -> None:
    shape = jax.eval_shape(lambda x: stem(3, 4, rngs=nnx.Rngs(0))(x), jax.ShapeDtypeStruct((1, 64, 32, 3), np.float32)).shape
    assert shape == (1, 64 // stem.stride, 32 // stem.stride, 4)


def test_a_deep_stem_halves_an_odd_width_downwards_and_refuses_to_halve_one() -> None:
    made = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(DeepStem(3, 5, norm=BatchNorm, rngs=nnx.Rngs(0)))))
    assert [made["convs"][i]["kernel"].shape[2:] for i in range(3)] == [(3, 2), (2, 2), (2, 5)]
    with pytest.raises(UserError):
        DeepStem(3, 1, rngs=nnx.Rngs(0))
