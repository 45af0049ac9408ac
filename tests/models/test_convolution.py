"""Both forms of the convolution against the sum over taps that defines it, in NumPy float64."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_jax.models import convolution, filter_gradient

Pair = tuple[int, int]
FORMS = [convolution.plain, convolution.explicit]
# With the bytes above which the written gradients take images to be large, and the channels at which they then take products.
CHANNELS = filter_gradient.CHANNELS
BLOCKS = [
    *((form, filter_gradient.BLOCK_BYTES, CHANNELS) for form in FORMS),
    *((convolution.explicit, 1, channels) for channels in (CHANNELS, range(64))),
]
NHWC = ("NHWC", "HWIO", "NHWC")
SYMMETRIC = [
    pytest.param(
        (size, size), (kernel, kernel), (stride, stride), ((kernel // 2,) * 2,) * 2, (1, 1), id=f"{size}px-{kernel}x{kernel}-{stride}"
    )
    for size, kernel, stride in itertools.product((8, 7), (1, 3, 7), (1, 2))
]
UNEVEN = [
    pytest.param((8, 7), (3, 3), (2, 2), ((0, 1), (1, 0)), (1, 1), id="SAME-like"),
    pytest.param((9, 6), (3, 7), (2, 1), ((2, 0), (1, 4)), (1, 1), id="nothing-square"),
    pytest.param((8, 8), (3, 3), (2, 2), ((0, 0), (0, 0)), (1, 1), id="a-pixel-that-nothing-reads"),
    pytest.param((7, 8), (1, 1), (2, 3), ((1, 0), (0, 2)), (1, 1), id="padded-1x1"),
    pytest.param((7, 8), (1, 1), (2, 3), ((0, 0), (0, 0)), (1, 1), id="1x1-of-two-strides"),
    pytest.param((9, 8), (3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2), id="dilated"),
    pytest.param((9, 8), (3, 3), (2, 2), ((3, 1), (2, 0)), (2, 2), id="dilated-strided-uneven"),
]


def convolve(x: np.ndarray, kernel: np.ndarray, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair = (1, 1)) -> np.ndarray:
    """Output pixel (i, j) sums, over the taps (a, b), padded pixel (i stride + a dilation, ...) times kernel[a, b]."""
    x, kernel = np.pad(np.float64(x), ((0, 0), *padding, (0, 0))), np.float64(kernel)
    sizes = [(x.shape[1 + d] - (kernel.shape[d] - 1) * dilation[d] - 1) // strides[d] + 1 for d in (0, 1)]
    y = np.zeros((len(x), *sizes, kernel.shape[3]))
    for i, j, a, b in itertools.product(*map(range, (*sizes, *kernel.shape[:2]))):
        y[:, i, j] += x[:, i * strides[0] + a * dilation[0], j * strides[1] + b * dilation[1]] @ kernel[a, b]
    return y


def gradients(
    x: np.ndarray, kernel: np.ndarray, cotangent: np.ndarray, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair = (1, 1)
) -> tuple[np.ndarray, np.ndarray]:
    """Each product of ``convolve`` differentiated where it stands."""
    (top, bottom), (left, right) = padding
    x, kernel, cotangent = np.pad(np.float64(x), ((0, 0), *padding, (0, 0))), np.float64(kernel), np.float64(cotangent)
    dx, dkernel = np.zeros_like(x), np.zeros_like(kernel)
    for i, j, a, b in itertools.product(*map(range, (*cotangent.shape[1:3], *kernel.shape[:2]))):
        row, column = i * strides[0] + a * dilation[0], j * strides[1] + b * dilation[1]
        dx[:, row, column] += cotangent[:, i, j] @ kernel[a, b].T
        dkernel[a, b] += x[:, row, column].T @ cotangent[:, i, j]
    return dx[:, top : x.shape[1] - bottom, left : x.shape[2] - right], dkernel


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pullback(form: Callable[..., jax.Array], *args: object, **options: object) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
    """Value and both gradients of a form, compiled."""

    def run(x: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        y, pull = jax.vjp(lambda x, kernel: form(x, kernel, *args, dimension_numbers=NHWC, **options), x, kernel)
        return y, *pull(cotangent)

    return jax.jit(run)


def close(actual: object, expected: object, tolerance: float = 1e-5) -> None:
    """Equal to ``tolerance`` of the largest value."""
    actual, expected = np.float64(actual), np.float64(expected)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.quick(7)
@pytest.mark.parametrize(("size", "taps", "strides", "padding", "dilation"), UNEVEN + SYMMETRIC)
def test_both_forms_and_their_gradients_are_the_defining_sum(
    size: Pair, taps: Pair, strides: Pair, padding: tuple[Pair, Pair], dilation: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what the written gradients do with large images."""
    x, kernel = random(2, *size, 3), random(*taps, 3, 4, seed=1)
    expected = convolve(x, kernel, strides, padding, dilation)
    cotangent = random(*expected.shape, seed=2)
    dx, dkernel = gradients(x, kernel, cotangent, strides, padding, dilation)
    for form, block, channels in BLOCKS:
        monkeypatch.setattr(filter_gradient, "BLOCK_BYTES", block)
        monkeypatch.setattr(filter_gradient, "CHANNELS", channels)
        for actual, wanted in zip(
            pullback(form, strides, padding, rhs_dilation=dilation)(x, kernel, cotangent), (expected, dx, dkernel), strict=True
        ):
            close(actual, wanted)


GROUPED = [
    pytest.param((6, 6), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 2, 4, 6, id="halves"),
    pytest.param((7, 6), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 4, 4, 4, id="depthwise"),
    pytest.param((7, 6), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 3, 3, 6, id="depthwise-two-filters-each"),
    pytest.param((8, 7), (3, 3), (2, 2), ((2, 2), (2, 2)), (2, 2), 2, 6, 4, id="dilated-strided"),
    pytest.param((9, 6), (3, 5), (2, 1), ((2, 0), (1, 4)), (1, 2), 2, 4, 2, id="nothing-square"),
    pytest.param((8, 8), (3, 3), (2, 2), ((0, 0), (0, 0)), (1, 1), 2, 4, 4, id="a-pixel-that-nothing-reads"),
    pytest.param((7, 8), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 2, 4, 6, id="1x1"),
]


def grouped(groups: int, function: Callable[..., Any], *arrays: np.ndarray) -> Any:
    """``function`` of each group of channels by itself; several results are joined one by one."""
    parts = [function(*split) for split in zip(*(np.split(array, groups, -1) for array in arrays), strict=True)]
    if isinstance(parts[0], tuple):
        return tuple(np.concatenate(both, -1) for both in zip(*parts, strict=True))
    return np.concatenate(parts, -1)


@pytest.mark.parametrize(("size", "taps", "strides", "padding", "dilation", "groups", "come", "go"), GROUPED)
def test_groups_of_channels_are_convolutions_by_themselves(
    size: Pair,
    taps: Pair,
    strides: Pair,
    padding: tuple[Pair, Pair],
    dilation: Pair,
    groups: int,
    come: int,
    go: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both forms, forward and both gradients. The c-th group of the output sees the c-th group of the input only."""
    x, kernel = random(2, *size, come), random(*taps, come // groups, go, seed=1)
    expected = grouped(groups, lambda x, kernel: convolve(x, kernel, strides, padding, dilation), x, kernel)
    cotangent = random(*expected.shape, seed=2)
    dx, dkernel = grouped(groups, lambda *arrays: gradients(*arrays, strides, padding, dilation), x, kernel, cotangent)
    for form, block, channels in BLOCKS:
        monkeypatch.setattr(filter_gradient, "BLOCK_BYTES", block)
        monkeypatch.setattr(filter_gradient, "CHANNELS", channels)
        run = pullback(form, strides, padding, rhs_dilation=dilation, feature_group_count=groups)
        for actual, wanted in zip(run(x, kernel, cotangent), (expected, dx, dkernel), strict=True):
            close(actual, wanted)


@pytest.mark.parametrize(("block", "spread"), [(filter_gradient.BLOCK_BYTES, 1), (1, 0)])
def test_no_zeros_stand_between_the_cotangents_of_large_images(block: int, spread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under a stride of 2 small images have one convolution of a spread cotangent, large ones none."""
    monkeypatch.setattr(filter_gradient, "BLOCK_BYTES", block)
    x, kernel, cotangent = (jnp.asarray(random(*shape)) for shape in ((2, 8, 8, 3), (3, 3, 3, 4), (2, 4, 4, 4)))
    program = jax.make_jaxpr(pullback(convolution.explicit, (2, 2), ((1, 1), (1, 1))))(x, kernel, cotangent)
    assert str(program).count("lhs_dilation=(2, 2)") == spread


@pytest.mark.parametrize("form", FORMS)
def test_input_dilated_convolutions_take_the_plain_form_and_stay_right(form: Callable[..., jax.Array]) -> None:
    x, kernel, padding = random(2, 4, 4, 3), random(3, 3, 3, 4, seed=1), ((1, 1), (1, 1))
    spread = np.zeros((2, 7, 7, 3))
    spread[:, ::2, ::2] = x
    expected = convolve(spread, kernel, (1, 1), padding)
    cotangent = random(*expected.shape, seed=2)
    dspread, dkernel = gradients(spread, kernel, cotangent, (1, 1), padding)
    actual = pullback(form, (1, 1), padding, lhs_dilation=(2, 2))(x, kernel, cotangent)
    for one, wanted in zip(actual, (expected, dspread[:, ::2, ::2], dkernel), strict=True):
        close(one, wanted)


@pytest.mark.parametrize("form", FORMS)
def test_other_layouts_stay_right(form: Callable[..., jax.Array]) -> None:
    """Three pixels wide as the kernel is: annotations, executed here, call the last axes of kernel and result by one name."""
    x, kernel, padding = random(2, 7, 3, 3), random(3, 3, 3, 4, seed=1), ((1, 1), (0, 2))
    moved = (jnp.asarray(x.transpose(0, 3, 1, 2)), jnp.asarray(kernel.transpose(3, 2, 0, 1)))
    y = form(*moved, (2, 1), padding, dimension_numbers=("NCHW", "OIHW", "NCHW"))
    close(y, convolve(x, kernel, (2, 1), padding).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(("taps", "groups"), [(1, 1), (3, 1), (3, 2)])
def test_explicit_under_scan_is_the_convolutions_one_after_another(taps: int, groups: int) -> None:
    padding = ((taps // 2,) * 2,) * 2
    x, kernels, cotangent = random(2, 5, 5, 4), random(3, taps, taps, 4 // groups, 4, seed=1), random(2, 5, 5, 4, seed=2)

    @jax.jit
    def run(x: jax.Array, kernels: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        def step(y: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
            return convolution.explicit(y, kernel, (1, 1), padding, feature_group_count=groups), None

        y, pull = jax.vjp(lambda x, kernels: jax.lax.scan(step, x, kernels)[0], x, kernels)
        return y, *pull(jnp.asarray(cotangent))

    values = [np.float64(x)]
    for kernel in kernels:
        values.append(grouped(groups, lambda x, kernel: convolve(x, kernel, (1, 1), padding), values[-1], kernel))
    dx, dkernels = np.float64(cotangent), []
    for value, kernel in zip(values[-2::-1], kernels[::-1], strict=True):
        dx, dkernel = grouped(groups, lambda *arrays: gradients(*arrays, (1, 1), padding), value, kernel, dx)
        dkernels.insert(0, dkernel)
    for actual, wanted in zip(run(x, kernels), (values[-1], dx, np.stack(dkernels)), strict=True):
        close(actual, wanted)


@pytest.mark.parametrize(("taps", "groups"), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("shared_images", [True, False])
def test_explicit_under_vmap_is_one_convolution_for_each_kernel(taps: int, groups: int, shared_images: bool) -> None:
    strides, padding = (2, 2), ((taps // 2,) * 2,) * 2
    x, kernels, cotangents = random(2, 2, 5, 5, 4), random(2, taps, taps, 4 // groups, 6, seed=1), random(2, 2, 3, 3, 6, seed=2)
    x = x[0] if shared_images else x
    run = pullback(convolution.explicit, strides, padding, feature_group_count=groups)
    actual = jax.vmap(run, (None if shared_images else 0, 0, 0))(x, kernels, cotangents)
    for i in (0, 1):
        images = x if shared_images else x[i]
        forward = grouped(groups, lambda x, kernel: convolve(x, kernel, strides, padding), images, kernels[i])
        backward = grouped(groups, lambda *arrays: gradients(*arrays, strides, padding), images, kernels[i], cotangents[i])
        for one, expected in zip(actual, (forward, *backward), strict=True):
            close(one[i], expected)


@pytest.mark.parametrize("taps", [1, 3])
def test_explicit_in_bfloat16_gives_bfloat16_and_is_right_to_its_rounding(taps: int) -> None:
    padding = ((taps // 2,) * 2,) * 2
    x, kernel, cotangent = (
        jnp.asarray(a, jnp.bfloat16) for a in (random(2, 7, 7, 3), random(taps, taps, 3, 4, seed=1), random(2, 4, 4, 4, seed=2))
    )
    exact = [np.asarray(a, np.float64) for a in (x, kernel, cotangent)]
    wanted = convolve(*exact[:2], (2, 2), padding), *gradients(*exact, (2, 2), padding)
    for actual, expected in zip(pullback(convolution.explicit, (2, 2), padding)(x, kernel, cotangent), wanted, strict=True):
        assert actual.dtype == jnp.bfloat16
        close(actual, expected, tolerance=2**-7)  # eight bits of mantissa


@pytest.mark.parametrize("groups", [1, 2])
def test_only_the_plain_form_has_a_forward_mode_derivative(groups: int) -> None:
    """So this also tells which form is at work."""
    x, kernel, direction = (jnp.asarray(random(*shape)) for shape in ((1, 5, 5, 2), (3, 3, 2 // groups, 2), (1, 5, 5, 2)))
    padding = ((1, 1), (1, 1))

    def derivative(form: Callable[..., jax.Array]) -> jax.Array:
        return jax.jvp(lambda x: form(x, kernel, (1, 1), padding, feature_group_count=groups), (x,), (direction,))[1]

    nhwc = functools.partial(convolution.plain, dimension_numbers=NHWC)
    wanted = grouped(groups, lambda x, kernel: convolve(x, kernel, (1, 1), padding), np.asarray(direction), np.asarray(kernel))
    close(derivative(nhwc), wanted)
    with pytest.raises(TypeError, match="forward-mode"):
        derivative(convolution.explicit)


@pytest.mark.parametrize("written_for", [("cpu",), ("cpu", "gpu")])
def test_auto_is_explicit_where_it_was_written_for_and_plain_elsewhere(
    written_for: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert convolution.form_of("auto", ("cpu",)) == "explicit"  # the tests run on CPU
    for backend in ("cpu", "gpu", "tpu"):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        expected = "explicit" if backend in written_for else "plain"
        assert convolution.form_of("auto", written_for) == convolution.form_of("auto", written_for, backend) == expected
        assert convolution.form_of("plain", written_for) == "plain"
        assert convolution.form_of("explicit", written_for) == "explicit"


@pytest.mark.parametrize("stride", [1, 2])
def test_the_kernels_gradient_of_a_1x1_convolution_is_pixels_times_cotangents_in_this_order(stride: int) -> None:
    """The other order costs a transposed copy of what the cotangents are computed from."""
    x, kernel = jnp.zeros((2, 4, 4, 3)), jnp.zeros((1, 1, 3, 5))

    def gradient(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y, back = jax.vjp(lambda kernel: convolution.explicit(x, kernel, (stride, stride), ((0, 0), (0, 0))), kernel)
        return back(jnp.ones_like(y))[0]

    *_, of_kernel = (each for each in jax.make_jaxpr(gradient)(x, kernel).eqns if each.primitive.name == "dot_general")
    side = 4 // stride
    assert [operand.aval.shape for operand in of_kernel.invars] == [(2, side, side, 3), (2, side, side, 5)]
