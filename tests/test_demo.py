"""The claim of the demo, with one seed: 56 plain layers do not train, 56 residual layers do."""

from pathlib import Path

import pytest
from resnet_jax.models import components
from resnet_jax.training.train import train

from conftest import ROOT, Told


@pytest.mark.slow
def test_demo_degrades_plain_but_not_residual_networks(digits_dir: str, tmp_path: Path, told: Told) -> None:
    results = {}
    for network in ("plain56", "resnet56"):
        experiment = components.load(f"{ROOT}/experiments/degradation.py:{network}")()
        results[network] = train(experiment, 0, tmp_path / network, callbacks=[told], data_dir=digits_dir, devices=1)
        assert results[network]["training_error_of"] == "all training images, last step"
    assert results["plain56"]["training_error_percent"] > 25
    assert results["resnet56"]["training_error_percent"] < 2
    assert results["resnet56"]["value"] < 3
