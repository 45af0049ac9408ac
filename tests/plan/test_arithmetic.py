"""FLOPs of programs whose multiply-adds are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from resnet_jax.models import convolution
from resnet_jax.plan import arithmetic

NHWC = ("NHWC", "HWIO", "NHWC")


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def flops(function, *arguments) -> int:
    return arithmetic.flops(jax.make_jaxpr(function)(*arguments))


def test_a_matrix_product() -> None:
    """5 x 7 results of 3 multiply-adds each."""
    assert flops(jnp.dot, shape(5, 3), shape(3, 7)) == 2 * 5 * 7 * 3


def test_a_loop_counts_as_often_as_it_runs() -> None:
    def nine(x):
        return lax.scan(lambda carry, _: (carry @ carry, None), x, length=9)[0]

    assert flops(jax.jit(nine), shape(4, 4)) == 9 * 2 * 4**3
    assert flops(jax.checkpoint(nine), shape(4, 4)) == 9 * 2 * 4**3


def test_of_branches_the_costliest() -> None:
    assert flops(lambda x: lax.cond(x[0, 0] > 0, lambda y: y @ y, lambda y: y, x), shape(4, 4)) == 2 * 4**3


def brute(size: int, taps: int, out: int, stride: int, before: int, holes: int, dilation: int) -> int:
    """Lays the padded, spread input out and looks under every tap."""
    spread = np.zeros((size - 1) * holes + 1, bool)
    spread[::holes] = True
    padded = np.pad(spread, (before, 10_000))
    return sum(padded[at * stride + tap * dilation] for at in range(out) for tap in range(taps))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("holes", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize(("size", "taps", "before"), [(8, 3, 1), (9, 1, 0), (7, 7, 3), (3, 5, 2)])
def test_padding_and_holes_are_not_met(size: int, taps: int, before: int, stride: int, holes: int, dilation: int) -> None:
    given = {"stride": stride, "before": before, "holes": holes, "dilation": dilation}
    assert arithmetic.meetings(size, taps, 6, **given) == brute(size, taps, 6, stride, before, holes, dilation)


@pytest.mark.parametrize("form", [convolution.plain, convolution.explicit])
@pytest.mark.parametrize(("size", "taps", "stride", "groups"), [(8, 3, 1, 1), (9, 3, 2, 1), (8, 1, 2, 1), (8, 3, 2, 4), (16, 7, 2, 1)])
def test_gradients_cost_what_the_convolution_costs(form, size: int, taps: int, stride: int, groups: int) -> None:
    """By both forms: the pairs of output and input that meet are the same ones, three times."""
    pad, channels, features, images = taps // 2, 4, 8, 2
    kernel = shape(taps, taps, channels // groups, features)

    def loss(x, k):
        padding = ((pad, pad), (pad, pad))
        return form(x, k, (stride, stride), padding, dimension_numbers=NHWC, feature_group_count=groups).sum()

    out = (size + 2 * pad - taps) // stride + 1
    once = 2 * images * features * channels // groups * brute(size, taps, out, stride, pad, 1, 1) ** 2
    given = shape(images, size, size, channels), kernel
    assert flops(loss, *given) == once
    assert flops(jax.value_and_grad(loss, argnums=(0, 1)), *given) == 3 * once


def test_parts_on_several_devices_add_up() -> None:
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    part = PartitionSpec("data")
    each = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=part, out_specs=part)
    assert flops(each, shape(8, 3)) == 4 * 2 * 2 * 2 * 3
