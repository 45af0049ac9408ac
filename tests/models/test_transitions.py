"""What stands between stages, against its formula in NumPy float64, forward and gradient."""

from typing import Any

import numpy as np
import pytest
from flax import nnx
from test_convolution import random
from test_layers import call, filled, follows, layered, normalise, same_statistics, variables

from resnet_jax.errors import UserError
from resnet_jax.models.orders import Fixup, FullPreactivation, Order, Original, ReluOnlyPreactivation
from resnet_jax.models.transitions import DenseTransition, NoTransition

# Before and after the convolution.
AROUND: dict[type[Order], tuple[str, str]] = {
    FullPreactivation: ("norm relu", ""),
    Original: ("", "norm"),
    ReluOnlyPreactivation: ("relu", "norm"),
}


def test_no_transition_is_the_identity() -> None:
    module, x = NoTransition(3, rngs=nnx.Rngs(0)), random(2, 3, 4, 3)
    np.testing.assert_array_equal(call(module, x)[0], x)
    assert (module.out_features, module.stride, variables(module)) == (3, 1, {})


def halved(x: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels; a last odd row or column is left."""
    height, width = (size // 2 for size in x.shape[1:3])
    return x[:, : 2 * height, : 2 * width].reshape(len(x), height, 2, width, 2, -1).mean((2, 4))


@pytest.mark.parametrize(("order", "train"), [(order, train) for order in AROUND for train in (True, False)])
@pytest.mark.parametrize(("compression", "out"), [(1.0, 5), (0.5, 2)])
def test_a_dense_transition_is_a_1x1_convolution_and_2x2_means(order: type[Order], train: bool, compression: float, out: int) -> None:
    """DenseNet, Section 3: "a batch normalization layer and an 1x1 convolutional layer followed by a 2x2 average pooling layer"; theta m,
    rounded down, wide.
    """
    module = filled(lambda rngs: DenseTransition(5, compression=compression, order=order, rngs=rngs))
    assert (module.out_features, module.stride) == (out, 2)
    before, after = AROUND[order]

    def formula(v: dict[str, Any], x: np.ndarray) -> np.ndarray:
        assert v["conv"]["kernel"].shape == (1, 1, 5, out)
        x = layered(v.get("before", {}), before, x, train=train) @ v["conv"]["kernel"][0, 0]
        return halved(layered(v.get("after", {}), after, x, train=train))

    follows(module, formula, random(2, 4, 5, 5), train=train)


def test_the_statistics_of_a_transition_run_in_training() -> None:
    module, x = filled(lambda rngs: DenseTransition(4, order=FullPreactivation, rngs=rngs)), random(2, 4, 4, 4)
    _, running = normalise(x, variables(module)["before"]["layers"][0], train=True)
    same_statistics(call(module, x, train=True)[1]["before"]["layers"][0], running)


def test_a_transition_of_fixup_has_its_scalars() -> None:
    module = filled(lambda rngs: DenseTransition(4, order=Fixup, rngs=rngs))

    def formula(v: dict[str, Any], x: np.ndarray) -> np.ndarray:
        x = (x + v["before"]["layers"][0]["bias"]) @ v["conv"]["kernel"][0, 0]
        return halved(x * v["after"]["layers"][0]["scale"] + v["after"]["layers"][1]["bias"])

    follows(module, formula, random(2, 4, 4, 4), train=True)


@pytest.mark.parametrize("compression", [0.0, -0.5, 1.5])
def test_a_compression_outside_0_to_1_is_refused(compression: float) -> None:
    with pytest.raises(UserError, match=rf"DenseTransition\(compression={compression}\): give more than 0 and at most 1"):
        DenseTransition(4, compression=compression, rngs=nnx.Rngs(0))


def test_the_width_is_rounded_down_from_the_exact_product() -> None:
    """DenseNet, Section 3: "floor(theta m)". 0.35 * 180 is 63, and 62.99999999999999 in floating point."""
    assert filled(lambda rngs: DenseTransition(180, compression=0.35, rngs=rngs)).out_features == 63


def test_a_compression_to_no_channel_is_refused() -> None:
    with pytest.raises(UserError):
        DenseTransition(3, compression=0.1, rngs=nnx.Rngs(0))
