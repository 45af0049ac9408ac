"""Convolution, batch normalisation and classifier against their formulas in NumPy float64."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import close, convolve, random

from resnet_jax.models.execution import quick_to_compile
from resnet_jax.models.layers import BatchNorm, Conv, Head

EPSILON, MOMENTUM = 1e-5, 0.9  # fb.resnet.torch, that is torch's defaults: eps 1e-5, momentum 0.1


def filled(make: Callable[[nnx.Rngs], Any], seed: int = 0) -> Any:
    """A module with NumPy's numbers in it: no initialisation is compiled, no scale is 1 and no running mean 0."""
    graphdef, state = jax.eval_shape(lambda: nnx.split(make(nnx.Rngs(0))))
    rng = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        positive = path[-1].key in ("scale", "var")
        values = rng.uniform(0.5, 1.5, leaf.shape) if positive else rng.normal(0, 0.5, leaf.shape)
        return jnp.asarray(values, leaf.dtype)

    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state)))


def variables(module: nnx.Module) -> dict[str, Any]:
    """Parameters and statistics of a module, float64."""
    return jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(module)))


def call(module: Any, *inputs: Any, **keywords: Any) -> tuple[jax.Array, dict[str, Any]]:
    """Output of a module and its variables afterwards, compiled; the module itself stays as it is."""
    graphdef, state = nnx.split(module)

    def run(state: Any, inputs: Any) -> tuple[jax.Array, Any]:
        module = nnx.merge(graphdef, state, copy=True)
        return module(*inputs, **keywords), nnx.to_pure_dict(nnx.state(module))

    y, after = jax.jit(run, compiler_options=quick_to_compile())(state, inputs)
    return y, jax.tree.map(np.float64, after)


def conv(x: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """A square convolution padded by (kernel - 1) / 2 on all four sides."""
    return convolve(x, kernel, (stride, stride), (((len(kernel) - 1) // 2,) * 2,) * 2)


def normalise(x: np.ndarray, values: dict[str, np.ndarray], *, train: bool) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Ioffe and Szegedy 2015, algorithm 1: the result, and the running statistics afterwards."""
    x, running = np.float64(x), {name: values[name] for name in ("mean", "var")}
    used = {"mean": x.mean((0, 1, 2)), "var": ((x - x.mean((0, 1, 2))) ** 2).mean((0, 1, 2))} if train else running
    y = (x - used["mean"]) / np.sqrt(used["var"] + EPSILON) * values["scale"] + values["bias"]
    return y, {name: MOMENTUM * running[name] + (1 - MOMENTUM) * used[name] for name in running} if train else running


@pytest.mark.parametrize(
    ("make", "fan_in"),
    [
        pytest.param(lambda rngs: Conv(16, 48, 3, rngs=rngs).kernel[...], 9 * 16, id="Conv"),
        pytest.param(lambda rngs: Head(40, 200, rngs=rngs).linear.kernel[...], 40, id="Head"),
    ],
)
def test_weights_start_normal_with_variance_two_over_fan_in(make: Callable[[nnx.Rngs], jax.Array], fan_in: int) -> None:
    """He et al. 2015b (arXiv 1502.01852), eq. 10. Fan-in, not fan-out; a normal that is truncated at 2 sigma has no tail."""
    values = np.float64(jax.jit(lambda key: make(nnx.Rngs(key)))(jax.random.key(7))).ravel()
    z = values / np.sqrt(2 / fan_in)
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.std() - 1) < 5 / np.sqrt(2 * z.size)  # five standard errors: 4 to 5 %
    # Two-sided tails of the normal distribution: 4.550 % beyond 2 sigma, 0.270 % beyond 3 (truncated: none beyond 2.3).
    for sigmas, tail in ((2, 0.04550), (3, 0.00270)):
        assert abs((np.abs(z) > sigmas).mean() - tail) < 4 * np.sqrt(tail / z.size)


def test_normalisation_starts_as_the_identity_and_the_head_without_bias() -> None:
    norm, bias = BatchNorm(3, rngs=nnx.Rngs(0)), jax.jit(lambda: Head(2, 3, rngs=nnx.Rngs(0)).linear.bias[...])()
    assert variables(norm).keys() == {"scale", "bias", "mean", "var"}
    for name, expected in {"scale": 1, "bias": 0, "mean": 0, "var": 1}.items():
        np.testing.assert_array_equal(variables(norm)[name], np.full(3, expected))
    np.testing.assert_array_equal(bias, np.zeros(3))


def test_convolution_has_no_bias() -> None:
    assert variables(filled(lambda rngs: Conv(3, 4, 3, rngs=rngs))).keys() == {"kernel"}


@pytest.mark.parametrize("gradients", ["plain", "explicit"])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolution_is_padded_alike_on_all_sides(kernel_size: int, stride: int, gradients: Any) -> None:
    layer = filled(lambda rngs: Conv(3, 4, kernel_size, stride, gradients=gradients, rngs=rngs))
    x = random(2, 8, 8, 3)
    y, _ = call(layer, x)
    close(y, conv(x, variables(layer)["kernel"], stride))
    if stride == 2 and kernel_size > 1:
        # SAME pads an even image one pixel more behind than before it.
        low = kernel_size // 2 - 1
        same = convolve(x, variables(layer)["kernel"], (2, 2), ((low, low + 1),) * 2)
        close(jax.lax.conv_general_dilated(x, layer.kernel[...], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")), same)
        assert same.shape == y.shape
        assert np.abs(same - y).max() > 0.1 * np.abs(same).max()


def test_gradients_chooses_the_form() -> None:
    """Only ``plain`` can be differentiated forwards; ``auto`` is ``explicit`` on CPU."""
    x = random(1, 4, 4, 2)
    layers = {form: filled(lambda rngs, form=form: Conv(2, 2, 3, gradients=form, rngs=rngs)) for form in ("plain", "explicit", "auto")}
    y, dy = jax.jvp(layers["plain"], (x,), (x,))
    close(dy, y)  # linear
    for form in ("explicit", "auto"):
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(layers[form], (x,), (x,))


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_convolution_computes_in_the_dtype_of_its_input_and_its_gradient_is_float32(kernel_size: int) -> None:
    layer = filled(lambda rngs: Conv(3, 4, kernel_size, rngs=rngs))
    x = jnp.asarray(random(2, 6, 6, 3), jnp.bfloat16)
    y, _ = call(layer, x)
    assert y.dtype == jnp.bfloat16
    rounded = np.float64(jnp.asarray(layer.kernel[...], jnp.bfloat16))
    close(y, conv(np.float64(x), rounded, 1), tolerance=2**-7)
    graphdef, state = nnx.split(layer)
    slopes = jax.eval_shape(jax.grad(lambda s: nnx.merge(graphdef, s)(x).astype(jnp.float32).sum()), nnx.to_pure_dict(state))
    assert layer.kernel[...].dtype == slopes["kernel"].dtype == jnp.float32


def test_batch_norm_by_hand() -> None:
    """One channel holds 1, 2, 3, 6: mean 3, biased variance (4 + 1 + 0 + 9) / 4 = 3.5 (unbiased: 14 / 3)."""
    norm = BatchNorm(1, rngs=nnx.Rngs(0))
    y, after = call(norm, jnp.asarray([1.0, 2.0, 3.0, 6.0]).reshape(2, 2, 1, 1), train=True)
    # From the start values 0 and 1: 0.9 * 0 + 0.1 * 3 and 0.9 * 1 + 0.1 * 3.5.
    np.testing.assert_allclose([after["mean"][0], after["var"][0]], [0.3, 1.25], rtol=1e-6)
    np.testing.assert_allclose(np.ravel(y), np.array([-2, -1, 0, 3]) / np.sqrt(3.50001), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_is_its_formula(train: bool) -> None:
    """The variance of the second channel is about epsilon, so that another epsilon would show."""
    norm = filled(lambda rngs: BatchNorm(3, rngs=rngs))
    norm.var[...] = norm.var[...] * jnp.asarray([1, 1e-5, 1])
    x = random(4, 3, 3, 3) * np.float32([1, 3e-3, 2]) + np.float32([0.5, 0, -1])
    y, after = call(norm, x, train=train)
    expected, running = normalise(x, variables(norm), train=train)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    for name, value in running.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-7)
        assert np.array_equal(after[name], variables(norm)[name]) is not train


def test_batch_norm_of_bfloat16_has_float32_statistics_and_a_bfloat16_result() -> None:
    """65,536 values near 1: sums in bfloat16 would be wrong in the third digit."""
    norm = BatchNorm(1, rngs=nnx.Rngs(0))
    x = jnp.asarray(1 + random(16, 64, 64, 1), jnp.bfloat16)
    y, after = call(norm, x, train=True)
    expected, running = normalise(np.float64(x), variables(norm), train=True)
    for name, value in running.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5)
    assert y.dtype == jnp.bfloat16
    close(y, expected, tolerance=2**-8)
    state = jax.eval_shape(lambda: (lambda m: (m(x, train=True), nnx.to_pure_dict(nnx.state(m)))[1])(BatchNorm(1, rngs=nnx.Rngs(0))))
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_head_averages_and_multiplies_in_float32(dtype: str) -> None:
    head = filled(lambda rngs: Head(6, 5, rngs=rngs))
    x = jnp.asarray(2 + random(2, 8, 8, 6), dtype)
    logits, _ = call(head, x)
    assert logits.dtype == jnp.float32
    weights = variables(head)["linear"]
    close(logits, np.float64(x).mean((1, 2)) @ weights["kernel"] + weights["bias"], tolerance=1e-5)
