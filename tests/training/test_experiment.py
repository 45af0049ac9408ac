"""What an experiment refuses before anything is compiled or written, and how it is shortened."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from resnet_jax.configured import Factory, configured
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.models import cifar_architecture
from resnet_jax.models.norms import BatchNorm, FrozenBatchNorm, GroupNorm, NoNorm
from resnet_jax.training.experiment import Checkpointing, Data, Evaluation, Experiment, Optimizer, Schedule

INFO = DatasetInfo(
    name="cifar10",
    version="3.0.2",
    directory=Path("/nowhere"),
    examples={"train": 50_000, "test": 10_000},
    image_shape=(32, 32, 3),
    num_classes=10,
)
EXPERIMENT = Experiment(name="resnet20", model=cifar_architecture(20), data=Data(name="cifar10"))


def changed(path: str, value: Any) -> Experiment:
    """``EXPERIMENT`` with one field, ``part.field`` or ``field``, replaced."""
    part, dot, field = path.rpartition(".")
    if not dot:
        return dataclasses.replace(EXPERIMENT, **{field: value})
    return dataclasses.replace(EXPERIMENT, **{part: dataclasses.replace(getattr(EXPERIMENT, part), **{field: value})})


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_papers_experiment_passes(devices: int) -> None:
    EXPERIMENT.check(INFO, devices)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(
    "field", ["steps", "batch_size", "evaluation.every", "evaluation.batch_size", "checkpointing.every", "checkpointing.keep"]
)
def test_numbers_that_must_be_positive_are(field: str, value: int) -> None:
    with pytest.raises(UserError, match=f"^{field} is {value}; .*at least 1"):
        changed(field, value).check(INFO)


@pytest.mark.parametrize("field", ["checkpointing.best", "checkpointing.keep_every"])
def test_checkpoints_that_are_kept_besides_may_be_none(field: str) -> None:
    changed(field, 0).check(INFO)
    with pytest.raises(UserError, match=f"^{field} is -1; .*at least 1, or 0 for none"):
        changed(field, -1).check(INFO)


def test_run_of_more_images_than_31_bits_count_is_refused() -> None:
    """2^31 - 128 pass, 2^31 do not: the data order would begin again, silently."""
    changed("steps", 2**24 - 1).check(INFO)
    with pytest.raises(UserError, match=r"2147483648.*2147483647"):
        changed("steps", 2**24).check(INFO)


def computing_in(dtype: str) -> Experiment:
    # Not by replace: the tests execute annotations, a user's Python does not.
    model = copy.copy(EXPERIMENT.model)
    object.__setattr__(model, "dtype", dtype)
    return changed("model", model)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "flaot32"])
def test_dtype_that_networks_are_not_trained_in_is_refused(dtype: str) -> None:
    """Also one that is no dtype at all."""
    with pytest.raises(UserError, match=f"model.dtype is '{dtype}'.*'float32' or 'bfloat16'"):
        computing_in(dtype).check(INFO)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtypes_that_networks_are_trained_in_pass(dtype: str) -> None:
    computing_in(dtype).check(INFO)


@pytest.mark.parametrize(("field", "value", "devices"), [("batch_size", 100, 8), ("evaluation.batch_size", 500, 8), ("batch_size", 128, 3)])
def test_batches_that_devices_cannot_share_are_refused(field: str, value: int, devices: int) -> None:
    with pytest.raises(UserError, match=f"^{field} is {value}, which {devices} devices .* multiple of {devices}"):
        changed(field, value).check(INFO, devices)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model.num_classes", 100, "cifar10 has 10 classes, the model 100: set model.num_classes"),
        ("model.input_shape", (32, 32, 1), r"\(32, 32, 3\).*\(32, 32, 1\): set model.input_shape"),
        ("data.test_split", "validation", "no split 'validation'; data.test_split can be test or train"),
        ("data.validation_examples", -1, "data.validation_examples is -1; cifar10 has 50000"),
        ("data.validation_examples", 50_000, "data.validation_examples is 50000; cifar10 has 50000"),
        ("data.pad", -1, "data.pad is -1; it must be 0 or more"),
    ],
)
def test_fields_that_do_not_fit_the_data_are_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        changed(field, value).check(INFO)


@pytest.mark.parametrize(("field", "value"), [("data.validation_examples", 49_999), ("data.pad", 0), ("data.test_split", "train")])
def test_extremes_that_fit_pass(field: str, value: Any) -> None:
    changed(field, value).check(INFO)


def test_images_of_another_size_than_the_model_says_are_refused() -> None:
    """The mean image is measured on the data and restored by ``model.input_shape``: a run could not read its own checkpoints."""
    with pytest.raises(UserError, match=r"\(32, 32, 3\).*\(64, 64, 3\): set model.input_shape"):
        changed("model.input_shape", (64, 64, 3)).check(INFO)


def with_norm(norm: Factory, *, ema: float = 0.0, statistics_batches: int = 0, batch_size: int = 128) -> Experiment:
    return dataclasses.replace(
        EXPERIMENT,
        model=dataclasses.replace(EXPERIMENT.model, norm=norm),
        optimizer=Optimizer(ema=ema),
        evaluation=Evaluation(statistics_batches=statistics_batches),
        batch_size=batch_size,
    )


GROUPS = configured(GroupNorm, num_groups=8)


@pytest.mark.parametrize(
    ("norm", "fields", "message"),
    [
        (BatchNorm, {"ema": -0.1}, r"^optimizer\.ema is -0\.1; "),
        (BatchNorm, {"ema": 1.0, "statistics_batches": 1}, r"^optimizer\.ema is 1\.0; give a decay below 1"),
        (GROUPS, {"ema": 1.5}, r"^optimizer\.ema is 1\.5; "),
        (GROUPS, {"ema": float("nan")}, r"^optimizer\.ema is nan; "),
        (BatchNorm, {"ema": 0.99}, r"^optimizer\.ema is 0\.99: .*set evaluation\.statistics_batches"),
        (configured(BatchNorm, group_size=64), {"ema": 0.99}, r"^optimizer\.ema is 0\.99: .*set evaluation\.statistics_batches"),
        (BatchNorm, {"statistics_batches": -1}, r"^evaluation\.statistics_batches is -1 "),
        (GROUPS, {"statistics_batches": 10}, r"^evaluation\.statistics_batches is 10 and model\.norm GroupNorm: give 0"),
        (FrozenBatchNorm, {"statistics_batches": 10}, r"^evaluation\.statistics_batches is 10 and model\.norm FrozenBatchNorm"),
        (NoNorm, {"statistics_batches": 10}, r"^evaluation\.statistics_batches is 10 and model\.norm NoNorm"),
        (configured(BatchNorm, group_size=48), {}, r"^batch_size is 128, which BatchNorm groups of 48 do not divide; use a multiple of 48"),
        (configured(BatchNorm, group_size=256), {}, r"^batch_size is 128, which BatchNorm groups of 256"),
    ],
)
def test_averages_that_cannot_be_had_are_refused(norm: Factory, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        with_norm(norm, **fields).check(INFO)


@pytest.mark.parametrize(
    ("norm", "fields"),
    [
        (GROUPS, {"ema": 0.99}),
        (NoNorm, {"ema": 0.99}),
        (FrozenBatchNorm, {"ema": 0.999}),
        (BatchNorm, {"ema": 0.99, "statistics_batches": 1}),
        (configured(BatchNorm, momentum=0.5), {"statistics_batches": 100}),
        (configured(BatchNorm, group_size=32), {}),
        (configured(BatchNorm, group_size=128), {"ema": 0.5, "statistics_batches": 3}),
    ],
)
def test_averages_that_can_be_had_pass(norm: Factory, fields: dict[str, Any]) -> None:
    """Parameters may be averaged alone where no statistics belong to them."""
    with_norm(norm, **fields).check(INFO)


@pytest.mark.parametrize(
    ("accumulation", "group", "message"),
    [
        (0, 0, r"^optimizer\.accumulation is 0; give a divisor of the batch_size of 128"),
        (3, 0, r"^optimizer\.accumulation is 3; "),
        (8, 32, r"^optimizer\.accumulation is 8: .* BatchNorm groups of 32; give a divisor of 4"),
        (256, 0, r"^optimizer\.accumulation is 256; "),
    ],
)
def test_parts_that_a_batch_does_not_have_are_refused(accumulation: int, group: int, message: str) -> None:
    """A group of BatchNorm stays together."""
    norm = configured(BatchNorm, group_size=group)
    experiment = dataclasses.replace(with_norm(norm), optimizer=Optimizer(accumulation=accumulation))
    with pytest.raises(UserError, match=message):
        experiment.check(INFO)


@pytest.mark.parametrize(("accumulation", "group"), [(1, 0), (4, 0), (128, 0), (4, 32), (2, 32), (1, 128)])
def test_parts_that_a_batch_has_pass(accumulation: int, group: int) -> None:
    dataclasses.replace(with_norm(configured(BatchNorm, group_size=group)), optimizer=Optimizer(accumulation=accumulation)).check(INFO)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("loss.smoothing", 1.5, r"^loss\.smoothing is 1\.5"),
        ("optimizer.clip", -1.0, r"^optimizer\.clip is -1\.0"),
        ("schedule.cosine_steps", 64_000, r"^schedule\.cosine_steps is 64000 and schedule\.decay_steps"),
    ],
)
def test_loss_optimizer_and_schedule_are_checked(field: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        changed(field, value).check(INFO)


def test_set_without_training_images_is_refused() -> None:
    """imagenet_v2 has a test split and nothing else."""
    with pytest.raises(UserError, match="train"):
        EXPERIMENT.check(dataclasses.replace(INFO, examples={"test": 10_000}))


def test_experiment_is_frozen_and_usable_as_a_key() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        EXPERIMENT.steps = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert {EXPERIMENT: 1}[dataclasses.replace(EXPERIMENT)] == 1


LONG = dataclasses.replace(
    EXPERIMENT,
    schedule=Schedule(decay_steps=(32_000, 48_000), warmup_steps=400, warmup_until_error=0.8),
    evaluation=Evaluation(every=1000),
    checkpointing=Checkpointing(every=1000),
)


@pytest.mark.parametrize(("steps", "decays"), [(6400, (3200, 4800)), (128_000, (64_000, 96_000)), (10, (5, 8)), (1, (1, 1))])
def test_shortened_scales_the_decay_steps_with_the_whole(steps: int, decays: tuple[int, ...]) -> None:
    """Half and three quarters of the run, rounded, stay where they are; stretching works as shortening does."""
    found = LONG.shortened(steps)
    assert found.steps == steps
    assert found.schedule.decay_steps == decays


def test_shortened_leaves_everything_else_as_it_is() -> None:
    """400 steps of warm-up are 400 steps, and 200 checkpoints stay 1000 steps apart."""
    found = LONG.shortened(16_000)
    schedule = dataclasses.replace(LONG.schedule, decay_steps=(8000, 12_000))
    assert found == dataclasses.replace(LONG, steps=16_000, schedule=schedule)
    assert found.schedule.warmup_steps == 400


@pytest.mark.parametrize(("steps", "warmup", "every"), [(1600, 400, 200), (640, 160, 80), (160, 40, 20), (7, 1, 1)])
def test_a_short_run_warms_up_for_a_quarter_of_it_at_most_and_is_scored_eight_times(steps: int, warmup: int, every: int) -> None:
    found = LONG.shortened(steps)
    assert (found.schedule.warmup_steps, found.evaluation.every) == (warmup, every)


@pytest.mark.parametrize(("steps", "ends", "warmup"), [(6400, 6400, 400), (128_000, 128_000, 400), (640, 640, 160), (1, 1, 0)])
def test_shortened_ends_a_cosine_where_the_run_ends(steps: int, ends: int, warmup: int) -> None:
    """As all of it did; with its warm-up, and from where it began."""
    schedule = Schedule(decay_steps=(), cosine_steps=64_000, cosine_from="warmup", warmup_steps=400, linear_warmup=True)
    found = dataclasses.replace(LONG, schedule=schedule).shortened(steps)
    assert found.schedule == dataclasses.replace(schedule, cosine_steps=ends, warmup_steps=warmup)
    found.check(INFO)
    half = dataclasses.replace(LONG, schedule=dataclasses.replace(schedule, cosine_steps=32_000)).shortened(6400)
    assert half.schedule.cosine_steps == 3200


DIGITS = DatasetInfo(
    name="digits", version="1.0.0", directory=Path("/nowhere"), examples={"train": 1437, "test": 360}, image_shape=(8, 8, 1), num_classes=10
)


def test_on_another_set_the_model_takes_its_images_and_classes_and_digits_are_not_augmented() -> None:
    found = LONG.on(DIGITS)
    assert (found.model.input_shape, found.model.num_classes) == ((8, 8, 1), 10)
    assert found.data == dataclasses.replace(LONG.data, name="digits", pad=0, flip=False)
    assert found.evaluation.batch_size == 360
    assert (found.steps, found.schedule, found.optimizer) == (LONG.steps, LONG.schedule, LONG.optimizer)
    hundred = dataclasses.replace(
        DIGITS, name="cifar100", image_shape=(32, 32, 3), num_classes=100, examples={"train": 50_000, "test": 10_000}
    )
    assert LONG.on(hundred) == dataclasses.replace(
        LONG, model=dataclasses.replace(LONG.model, num_classes=100), data=dataclasses.replace(LONG.data, name="cifar100")
    )


def test_on_its_own_set_it_is_itself() -> None:
    assert LONG.on(dataclasses.replace(DIGITS, name=LONG.data.name)) is LONG


@pytest.mark.parametrize("change", [{"examples": {"train": 5}}, {"image_shape": (None, None, 3)}])
def test_a_set_that_cannot_stand_in_is_refused(change: dict) -> None:
    with pytest.raises(UserError, match="digits cannot stand in for"):
        LONG.on(dataclasses.replace(DIGITS, **change))


def test_shortened_to_its_own_length_is_the_experiment_itself() -> None:
    assert LONG.shortened(64_000) == LONG


def test_shortened_to_nothing_is_refused_by_check() -> None:
    with pytest.raises(UserError, match=r"^steps is 0"):
        LONG.shortened(0).check(INFO)
