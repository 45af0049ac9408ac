"""What a result says of its circumstances."""

import dataclasses
from typing import Any

import pytest
from made_up_runs import INFO

from resnet_jax.configured import configured
from resnet_jax.models import cifar_architecture
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm, NoNorm
from resnet_jax.studies import result
from resnet_jax.training.experiment import Data, Evaluation, Experiment, Optimizer, Start


def protocol(norm: Any = BatchNorm, **fields: Any) -> dict[str, Any]:
    experiment = Experiment(name="resnet20", model=cifar_architecture(20, norm=norm), data=Data(name="cifar10"))
    return result.protocol(dataclasses.replace(experiment, **fields), INFO)


@pytest.mark.parametrize(
    ("norm", "said"),
    [
        (BatchNorm, ("BatchNorm", 128, "moving average")),
        (configured(BatchNorm), ("BatchNorm", 128, "moving average")),
        (configured(BatchNorm, group_size=64), ("BatchNorm", 64, "moving average")),
        (configured(BatchNorm, group_size=0, momentum=0.99), ("BatchNorm", 128, "moving average")),
        (configured(GroupNorm, num_groups=8), ("GroupNorm", None, None)),
        (FrozenBatchNorm, ("FrozenBatchNorm", None, None)),
        (NoNorm, ("NoNorm", None, None)),
    ],
    ids=str,
)
def test_the_images_that_batch_norm_saw_are_said(norm: Any, said: tuple[Any, ...]) -> None:
    """papers.md A12, trap 4: 32 or 64 images a replica, not the global batch; moving average or true average."""
    found = protocol(norm)
    assert (found["normalisation"], found["batch_norm_group"], found["batch_norm_statistics"]) == said


def test_averages_over_batches_and_steps_are_said() -> None:
    found = protocol(
        configured(BatchNorm, group_size=32),
        batch_size=256,
        evaluation=Evaluation(statistics_batches=50),
        optimizer=Optimizer(ema=0.999),
    )
    assert found["batch_norm_group"] == 32
    assert found["batch_norm_statistics"] == "true average"
    assert found["parameters"] == "moving average, decay 0.999"
    assert protocol()["parameters"] == "last step"


def test_weights_that_a_run_began_with_are_said_and_nothing_where_there_were_none() -> None:
    assert protocol(start=Start(file="weights.safetensors", digest="ab"))["initial_weights"] == "ab"
    assert "initial_weights" not in protocol()


def test_the_other_traps_are_named_fields() -> None:
    """papers.md A12: training images, padding, preprocessing, view, size of the test set, selection."""
    found = protocol(data=Data(name="cifar10", validation_examples=5000, pad=0, flip=True, normalization="channel"))
    assert (
        found
        | {
            "dataset": "cifar10",
            "dataset_version": "3.0.2",
            "training_images": 45_000,
            "validation_images": 5000,
            "test_images": 10_000,
            "padding": "explicit symmetric",
            "epochs": 182.04,  # 64,000 x 128 / 45,000; the paper's 64k iterations are "182 epochs of 45k" (papers.md A1)
            "preprocessing": "channel",
            "augmentation": "random flip",
            "view": "single 32x32",
            "selection": "last step",
        }
        == found
    )
