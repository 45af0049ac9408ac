"""Preparation of data sets, without TensorFlow where the package has its own builder."""

import hashlib
import io
import os
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from resnet_jax.data import datasets, prepare
from resnet_jax.data.prepare import Cifar10
from resnet_jax.errors import UserError

ROOT = Path(__file__).parents[2]
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


@pytest.mark.slow
def test_digits_need_no_tensorflow(digits_dir: str, tmp_path: Path) -> None:
    """Describing a set, the first thing that every command does, imports no TFDS."""
    program = """
import sys
from resnet_jax.data import datasets
datasets.describe("digits", sys.argv[1])
print(sorted({"tensorflow", "tensorflow_datasets", "array_record"} & sys.modules.keys()))
from resnet_jax.data import prepare
info = prepare.prepare("digits", sys.argv[2])
print(len(datasets.read(info, "train")), sorted({"tensorflow", "sklearn"} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", program, digits_dir, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("[]", "1437 []")


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
        (str(tmp_path), "is a folder, which is read in place"),
        ("cifar100", "needs TensorFlow to prepare cifar100"),
        ("cifar10", f"cifar10 could not be prepared in {new}: ConnectionError: cut off"),
    ):
        with pytest.raises(UserError, match=message):
            prepare.prepare(name, str(new))
    assert datasets.prepared(str(new)) == {}


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
