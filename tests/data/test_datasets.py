"""Prepared sets and folders: discovery by their files, decoding, and corrupt or incomplete data."""

import dataclasses
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from resnet_jax import cli
from resnet_jax.data import datasets, images, local
from resnet_jax.data.augment_host import RandomResizedCrop
from resnet_jax.data.datasets import DatasetInfo
from resnet_jax.errors import UserError
from resnet_jax.training.config import Data, Experiment
from resnet_jax.training.run_dir import Workdir


@pytest.fixture(autouse=True)
def _nothing_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hides data directories of the machine."""
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
    with pytest.raises(UserError, match=r"image \(Image\), mask \(ClassLabel\); 'image' and a 'label'"):
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


def test_corrupt_files_are_named_by_read_and_check(copy: Path, photographs: DatasetInfo) -> None:
    """Of a truncated file the first example is named, since ArrayRecord's index is at its end."""
    file, other = (next((copy / "digits" / "1.0.0").glob(f"*-{split}.array_record*")) for split in ("train", "test"))
    info, whole = datasets.describe("digits", str(copy)), file.read_bytes()
    for complete in (info, photographs):
        datasets.check(complete, "train")
    flipped = [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in (110, 1000)]
    for content in (*flipped, b"", whole[: len(whole) * 9 // 10], whole[: len(whole) // 10], None):
        file.unlink() if content is None else file.write_bytes(content)
        datasets.read.cache_clear()
        with pytest.raises(UserError, match=f"{file}: example [0-9]+ of split 'train' is damaged") as error:
            datasets.read(info, "train")
        index = int(str(error.value).split("example ")[1].split()[0])
        assert 0 < index < 100 if content is flipped[1] else index == 0
        if index == 0:
            with pytest.raises(UserError, match=rf"{file}, of split 'train', is (damaged|missing).*resnet-jax prepare digits"):
                datasets.check(info, "train")
        assert len(datasets.read(info, "test")) == 360
    shutil.copyfile(other, file)
    with pytest.raises(UserError, match=rf"{file}.*it holds 360 records, not 1437"):
        datasets.check(info, "train")
    shards = sorted(photographs.directory.glob("*-train.array_record-*"))
    assert [datasets.shard_of(photographs, "train", index) for index in (0, 439)] == [shards[0], shards[-1]]


def picture(mode: str = "RGB", size: tuple[int, int] = (23, 17)) -> Image.Image:
    """A smooth picture, which JPEG keeps well."""
    across, down = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    channels = [across, down, 255 - across, np.zeros_like(across)][: len(Image.new(mode, (1, 1)).getbands())]
    return Image.fromarray(np.stack(channels, axis=-1).squeeze().astype(np.uint8), mode="CMYK" if mode == "CMYK" else None)


def encoded(image: Image.Image, format: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **({"quality": 98, "subsampling": 0} if format == "JPEG" else {}), **options)
    return file.getvalue()


def test_decode_converts_every_kind_of_image(tmp_path: Path) -> None:
    """By content, not by name: a palette, transparency, 16 bits. An EXIF orientation applies to files alone."""
    rotated = Image.Exif()
    rotated[0x0112] = 6
    files = [(mode, encoded(picture(mode))) for mode in ("RGB", "L", "CMYK")]
    files += [("RGB", encoded(picture(), format)) for format in ("PNG", "BMP", "WEBP", "TIFF")]
    files += [("RGB", encoded(picture(), exif=rotated)), ("L", encoded(picture("L"), "GIF")), ("RGBA", encoded(picture("RGBA"), "PNG"))]
    gray = np.asarray(picture("L"))
    wide = [gray.astype(np.uint16) * 257, gray.astype(np.int32) * (2**31 // 256), np.float32(gray / 255), np.float32(gray)]
    files += [
        ("L", encoded(Image.fromarray(deep), format))
        for deep, format in zip(wide[:1] * 3 + wide[1:], ("PNG", "PPM", *["TIFF"] * 4), strict=True)
    ]
    for mode, content in files:
        pixels, exact = datasets.decode(content), np.asarray(picture(mode).convert("RGB")).astype(int)
        assert (pixels.shape, pixels.dtype) == ((17, 23, 3), np.uint8)
        assert np.abs(pixels - exact).max() <= (16 if content[:4] == b"RIFF" or content[:2] == b"\xff\xd8" else 1), mode
        if mode == "L":
            np.testing.assert_allclose(datasets.decode(content, channels=1)[..., 0], exact[..., 0], atol=8)
    for format in ("JPEG", "PNG", "TIFF", "WEBP"):
        (tmp_path / "turned").write_bytes(encoded(picture(), format, exif=rotated))
        header, upright = images.header(str(tmp_path / "turned")), np.rot90(np.asarray(picture()), -1)
        assert header[:3] == (23, 17, 3)
        assert np.abs(datasets.decode(str(tmp_path / "turned")).astype(int) - upright).max() <= 16, format
    for values in (np.full((4, 4), 65535, np.int32), np.float32([[0, 300]]), np.float32([[np.nan, 1]]), np.int32([[-1, 1]])):
        with pytest.raises(ValueError, match="its values are in"):
            datasets.decode(encoded(Image.fromarray(values), "TIFF"))
    whole = encoded(picture(size=(200, 150)))
    for kept in (0, 1, 30, len(whole) // 2, len(whole) * 9 // 10):
        with pytest.raises(ValueError, match="."):
            datasets.decode(whole[:kept])


def write(folder: Path, names: str, size: tuple[int, int] = (30, 20)) -> Path:
    """Images, each as bright as its number."""
    for number, name in enumerate(names.split()):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (10 * number,) * 3).save(file)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three classes, in folders of any capitalization, with files of other kinds."""
    train = "train/cat/b.JPEG train/cat/more/a.gif train/ant/x.jpeg train/dog/1.tif"
    folder = write(tmp_path / "pets", f"{train} Val/ant/v.jpg Val/cat/v.jpg Val/dog/v.jpg")
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    (folder / "train" / "dog" / "._1.jpg").write_bytes(b"Mac OS X leaves these beside every image that it copies")
    (folder / ".cache" / "x").mkdir(parents=True)
    return folder


def test_folder_is_described_and_read_by_its_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes in alphabetical order; classes without splits are the training split, as in torchvision's ImageFolder."""
    monkeypatch.chdir(root.parent)
    for path in (str(root), "./pets", "pets/"):
        info = datasets.describe(path)
        assert (info.examples, info.num_classes, info.image_shape) == ({"train": 4, "validation": 3}, 3, (20, 30, 3))
        assert info.name == str(root)
        assert list(info.classes) == ["ant", "cat", "dog"]
        source = datasets.encoded(info, "train")
        records = [datasets.example(source, info, "train", index) for index in range(len(source))]
        values = sorted((round(float(record["image"].mean()), -1), record["label"]) for record in records)
        assert values == [(0, 1), (10, 1), (20, 0), (30, 2)]
    for name, files, examples, classes in (
        ("flat", "ant/1.png cat/red/2.png cat/3.png", {"train": 3}, ["ant", "cat"]),
        ("vehicles", "bus/1.png train/2.png train/old/3.png", {"train": 3}, ["bus", "train"]),
        ("named", "Training/a/1.png Training/b/2.png testing/a/3.png extra/b/4.png", {"train": 2, "test": 1, "extra": 1}, ["a", "b"]),
        ("beside", "train_set/a/1.png train_set/b/2.png VAL/a/3.png VAL/b/4.png old/5.png", {"train": 2, "validation": 2}, ["a", "b"]),
        ("within", "ant/train/1.png ant/test/2.png cat/test/3.png", {"train": 3}, ["ant", "cat"]),
        ("composed", "train/\u00e9/1.png train/b/2.png test/e\u0301/3.png test/b/4.png", {"train": 2, "test": 2}, ["b", "\u00e9"]),
    ):
        flat = datasets.describe(str(write(root.parent / name, files, (8, 8))))
        assert (flat.examples, list(flat.classes), flat.image_shape) == (examples, classes, (8, 8, 3))
        note = {"beside": "images outside of a class: 1 (", "within": "folders in all classes: 1 (test)"}.get(name, "")
        assert note in flat.notes


def test_every_format_of_pillow_is_read_and_its_truncation_named(tmp_path: Path) -> None:
    """Under a misleading name; means are those of the array that was written. Dithering and palettes keep them roughly."""
    folder, smooth = tmp_path / "train", picture(size=(32, 32))
    written = ["AVIF", "BMP", "DDS", "DIB", "GIF", "ICNS", "ICO", "JPEG", "JPEG2000", "MPO", "MSP", "PCX"]
    formats = [*written, "PNG", "PPM", "QOI", "SGI", "SPIDER", "TGA", "TIFF", "WEBP", "XBM"]
    modes, color = {"MSP": "1", "XBM": "1", "SPIDER": "F"}, np.asarray(smooth).mean((0, 1))
    for format in formats:
        file = folder / format / {"TGA": "1.tga", "SPIDER": "1.spi"}.get(format, "1.jpg")
        file.parent.mkdir(parents=True)
        smooth.convert(modes.get(format, "RGB")).save(file, format)
    info = datasets.describe(str(tmp_path))
    assert (info.examples, info.problems, info.num_classes) == ({"train": len(formats)}, "", len(formats))
    source = datasets.encoded(info, "train")
    for index, (_, label) in enumerate(source):
        expected = np.dot(color, (0.299, 0.587, 0.114)) if formats[label] in modes else color
        pixels = datasets.example(source, info, "train", index)["image"]
        np.testing.assert_allclose(pixels.mean((0, 1)), np.broadcast_to(expected, 3), atol=2, err_msg=formats[label])
    for path, _ in source:
        Path(path).write_bytes(Path(path).read_bytes()[: os.path.getsize(path) // 2])
    local._folder.cache_clear()
    assert f"files that cannot be read: {len(formats)} (" in datasets.describe(str(tmp_path)).problems


def test_held_out_images_are_a_share_of_every_class(tmp_path: Path) -> None:
    """Within one image, at least one where there is room, whatever the sizes of the classes."""
    sizes = [40, 40, 40, 1, 2, 5, 17, 33, 64, 9]
    for label, size in enumerate(sizes):
        write(tmp_path / "train" / f"c{label}", " ".join(f"{number}.png" for number in range(size)), (1, 1))
    info = datasets.describe(str(tmp_path))
    assert sorted(label for _, label in datasets.encoded(info, "train")) == sorted(np.repeat(range(10), sizes))
    for held_out in (10, 25, 100, 3):
        source = datasets.encoded(dataclasses.replace(info, held_out=held_out), "train")
        assert len({path for path, _ in source}) == sum(sizes)
        taken = np.bincount([source[index][1] for index in range(len(source) - held_out, len(source))], minlength=10)
        assert np.abs(taken - held_out * np.array(sizes) / sum(sizes)).max() < 1
        assert held_out < 10 or (taken[np.array(sizes) > 1] > 0).all()


def test_problems_of_a_folder_are_counted_and_named_in_one_message(root: Path, tiny: Experiment) -> None:
    """Errors, unless damaged images are replaced, and notes."""
    cut = (root / "train/dog/1.tif").read_bytes()[:100]
    (root / "train/dog/cut.png").write_bytes(cut)
    (root / "train/dog/void.jpg").write_bytes(b"")
    (root / "train/dog/link.jpg").symlink_to("nowhere.jpg")
    (root / "train/dog/phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "train/eel").mkdir()
    shutil.copy(root / "train/cat/b.JPEG", root / "Val/ant/copy.jpg")
    shutil.rmtree(root / "Val/dog")
    shutil.copy(root / "train/ant/x.jpeg", root / "train/stray.jpg")
    info = datasets.describe(str(root))
    for text in ("files that cannot be read: 4 (", "dog/link.jpg: empty or missing", "classes without images: 1 (train/eel)"):
        assert text in info.problems
    assert "missing classes: 2 (validation/dog, validation/eel)" in info.notes
    assert f"files of other kinds: 1 ({root}/train/cat/notes.txt)" in info.notes
    assert f"images outside of a class: 1 ({root}/train/stray.jpg)" in info.notes
    assert "images in two splits: 1 (train/cat/b.JPEG = Val/ant/copy.jpg)" in info.notes
    data = Data(name=str(root), test_split="validation", pad=0, crop=RandomResizedCrop)
    experiment = dataclasses.replace(tiny, data=data)
    with pytest.raises(UserError, match=r"cannot be read: 4 .*resnet-jax data check"):
        experiment.with_data(info)
    replaced, _ = dataclasses.replace(experiment, data=dataclasses.replace(data, damaged="replace")).with_data(info)
    assert (replaced.data.digest, replaced.data.classes) == (info.version, ("ant", "cat", "dog", "eel"))


def test_folders_without_images_or_with_one_class_are_rejected(root: Path, tmp_path: Path) -> None:
    for name in ("empty", "two/levels/of/folders"):
        (tmp_path / name).mkdir(parents=True)
    write(tmp_path / "flat", "train/1.png test/2.png")
    write(tmp_path / "single", "train/dog/1.png")
    write(tmp_path / "either", "train/dog/1.png train/cat/2.png bus/3.png")
    write(tmp_path / "loop", "dog/1.png cat/2.png").joinpath("cat/up").symlink_to("..")
    shutil.copytree(root / "Val", root / "validation")
    for name, message in (
        ("elsewhere", "elsewhere cannot be read .*No such file"),
        ("empty", "empty has no images in folders SPLIT/CLASS.*it has no files"),
        ("two", "two has no images in folders SPLIT/CLASS.*it has levels"),
        ("flat", "flat has no images in folders SPLIT/CLASS.*it has test, train"),
        ("single", "single has a single class, dog"),
        ("either", "either has images in bus, and in folders of train. Move bus, or rename train if it is a class"),
        ("loop", "cat/up is a link to a folder above it"),
        ("pets", "pets has two folders for the split 'validation'"),
    ):
        with pytest.raises(UserError, match=message):
            datasets.describe(str(tmp_path / name))


def test_changed_folder_is_another_run(root: Path, tmp_path: Path, tiny: Experiment) -> None:
    """The fingerprint has a digest of names and sizes, wherever the folder lies; an error of reading names the file."""
    moved = datasets.describe(str(shutil.copytree(root, tmp_path / "elsewhere" / root.name)))
    info, experiment = datasets.describe(str(root)), dataclasses.replace(tiny, data=Data(name="pets"))
    assert re.fullmatch("[0-9a-f]{16}", info.version)
    run = Workdir(tmp_path / "run")
    run.claim(experiment.with_data(info)[0], 0)
    assert run.check(experiment.with_data(moved)[0], 0)
    write(root, "train/dog/new.png")
    local._folder.cache_clear()
    changed = datasets.describe(str(root))
    with pytest.raises(UserError, match=f"data.digest: '{changed.version}' asked for, '{info.version}' in the run"):
        run.check(experiment.with_data(changed)[0], 0)
    (root / "train/dog/new.png").rename(root / "train/dog/0.png")
    local._folder.cache_clear()
    assert len({info.version, changed.version, datasets.describe(str(root)).version}) == 3
    file = root / "Val" / "cat" / "v.jpg"
    file.write_bytes(file.read_bytes()[:100])
    index = [label for _, label in datasets.encoded(info, "validation")].index(1)
    with pytest.raises(UserError, match=rf"Val/cat/v\.jpg: example {index} of split 'validation' is damaged"):
        datasets.example(datasets.encoded(info, "validation"), info, "validation", index)


SOURCE = """
import numpy as np
class Squares:
    def __init__(self, split):
        self.count = {"train": 12, "test": 6}[split]
    def __len__(self):
        return self.count
    def __getitem__(self, index):
        return np.full((8, 8), 10 * index, np.uint8), index % 2
def splits():
    return {"train": [{"image": np.zeros((8, 9, 3), np.uint8), "label": 1}, {"image": np.zeros((8, 8, 3), np.uint8), "label": 0}]}
def wrong():
    return [3, 4]
number = 3
"""


def test_source_is_read_by_file_and_name(tmp_path: Path) -> None:
    """A class or function of the split, one that returns all splits, and a message with the contract."""
    (tmp_path / "own.py").write_text(SOURCE)
    info = datasets.describe(f"{tmp_path}/own.py:Squares")
    assert (info.examples, info.image_shape, info.num_classes) == ({"train": 12, "test": 6}, (8, 8, 1), 2)
    whole = datasets.read(info, "train")
    assert (whole.images[:, 0, 0, 0].tolist(), whole.labels.tolist()) == ([10 * n for n in range(12)], [0, 1] * 6)
    held = datasets.encoded(dataclasses.replace(info, held_out=4), "train")
    assert sorted(held[index][1] for index in range(8, 12)) == [0, 0, 1, 1]
    several = datasets.describe(f"{tmp_path}/own.py:splits")
    assert (several.examples, several.image_shape) == ({"train": 2}, (None, None, 3))
    for name, message in (
        ("wrong", "own.py:wrong returned 3, but must have __len__"),
        ("number", "number is of type int, but must have __len__"),
    ):
        with pytest.raises(UserError, match=message):
            datasets.describe(f"{tmp_path}/own.py:{name}")


def test_check_prints_classes_formats_and_problems(root: Path, digits_dir: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["data", "check", str(root), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["classes"][1] == {"class": "cat", "train": 2, "validation": 1}
    formats = "GIF 1, JPEG 2, TIFF 1"
    assert report["splits"][0] == {"split": "train", "images": 4, "damaged": 0, "height x width": "20x30", "formats": formats}
    (root / "train/dog/void.jpg").write_bytes(b"")
    local._folder.cache_clear()
    cli.main(["data", "check", "digits", "--data-dir", digits_dir])
    with pytest.raises(SystemExit, match="2"):
        cli.main(["data", "check", str(root)])
    printed = capsys.readouterr()
    assert "1437" in printed.out
    assert "void.jpg: empty or missing" in printed.out
    assert printed.err.endswith("has problems, see above.\n")
