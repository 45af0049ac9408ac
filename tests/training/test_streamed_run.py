"""Runs on streamed images."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from resnet_jax.data import augment_device, datasets
from resnet_jax.data.augment_device import Mix
from resnet_jax.data.augment_host import CenterCrop, RandomResizedCrop, ShorterSideCrop, TrivialAugment
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.models import Architecture, stems
from resnet_jax.models.components import component
from resnet_jax.models.norms import BatchNorm
from resnet_jax.training import fine_tune
from resnet_jax.training import train as train_lib
from resnet_jax.training.config import Checkpointing, Data, Evaluation, Experiment, Loading, Schedule
from resnet_jax.training.train import train

from conftest import Told

SMALL = Experiment(
    name="photographs",
    model=Architecture(
        stages=(1, 1),
        features=(4, 8),
        stem=stems.ImageNetStem,
        norm=component(BatchNorm, group_size=8),
        input_shape=(32, 32, 3),
        num_classes=1000,
    ),
    data=Data(name="imagenet2012", test_split="validation", normalization="imagenet", pad=0, crop=RandomResizedCrop, policy=TrivialAugment),
    schedule=Schedule(learning_rate=0.01, decay_steps=()),
    steps=6,
    batch_size=16,
    evaluation=Evaluation(every=6, batch_size=40, protocol="40/32"),
    checkpointing=Checkpointing(every=3),
    loading=Loading(threads=2, memory_mb=256),
)


def trained(experiment: Experiment, folder: Path, **options: Any) -> dict[str, Any]:
    return train(experiment, 3, folder, devices=1, **options)


@pytest.fixture(scope="module")
def straight(photographs: DatasetInfo, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("streamed") / "run"
    return trained(SMALL, folder), folder


@pytest.mark.slow
def test_every_validation_image_is_scored_once(straight: tuple[dict, Path], photographs: DatasetInfo) -> None:
    result, folder = straight
    assert result["examples"] == photographs.examples["validation"]
    errors = result["value"] * result["examples"] / 100
    assert errors == pytest.approx(round(errors))
    assert result["protocol"]["view"] == "single 32x32 of 40"
    view = fine_tune.weights_of(folder).card.view
    assert (view.resize, view.crop, view.interpolation) == (40, 32, "bilinear")


@pytest.mark.slow
def test_stopped_run_ends_in_the_same_bits_for_any_loading(
    straight: tuple[dict, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after step 4 of 6: the next session begins at the checkpoint of step 3, and reads from there."""
    original, reads = train_lib.Feed.next, [0]

    def stops(self: train_lib.Feed) -> Any:
        reads[0] += 1
        if reads[0] == 5:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(train_lib.Feed, "next", stops)
    for loading in (Loading(threads=1, memory_mb=256), Loading(workers=2, memory_mb=512)):
        experiment, folder, reads[0] = replace(SMALL, loading=loading), tmp_path / f"{loading.workers}", 0
        with pytest.raises(KeyboardInterrupt):
            trained(experiment, folder)
        assert trained(experiment, folder)["state_digest"] == straight[0]["state_digest"]
        assert reads == [5 + 3]


@pytest.mark.slow
def test_damaged_images_that_are_replaced_are_counted_in_the_metrics(
    photographs: DatasetInfo, tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = datasets.decode
    whole = {datasets.encoded(photographs, "train")[index][0] for index in range(0, 440, 4)}

    def decode(encoded: bytes, channels: int = 3):
        if encoded in whole:
            raise ValueError("synthetic")
        return original(encoded, channels)

    monkeypatch.setattr(datasets, "decode", decode)
    with pytest.raises(UserError, match="is damaged"):
        trained(SMALL, tmp_path / "stops")
    experiment = replace(SMALL, data=replace(SMALL.data, damaged="replace", normalization="channel"))
    trained(experiment, tmp_path / "replaces", callbacks=[told])
    last = [record for record in told.records if record["split"] == "train"][-1]
    # A quarter of 96 images, give or take four standard deviations.
    assert 8 <= last["damaged_images_replaced"] <= 40


def test_constants_of_a_streamed_set_are_measured_on_its_training_images(photographs: DatasetInfo) -> None:
    """Against the mean and the deviation of all pixels of the same crops, in one array."""

    def measured(normalization: Any) -> augment_device.Preprocessing:
        held_out = photographs.examples["train"] - 40
        data = replace(SMALL.data, normalization=normalization, validation_examples=held_out)
        return train_lib.measure_constants(replace(SMALL, data=data), photographs)

    constants, crop = measured("channel"), CenterCrop(shorter_side=37)
    source = datasets.encoded(photographs, "train")
    images = np.stack([crop(datasets.decode(source[i][0]), (32, 32), np.random.default_rng(0)) for i in range(40)]) / 255.0
    np.testing.assert_allclose(constants.mean, images.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(constants.deviation, images.std(axis=(0, 1, 2)), rtol=1e-5)
    mean_image = measured("pixel_mean")
    np.testing.assert_allclose(mean_image.mean, images.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(mean_image.deviation, np.ones(3))
    np.testing.assert_allclose(measured("imagenet").mean, augment_device.IMAGENET_MEAN)


def test_invalid_input_is_rejected_before_anything_is_written(photographs: DatasetInfo, tmp_path: Path) -> None:
    """Contradictory fields, and a truncated shard."""
    for changes, message in (
        ({"data": {"mix": component(Mix, group=5)}}, "a batch of 16 images does not consist of groups of 5"),
        ({"data": {"crop": component(ShorterSideCrop, shorter_side=(8, 8))}}, "smaller than the 32x32 of the model"),
        ({"loading": {"memory_mb": 16}}, "loading.memory_mb is 16"),
    ):
        experiment = replace(SMALL, **{name: replace(getattr(SMALL, name), **fields) for name, fields in changes.items()})
        with pytest.raises(UserError, match=message):
            trained(experiment, tmp_path / "run")
    folder = tmp_path / "sets" / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    for file in photographs.directory.iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[: -100 if "validation.array_record-00001" in file.name else None])
    with pytest.raises(UserError, match=r"validation\.array_record-00001-of-00002, of split 'validation', is damaged"):
        trained(SMALL, tmp_path / "run", data_dir=str(tmp_path / "sets"))
    assert not (tmp_path / "run").exists()
