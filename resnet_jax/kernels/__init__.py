"""Operations with custom VJPs, which lack forward mode, and compiler options.

``active`` may choose autodiff instead; both are equal up to rounding.
"""

import functools
import itertools
import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from resnet_jax.kernels.typing import Array, Float

Kernels = Literal["auto", "plain", "cpu", "gpu"]
"""plain: autodiff; gpu: custom VJPs for BatchNorm, max pooling, ReLU; cpu: convolutions, not ReLU;
auto: by backend, plain on TPU."""
Form = Literal["plain", "cpu", "gpu"]

active = jax.make_user_context("plain")
"""Kernels of layers that are traced, a key of JAX's caches: ``with active("auto"): ...``.
Networks set those of their ``Execution``."""


def resolve(kernels: Kernels, backend: str | None = None) -> Form:
    """Resolves ``auto`` for a backend (cpu, gpu, tpu), by default the one in use."""
    if kernels != "auto":
        return kernels
    backend = backend or jax.default_backend()
    return "plain" if backend not in ("cpu", "gpu") else backend


# Compiler options.

_OPTIONS = {
    # YNNPACK only for reductions: XLA's own code and Eigen are faster for the rest.
    "cpu": ("xla_cpu_experimental_ynn_fusion_type", "LIBRARY_FUSION_TYPE_REDUCE"),
    # XLA's default, convolutions and loops: all steps of a call are one CUDA graph.
    "gpu": (
        "xla_gpu_enable_command_buffer",
        "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,DYNAMIC_SLICE_FUSION,CONVOLUTION,"
        "WHILE",
    ),
}


def quick_to_compile() -> dict[str, Any] | None:
    """Returns compiler options for what runs once."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def quick_to_run(platform: str | None = None) -> dict[str, str] | None:
    """Returns compiler options for what runs often, by default on the backend in use.

    None: the platform has none, this XLA does not know them, or ``XLA_FLAGS`` sets them.
    """
    option, value = _OPTIONS.get(platform or jax.default_backend(), ("", ""))
    if not option or option in os.environ.get("XLA_FLAGS", "") or not _is_known(option, value):
        return None
    return {option: value}


@functools.cache
def _is_known(option: str, value: str) -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True


# Convolution. XLA:CPU canonicalizes layouts in the entry computation only: the weight gradient of
# autodiff inside a `while` body (any `lax.scan`) runs a naive loop, 17 to 29 times slower.

Pair = tuple[int, int]
Padding = Sequence[Pair]
# Strides, padding, dilation of the weights, groups.
_Window = tuple[Pair, Padding, Pair, int]
_Two = tuple[Array, Array]


def conv_general_dilated(inputs: Array, weights: Array, *window: Any, **options: Any) -> Array:
    """``lax.conv_general_dilated`` or ``convolve``, to be passed to ``nnx.Conv``."""
    form = convolve if resolve(active.value) == "cpu" else lax.conv_general_dilated
    return form(inputs, weights, *window, **options)


def convolve(
    inputs: Float[Array, "n h w i"],
    weights: Float[Array, "kh kw i_per_group o"],
    strides: Pair,
    padding: Padding,
    *,
    rhs_dilation: Pair = (1, 1),
    feature_group_count: int = 1,
    **_: Any,
) -> Float[Array, "n ho wo o"]:
    """NHWC convolution whose gradients are ordinary convolutions.

    Arguments as of ``lax.conv_general_dilated``, others at their defaults.
    """
    padding = padding[0], padding[1]  # nnx.Conv passes a list, which cannot be static
    if weights.shape[:2] == (1, 1) and padding == ((0, 0), (0, 0)) and feature_group_count == 1:
        return _multiply(inputs[:, :: strides[0], :: strides[1]], weights[0, 0])
    return _convolve(inputs, weights, (strides, padding, rhs_dilation, feature_group_count))


def _product(pixels: Array, matrix: Array) -> Array:
    return lax.dot_general(pixels, matrix, (((3,), (0,)), ((), ())))


# Forward passes do not call the custom_vjp function: a checkpoint policy does not see inside of it.
def _multiply_forward(pixels: Array, matrix: Array) -> tuple[Array, _Two]:
    return _product(pixels, matrix), (pixels, matrix)


def _multiply_backward(saved: _Two, cotangent: Array) -> _Two:
    pixels, matrix = saved
    # Pixels times cotangents, not autodiff's cotangents times pixels: XLA:CPU transposes the first
    # operand in memory, which recomputes cotangents that come from a fusion.
    weight_gradient = lax.dot_general(pixels, cotangent, (((0, 1, 2), (0, 1, 2)), ((), ())))
    return lax.dot_general(cotangent, matrix, (((3,), (1,)), ((), ()))), weight_gradient


_multiply = jax.custom_vjp(_product)
_multiply.defvjp(_multiply_forward, _multiply_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(inputs: Array, weights: Array, window: _Window) -> Array:
    return _run(inputs, weights, window)


def _convolve_forward(inputs: Array, weights: Array, window: _Window) -> tuple[Array, _Two]:
    return _run(inputs, weights, window), (inputs, weights)


def _convolve_backward(window: _Window, saved: _Two, cotangent: Array) -> _Two:
    inputs, weights = saved
    strides, padding, dilation, groups = window
    # Per axis: size, low padding, distance of the last tap from the first, size of the cotangent
    # dilated by the stride.
    sizes = inputs.shape[1:3]
    lows = (low for low, _ in padding)
    reaches = ((n - 1) * step for n, step in zip(weights.shape, dilation, strict=False))
    spreads = ((n - 1) * step + 1 for n, step in zip(cotangent.shape[1:], strides, strict=False))
    axes = list(zip(sizes, lows, reaches, spreads, strict=True))
    # The dilated cotangent with the weights flipped and their channels exchanged in each group:
    # (kh, kw, i, groups * o) to (kh, kw, o, groups * i).
    edges = tuple((reach - low, size - spread + low) for size, low, reach, spread in axes)
    *kernel, per_group, outputs = weights.shape
    split = weights[::-1, ::-1].reshape(*kernel, per_group, groups, outputs // groups)
    flipped = split.swapaxes(2, 4).reshape(*kernel, outputs // groups, groups * per_group)
    input_gradient = _run(cotangent, flipped, ((1, 1), edges, dilation, groups), strides)
    # Images and channels exchanged in both operands, (n, h, w, groups * i) to
    # (i, h, w, groups * n). The stride becomes the cotangent's dilation.
    images, *pixels, channels = inputs.shape
    split = inputs.reshape(images, *pixels, groups, channels // groups)
    weight_gradient = _convolution(
        split.swapaxes(0, 4).reshape(channels // groups, *pixels, groups * images),
        cotangent.transpose(1, 2, 0, 3),
        dilation,
        tuple((low, reach + spread - size - low) for size, low, reach, spread in axes),
        rhs_dilation=strides,
        feature_group_count=groups,
    )
    return input_gradient, weight_gradient.transpose(1, 2, 0, 3)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _run(images: Array, weights: Array, window: _Window, spread: Pair = (1, 1)) -> Array:
    """Convolves images dilated by ``spread``."""
    strides, padding, dilation, groups = window
    if any(size < taps for size, taps in zip(images.shape[1:3], weights.shape[:2], strict=True)):
        # XLA would exchange images and larger weights, in a slow layout. The barrier keeps it from
        # folding the padding back into the convolution.
        edges = [(*sides, step - 1) for sides, step in zip(padding, spread, strict=True)]
        images = lax.optimization_barrier(_pad(images, 0, *edges))
        padding, spread = ((0, 0), (0, 0)), (1, 1)
    return _convolution(
        images,
        weights,
        strides,
        padding,
        lhs_dilation=spread,
        rhs_dilation=dilation,
        feature_group_count=groups,
    )


_convolution = functools.partial(
    lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC")
)


def _pad(images: Array, value: float, *edges: tuple[int, int, int]) -> Array:
    return lax.pad(images, jnp.array(value, images.dtype), ((0, 0, 0), *edges, (0, 0, 0)))


# ReLU.


def relu(x: Array) -> Array:
    """max(x, 0). The custom VJP saves only the result, which the next layer saves too."""
    return _relu(x) if resolve(active.value) == "gpu" else nnx.relu(x)


@jax.custom_vjp
def _relu(x: Array) -> Array:
    return jnp.maximum(x, 0)


def _relu_forward(x: Array) -> tuple[Array, Array]:
    y = jnp.maximum(x, 0)
    return y, y


# Not y > 0: XLA would simplify it to x > 0 and compute x again.
_relu.defvjp(_relu_forward, lambda y, cotangent: (jnp.where(y != 0, cotangent, 0),))

# Batch normalization.

Groups = Float[Array, "*groups n h w c"]
Weights = Float[Array, "c"]
PerChannel = Float[Array, "*groups c"]
Normalized = tuple[Groups, PerChannel, PerChannel]


def normalize(
    x: Groups,
    scale: Weights,
    bias: Weights,
    epsilon: float,
    rectify: bool,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Normalized:
    """Returns x normalized over each group's images and pixels, means and biased variances.

    A group extends over ``axis_name`` too, then with autodiff. The custom VJP (Ioffe and Szegedy
    2015, arXiv 1502.03167, Section 3) reads only input and cotangent, once for both sums and once
    for the result, and recomputes the mask of a ReLU.
    """
    form = "plain" if axis_name else resolve(active.value)
    function = _normalize if form == "plain" else _custom_normalize
    return function(x, scale, bias, epsilon, rectify, form, axis_name)


def affine(
    x: Groups,
    mean: PerChannel,
    var: PerChannel,
    scale: Weights,
    bias: Weights,
    epsilon: float,
    rectify: bool = False,
) -> Groups:
    """``scale (x - mean) / sqrt(var + epsilon) + bias`` in float32, cast to the dtype of x."""
    factor = scale * lax.rsqrt(var + epsilon)
    y = ((x.astype(jnp.float32) - _wide(mean)) * _wide(factor) + bias).astype(x.dtype)
    return nnx.relu(y) if rectify else y


def _normalize(
    x: Groups,
    scale: Weights,
    bias: Weights,
    epsilon: float,
    rectify: bool,
    form: Form,
    axis_name: str | tuple[str, ...] | None,
) -> Normalized:
    wide = x.astype(jnp.float32)
    moments = _sums(form, wide, wide * wide) / math.prod(x.shape[-4:-1])
    mean, square = lax.pmean(moments, axis_name) if axis_name else moments
    var = jnp.maximum(square - mean * mean, 0)
    return affine(x, mean, var, scale, bias, epsilon, rectify), mean, var


def _normalize_forward(x: Groups, scale: Weights, bias: Weights, *options: Any) -> Any:
    y, mean, var = _normalize(x, scale, bias, *options)
    return (y, mean, var), (x, scale, bias, mean, var)


def _normalize_backward(
    epsilon: float, rectify: bool, form: Form, _: None, saved: Any, cotangents: Normalized
) -> tuple[Groups, Weights, Weights]:
    x, scale, bias, mean, var = saved
    dy, dmean, dvar = cotangents
    count = x.size // mean.size
    inverse = lax.rsqrt(var + epsilon)
    factor = scale * inverse
    wide, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    if rectify:
        dy = jnp.where(wide * _wide(factor) > _wide(mean * factor - bias), dy, 0)
    total, along = _sums(form, dy, dy * wide)
    along -= mean * total
    slope = (2 * dvar - factor * inverse**2 * along) / count
    level = (dmean - factor * total) / count - slope * mean
    # Not in terms of x - mean: XLA:CPU would save it in the forward pass or materialize it here.
    dx = _wide(factor) * dy + _wide(slope) * wide + _wide(level)
    dscale, dbias = (term.reshape(-1, len(scale)).sum(0) for term in (along * inverse, total))
    return dx.astype(x.dtype), dscale, dbias


def _sums(form: Form, *terms: Groups) -> Float[Array, "terms *groups c"]:
    # Pixels in one pass, then images of one array: two kernels of XLA:GPU in place of three.
    *images, height, width, channels = terms[0].shape
    parts = 1
    if form == "gpu":
        # XLA sums an image in one block, which leaves most of a GPU idle.
        most = min(8, height * width // 128)
        parts = max((n for n in range(1, most + 1) if height % n == 0), default=1)
    shape = *images, parts, height // parts, width, channels
    return jnp.stack([term.reshape(shape).sum((-3, -2)) for term in terms]).sum((-3, -2))


def _wide(per_channel: PerChannel) -> Float[Array, "*groups 1 1 1 c"]:
    return per_channel[..., None, None, None, :]


_custom_normalize = jax.custom_vjp(_normalize, nondiff_argnums=(3, 4, 5, 6))
_custom_normalize.defvjp(_normalize_forward, _normalize_backward)

# Max pooling.

_TAPS = tuple(itertools.product(range(3), repeat=2))
_Taken = tuple[Array, tuple[int, ...]]


def max_pool(
    x: Float[Array, "n h w c"], padding: Padding = ((1, 1), (1, 1))
) -> Float[Array, "n ho wo c"]:
    """3x3 maxima at stride 2; padding is never the maximum.

    The custom VJP saves one byte per window, XLA's backward pass 20; of equal pixels the first
    gets the gradient.
    """
    if resolve(active.value) == "plain":
        edges = ((0, 0), *padding, (0, 0))
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), edges)
    return _max_pool(x, padding)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x: Array, padding: Padding) -> Array:
    return functools.reduce(jnp.maximum, _taps(x, padding))


def _max_pool_forward(x: Array, padding: Padding) -> tuple[Array, _Taken]:
    best, *others = _taps(x, padding)
    argmax = jnp.zeros(best.shape, jnp.uint8)
    for number, tap in enumerate(others, 1):
        argmax = jnp.where(tap > best, jnp.uint8(number), argmax)
        best = jnp.maximum(best, tap)
    return best, (argmax, x.shape)


def _max_pool_backward(padding: Padding, saved: _Taken, cotangent: Array) -> tuple[Array]:
    argmax, (_, *sizes, _) = saved
    total = jnp.zeros((), cotangent.dtype)
    for number, tap in enumerate(_TAPS):
        axes = zip(tap, padding, sizes, argmax.shape[1:3], strict=True)
        edges = [
            (place - low, size + low - place - (2 * windows - 1), 1)
            for place, (low, _), size, windows in axes
        ]
        total += _pad(jnp.where(argmax == number, cotangent, 0), 0, *edges)
    return (total,)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _taps(x: Array, padding: Padding) -> list[Array]:
    """Returns an array per pixel of the window."""
    padded = _pad(x, -jnp.inf, *((low, high, 0) for low, high in padding))
    rows, columns = (2 * ((size - 3) // 2) + 1 for size in padded.shape[1:3])
    return [
        padded[:, down : down + rows : 2, across : across + columns : 2] for down, across in _TAPS
    ]
