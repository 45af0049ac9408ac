"""Checks of an experiment before anything is compiled or written, shortened runs, and other data sets."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from resnet_jax.data.augment_host import RandomResizedCrop
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.models import cifar_architecture
from resnet_jax.models.components import Factory, component
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm, NoNorm
from resnet_jax.training.config import Data, Evaluation, Experiment, Loss, Optimizer, Schedule

EXPERIMENT = Experiment(name="resnet20", model=cifar_architecture(20), data=Data(name="cifar10"))
INFO = DatasetInfo(
    name="cifar10",
    version="3.0.2",
    directory=Path("/nowhere"),
    examples={"train": 50_000, "test": 10_000},
    image_shape=(32, 32, 3),
    num_classes=10,
)
PHOTOGRAPHS = dataclasses.replace(INFO, name="photographs", image_shape=(None, None, 3))
DIGITS = dataclasses.replace(INFO, name="digits", examples={"train": 1437, "test": 360}, image_shape=(8, 8, 1))


def changed(fields: dict[str, Any], base: Experiment = EXPERIMENT) -> Experiment:
    """``base`` with fields ``part.field`` or ``field`` replaced."""
    nested: dict[str, dict[str, Any]] = {}
    for path, value in fields.items():
        part, _, field = path.rpartition(".")
        nested.setdefault(part, {})[field] = value
    own = nested.pop("", {})
    return dataclasses.replace(base, **own, **{part: dataclasses.replace(getattr(base, part), **given) for part, given in nested.items()})


STREAMED = changed(
    {"data.crop": RandomResizedCrop, "data.pad": 0, "data.normalization": "channel", "evaluation.protocol": "40/32"},
    dataclasses.replace(EXPERIMENT, data=Data(name="photographs")),
)


def test_fields_out_of_range_are_rejected_at_construction() -> None:
    for field, least in {
        **dict.fromkeys(
            ("steps", "batch_size", "evaluation.every", "evaluation.batch_size", "checkpointing.every", "checkpointing.keep"), 1
        ),
        **dict.fromkeys(("checkpointing.best", "checkpointing.keep_every", "data.pad", "data.validation_examples", "optimizer.clip"), 0),
        **dict.fromkeys(("optimizer.accumulation", "data.repeats"), 1),
        "evaluation.statistics_batches": 0,
    }.items():
        changed({field: least})
        for value in (least - 1, least - 2):
            with pytest.raises(UserError, match=rf"^{field} must be at least {least}, got {value}"):
                changed({field: value})
    for field, valid, invalid in (("loss.smoothing", 0.99, 1.0), ("optimizer.ema", 0.999, 1.0)):
        changed({field: valid})
        for value in (invalid, -0.1, float("nan")):
            with pytest.raises(UserError, match=rf"^{field} must be in \[0, 1\), got {value}"):
                changed({field: value})
    with pytest.raises(UserError, match="optimizer.clip must be at least 0, and finite, got inf"):
        changed({"optimizer.clip": float("inf")})


def test_contradictory_losses_optimizers_and_schedules_are_rejected() -> None:
    cases: list[tuple[type, dict[str, Any], str]] = [
        (Loss, {"threshold": 0.2}, r"^loss\.threshold must be in \[0, 1\), with loss\.kind 'binary'"),
        (Loss, {"kind": "binary", "threshold": 1.0}, r"^loss\.threshold must be in"),
        (Optimizer, {"rule": "lamb", "nesterov": True}, r"^optimizer\.nesterov must be False.*'lamb'"),
        (Schedule, {"linear_warmup": True, "warmup_until_error": 0.8}, r"^schedule\.warmup_until_error must be 1"),
        (Schedule, {"decay_steps": (), "cosine_steps": -1}, r"^schedule\.cosine_steps must be 0, or above"),
        (Schedule, {"decay_steps": (), "cosine_steps": 5, "warmup_steps": 5}, "above warmup_steps"),
        (Schedule, {"cosine_steps": 100}, "with empty decay_steps"),
    ]
    for kind, fields, message in cases:
        with pytest.raises(UserError, match=message):
            kind(**fields)
    Loss(kind="binary", threshold=0.0)
    Optimizer(clip=1.0, rule="lamb", rates=(("stages", 0.0),))
    Optimizer(rule="lars", nesterov=True)
    Schedule(decay_steps=(), cosine_steps=6, warmup_steps=5, final_learning_rate=0.1)
    Schedule(linear_warmup=True)


def test_fields_that_do_not_fit_the_data_are_rejected() -> None:
    cases: list[tuple[Experiment, DatasetInfo, dict[str, Any], str]] = [
        (EXPERIMENT, INFO, {"model": cifar_architecture(20, num_classes=100)}, "model.num_classes must be 10, got 100"),
        (EXPERIMENT, INFO, {"model.input_shape": (32, 32, 1)}, r"are \(32, 32, 3\), of the model \(32, 32, 1\): set model.input_shape"),
        # The mean image is measured on the data and restored by model.input_shape.
        (EXPERIMENT, INFO, {"model.input_shape": (64, 64, 3)}, r"are \(32, 32, 3\), of the model \(64, 64, 3\)"),
        (EXPERIMENT, INFO, {"data.test_split": "validation"}, "cifar10 has no split 'validation', but train, test"),
        (EXPERIMENT, dataclasses.replace(INFO, examples={"test": 5}), {}, "no split 'train'"),
        (EXPERIMENT, INFO, {"data.validation_examples": 50_000}, "data.validation_examples must be below 50000"),
        (EXPERIMENT, INFO, {"data.normalization": "weights"}, "data.normalization 'weights' needs initial weights"),
        (EXPERIMENT, INFO, {"data.repeats": 2}, "data.repeats .* need a data.crop"),
        (EXPERIMENT, PHOTOGRAPHS, {}, "or a data.crop such as RandomResizedCrop"),
        # The data order counts images in 31 bits.
        (EXPERIMENT, INFO, {"steps": 2**24}, "at most 2147483647, got 2147483648"),
        (STREAMED, PHOTOGRAPHS, {"evaluation.protocol": ""}, "evaluation.protocol must be one crop, .*got ''"),
        (STREAMED, PHOTOGRAPHS, {"evaluation.protocol": "multi-scale"}, "evaluation.protocol must be one crop, .*got 'multi-scale'"),
        (
            STREAMED,
            PHOTOGRAPHS,
            {"data.normalization": "pixel_mean", "evaluation.protocol": "40/24"},
            r"evaluation.protocol must crop to \(32, 32\)",
        ),
        (STREAMED, PHOTOGRAPHS, {"data.pad": 4}, "data.pad must be 0 .*got 4"),
        (STREAMED, PHOTOGRAPHS, {"model.input_shape": (32, 32, 1)}, "model.input_shape must have 3 channels, got 1"),
    ]
    for base, info, fields, message in cases:
        with pytest.raises(UserError, match=message):
            changed(fields, base).check(info)
    for devices in (1, 2, 4):
        EXPERIMENT.check(INFO, devices)
    STREAMED.check(PHOTOGRAPHS)
    changed({"data.validation_examples": 49_999, "data.pad": 0, "data.test_split": "train", "steps": 2**24 - 1}).check(INFO)


def test_batches_that_devices_cannot_share_are_rejected() -> None:
    for value, devices in ((100, 8), (128, 3)):
        with pytest.raises(UserError, match=f"^batch_size must be a multiple of the {devices} devices, got {value}"):
            changed({"batch_size": value}).check(INFO, devices)


GROUPS = component(GroupNorm, num_groups=8)


def in_groups(size: int) -> Factory:
    return component(BatchNorm, group_size=size)


def test_statistics_and_microbatches_fit_the_norm() -> None:
    rejected: list[tuple[Factory, dict[str, Any], str]] = [
        (BatchNorm, {"optimizer.ema": 0.99}, r"^optimizer\.ema with BatchNorm needs evaluation\.statistics_batches"),
        (GROUPS, {"evaluation.statistics_batches": 10}, r"^evaluation\.statistics_batches must be 0 for GroupNorm"),
        (FrozenBatchNorm, {"evaluation.statistics_batches": 10}, "must be 0 for FrozenBatchNorm"),
        (in_groups(48), {}, r"^batch_size must be a multiple of 48, .*got 128"),
        (in_groups(256), {}, "a multiple of 256"),
        (BatchNorm, {"optimizer.accumulation": 3}, "a multiple of 3, optimizer.accumulation times"),
        (BatchNorm, {"optimizer.accumulation": 256}, "a multiple of 256"),
        (in_groups(32), {"optimizer.accumulation": 8}, "a multiple of 256"),
    ]
    for norm, fields, message in rejected:
        with pytest.raises(UserError, match=message):
            changed({"model.norm": norm, **fields}).check(INFO)
    accepted: list[tuple[Factory, dict[str, Any]]] = [
        (GROUPS, {"optimizer.ema": 0.99}),
        (NoNorm, {"optimizer.ema": 0.99}),
        (FrozenBatchNorm, {"optimizer.ema": 0.999}),
        (BatchNorm, {"optimizer.ema": 0.99, "evaluation.statistics_batches": 1}),
        (in_groups(128), {}),
        (in_groups(0), {"optimizer.accumulation": 128}),
        (in_groups(32), {"optimizer.accumulation": 4}),
    ]
    for norm, fields in accepted:
        changed({"model.norm": norm, **fields}).check(INFO)


def test_experiment_is_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXPERIMENT.steps = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert {EXPERIMENT: 1}[dataclasses.replace(EXPERIMENT)] == 1


LONG = dataclasses.replace(EXPERIMENT, schedule=Schedule(warmup_steps=400, warmup_until_error=0.8))


def test_shortened_scales_decays_and_keeps_the_rest() -> None:
    """Decays at a half and three quarters; at most a quarter of warm-up; at least eight evaluations."""
    for steps, decays, warmup, every in (
        (128_000, (64_000, 96_000), 400, 1000),
        (16_000, (8000, 12_000), 400, 1000),
        (640, (320, 480), 160, 80),
        (10, (5, 8), 2, 1),
        (1, (1, 1), 0, 1),
    ):
        schedule = dataclasses.replace(LONG.schedule, decay_steps=decays, warmup_steps=warmup)
        assert LONG.shortened(steps) == dataclasses.replace(LONG, steps=steps, schedule=schedule, evaluation=Evaluation(every=every))
    assert LONG.shortened(64_000) is LONG
    with pytest.raises(UserError, match=r"^steps must be at least 1, got 0"):
        LONG.shortened(0)


def test_shortened_cosine_ends_at_the_same_part_of_the_run() -> None:
    schedule = Schedule(decay_steps=(), cosine_steps=64_000, cosine_from="warmup", warmup_steps=400, linear_warmup=True)
    whole = dataclasses.replace(LONG, schedule=schedule)
    for steps, ends, warmup in ((6400, 6400, 400), (128_000, 128_000, 400), (640, 640, 160), (1, 1, 0)):
        assert whole.shortened(steps).schedule == dataclasses.replace(schedule, cosine_steps=ends, warmup_steps=warmup)
    half = dataclasses.replace(LONG, schedule=dataclasses.replace(schedule, cosine_steps=32_000))
    assert half.shortened(6400).schedule.cosine_steps == 3200


def test_on_takes_images_and_classes_of_the_set() -> None:
    found = LONG.on(DIGITS)
    assert (found.model.input_shape, found.model.num_classes) == ((8, 8, 1), 10)
    assert found.data == dataclasses.replace(LONG.data, name="digits", pad=0, flip=False)
    assert (found.evaluation.batch_size, found.steps, found.schedule) == (360, LONG.steps, LONG.schedule)
    hundred = dataclasses.replace(INFO, name="cifar100", num_classes=100)
    assert LONG.on(hundred) == changed({"model.num_classes": 100, "data.name": "cifar100"}, LONG)
    assert LONG.on(INFO) is LONG
    resident = STREAMED.on(hundred)
    assert (resident.data.crop, resident.evaluation.protocol) == (None, "")
    resident.check(hundred)
    for change in ({"examples": {"train": 5}}, {"image_shape": (None, None, 3)}):
        with pytest.raises(UserError, match="digits must have splits"):
            LONG.on(dataclasses.replace(DIGITS, **change))
