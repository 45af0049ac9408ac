"""The stems against their composition in NumPy float64."""

import itertools

import numpy as np
import pytest
from test_blocks import same_statistics
from test_convolution import close, random
from test_layers import call, conv, filled, normalise, variables

from resnet_jax.models.stems import ImageNetStem, SmallImageStem


def max_pool(x: np.ndarray) -> np.ndarray:
    """3x3 windows at stride 2, one pixel of minus infinity around the image (He et al. 2015, Table 1; padding as fb.resnet.torch)."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    height, width = ((size - 3) // 2 + 1 for size in x.shape[1:3])
    y = np.zeros((len(x), height, width, x.shape[3]))
    for i, j in itertools.product(range(height), range(width)):
        y[:, i, j] = x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
    return y


@pytest.mark.parametrize("train", [True, False])
def test_small_image_stem_is_a_3x3_convolution_at_full_resolution(train: bool) -> None:
    """He et al. 2015, Section 4.2: "The first layer is 3x3 convolutions"."""
    stem = filled(lambda rngs: SmallImageStem(3, 4, rngs=rngs))
    x, values = random(2, 8, 7, 3), variables(stem)
    assert values["conv"]["kernel"].shape == (3, 3, 3, 4)
    y, running = normalise(conv(x, values["conv"]["kernel"], 1), values["norm"], train=train)
    actual, after = call(stem, x, train=train)
    assert actual.shape == (2, 8, 7, 4)
    close(actual, np.maximum(y, 0))
    same_statistics(after["norm"], running)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(("size", "out"), [(16, 4), (13, 4)])
def test_imagenet_stem_is_a_7x7_convolution_and_a_3x3_max_pooling_each_at_stride_2(size: int, out: int, train: bool) -> None:
    """He et al. 2015, Table 1: conv1 is 7x7, 64, stride 2; conv2_x begins with a 3x3 max pool, stride 2. Here with 4 features."""
    stem = filled(lambda rngs: ImageNetStem(3, 4, rngs=rngs))
    x, values = random(2, size, size, 3), variables(stem)
    assert values["conv"]["kernel"].shape == (7, 7, 3, 4)
    y, running = normalise(conv(x, values["conv"]["kernel"], 2), values["norm"], train=train)
    actual, after = call(stem, x, train=train)
    assert actual.shape == (2, out, out, 4)
    close(actual, max_pool(np.maximum(y, 0)))
    same_statistics(after["norm"], running)
