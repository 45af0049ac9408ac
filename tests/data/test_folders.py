"""Folders of class folders as data sets."""

import io
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from resnet_jax.data import datasets
from resnet_jax.errors import UserError


def image(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(file, format="JPEG")
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes; each image is as bright as its number."""
    for number, name in enumerate(
        ["train/cat/b.JPEG", "train/cat/a.jpg", "train/ant/x.jpeg", "train/dog/1.jpg", "val/ant/v.jpg", "val/cat/v.jpg", "val/dog/v.jpg"]
    ):
        file = tmp_path / "pets" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image(10 * number))
    (tmp_path / "pets" / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "pets" / ".cache" / "x").mkdir(parents=True)
    return tmp_path / "pets"


def test_describe_scans_a_folder_by_its_path(root: Path) -> None:
    info = datasets.describe(str(root))
    assert (info.name, info.directory) == (str(root), root)
    assert info.examples == {"train": 4, "validation": 3}
    assert (info.num_classes, info.image_shape) == (3, (None, None, 3))
    assert datasets.class_names(info) == ["ant", "cat", "dog"]


def test_images_are_ordered_by_class_and_name(root: Path) -> None:
    info = datasets.describe(str(root))
    source = datasets.encoded(info, "train")
    read = [datasets.example(source, info, "train", index) for index in range(len(source))]
    assert [record["label"] for record in read] == [0, 1, 1, 2]
    assert [round(float(record["image"].mean()), -1) for record in read] == [20, 10, 0, 30]
    assert read[0]["image"].shape == (20, 30, 3)
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_describe_accepts_relative_paths(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    assert datasets.describe("./pets").examples == {"train": 4, "validation": 3}
    assert datasets.is_folder(datasets.describe("./pets").name)


def test_classes_without_splits_are_the_training_split(root: Path) -> None:
    """As torchvision's ImageFolder reads them: a set without a split to score on."""
    info = datasets.describe(str(root / "train"))
    assert (info.examples, info.num_classes) == ({"train": 4}, 3)
    assert datasets.class_names(info) == ["ant", "cat", "dog"]
    assert [datasets.encoded(info, "train")[index][1] for index in range(4)] == [0, 1, 1, 2]
    with pytest.raises(UserError, match="has no split 'test'; it has"):
        datasets.encoded(info, "test")


def test_invalid_folders_are_rejected(root: Path, tmp_path: Path) -> None:
    for name in ("empty", "two/levels/of/folders", "flat/train"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "flat" / "train" / "1.jpg").write_bytes(image(1))
    shutil.copytree(root, tmp_path / "twice")
    shutil.copytree(root / "val", tmp_path / "twice" / "validation")
    shutil.copytree(root, tmp_path / "odd")
    (tmp_path / "odd" / "val" / "eel").mkdir()
    for name, message in (
        ("elsewhere", "elsewhere cannot be read .*No such file"),
        ("empty", "empty has no images in folders SPLIT/CLASS"),
        ("two", "two has no image"),
        ("flat", "flat has no images in folders SPLIT/CLASS"),
        ("twice", "twice has two folders for the split 'validation'"),
        ("odd", "split 'train' of .*odd lacks the class folder 'eel'"),
    ):
        with pytest.raises(UserError, match=message):
            datasets.describe(str(tmp_path / name))
    (tmp_path / "odd" / "train" / "eel").mkdir()
    assert datasets.describe(str(tmp_path / "odd")).num_classes == 4, "a split may lack images of a class"


def test_system_files_are_ignored(root: Path) -> None:
    """Such as macOS leaves beside every image that it copies."""
    (root / "train" / "dog" / "._1.jpg").write_bytes(b"Mac OS X")
    (root / "train" / "dog" / "folder.jpg").mkdir()
    assert datasets.describe(str(root)).examples["train"] == 4


def test_version_depends_on_relative_names_and_sizes(root: Path, tmp_path: Path) -> None:
    """Wherever the folder lies; another size or another name is another version."""
    version = datasets.describe(str(root)).version
    assert re.fullmatch("[0-9a-f]{16}", version)
    versions = {version}
    for number, change in enumerate(
        (lambda file: None, lambda file: file.write_bytes(b"x"), lambda file: file.rename(file.with_name("z.jpg")))
    ):
        copied = tmp_path / f"copy{number}"
        shutil.copytree(root, copied)
        change(copied / "train" / "dog" / "1.jpg")
        versions.add(datasets.describe(str(copied)).version)
    assert len(versions) == 3


def test_corrupt_file_is_named(root: Path) -> None:
    info = datasets.describe(str(root))
    (root / "train" / "cat" / "b.JPEG").write_bytes(image(0)[:100])
    with pytest.raises(UserError, match=r"train/cat/b\.JPEG: example 2 of split 'train' is damaged"):
        datasets.example(datasets.encoded(info, "train"), info, "train", 2)
    datasets.check(info, "train")
    with pytest.raises(UserError, match="has no split 'test'"):
        datasets.encoded(info, "test")
