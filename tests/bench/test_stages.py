"""Costs of the input's stages."""

import time

import numpy as np
import pytest

from resnet_jax.bench import stages
from resnet_jax.data.crops import RandomResizedCrop
from resnet_jax.data.policies import TrivialAugment
from resnet_jax.data.sources import DatasetInfo


def test_a_row_gives_the_median_and_the_range_of_the_rounds() -> None:
    """20 images in 4, 2 and 1 CPU-seconds."""
    found = stages.row("decode", 20, [4.0, 1.0, 2.0])
    assert found == {"what": "decode", "images_per_cpu_second": 10.0, "least": 5.0, "most": 20.0}


class Slow:
    """A policy that takes 20 ms of the processor."""

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        until = time.process_time() + 0.02
        while time.process_time() < until:
            pass
        return image


def test_every_stage_is_timed_on_real_photographs(photographs: DatasetInfo) -> None:
    rows = stages.measure(photographs, RandomResizedCrop, Slow, (64, 64), 4, images=8, rounds=2)
    assert [row["what"].split()[0] for row in rows] == ["read", "decode", "crop", "policy", "put", "transfer"]
    assert all(0 < row["least"] <= row["images_per_cpu_second"] <= row["most"] for row in rows)
    # Threads of libraries that wait for work cost something now and then: 20 ms are 50 a second at the most.
    policy = rows[3]
    assert policy["images_per_cpu_second"] <= 50


@pytest.mark.parametrize("policy", [None, TrivialAugment])
def test_what_is_not_asked_for_is_not_timed(photographs: DatasetInfo, policy: type | None) -> None:
    rows = stages.measure(photographs, RandomResizedCrop, policy, (32, 32), 2, images=2, rounds=1)
    assert ("policy" in [row["what"] for row in rows]) is (policy is not None)
