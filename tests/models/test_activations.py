"""Named activations against the parts called one by one, and the model unchanged afterwards."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from resnet_jax.errors import UserError
from resnet_jax.kernels import quick_to_compile
from resnet_jax.models import Apply, Architecture, Execution, ResNet, activations
from resnet_jax.models.norms import BatchNorm
from resnet_jax.models.orders import FullPreactivation
from resnet_jax.models.shortcuts import ZeroPad

from oracle import modules_of_blocks, random

SMALL = Architecture(stages=(2, 1), features=(3, 4), shortcut=ZeroPad, input_shape=(6, 6, 3), num_classes=4)
IMAGES = jnp.asarray(random(2, 6, 6, 3))


@pytest.fixture(scope="module")
def model() -> ResNet:
    return SMALL.build(rngs=nnx.Rngs(0), execution=Execution(blocks="scan"))


def test_recorded_activations_match_parts_called_one_by_one(model: ResNet) -> None:
    with activations.recorded(model) as recorded:
        logits = model(IMAGES)
    x = model.stem(IMAGES)
    np.testing.assert_allclose(recorded["stem"], x, rtol=1e-5, atol=1e-6)
    blocks = modules_of_blocks(model)
    for number, block in enumerate(blocks):
        np.testing.assert_allclose(recorded[f"block{number}/input"], x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(recorded[f"block{number}/branch"], block.branch(x), rtol=1e-4, atol=1e-5)
        first = block.branch.convs[0](x)
        np.testing.assert_allclose(recorded[f"block{number}/branch/convs/0"], first, rtol=1e-4, atol=1e-5)
        # The output of the normalization, not of the ReLU behind it.
        normalized = block.branch.after[0].layers[0](first, train=False)
        np.testing.assert_allclose(recorded[f"block{number}/branch/after/0/layers/0"], normalized, rtol=1e-4, atol=1e-5)
        assert float(jnp.min(normalized)) < 0
        x = block(x)
        np.testing.assert_allclose(recorded[f"block{number}"], x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(recorded["head"], logits, rtol=1e-6)


def test_recording_leaves_the_model_unchanged(model: ResNet) -> None:
    before, kinds = nnx.graphdef(model), [type(part) for _, part in nnx.iter_modules(model)]
    with activations.recorded(model, ("block*",)):
        model(IMAGES)
    with pytest.raises(ZeroDivisionError), activations.recorded(model):
        _ = 1 / 0
    assert [type(part) for _, part in nnx.iter_modules(model)] == kinds
    assert nnx.graphdef(model) == before


@pytest.fixture(scope="module")
def initialized() -> tuple[Apply, Any, Any]:
    return jax.jit(SMALL.init, compiler_options=quick_to_compile())(jax.random.key(0))


def test_compiled_function_has_the_logits_of_the_network(initialized: Any) -> None:
    apply, params, stats = initialized
    plain = jax.jit(functools.partial(apply, train=True))(params, stats, IMAGES)[0]
    look = functools.partial(activations.of, apply, names=("block?", "stem/conv"), train=True)
    logits, recorded = jax.jit(look)(params, stats, IMAGES)
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-6)
    assert sorted(recorded) == ["block0", "block1", "block2", "stem/conv"]


def test_gradients_pass_through_recorded_activations(initialized: Any) -> None:
    apply, params, stats = initialized

    def energy(params: Any, name: str) -> Any:
        return jnp.sum(activations.of(apply, params, stats, IMAGES, (name,))[1][name] ** 2)

    slopes = [jax.jit(jax.grad(energy), static_argnums=1)(params, name)["stages"] for name in ("block1", "block2")]
    later = [float(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(slope[1]))) for slope in slopes]
    assert later[0] == 0
    assert later[1] > 0


def test_block_numbers_are_positions_under_permutation(initialized: Any) -> None:
    apply, params, stats = initialized
    look = jax.jit(functools.partial(activations.of, apply, names=("block*/branch/convs/0", "block0/input", "block1/input")))
    (_, straight), (_, turned) = (look(params, stats, IMAGES, permutation=jnp.asarray(order)) for order in ((0, 1, 2), (1, 0, 2)))
    np.testing.assert_array_equal(straight["block0/input"], turned["block0/input"])
    assert not np.allclose(straight["block0/branch/convs/0"], turned["block0/branch/convs/0"])


def test_user_parts_are_recorded() -> None:
    class Halved(BatchNorm):
        def __call__(self, x: Any, *, train: bool) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().__call__(x, train=train) / 2

    network = Architecture(stages=(1,), features=(3,), order=FullPreactivation, norm=Halved, input_shape=(6, 6, 3), num_classes=4)
    model = network.build(rngs=nnx.Rngs(0))
    with activations.recorded(model, ("block0/before/layers/0*",)) as recorded:
        model(IMAGES)
    before = recorded["block0/before/layers/0/input"]
    np.testing.assert_allclose(recorded["block0/before/layers/0"], before / np.sqrt(1 + 1e-5) / 2, rtol=1e-5)


def test_unmatched_pattern_is_rejected_with_the_names(model: ResNet, initialized: Any) -> None:
    with pytest.raises(UserError, match=r"no activation is called 'blocks\*'; there are head, .* block1/branch, .* block2"):
        jax.eval_shape(lambda: activations.of(*initialized, IMAGES, ("blocks*",)))
    with pytest.raises(UserError, match="block7"), activations.recorded(model, ("block7",)):
        model(IMAGES)
