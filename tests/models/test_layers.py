"""Convolution and small layers against their formulas in NumPy float64; what the tests of all parts of a network share."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_convolution import close, convolve, random

from resnet_jax.errors import UserError
from resnet_jax.models.execution import quick_to_compile
from resnet_jax.models.layers import Bias, Conv, Multiplier, ReLU, SqueezeExcitation, keep

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


def layered(values: dict[str, Any], layers: str, x: np.ndarray, *, train: bool) -> np.ndarray:
    """What an order puts somewhere, in words: ``"norm relu"``. ``values`` are those of an ``orders.Sequence``."""
    for index, layer in enumerate(layers.split()):
        own = values.get("layers", {}).get(index, {})
        assert own.keys() == {"norm": {"scale", "bias", "mean", "var"}, "relu": set(), "bias": {"bias"}}[layer]
        if layer == "norm":
            x = normalise(x, own, train=train)[0]
        elif layer == "relu":
            x = np.maximum(x, 0)
        else:
            x = x + own["bias"]
    return x


def project(values: dict[str, Any], x: np.ndarray, stride: int, *, train: bool = False) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A strided 1x1 convolution and a normalisation (He et al. 2015, eq. 2)."""
    return normalise(conv(x, values["conv"]["kernel"], stride), values["norm"], train=train)


def same_statistics(after: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if isinstance(value, dict):
            same_statistics(after[name], value)
        else:
            np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-5, err_msg=name)


def follows(module: Any, formula: Callable[..., np.ndarray], *inputs: np.ndarray, **keywords: Any) -> None:
    """A module is ``formula(variables, *inputs)``, and so are its gradients by every variable and input.

    Gradients are met by central differences of the formula, float64, along two random directions a leaf.
    """
    graphdef, state = nnx.split(module)
    point = variables(module), [np.float64(x) for x in inputs]
    expected, step = formula(point[0], *point[1]), 1e-6
    cotangent = random(*expected.shape, seed=3)

    def run(state: Any, inputs: Any) -> tuple[jax.Array, Any]:
        y, pull = jax.vjp(lambda state, inputs: nnx.merge(graphdef, state, copy=True)(*inputs, **keywords), state, inputs)
        return y, pull(jnp.asarray(cotangent))

    y, slopes = jax.jit(run, compiler_options=quick_to_compile())(nnx.to_pure_dict(state), [jnp.asarray(x, jnp.float32) for x in inputs])
    assert y.shape == expected.shape
    close(y, expected)
    rng = np.random.default_rng(4)
    paths, structure = jax.tree.flatten_with_path(point)
    leaves = [leaf for _, leaf in paths]
    for index, ((path, leaf), slope) in enumerate(zip(paths, jax.tree.leaves(slopes), strict=True)):
        found, wanted = [], []
        for direction in rng.standard_normal((2, *leaf.shape)):
            ends = []
            for sign in (1, -1):
                values, moved = jax.tree.unflatten(structure, [*leaves[:index], leaf + sign * step * direction, *leaves[index + 1 :]])
                ends.append(np.sum(formula(values, *moved) * cotangent))
            found.append(np.sum(np.float64(slope) * direction))
            wanted.append((ends[0] - ends[1]) / (2 * step))
        # Relative to the gradient's length, which a direction may happen to see little of.
        scale = max(np.linalg.norm(np.float64(slope)), *np.abs(wanted))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * scale, err_msg=jax.tree_util.keystr(path))


def he_distributed(kernel: jax.Array, fan_in: int) -> None:
    """He et al. 2015b (arXiv 1502.01852), eq. 10. Fan-in, not fan-out; a normal that is truncated at 2 sigma has no tail."""
    z = np.float64(kernel).ravel() / np.sqrt(2 / fan_in)
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs(z.std() - 1) < 5 / np.sqrt(2 * z.size)  # five standard errors: 4 to 5 %
    # Two-sided tails of the normal distribution: 4.550 % beyond 2 sigma, 0.270 % beyond 3 (truncated: none beyond 2.3).
    for sigmas, tail in ((2, 0.04550), (3, 0.00270)):
        assert abs((np.abs(z) > sigmas).mean() - tail) < 4 * np.sqrt(tail / z.size)


@pytest.mark.parametrize(("groups", "fan_in"), [(1, 9 * 16), (2, 9 * 8)])
def test_kernels_start_normal_with_variance_two_over_fan_in(groups: int, fan_in: int) -> None:
    """Fan-in counts the inputs that an output sees: those of its group."""
    he_distributed(jax.jit(lambda key: Conv(16, 48, 3, groups=groups, rngs=nnx.Rngs(key)).kernel[...])(jax.random.key(7)), fan_in)


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


@pytest.mark.parametrize("gradients", ["plain", "explicit"])
@pytest.mark.parametrize(
    ("kernel_size", "stride", "dilation", "groups"), [(3, 1, 2, 1), (3, 2, 2, 2), (5, 1, 3, 1), (1, 2, 2, 1), (3, 1, 1, 4)]
)
def test_convolution_dilated_and_grouped(kernel_size: int, stride: int, dilation: int, groups: int, gradients: Any) -> None:
    """Padding grows with the dilation, so a map keeps its size; a tap stands every ``dilation`` pixels."""
    layer = filled(lambda rngs: Conv(4, 8, kernel_size, stride, dilation=dilation, groups=groups, gradients=gradients, rngs=rngs))
    padding = ((dilation * (kernel_size // 2),) * 2,) * 2

    def formula(values: dict[str, Any], x: np.ndarray) -> np.ndarray:
        assert values["kernel"].shape == (kernel_size, kernel_size, 4 // groups, 8)
        parts = zip(np.split(x, groups, -1), np.split(values["kernel"], groups, -1), strict=True)
        return np.concatenate([convolve(x, kernel, (stride,) * 2, padding, (dilation,) * 2) for x, kernel in parts], -1)

    x = random(1, 8, 7, 4)
    assert formula(variables(layer), x).shape == (1, -(-8 // stride), -(-7 // stride), 8)
    follows(layer, formula, x)


@pytest.mark.parametrize("kernel_size", [0, 2, 4])
def test_an_even_kernel_is_refused(kernel_size: int) -> None:
    with pytest.raises(UserError, match=f"a kernel of {kernel_size}x{kernel_size} cannot be padded symmetrically: use an odd size"):
        Conv(4, 4, kernel_size, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(("come", "go", "groups"), [(4, 6, 4), (6, 4, 4), (4, 4, 3), (4, 4, 0)])
def test_groups_that_do_not_divide_both_widths_are_refused(come: int, go: int, groups: int) -> None:
    with pytest.raises(UserError, match=f"{groups} groups do not divide a convolution from {come} to {go} features"):
        Conv(come, go, 3, groups=groups, rngs=nnx.Rngs(0))


def squeeze_and_excite(values: dict[str, Any], x: np.ndarray) -> np.ndarray:
    """Hu et al. 2018, eqs. 2 to 4: mean over pixels, two layers with a ReLU between and a sigmoid behind, a factor a channel."""
    hidden = np.maximum(x.mean((1, 2)) @ values["squeeze"]["kernel"] + values["squeeze"]["bias"], 0)
    gates = 1 / (1 + np.exp(-(hidden @ values["excite"]["kernel"] + values["excite"]["bias"])))
    return x * gates[:, None, None]


LAYERS: dict[Callable[..., Any], tuple[Callable[[dict[str, Any], np.ndarray], np.ndarray], dict[str, tuple[int, ...]]]] = {
    ReLU: (lambda v, x: np.maximum(x, 0), {}),
    Bias: (lambda v, x: x + v["bias"], {"bias": ()}),
    Multiplier: (lambda v, x: x * v["scale"], {"scale": ()}),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_a_small_layer_is_its_formula(layer: Callable[..., Any]) -> None:
    """Fixup (Zhang et al. 2019), Section 3.2, rule 3: biases and multipliers are scalars."""
    formula, shapes = LAYERS[layer]
    module = filled(lambda rngs: layer(3, rngs=rngs))
    assert {name: value.shape for name, value in variables(module).items()} == shapes
    follows(module, formula, random(2, 4, 3, 3))


def test_fixups_scalars_start_as_the_identity() -> None:
    assert variables(Bias(3, rngs=nnx.Rngs(0))) == {"bias": 0}
    assert variables(Multiplier(3, rngs=nnx.Rngs(0))) == {"scale": 1}


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_squeeze_and_excitation_is_its_formula(reduction: int) -> None:
    module = filled(lambda rngs: SqueezeExcitation(5, reduction=reduction, rngs=rngs))
    assert variables(module)["squeeze"]["kernel"].shape == (5, 5 // reduction)
    follows(module, squeeze_and_excite, random(3, 4, 3, 5))


def test_squeeze_and_excitation_reduces_by_16_and_starts_without_bias() -> None:
    """Hu et al. 2018, Section 6.1: r = 16."""
    values = variables(SqueezeExcitation(32, rngs=nnx.Rngs(0)))
    assert [values[name]["kernel"].shape for name in ("squeeze", "excite")] == [(32, 2), (2, 32)]
    assert not any(values[name]["bias"].any() for name in values)
    with pytest.raises(UserError, match="cannot reduce 8 features by 16: use 1 to 8"):
        SqueezeExcitation(8, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("layer", [ReLU, Bias, Multiplier, functools.partial(SqueezeExcitation, reduction=2)])
def test_a_small_layer_keeps_the_dtype_of_its_input(layer: Callable[..., Any]) -> None:
    module = filled(lambda rngs: layer(4, rngs=rngs))
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(module))} <= {jnp.dtype("float32")}
    assert module(jnp.ones((1, 2, 2, 4), jnp.bfloat16)).dtype == jnp.bfloat16


def test_what_is_kept_is_drawn_with_probability_one_minus_rate() -> None:
    rates = np.array([[0.0], [0.1], [0.5], [1.0]])
    mask = np.float64(keep(jax.random.key(0), rates, (4, 10000), "this"))
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_allclose(mask.mean(1), 1 - rates[:, 0], atol=5 * 0.005)  # five standard errors
    np.testing.assert_array_equal(mask[[0, 3]].mean(1), [1, 0])
    np.testing.assert_array_equal(mask, keep(jax.random.key(0), rates, (4, 10000), "this"))
    assert (mask != keep(jax.random.key(1), rates, (4, 10000), "this")).any()


def test_what_is_random_asks_for_a_key_in_a_sentence() -> None:
    with pytest.raises(UserError, match=r"dropping eggs is random while training: call the network with key=jax.random.key\(...\)"):
        keep(None, 0.5, (2,), "dropping eggs")
