"""The kernel's gradient by matrix products against sums in NumPy, for every stride, dilation and padding, in one block and in several."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_convolution import random

from resnet_jax.models import convolution, filter_gradient

SQUARE = ((1, 1), (1, 1))


def by_sums(x: np.ndarray, dy: np.ndarray, taps: Any, strides: Any, padding: Any, dilation: Any) -> np.ndarray:
    """``dW[a, b, i, o] = sum x[n, s h + d a - p, s w + d b - p, i] dy[n, h, w, o]``, in float64."""
    x = np.pad(np.float64(x), ((0, 0), *padding, (0, 0)))
    found = np.zeros((*taps, x.shape[3], dy.shape[3]))
    rows, columns = (np.arange(size) * stride for size, stride in zip(dy.shape[1:3], strides, strict=True))
    for a in range(taps[0]):
        for b in range(taps[1]):
            seen = x[:, rows + a * dilation[0]][:, :, columns + b * dilation[1]]
            found[a, b] = np.einsum("nhwi,nhwo->io", seen, dy)
    return found


@pytest.mark.quick(8)
@pytest.mark.parametrize("block", [1, 3000, 4_000_000])
@pytest.mark.parametrize(
    ("taps", "strides", "padding", "dilation"),
    [
        ((3, 3), (1, 1), SQUARE, (1, 1)),
        ((3, 3), (2, 2), SQUARE, (1, 1)),
        ((7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1)),
        ((3, 3), (1, 1), ((2, 2), (2, 2)), (2, 2)),
        ((3, 3), (2, 2), ((2, 2), (2, 2)), (2, 2)),  # no tap meets the odd rows
        ((5, 1), (3, 2), ((2, 1), (0, 0)), (1, 1)),
        ((2, 4), (1, 1), ((0, 1), (2, 1)), (1, 3)),
        ((3, 3), (3, 1), ((7, 8), (1, 1)), (2, 1)),  # cotangents of padding alone
    ],
)
def test_it_is_the_sum_over_images_and_pixels(taps: Any, strides: Any, padding: Any, dilation: Any, block: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(filter_gradient, "BLOCK_BYTES", block)
    x, sides = random(6, 13, 14, 3), []
    for axis in (0, 1):
        reach = (taps[axis] - 1) * dilation[axis]
        sides.append((x.shape[1 + axis] + sum(padding[axis]) - reach - 1) // strides[axis] + 1)
    dy = random(6, *sides, 4, seed=1)
    found = filter_gradient.of(jnp.asarray(x), jnp.asarray(dy), taps=taps, strides=strides, padding=padding, dilation=dilation)
    np.testing.assert_allclose(found, by_sums(x, dy, taps, strides, padding, dilation), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("top", "taps"), [(1, 3), (1, 1), (1, 2), (3, 5)])
def test_taps_that_meet_no_row_have_no_gradient(top: int, taps: int) -> None:
    """Of images of one row with stride 2 every second tap; with a single tap and a row above, all."""
    strides, padding = (2, 1), ((top, top), (1, 1))
    x, dy = random(4, 1, 9, 3), random(4, (1 + 2 * top - taps) // 2 + 1, 9, 5, seed=1)
    found = filter_gradient.of(jnp.asarray(x), jnp.asarray(dy), taps=(taps, 3), strides=strides, padding=padding, dilation=(1, 1))
    expected = by_sums(x, dy, (taps, 3), strides, padding, (1, 1))
    assert not expected.any(axis=(1, 2, 3)).all()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_blocks_divide_the_images_and_are_as_large_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image of 4x4 pixels, 3 taps of 8 channels each way, in float32: 16 * 48 * 4 = 3,072 bytes."""
    x = dy = jax.ShapeDtypeStruct((12, 4, 4, 8), jnp.float32)
    found = []
    for most in (1, 3072 * 5, 3072 * 7, 3072 * 12):
        monkeypatch.setattr(filter_gradient, "BLOCK_BYTES", most)
        found.append((filter_gradient._images_at_once(x, dy, (3, 3)), filter_gradient.large(x, dy, (3, 3))))
    assert found == [(1, True), (4, True), (6, True), (12, False)]


def test_large_images_of_8_to_63_channels_are_worth_it() -> None:
    """Neither three colours at the sizes of ResNet-20's and ResNet-50's stems, nor ResNet-50's first stage; nor small images."""
    wanted = {(128, 32, 3): False, (16, 224, 3): False, (128, 32, 8): True, (128, 32, 16): True, (128, 16, 63): True, (16, 56, 64): False}
    for (images, side, channels), worth in (wanted | {(16, 4, 16): False}).items():
        x = jax.ShapeDtypeStruct((images, side, side, channels), jnp.float32)
        assert filter_gradient.worthwhile(x, x, (3, 3)) == worth


@pytest.mark.parametrize("groups", [1, 2])
def test_the_written_convolution_takes_it_where_it_is_worth_it(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its gradients are those that JAX derives; groups keep the other form."""
    monkeypatch.setattr(filter_gradient, "BLOCK_BYTES", 3000)
    taken: list[int] = []
    kept = filter_gradient.of
    monkeypatch.setattr(filter_gradient, "of", lambda *args, **words: taken.append(1) or kept(*args, **words))
    x, kernel = jnp.asarray(random(4, 9, 8, 8)), jnp.asarray(random(3, 3, 8 // groups, 6, seed=1))

    def slopes(form: Any) -> Any:
        def loss(x: Any, kernel: Any) -> Any:
            options: Any = {"dimension_numbers": ("NHWC", "HWIO", "NHWC"), "feature_group_count": groups}
            return jnp.sum(jnp.sin(form(x, kernel, (2, 2), SQUARE, **options)))

        return jax.jit(jax.grad(loss, (0, 1)))(x, kernel)

    found, expected = slopes(convolution.explicit), slopes(convolution.plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
    assert len(taken) == (groups == 1)
