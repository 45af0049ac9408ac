"""Discovery of prepared sets by their files; reading whole sets or single examples."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from resnet_jax.data import datasets
from resnet_jax.errors import UserError

# Widely published: the mean of each channel over CIFAR-10's 50,000 training images, scale 0 to 1.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)


@pytest.fixture(autouse=True)
def _nothing_elsewhere(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Hides data directories of the machine, except from tests of the real CIFAR-10."""
    if "cifar10" not in request.fixturenames:
        monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
        monkeypatch.setattr(datasets, "HOME_DATA_DIR", tmp_path / "home")


@pytest.fixture
def copy(digits_dir: str, tmp_path: Path) -> Path:
    """A data directory of its own, to be damaged."""
    shutil.copytree(digits_dir, tmp_path / "copy")
    return tmp_path / "copy"


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def fake(directory: Path, name: str, version: str) -> Path:
    """A folder with the metadata file alone."""
    folder = directory / name / version
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_data_dirs_are_the_argument_then_the_environment_then_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert datasets.data_dirs() == [tmp_path / "home"]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "environment"))
    assert datasets.data_dirs(str(tmp_path / "argument")) == [tmp_path / "argument", tmp_path / "environment", tmp_path / "home"]
    assert datasets.data_dirs("~/x")[0] == Path.home() / "x"


def test_first_directory_that_holds_a_set_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "environment"))
    fake(tmp_path / "environment", "a", "2.0.0")
    fake(tmp_path / "environment", "b", "1.0.0")
    first = fake(tmp_path / "argument", "a", "1.0.0")
    folders = datasets.prepared(str(tmp_path / "argument"))
    assert folders == {"a": first, "b": tmp_path / "environment" / "b" / "1.0.0"}
    assert datasets.prepared() == {name: tmp_path / "environment" / name / version for name, version in (("a", "2.0.0"), ("b", "1.0.0"))}


def test_newest_version_wins_by_number(tmp_path: Path) -> None:
    for name, older, newer in (("a", "1.0.0", "2.0.0"), ("b", "3.0.2", "3.0.10"), ("c", "9.0.0", "10.0.0")):
        fake(tmp_path, name, older)
        newest = fake(tmp_path, name, newer)
        # Left by an interrupted preparation.
        fake(tmp_path, name, "incomplete.6J53Q8_99.0.0")
        assert datasets.prepared(str(tmp_path))[name] == newest


def test_missing_set_error_states_directories_and_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "environment"))
    with pytest.raises(UserError) as error:
        datasets.describe("cifar10", str(tmp_path / "argument"))
    for part in (tmp_path / "argument", tmp_path / "environment", tmp_path / "home", "resnet-jax prepare cifar10"):
        assert str(part) in str(error.value)


def test_digits_describe_themselves(digits_dir: str) -> None:
    """1,437 + 360 = 1,797 images of 8x8 gray pixels in 10 classes."""
    info = datasets.describe("digits", digits_dir)
    assert (info.name, info.version, info.directory) == ("digits", "1.0.0", Path(digits_dir) / "digits" / "1.0.0")
    assert info.examples == {"train": 1437, "test": 360}
    assert info.image_shape == (8, 8, 1)
    assert info.num_classes == 10


def test_corrupt_metadata_is_an_error_with_the_remedy(copy: Path) -> None:
    """Truncated, empty, of another kind, deleted."""
    for file in ("dataset_info.json", "features.json"):
        path = copy / "digits" / "1.0.0" / file
        whole = path.read_text()
        for content in ('{"name": "dig', "", "[]", None):
            path.unlink() if content is None else path.write_text(content)
            with pytest.raises(UserError, match="resnet-jax prepare digits") as error:
                datasets.describe("digits", str(copy))
            assert str(copy) in str(error.value)
        path.write_text(whole)


def test_sets_in_another_format_or_without_labels_are_rejected(copy: Path) -> None:
    folder = copy / "digits" / "1.0.0"
    edit(folder / "dataset_info.json", fileFormat="tfrecord")
    with pytest.raises(UserError, match=r"tfrecord.*array_record.*resnet-jax prepare digits --data-dir"):
        datasets.describe("digits", str(copy))
    edit(folder / "dataset_info.json", fileFormat="array_record")
    features = json.loads((folder / "features.json").read_text())
    of_set = features["featuresDict"]["features"]
    of_set["image"]["image"]["shape"]["dimensions"] = ["-1", "-1", "3"]
    (folder / "features.json").write_text(json.dumps(features))
    info = datasets.describe("digits", str(copy))
    assert info.image_shape == (None, None, 3)
    with pytest.raises(UserError, match="differ in size"):
        datasets.read(info, "train")
    of_set["mask"] = of_set.pop("label")
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"\['image', 'mask'\].*'label'"):
        datasets.describe("digits", str(copy))


def test_example_equals_read(digits_dir: str) -> None:
    """Any index at any time; the same images and labels as all at once."""
    info = datasets.describe("digits", digits_dir)
    source, whole = datasets.encoded(info, "test"), datasets.read(info, "test")
    for index in (359, 0, 17, 17):
        record = datasets.example(source, info, "test", index)
        np.testing.assert_array_equal(record["image"], whole.images[index])
        assert record["label"] == whole.labels[index]
        assert type(record["label"]) is int
    for read in (datasets.encoded, datasets.read):
        with pytest.raises(UserError, match=r"no split 'validation'; it has \['test', 'train'\]"):
            read(info, "validation")
    with pytest.raises(IndexError):
        datasets.example(source, info, "test", 360)


def test_example_rejects_images_of_another_size(digits_dir: str) -> None:
    """Also where NumPy would have stretched it to fit."""
    info = datasets.describe("digits", digits_dir)
    for size in ((1, 8), (8, 9)):
        png = io.BytesIO()
        Image.new("L", size).save(png, format="PNG")
        with pytest.raises(UserError, match=r"example 0 of split 'test' is damaged \(its image is .*, not \(8, 8, 1\)\)"):
            datasets.example([(png.getvalue(), 3)], info, "test", 0)


def test_read_returns_cached_read_only_arrays(digits_dir: str) -> None:
    info = datasets.describe("digits", digits_dir)
    examples = datasets.read(info, "test")
    assert (examples.images.shape, examples.images.dtype) == ((360, 8, 8, 1), np.uint8)
    assert (examples.labels.shape, examples.labels.dtype) == ((360,), np.int32)
    assert len(examples) == 360
    assert datasets.read(datasets.describe("digits", digits_dir), "test") is examples
    with pytest.raises(ValueError, match="read-only"):
        examples.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        examples.labels[0] = 0


def test_read_names_the_corrupt_example(copy: Path) -> None:
    """The first example that cannot be read: of a truncated file the first of all, since ArrayRecord's index is at its end."""
    (file,) = (copy / "digits" / "1.0.0").glob("*train*array_record*")
    whole = file.read_bytes()
    flipped = whole[:1000] + bytes([whole[1000] ^ 4]) + whole[1001:]
    for content in (flipped, whole[: len(whole) * 9 // 10], whole[: len(whole) // 10], None):
        file.unlink() if content is None else file.write_bytes(content)
        datasets.read.cache_clear()
        info = datasets.describe("digits", str(copy))
        with pytest.raises(UserError, match=f"{info.directory}.* of split 'train' is damaged") as error:
            datasets.read(info, "train")
        index = int(str(error.value).split("example ")[1].split()[0])
        assert 0 < index < 100 if content is flipped else index == 0
        assert len(datasets.read(info, "test")) == 360
        file.write_bytes(whole)


@pytest.mark.slow
def test_cifar10_is_whole_balanced_and_red_first(cifar10: datasets.DatasetInfo) -> None:
    assert (cifar10.image_shape, cifar10.num_classes) == ((32, 32, 3), 10)
    for split, count in (("train", 50_000), ("test", 10_000)):
        examples = datasets.read(cifar10, split)
        assert cifar10.examples[split] == len(examples) == count
        assert examples.images.shape == (count, 32, 32, 3)
        assert np.bincount(examples.labels).tolist() == [count // 10] * 10
    mean = datasets.read(cifar10, "train").images.mean(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(mean, CIFAR10_MEAN, rtol=0, atol=1e-4)
