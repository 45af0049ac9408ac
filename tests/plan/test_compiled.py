"""The training step compiled for devices of this process; and, where the extras are installed, for machines that are not there."""

import dataclasses

import jax
import pytest
from tiny_experiment import tiny

from resnet_jax.configured import configured
from resnet_jax.data.crops import RandomResizedCrop
from resnet_jax.models import Execution
from resnet_jax.models.norms import BatchNorm
from resnet_jax.plan import compiled
from resnet_jax.plan.compiled import Compiled, Variant, compile_step
from resnet_jax.training.experiment import Evaluation, Experiment

SMALL = dataclasses.replace(tiny(), batch_size=64)


def on_cpu(variant: Variant, experiment: Experiment = SMALL, devices: int = 4, platform: str = "cpu") -> Compiled:
    return compile_step(experiment, variant, jax.devices()[:devices], platform, examples=128)


def reductions(found: Compiled) -> int:
    return found.traffic.by_kind().get("all-reduce", {"count": 0})["count"]


@pytest.mark.slow
def test_groups_of_a_devices_own_images_need_no_exchange_in_normalisation() -> None:
    """What is left combines gradients, averages of the groups' statistics, loss and errors: once each. Over the whole batch every one of
    the seven BatchNorms has its own: the sums for its statistics, then those that are the gradients of its scale and bias. As many bytes.
    """
    groups, everything = on_cpu(Variant(16, group_size=8)), on_cpu(Variant(16, group_size=0))
    # 3x3 convolutions, a scale and a bias of each channel that is normalised, a classifier.
    channels = 4 + 2 * 4 + 2 * 8 + 2 * 8
    parameters = 9 * (1 * 4 + 2 * 4 * 4 + 4 * 8 + 8 * 8 + 2 * 8 * 8) + 2 * channels + (8 * 10 + 10)
    kinds = groups.traffic.by_kind()
    assert kinds.keys() == {"all-reduce"}
    assert kinds["all-reduce"]["bytes"] == 4 * (parameters + 2 * channels + 2)
    assert everything.traffic.by_kind()["all-reduce"]["bytes"] == kinds["all-reduce"]["bytes"]
    assert reductions(everything) > reductions(groups)
    # Sums as JAX derives them are not yet those gradients.
    plain = on_cpu(Variant(16, group_size=0), dataclasses.replace(SMALL, execution=Execution(normalization="plain")))
    assert plain.traffic.by_kind()["all-reduce"]["bytes"] > kinds["all-reduce"]["bytes"]
    assert reductions(plain) > reductions(groups)


@pytest.mark.slow
def test_memory_grows_with_the_batch_and_not_with_the_devices() -> None:
    small, large, wide = on_cpu(Variant(8)), on_cpu(Variant(16)), on_cpu(Variant(8), devices=8)
    assert small.memory is not None
    assert small.needed == small.memory.total < large.needed
    assert wide.needed == pytest.approx(small.needed, rel=0.05)


@pytest.mark.slow
def test_flops_are_of_the_whole_batch() -> None:
    """Forward and both gradients; the first layer has no gradient of its input. Convolutions meet 22 of 24 taps an axis of 8 pixels (10 of
    12 of 4, 4 of 6 of 2); those of stride 2 meet 11 and 5.
    """
    eight, four, two, into_four, into_two = 22**2, 10**2, 4**2, 11**2, 5**2
    first = 1 * 4 * eight
    rest = 2 * 4 * 4 * eight + 4 * 8 * into_four + 8 * 8 * four + 8 * 8 * into_two + 8 * 8 * two + 8 * 10
    assert on_cpu(Variant(16), platform="tpu").flops == 2 * 64 * (2 * first + 3 * rest)
    assert on_cpu(Variant(32), devices=2, platform="tpu").flops == 2 * 64 * (2 * first + 3 * rest)


@pytest.mark.slow
def test_split_parameters_are_gathered() -> None:
    whole, split = on_cpu(Variant(16, group_size=8)), on_cpu(Variant(16, fsdp=4, group_size=8))
    assert "all-gather" in split.traffic.by_kind()
    assert whole.memory is not None
    assert split.memory is not None
    assert split.memory.arguments < whole.memory.arguments


@pytest.mark.slow
def test_streamed_experiments_take_what_arrives() -> None:
    data = dataclasses.replace(SMALL.data, crop=RandomResizedCrop, pad=0, normalization="channel")
    streamed = dataclasses.replace(SMALL, data=data, evaluation=Evaluation(protocol="8/8"))
    found, resident = on_cpu(Variant(16), streamed), on_cpu(Variant(16))
    assert found.memory is not None
    assert resident.memory is not None
    # A quarter of 64 images and labels, and not all 128.
    assert resident.memory.arguments - found.memory.arguments >= (128 - 16) * (64 + 4)


@pytest.mark.parametrize(
    ("platform", "units", "expected"),
    [
        ("tpu", 100, ("loop", "plain", "plain", "plain")),
        ("gpu", 101, ("scan", "plain", "explicit", "explicit")),
        ("cpu", 3, ("scan", "explicit", "explicit", "explicit")),
    ],
)
def test_what_is_left_to_the_machine_is_decided_for_the_other_one(platform: str, units: int, expected: tuple[str, ...]) -> None:
    experiment = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, stages=(units,), features=(4,)))
    decided = Variant(2, group_size=2).of(experiment, 8, platform)
    made = decided.execution
    assert (made.blocks, made.convolution, made.normalization, made.pooling) == expected
    assert (decided.batch_size, decided.evaluation.batch_size) == (16, 16)
    assert decided.model.norm == configured(BatchNorm, group_size=2)
    asked = dataclasses.replace(
        experiment, execution=Execution(blocks="loop", convolution="explicit", normalization="plain", pooling="plain")
    )
    assert Variant(2).of(asked, 8, platform).execution == asked.execution


def test_groups_are_the_experiments_where_a_device_has_whole_ones() -> None:
    grouped = dataclasses.replace(SMALL, model=dataclasses.replace(SMALL.model, norm=configured(BatchNorm, group_size=32)))
    assert [compiled.group_of(grouped, images) for images in (64, 32, 16)] == [32, 32, 16]
    assert compiled.group_of(SMALL, 16) == 16
