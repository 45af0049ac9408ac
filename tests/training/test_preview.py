"""Images of a training step."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from resnet_jax import cli
from resnet_jax.cli import data
from resnet_jax.data import datasets
from resnet_jax.data.augment_device import Mix
from resnet_jax.data.augment_host import RandomResizedCrop
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.data.stream import Rows
from resnet_jax.models import Architecture
from resnet_jax.models.components import component
from resnet_jax.training import step
from resnet_jax.training import train as train_lib
from resnet_jax.training.config import Data, Evaluation, Experiment

PHOTOGRAPHS = Experiment(
    name="photographs",
    model=Architecture(stages=(1,), features=(4,), input_shape=(32, 32, 3), num_classes=1000),
    data=Data(name="imagenet2012", test_split="validation", normalization="imagenet", pad=0, flip=False, crop=RandomResizedCrop),
    batch_size=8,
    evaluation=Evaluation(protocol="40/32"),
)


def test_streamed_images_equal_those_of_the_step(photographs: DatasetInfo) -> None:
    """With the names of their classes; those of mixed images with shares."""
    images, captions = data.images_of_step(PHOTOGRAPHS, photographs, seed=4, step=3, count=5)
    rows = Rows(train_lib.stream(PHOTOGRAPHS, photographs, 4), first_step=3, last_step=4)
    for number in range(5):
        assert np.abs(images[number] * 255 - rows[number].images).max() < 0.01
    assert captions == [photographs.classes[int(rows[number].labels)] for number in range(5)]
    mix = component(Mix, mixup=1.0, cutmix=0.0, group=8)
    mixed = replace(PHOTOGRAPHS, data=replace(PHOTOGRAPHS.data, mix=mix))
    _, captions = data.images_of_step(mixed, photographs, seed=4, step=3, count=8)
    shares = [sum(float(part.split()[0]) for part in caption.split(" + ")) for caption in captions]
    assert shares == pytest.approx([1.0] * 8, abs=0.011)
    assert any(" + " in caption for caption in captions)


def test_resident_images_equal_those_of_the_step(tiny: Experiment, digits_dir: str) -> None:
    """Step 2 without augmentation has the pixels of the examples in the order of training."""
    info = datasets.describe("digits", digits_dir)
    experiment = replace(tiny, data=replace(tiny.data, normalization="channel", pad=0, flip=False))
    images, captions = data.images_of_step(experiment, info, seed=1, step=2, count=4)
    train = datasets.read(info, "train")
    key = jax.random.fold_in(jax.random.key(1), 1)
    chosen = np.asarray(step.batch_indices(key, jnp.int32(2), steps=1, batch_size=experiment.batch_size, examples=1437))[0, :4]
    assert captions == [str(label) for label in train.labels[chosen]]
    assert np.abs(images * 255 - train.images[chosen]).max() < 0.01


def experiment() -> Experiment:
    return PHOTOGRAPHS


def test_command_writes_an_image(photographs: DatasetInfo, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "new" / "seen.png"
    cli.main(["data", "preview", f"{__file__}:experiment", "--to", str(file), "--images", "6"])
    assert "6 images of imagenet2012" in capsys.readouterr().out
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.shape[1] > 500
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 500, "photographs have many colors"
