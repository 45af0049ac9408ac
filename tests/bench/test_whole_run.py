"""A recipe's seconds, whole and in parts."""

import numpy as np
import pytest

from resnet_jax import models
from resnet_jax.bench import whole_run


@pytest.mark.slow
def test_fewer_steps_are_extrapolated_and_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_run, "TRAINING", 64)
    monkeypatch.setattr(whole_run, "TEST", 32)
    tiny = models.cifar_architecture(8, input_shape=(8, 8, 3), features=(4, 4, 4))
    said: list[str] = []
    found = whole_run.measure(tiny, steps=3, recipe_steps=30, batch_size=4, scores=2, say=said.append)
    assert (found["steps"], found["extrapolated"]) == (3, True)
    assert found["step_seconds_least"] * 30 <= found["training_seconds"] <= found["step_seconds_most"] * 30
    assert found["seconds"] > found["training_seconds"] + 2 * found["evaluation_seconds"]
    np.testing.assert_allclose(found["images_per_second"] * found["step_seconds"], 4)
    assert said
    whole = whole_run.measure(tiny, steps=2, recipe_steps=2, batch_size=4, scores=0, say=said.append)
    assert not whole["extrapolated"]
