"""Prepared sets and folders: discovery by their files, decoding, and corrupt or incomplete data."""

import dataclasses
import io
import json
import re
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image
from resnet_jax.data import datasets
from resnet_jax.data.datasets import DatasetInfo
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
    return Path(shutil.copytree(digits_dir, tmp_path / "copy"))


def test_first_directory_and_newest_version_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    argument, environment = tmp_path / "argument", tmp_path / "environment"
    assert datasets.data_dirs() == [tmp_path / "home"]
    monkeypatch.setenv("TFDS_DATA_DIR", str(environment))
    assert datasets.data_dirs(str(argument)) == [argument, environment, tmp_path / "home"]
    assert datasets.data_dirs("~/x")[0] == Path.home() / "x"
    # The last is left by an interrupted preparation.
    versions = ("a/1.0.0", "a/2.0.0", "b/3.0.2", "b/3.0.10", "b/incomplete.6J53Q8_99.0.0")
    for folder in (argument / "a" / "1.0.0", *(environment / version for version in versions)):
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
    newest = environment / "b" / "3.0.10"
    assert datasets.prepared(str(argument)) == {"a": argument / "a" / "1.0.0", "b": newest}
    assert datasets.prepared() == {"a": environment / "a" / "2.0.0", "b": newest}
    with pytest.raises(UserError) as error:
        datasets.describe("cifar10", str(argument))
    for part in (*datasets.data_dirs(str(argument)), "resnet-jax prepare cifar10"):
        assert str(part) in str(error.value)


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
    info, file = (copy / "digits" / "1.0.0" / name for name in ("dataset_info.json", "features.json"))
    written = info.read_text()
    info.write_text(written.replace('"array_record"', '"tfrecord"'))
    with pytest.raises(UserError, match=r"tfrecord.*array_record.*resnet-jax prepare digits --data-dir"):
        datasets.describe("digits", str(copy))
    info.write_text(written)
    features = json.loads(file.read_text())
    of_set = features["featuresDict"]["features"]
    of_set["image"]["image"]["shape"]["dimensions"] = ["-1", "-1", "3"]
    file.write_text(json.dumps(features))
    described = datasets.describe("digits", str(copy))
    assert described.image_shape == (None, None, 3)
    with pytest.raises(UserError, match="differ in size"):
        datasets.read(described, "train")
    of_set["mask"] = of_set.pop("label")
    file.write_text(json.dumps(features))
    with pytest.raises(UserError, match=r"\['image', 'mask'\].*'label'"):
        datasets.describe("digits", str(copy))


def test_read_returns_read_only_arrays_once(digits_dir: str) -> None:
    info = datasets.describe("digits", digits_dir)
    whole = datasets.read(info, "test")
    assert datasets.read(datasets.describe("digits", digits_dir), "test") is whole
    for array in (whole.images, whole.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_unknown_splits_and_sizes_are_rejected(digits_dir: str) -> None:
    info = datasets.describe("digits", digits_dir)
    for read in (datasets.encoded, datasets.read, datasets.check):
        with pytest.raises(UserError, match=r"no split 'validation'; it has \['test', 'train'\]"):
            read(info, "validation")
    # Also where NumPy would stretch an image to fit.
    for size in ((1, 8), (8, 9)):
        png = encoded(Image.new("L", size), "PNG")
        with pytest.raises(UserError, match=r"example 0 of split 'test' is damaged \(its image is .*, not \(8, 8, 1\)\)"):
            datasets.example([(png, 3)], info, "test", 0)


def test_read_names_the_first_corrupt_example(copy: Path) -> None:
    """Of a truncated file the first of all, since ArrayRecord's index is at its end."""
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
def test_cifar10_is_whole_balanced_and_red_first(cifar10: DatasetInfo) -> None:
    assert (cifar10.image_shape, cifar10.num_classes) == ((32, 32, 3), 10)
    for split, count in (("train", 50_000), ("test", 10_000)):
        examples = datasets.read(cifar10, split)
        assert cifar10.examples[split] == len(examples) == count
        assert np.bincount(examples.labels).tolist() == [count // 10] * 10
    mean = datasets.read(cifar10, "train").images.mean(axis=(0, 1, 2), dtype=np.float64) / 255
    np.testing.assert_allclose(mean, CIFAR10_MEAN, rtol=0, atol=1e-4)


def picture(mode: str = "RGB", size: tuple[int, int] = (23, 17)) -> Image.Image:
    """A smooth picture, which JPEG keeps well."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    channels = [across, down, 255 - across, np.zeros_like(across)][: len(Image.new(mode, (1, 1)).getbands())]
    return Image.fromarray(np.stack(channels, axis=-1).squeeze().astype(np.uint8), mode="CMYK" if mode == "CMYK" else None)


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **({"quality": 98, "subsampling": 0} if format == "JPEG" else {}), **options)
    return file.getvalue()


def test_decode_converts_every_kind_of_image() -> None:
    """By content, not by name; a palette, 16 bits and an EXIF orientation, which is ignored as in ImageNet's published crops."""
    rotated = Image.Exif()
    rotated[0x0112] = 6
    files = [(mode, encoded(picture(mode))) for mode in ("RGB", "L", "CMYK")]
    files += [("RGB", encoded(picture(), format)) for format in ("PNG", "BMP", "WEBP", "TIFF")]
    files += [("RGB", encoded(picture(), exif=rotated)), ("L", encoded(picture("L"), "GIF"))]
    deep = Image.fromarray(np.asarray(picture("L")).astype(np.uint16) * 257)
    files += [("L", encoded(deep, format)) for format in ("PNG", "TIFF")]
    for mode, content in files:
        pixels, exact = datasets.decode(content), np.asarray(picture(mode).convert("RGB")).astype(int)
        assert (pixels.shape, pixels.dtype) == ((17, 23, 3), np.uint8)
        assert np.abs(pixels - exact).max() <= (16 if content[:4] == b"RIFF" or content[:2] == b"\xff\xd8" else 0), mode
        if mode == "L":
            np.testing.assert_allclose(datasets.decode(content, channels=1)[..., 0], exact[..., 0], atol=8)
    for kind in (np.int32, np.float32):
        with pytest.raises(ValueError, match="32 bits"):
            datasets.decode(encoded(Image.fromarray(np.ones((4, 4), kind)), "TIFF"))
    whole = encoded(picture(size=(200, 150)))
    for kept in (0, 1, 30, len(whole) // 2, len(whole) * 9 // 10):
        with pytest.raises(ValueError, match="."):
            datasets.decode(whole[:kept])


def test_decode_agrees_with_pillow(photographs: DatasetInfo) -> None:
    """Libraries round differently: at most 3 of 255 on one value in ten thousand, 0.05 on average."""
    source = datasets.encoded(photographs, "train")
    for index in range(0, 440, 44):
        with Image.open(io.BytesIO(source[index][0])) as image:
            difference = np.abs(datasets.decode(source[index][0]).astype(int) - np.asarray(image.convert("RGB")))
        assert difference.mean() < 0.05, index
        assert (difference > 3).mean() < 1e-4, index


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes; each image is as bright as its number."""
    folder = tmp_path / "pets"
    names = "train/cat/b.JPEG train/cat/more/a.gif train/ant/x.jpeg train/dog/1.tif val/ant/v.jpg val/cat/v.jpg val/dog/v.jpg"
    for number, name in enumerate(names.split()):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (10 * number,) * 3).save(file)
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "dog" / "._1.jpg").write_bytes(b"Mac OS X leaves these beside every image that it copies")
    (folder / ".cache" / "x").mkdir(parents=True)
    return folder


def test_folder_is_described_and_read_by_its_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes in alphabetical order; classes without splits are the training split, as in torchvision's ImageFolder."""
    monkeypatch.chdir(root.parent)
    for path in (str(root), "./pets"):
        info = datasets.describe(path)
        assert (info.examples, info.num_classes, info.image_shape) == ({"train": 4, "validation": 3}, 3, (None, None, 3))
        assert datasets.is_folder(info.name)
        assert datasets.class_names(info) == ["ant", "cat", "dog"]
        source = datasets.encoded(info, "train")
        records = [datasets.example(source, info, "train", index) for index in range(len(source))]
        values = sorted((round(float(record["image"].mean()), -1), record["label"]) for record in records)
        assert values == [(0, 1), (10, 1), (20, 0), (30, 2)]
    shutil.rmtree(root / "train" / "cat" / "more")
    flat = datasets.describe(str(root / "train"))
    assert (flat.examples, datasets.class_names(flat)) == ({"train": 3}, ["ant", "cat", "dog"])


def test_last_images_of_a_folder_are_of_every_class(tmp_path: Path) -> None:
    """They are held out for validation."""
    for name in ("ant", "cat"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(100):
            (tmp_path / "train" / name / f"{number}.png").write_bytes(b"x")
    source = datasets.encoded(datasets.describe(str(tmp_path)), "train")
    assert 10 <= sum(source[index][1] for index in range(160, 200)) <= 30


def test_invalid_folders_are_rejected(root: Path, tmp_path: Path) -> None:
    def changed(name: str) -> Path:
        return Path(shutil.copytree(root, tmp_path / name))

    for name in ("empty", "two/levels/of/folders", "flat/train"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(root / "val" / "cat" / "v.jpg", tmp_path / "flat" / "train")
    shutil.copytree(root / "val", changed("twice") / "validation")
    (changed("odd") / "val" / "eel").mkdir()
    (changed("void") / "train" / "dog" / "1.tif").unlink()
    (changed("text") / "val" / "dog" / "v.jpg").rename(tmp_path / "text" / "val" / "dog" / "v.mp4")
    (changed("zero") / "val" / "dog" / "v.jpg").write_bytes(b"")
    (changed("dangling") / "train" / "dog" / "2.jpg").symlink_to("nowhere.jpg")
    for name, message in (
        ("elsewhere", "elsewhere cannot be read .*No such file"),
        ("empty", "empty has no images in folders SPLIT/CLASS"),
        ("two", "class 'of' of split 'levels' of .*two has no images|two has no images"),
        ("flat", "flat has no images in folders SPLIT/CLASS"),
        ("twice", "twice has two folders for the split 'validation'"),
        ("odd", "there is no class folder 'eel' of split 'train' of .*odd"),
        ("void", "the class 'dog' of split 'train' of .*void has no images"),
        ("text", "the class 'dog' of split 'validation' of .*text has no images"),
        ("zero", "dog/v.jpg is empty"),
        ("dangling", "dangling cannot be read .*2.jpg"),
    ):
        with pytest.raises(UserError, match=message):
            datasets.describe(str(tmp_path / name))
    file = root / "val" / "cat" / "v.jpg"
    file.write_bytes(file.read_bytes()[:100])
    info = datasets.describe(str(root))
    index = [label for _, label in datasets.encoded(info, "validation")].index(1)
    with pytest.raises(UserError, match=rf"val/cat/v\.jpg: example {index} of split 'validation' is damaged"):
        datasets.example(datasets.encoded(info, "validation"), info, "validation", index)
    (tmp_path / "zero" / "val" / "dog" / "v.jpg").unlink()
    assert datasets.describe(str(tmp_path / "zero")).examples == {"train": 4, "validation": 2}, "a test split may lack a class"


def test_version_of_a_folder_depends_on_relative_names_and_sizes(root: Path, tmp_path: Path) -> None:
    same, resized, renamed = (Path(shutil.copytree(root, tmp_path / name)) for name in ("same", "resized", "renamed"))
    (resized / "train" / "dog" / "1.tif").write_bytes(b"x")
    (renamed / "train" / "dog" / "1.tif").rename(renamed / "train" / "dog" / "z.jpg")
    versions = [datasets.describe(str(folder)).version for folder in (root, same, resized, renamed)]
    assert re.fullmatch("[0-9a-f]{16}", versions[0])
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


def test_check_names_incomplete_and_corrupt_files(tmp_path: Path, photographs: DatasetInfo) -> None:
    """Truncated, with a flipped bit in the first or last record, of another length, missing."""
    folder = tmp_path / "imagenet2012" / "5.1.0"
    folder.mkdir(parents=True)
    for file in photographs.directory.iterdir():
        if "-train" not in file.name:
            shutil.copyfile(file, folder / file.name)
    info = dataclasses.replace(photographs, directory=folder)
    datasets.check(info, "validation")
    first, second = sorted(folder.glob("*-validation.array_record-*"))
    whole = second.read_bytes()
    with closing(array_record_module.ArrayRecordReader(str(second))) as reader:
        count = reader.num_records()
        records = [reader.read([index])[0] for index in (0, count - 1)]
    assert [datasets.shard_of(info, "validation", index) for index in (0, 219 - count, 220 - count, 219)] == [first, first, second, second]
    contents = [whole[: int(kept * len(whole))] for kept in (0, 0.1, 0.99)]
    for record in records:
        at = whole.index(record[500:600])
        contents.append(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    for content in contents:
        second.write_bytes(content)
        with pytest.raises(UserError, match=rf"{second}, of split 'validation', is damaged .*resnet-jax prepare imagenet2012"):
            datasets.check(info, "validation")
    shutil.copyfile(next(photographs.directory.glob("*-train*")), second)
    with pytest.raises(UserError, match=rf"{second}.*it holds \d+ records, not {count}"):
        datasets.check(info, "validation")
    second.unlink()
    with pytest.raises(UserError, match=rf"{second} is missing \(1 of the 2 files of split 'validation'\)"):
        datasets.check(info, "validation")
