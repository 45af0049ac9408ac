"""The classifier against its formula in NumPy float64, forward and gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import close, random
from test_layers import call, filled, follows, he_distributed, layered, normalise, same_statistics, variables

from resnet_jax.models.head import Head
from resnet_jax.models.orders import Fixup, FullPreactivation, Order, Original, ReluOnlyPreactivation

# He et al. 2016, Appendix: "we adopt an extra activation right after its element-wise addition"; Fixup, rule 3.
BEFORE: dict[type[Order], str] = {Original: "", ReluOnlyPreactivation: "relu", FullPreactivation: "norm relu", Fixup: "bias"}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("order", BEFORE)
def test_head_is_the_mean_over_pixels_and_a_linear_layer(order: type[Order], train: bool) -> None:
    """He et al. 2015, Section 3.3: "global average pooling layer and a 1000-way fully-connected layer"."""

    def formula(v: dict[str, Any], x: np.ndarray) -> np.ndarray:
        assert v["linear"]["kernel"].shape == (4, 3)
        return layered(v.get("before", {}), BEFORE[order], x, train=train).mean((1, 2)) @ v["linear"]["kernel"] + v["linear"]["bias"]

    head = filled(lambda rngs: Head(4, 3, order=order, rngs=rngs))
    follows(head, formula, random(2, 5, 4, 4) + random(1, 1, 1, 4, seed=1), train=train)


def test_the_statistics_before_the_classifier_run_in_training() -> None:
    head, x = filled(lambda rngs: Head(4, 3, order=FullPreactivation, rngs=rngs)), random(2, 5, 4, 4)
    _, running = normalise(x, variables(head)["before"]["layers"][0], train=True)
    same_statistics(call(head, x, train=True)[1]["before"]["layers"][0], running)
    jax.tree.map(np.testing.assert_array_equal, call(head, x)[1], variables(head))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_head_averages_and_multiplies_in_float32(dtype: str) -> None:
    head = filled(lambda rngs: Head(6, 5, rngs=rngs))
    x = jnp.asarray(2 + random(2, 8, 8, 6), dtype)
    logits, _ = call(head, x)
    assert logits.dtype == jnp.float32
    weights = variables(head)["linear"]
    close(logits, np.float64(x).mean((1, 2)) @ weights["kernel"] + weights["bias"], tolerance=1e-5)


def test_head_starts_he_normal_without_bias() -> None:
    linear = jax.jit(lambda key: nnx.to_pure_dict(nnx.state(Head(40, 200, rngs=nnx.Rngs(key)).linear)))(jax.random.key(7))
    he_distributed(linear["kernel"], 40)
    np.testing.assert_array_equal(linear["bias"], np.zeros(200))


def test_fixups_classifier_starts_at_zero() -> None:
    """Zhang et al. 2019, Section 3.2, rule 1: "Initialize the classification layer and the last layer of each residual branch to 0"."""
    head = Head(4, 3, order=Fixup, rngs=nnx.Rngs(0))
    assert not any(leaf.any() for leaf in jax.tree.leaves(variables(head)))
    np.testing.assert_array_equal(call(head, random(2, 3, 3, 4))[0], np.zeros((2, 3)))
