"""The protocol of a result (papers.md A12: traps of comparisons)."""

import dataclasses
from typing import Any

from resnet_jax.models import cifar_architecture
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm, NoNorm
from resnet_jax.training import run_dir
from resnet_jax.training.config import Data, Evaluation, Experiment, Optimizer, Start

from studies.synthetic_runs import INFO


def protocol(norm: Any = BatchNorm, **fields: Any) -> dict[str, Any]:
    experiment = Experiment(name="resnet20", model=cifar_architecture(20, norm=norm), data=Data(name="cifar10"))
    return run_dir.protocol(dataclasses.replace(experiment, **fields), INFO)


def test_protocol_names_the_images_that_batch_norm_receives() -> None:
    """Trap 4: 32 or 64 images per replica, not the global batch; moving or true average."""
    for norm, expected in (
        (BatchNorm, ("BatchNorm", 128, "moving average")),
        (component(BatchNorm, group_size=64), ("BatchNorm", 64, "moving average")),
        (component(GroupNorm, num_groups=8), ("GroupNorm", None, None)),
        (FrozenBatchNorm, ("FrozenBatchNorm", None, None)),
        (NoNorm, ("NoNorm", None, None)),
    ):
        ours = protocol(norm)
        assert (ours["normalization"], ours["batch_norm_group"], ours["batch_norm_statistics"]) == expected
    ours = protocol(component(BatchNorm, group_size=32), batch_size=256, evaluation=Evaluation(statistics_batches=50))
    assert (ours["batch_norm_group"], ours["batch_norm_statistics"]) == (32, "true average")


def test_protocol_names_the_other_traps() -> None:
    data = Data(name="cifar10", validation_examples=5000, pad=0, flip=True, normalization="channel")
    expected = {
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
        "parameters": "last step",
    }
    assert expected.items() <= protocol(data=data).items()
    changed = protocol(optimizer=Optimizer(ema=0.999), start=Start(file="weights.safetensors", digest="ab"))
    assert (changed["parameters"], changed["initial_weights"]) == ("moving average, decay 0.999", "ab")
