"""Prepared sets are found by their files alone, and read whole or not at all."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_jax.data import sources
from resnet_jax.errors import UserError

# Widely published: the mean of each channel over CIFAR-10's 50,000 training images, scale 0 to 1.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)


@pytest.fixture(autouse=True)
def _nothing_elsewhere(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Only what a test names is searched, except for the tests of the real CIFAR-10."""
    if "cifar" not in request.node.name:
        monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
        monkeypatch.setattr(sources, "HOME_DATA_DIR", tmp_path / "home")


@pytest.fixture
def copy(digits_dir: str, tmp_path: Path) -> Path:
    """A data directory of its own, to be damaged."""
    shutil.copytree(digits_dir, tmp_path / "copy")
    return tmp_path / "copy"


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def fake(directory: Path, name: str, version: str) -> Path:
    """A folder that looks prepared to whoever looks for one file."""
    folder = directory / name / version
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_data_dirs_are_the_argument_then_the_environment_then_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert sources.data_dirs() == [tmp_path / "home"]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "environment"))
    assert sources.data_dirs(str(tmp_path / "argument")) == [tmp_path / "argument", tmp_path / "environment", tmp_path / "home"]
    assert sources.data_dirs("~/x")[0] == Path.home() / "x"


def test_first_directory_that_holds_a_set_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "environment"))
    fake(tmp_path / "environment", "a", "2.0.0")
    fake(tmp_path / "environment", "b", "1.0.0")
    first = fake(tmp_path / "argument", "a", "1.0.0")
    found = sources.prepared(str(tmp_path / "argument"))
    assert found == {"a": first, "b": tmp_path / "environment" / "b" / "1.0.0"}
    assert sources.prepared() == {name: tmp_path / "environment" / name / version for name, version in (("a", "2.0.0"), ("b", "1.0.0"))}


@pytest.mark.parametrize(("older", "newer"), [("1.0.0", "2.0.0"), ("3.0.2", "3.0.10"), ("9.0.0", "10.0.0")])
def test_newest_version_wins(tmp_path: Path, older: str, newer: str) -> None:
    """By number: 3.0.10 is newer than 3.0.2, though it sorts before it as text."""
    fake(tmp_path, "a", older)
    assert sources.prepared(str(tmp_path)) == {"a": tmp_path / "a" / older}
    newest = fake(tmp_path, "a", newer)
    assert sources.prepared(str(tmp_path)) == {"a": newest}


def test_what_a_killed_preparation_left_behind_is_not_a_prepared_set(tmp_path: Path) -> None:
    """TFDS prepares in NAME/incomplete.RANDOM_VERSION and renames that when all is written."""
    fake(tmp_path, "a", "incomplete.6J53Q8_1.0.0")
    assert sources.prepared(str(tmp_path)) == {}
    whole = fake(tmp_path, "a", "1.0.0")
    assert sources.prepared(str(tmp_path)) == {"a": whole}


def test_missing_set_fails_with_where_and_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "environment"))
    with pytest.raises(UserError) as error:
        sources.describe("cifar10", str(tmp_path / "argument"))
    for said in (tmp_path / "argument", tmp_path / "environment", tmp_path / "home", "resnet-jax prepare cifar10"):
        assert str(said) in str(error.value)


def test_digits_describe_themselves(digits_dir: str) -> None:
    """1,437 + 360 = 1,797 images of 8x8 grey pixels in 10 classes."""
    info = sources.describe("digits", digits_dir)
    assert (info.name, info.version, info.directory) == ("digits", "1.0.0", Path(digits_dir) / "digits" / "1.0.0")
    assert info.examples == {"train": 1437, "test": 360}
    assert info.image_shape == (8, 8, 1)
    assert info.num_classes == 10


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("content", ['{"name": "dig', "", None], ids=["cut off", "empty", "deleted"])
def test_damaged_description_is_an_error_that_says_what_to_do(copy: Path, file: str, content: str | None) -> None:
    path = copy / "digits" / "1.0.0" / file
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match="resnet-jax prepare digits") as error:
        sources.describe("digits", str(copy))
    assert str(copy) in str(error.value)


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_description_of_another_kind_of_json_is_a_user_error(copy: Path, file: str) -> None:
    """Valid JSON that is no description is as damaged as half a file."""
    (copy / "digits" / "1.0.0" / file).write_text("[]")
    with pytest.raises(UserError):
        sources.describe("digits", str(copy))


def test_tfrecord_files_are_refused_by_name(copy: Path) -> None:
    edit(copy / "digits" / "1.0.0" / "dataset_info.json", fileFormat="tfrecord")
    with pytest.raises(UserError, match=r"tfrecord.*array_record.*resnet-jax prepare digits --data-dir"):
        sources.describe("digits", str(copy))


def test_set_without_labels_is_refused_with_what_it_has(copy: Path) -> None:
    path = copy / "digits" / "1.0.0" / "features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["mask"] = features["featuresDict"]["features"].pop("label")
    path.write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"\['image', 'mask'\].*'label'"):
        sources.describe("digits", str(copy))


def test_images_of_different_sizes_have_no_size_and_are_not_read_into_one_array(copy: Path) -> None:
    path = copy / "digits" / "1.0.0" / "features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["image"]["image"]["shape"]["dimensions"] = ["-1", "-1", "3"]
    path.write_text(json.dumps(features))
    info = sources.describe("digits", str(copy))
    assert info.image_shape == (None, None, 3)
    with pytest.raises(UserError, match="differ in size"):
        sources.read(info, "train")


def test_unknown_split_is_an_error_with_the_known_ones(digits_dir: str) -> None:
    with pytest.raises(UserError, match=r"'validation'.*\['test', 'train'\]"):
        sources.read(sources.describe("digits", digits_dir), "validation")


def test_a_split_is_read_image_by_image_too(digits_dir: str) -> None:
    """Any index at any time; the same images and labels as all at once."""
    info = sources.describe("digits", digits_dir)
    source, whole = sources.encoded(info, "test"), sources.read(info, "test")
    for index in (359, 0, 17, 17):
        found = sources.example(source, info, "test", index)
        np.testing.assert_array_equal(found["image"], whole.images[index])
        assert found["label"] == whole.labels[index]
        assert type(found["label"]) is int
    with pytest.raises(UserError, match="has no split 'validation'"):
        sources.encoded(info, "validation")
    with pytest.raises(IndexError):
        sources.example(source, info, "test", 360)


def test_an_image_of_another_size_than_the_set_says_is_damaged(digits_dir: str) -> None:
    """Also where NumPy would have stretched it to fit."""
    info = sources.describe("digits", digits_dir)
    for size in ((1, 8), (8, 9)):
        png = io.BytesIO()
        Image.new("L", size).save(png, format="PNG")
        with pytest.raises(UserError, match=r"example 0 of split 'test' is damaged \(its image is .*, not \(8, 8, 1\)\)"):
            sources.example([(png.getvalue(), 3)], info, "test", 0)


def test_read_returns_arrays_that_nobody_can_change_and_reads_once(digits_dir: str) -> None:
    info = sources.describe("digits", digits_dir)
    found = sources.read(info, "test")
    assert (found.images.shape, found.images.dtype) == ((360, 8, 8, 1), np.uint8)
    assert (found.labels.shape, found.labels.dtype) == ((360,), np.int32)
    assert len(found) == 360
    assert sources.read(sources.describe("digits", digits_dir), "test") is found
    with pytest.raises(ValueError, match="read-only"):
        found.images[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        found.labels[0] = 0


def damage(file: Path, kind: str) -> None:
    content = bytearray(file.read_bytes())
    if kind == "a flipped bit":
        content[1000] ^= 4
        file.write_bytes(content)
    elif kind == "deleted":
        file.unlink()
    else:
        file.write_bytes(content[: int(len(content) * {"truncated by a tenth": 0.9, "truncated to a tenth": 0.1}[kind])])


@pytest.mark.parametrize("kind", ["a flipped bit", "truncated by a tenth", "truncated to a tenth", "deleted"])
def test_damaged_records_are_an_error_that_names_the_example(copy: Path, kind: str) -> None:
    """The first example that cannot be read; of a truncated file that is the first of all, since ArrayRecord keeps its index at the end."""
    (file,) = (copy / "digits" / "1.0.0").glob("*train*array_record*")
    damage(file, kind)
    info = sources.describe("digits", str(copy))
    with pytest.raises(UserError) as error:
        sources.read(info, "train")
    assert str(info.directory) in str(error.value)
    assert "of split 'train' is damaged" in str(error.value)
    index = int(str(error.value).split("example ")[1].split()[0])
    assert 0 < index < 100 if kind == "a flipped bit" else index == 0
    assert len(sources.read(info, "test")) == 360


@pytest.fixture(scope="module")
def cifar10_splits(cifar10: sources.DatasetInfo) -> dict[str, sources.Examples]:
    """Some 10 s."""
    return {split: sources.read(cifar10, split) for split in ("train", "test")}


@pytest.mark.slow
@pytest.mark.parametrize(("split", "count"), [("train", 50_000), ("test", 10_000)])
def test_cifar10_is_whole_and_balanced(
    cifar10: sources.DatasetInfo, cifar10_splits: dict[str, sources.Examples], split: str, count: int
) -> None:
    found = cifar10_splits[split]
    assert cifar10.examples[split] == len(found) == count
    assert found.images.shape == (count, 32, 32, 3)
    assert cifar10.image_shape == (32, 32, 3)
    assert cifar10.num_classes == 10
    assert np.bincount(found.labels).tolist() == [count // 10] * 10


@pytest.mark.slow
def test_cifar10_has_the_published_mean(cifar10_splits: dict[str, sources.Examples]) -> None:
    """And in this order: red first."""
    mean = cifar10_splits["train"].images.mean(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(mean, CIFAR10_MEAN, rtol=0, atol=1e-4)
