"""Preparation of data sets, without TensorFlow where the package has its own builder."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from resnet_jax.data import datasets, prepare
from resnet_jax.data.prepare import Cifar10
from resnet_jax.errors import UserError
from resnet_jax.studies.score import score
from resnet_jax.training.config import Experiment
from resnet_jax.training.train import train

# SHA-256 of images and int32 labels, computed with scikit-learn 1.9.1 alone: train_test_split(np.arange(1797), test_size=0.2,
# random_state=0) on load_digits(), values 0-16 scaled to 0-255, examples sorted by md5(f"{split}{index:04d}") as TFDS does.
SHA256 = {
    "train": (1437, "cca1b68852d5eb6d798eb4517c889b77521745004913b91d67ed847c598e7991"),
    "test": (360, "4510f1127715102683822f067d43c95ecfd3bfb1d9d9a850d4e5855c5e23ae77"),
}


@pytest.fixture(autouse=True)
def _nothing_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr(datasets, "HOME_DATA_DIR", tmp_path / "home")


def test_digits_equal_scikit_learns(digits_dir: str) -> None:
    info = datasets.describe("digits", digits_dir)
    assert (info.version, info.image_shape, info.num_classes) == ("1.0.0", (8, 8, 1), 10)
    counts = np.zeros(10, int)
    for split, (count, digest) in SHA256.items():
        examples = datasets.read(info, split)
        assert len(examples) == info.examples[split] == count
        assert hashlib.sha256(examples.images.tobytes() + examples.labels.tobytes()).hexdigest() == digest
        counts += np.bincount(examples.labels)
    # UCI's own documentation of the set.
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    text = (resources.files("resnet_jax") / "data" / "digits.LICENSE.txt").read_text()
    assert all(words in text for words in ("Handwritten Digits", "Creative Commons Attribution 4.0", "BSD 3-Clause License"))


def test_prepare_writes_to_data_dir_once(digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever other directories hold, and beside an interrupted preparation."""
    monkeypatch.setenv("TFDS_DATA_DIR", digits_dir)
    left = tmp_path / "new" / "digits" / "incomplete.6J53Q8_1.0.0"
    left.mkdir(parents=True)
    (left / "dataset_info.json").write_text("{}")
    written = prepare.prepare("digits", str(tmp_path / "new"))
    assert written.directory == tmp_path / "new" / "digits" / "1.0.0"
    times = {path: path.stat().st_mtime_ns for path in written.directory.rglob("*")}
    assert prepare.prepare("digits", str(tmp_path / "new")) == written
    assert times == {path: path.stat().st_mtime_ns for path in written.directory.rglob("*")}


def test_unavailable_sets_are_rejected_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Cifar10, **__: object) -> None:
        raise ConnectionError("cut off")

    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda *_: None)
    monkeypatch.setattr(Cifar10, "download_and_prepare", fail)
    new = tmp_path / "new"
    for name, message in (
        ("cifar01", "cifar01.*did you mean.*cifar10"),
        ("imagenet", "imagenet.*did you mean.*imagenet2012"),
        (str(tmp_path), "is read in place and needs no preparation"),
        ("imagenette/16px", "imagenette has no configuration '16px'.*160px-v2"),
        ("cifar10:9.9.9", "cifar10:9.9.9 cannot be prepared"),
        ("cifar100", "needs TensorFlow to prepare cifar100"),
        ("cifar10", f"cifar10 could not be prepared in {new}: ConnectionError: cut off"),
    ):
        with pytest.raises(UserError, match=message):
            prepare.prepare(name, str(new))
    assert datasets.prepared(str(new)) == {}


class MadeUp(tfds.core.GeneratorBasedBuilder):
    """8x8 squares in order of their classes; ``second`` has a test split alone, with three of the ten classes."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in ("first", "second")]

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(8, 8, 1), encoding_format="png")
        features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(names=list("abcdefghij"))})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, _: object) -> dict[str, Any]:
        test = self._generate_examples(20, 3)
        return {"test": test} if self.builder_config.name == "second" else {"train": self._generate_examples(80, 10), "test": test}

    def _generate_examples(self, count: int, classes: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(count):
            yield index, {"image": prepare._png(np.full((8, 8), 3 * index, np.uint8)), "label": index * classes // count}


@pytest.mark.slow
def test_configurations_and_versions_are_prepared_trained_and_scored_by_name(tmp_path: Path, short: Experiment) -> None:
    directory = str(tmp_path)
    assert prepare.prepare("made_up/second", directory).examples == {"test": 20}
    with pytest.raises(UserError, match="'made_up' is not prepared in .*, but made_up/second. Run: resnet-jax prepare made_up"):
        datasets.describe("made_up", directory)
    info = prepare.prepare("made_up", directory)
    assert (info.name, info.examples) == ("made_up/first", {"train": 80, "test": 20})
    assert datasets.describe("made_up/first:1.0.0", directory).directory == info.directory
    for name, message in (("made_up/first:2.0.0", "is not prepared"), ("made_up/third", "is not prepared.*prepare made_up/third")):
        with pytest.raises(UserError, match=message):
            datasets.describe(name, directory)
    source = datasets.encoded(replace(info, held_out=20), "train")
    assert np.bincount([source[index][1] for index in range(60, 80)]).tolist() == [2] * 10
    experiment = replace(short, batch_size=24, data=replace(short.data, name="made_up/first", validation_examples=20))
    result = train(experiment, 0, tmp_path / "run", data_dir=directory, devices=1)
    assert (result["examples"], result["protocol"]["training_images"], result["protocol"]["validation_images"]) == (20, 60, 20)
    (scored,) = score(tmp_path / "run", data="made_up/second", split=None, batch_size=500, data_dir=directory)
    assert (scored["examples"], scored["split"], scored["protocol"]["test_images"]) == (20, "test", 20)
    assert (scored["protocol"]["classes"], scored["top5_error_percent"], "steps" in scored["protocol"]) == ("3 of 10", None, False)


def test_cifar10_files_are_read_as_documented(tmp_path: Path) -> None:
    """cs.toronto.edu/~kriz/cifar.html: byte 0 the label; then 1024 red, 1024 green, 1024 blue values, each plane row by row."""
    builder = Cifar10(data_dir=tmp_path, file_format="array_record")
    records = np.random.default_rng(0).integers(0, 256, (5, 3073), dtype=np.uint8)
    records[:, 0] = [3, 0, 9, 1, 7]
    records[:3].tofile(tmp_path / "one.bin")
    records[3:].tofile(tmp_path / "two.bin")
    examples = list(builder._generate_examples("train_", [str(tmp_path / "one.bin"), str(tmp_path / "two.bin")]))
    for index, (record, (key, example)) in enumerate(zip(records, examples, strict=True)):
        image = np.asarray(Image.open(io.BytesIO(example["image"].read())))
        assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
        assert (key, example["label"], example["id"]) == (index, record[0], f"train_{index:05d}")
        for y, x, channel in [(0, 1, 0), (1, 0, 0), (31, 31, 2), (5, 17, 1), (17, 5, 1)]:
            assert image[y, x, channel] == record[1 + 1024 * channel + 32 * y + x]
    # A truncated file is no smaller set.
    np.zeros(3073 + 100, np.uint8).tofile(tmp_path / "cut.bin")
    with pytest.raises(ValueError, match="reshape"):
        list(builder._generate_examples("train_", [str(tmp_path / "cut.bin")]))
