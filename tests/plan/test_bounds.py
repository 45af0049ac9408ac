"""Bounds by published rates, computed again by hand."""

import pytest

from resnet_jax.plan import bounds, targets
from resnet_jax.plan.bounds import Work


def test_the_slowest_of_three_sets_the_bound() -> None:
    """v5e: 8.19 GB take 10 ms at 819 GB/s, 0.985 TFLOP 5 ms at 197 TFLOPS, 0.2 GB 1 ms at 200 GB/s: 32 images in 10 ms on each of 16."""
    bound = bounds.of(Work(32, 8_190_000_000, 0.985e12, "bfloat16", 0.2e9), targets.parse("tpu:v5e:4x4"))
    assert (bound.memory_seconds, bound.matrix_seconds, bound.link_seconds) == pytest.approx((0.01, 0.005, 0.001))
    assert bound.images_per_second == pytest.approx(16 * 32 / 0.01)
    assert bound.limited_by == "memory"
    assert bound.shares == pytest.approx({"memory": 1.0, "matrix": 0.5, "link": 0.1})
    # One chip alone takes 10 ms as well; 11 ms where the exchange waits for the rest.
    assert bound.efficiency_hidden == pytest.approx(1.0)
    assert bound.efficiency_exposed == pytest.approx(10 / 11)


def test_a_slow_link_sets_the_bound() -> None:
    """20 ms of exchanges over 10 ms of the rest: half the speed where they overlap, a third where not."""
    bound = bounds.of(Work(32, 8_190_000_000, 0.0, "bfloat16", 4e9), targets.parse("tpu:v5e:4x4"))
    assert bound.limited_by == "link"
    assert (bound.efficiency_hidden, bound.efficiency_exposed) == pytest.approx((1 / 2, 1 / 3))


def test_float32_of_a_gpu_is_tf32() -> None:
    """A100: 156 TFLOPS."""
    bound = bounds.of(Work(1, 0, 156e12, "float32", 0.0), targets.parse("gpu:a100"))
    assert (bound.limited_by, bound.images_per_second) == ("matrix", pytest.approx(1.0))
