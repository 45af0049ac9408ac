"""The demo's claim, at one seed: 56 plain layers cannot be trained where 56 residual ones can."""

from pathlib import Path

import pytest
from conftest import ROOT, Told

from resnet_jax import references
from resnet_jax.studies import run


@pytest.mark.slow
@pytest.mark.parametrize("network", ["plain56", "resnet56"])
def test_deep_plain_networks_degrade_and_residual_ones_do_not(network: str, digits_dir: str, tmp_path: Path, told: Told) -> None:
    experiment = references.load(f"{ROOT}/experiments/degradation.py:{network}")()
    result = run.run(experiment, 0, tmp_path / "run", progress=told, data_dir=digits_dir, devices=1)
    assert result["training_error_of"] == "all training images, last step"
    if network == "plain56":
        assert result["training_error_percent"] > 25
    else:
        assert result["training_error_percent"] < 2
        assert result["value"] < 3
