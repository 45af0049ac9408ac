"""Smaller copies of sets of large images."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resnet_jax import cli
from resnet_jax.data import integrity, prepare, resized, sources
from resnet_jax.data.sources import DatasetInfo
from resnet_jax.errors import UserError

# Width and height; a small one stays as it is.
SIZES = {"train": [(120, 80), (80, 120), (99, 99), (50, 40), (200, 65)], "val": [(64, 64), (64, 200), (131, 97)]}


def picture(width: int, height: int, seed: int, **options: object) -> bytes:
    """Soft colours, of which JPEG loses little."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, **({"format": "JPEG"} | options))
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in class folders."""
    root = tmp_path_factory.mktemp("pictures") / "my pets"
    for split, sizes in SIZES.items():
        for index, (width, height) in enumerate(sizes):
            file = root / split / ("cat", "dog")[index % 2] / f"{index}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(width, height, seed=index))
    return root


@pytest.fixture(scope="module")
def copy(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return prepare.prepare(str(folder), str(tmp_path_factory.mktemp("tfds")), resize=64)


def test_the_copy_is_a_set_of_its_own_with_the_same_examples_in_the_same_order(copy: DatasetInfo, folder: Path) -> None:
    """cat: images 0, 2, 4; dog: 1, 3."""
    assert (copy.name, copy.version, copy.examples, copy.num_classes) == ("my_pets_64", "1.0.0", {"train": 5, "validation": 3}, 2)
    assert copy.image_shape == (None, None, 3)
    found = sources.Encoded(copy, "train")
    assert [found[index][1] for index in range(5)] == [0, 0, 0, 1, 1]
    assert [found.record(index)["file_name"].decode() for index in range(5)] == ["0.jpg", "2.jpg", "4.jpg", "1.jpg", "3.jpg"]
    assert sources.class_names(copy) == ["cat", "dog"]


def test_what_it_was_made_of_stands_in_its_description(copy: DatasetInfo, folder: Path) -> None:
    text = json.loads((copy.directory / "dataset_info.json").read_text())["description"]
    assert text.startswith("my pets ")
    assert "resized to 64 pixels" in text
    assert "(bilinear, antialiased; JPEG of quality 95)" in text
    made_of = json.loads((copy.directory / "metadata.json").read_text())
    version = sources.describe(str(folder)).version
    expected = {"source": "my pets", "source_version": version, "shorter_side": 64, "filter": "bilinear", "jpeg_quality": 95}
    assert made_of == expected


@pytest.mark.parametrize(("filter", "resampling"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)])
@pytest.mark.parametrize(
    ("size", "expected"),
    [((120, 80), (96, 64)), ((80, 120), (64, 96)), ((99, 99), (64, 64)), ((200, 65), (196, 64)), ((97, 131), (64, 86))],
)
def test_images_are_resized_as_torchvision_does(
    filter: str, resampling: Image.Resampling, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    """Widths and heights by hand, the longer side rounded down: 64 * 200 / 65 = 196.9, 64 * 131 / 97 = 86.4. Pixels as Pillow has them.

    Grey noise, at the best quality: colours at half the resolution would hide the filter.
    """
    noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    picture = Image.fromarray(noise).convert("RGB")
    file = io.BytesIO()
    picture.save(file, format="PNG")
    with Image.open(io.BytesIO(resized.Resize(side=64, filter=filter, quality=100)(file.getvalue()))) as made:
        assert (made.size, made.format, made.mode) == (expected, "JPEG", "RGB")
        found = np.asarray(made).astype(int)
    assert np.abs(found - np.asarray(picture.resize(expected, resampling))).max() <= 3
    other = ({Image.Resampling.BILINEAR, Image.Resampling.BICUBIC} - {resampling}).pop()
    assert np.abs(found - np.asarray(picture.resize(expected, other))).mean() > 3


@pytest.mark.parametrize("options", [{}, {"format": "PNG"}])
def test_images_that_are_no_larger_stay_byte_for_byte(options: dict) -> None:
    for size in ((64, 64), (64, 200), (50, 300)):
        original = picture(*size, seed=1, **options)
        assert resized.Resize(side=64)(original) == original


def test_quality_is_that_of_the_jpegs() -> None:
    """Pillow's tables of a quality, and colours at half the resolution."""
    original = picture(300, 200, seed=1)
    for quality in (50, 95):
        reference = io.BytesIO()
        Image.new("RGB", (8, 8)).save(reference, format="JPEG", quality=quality)
        with Image.open(io.BytesIO(resized.Resize(side=64, quality=quality)(original))) as made, Image.open(reference) as expected:
            assert made.quantization == expected.quantization
            assert [layer[1:3] for layer in made.layer] == [(2, 2), (1, 1), (1, 1)]


def test_it_is_found_by_name_and_left_as_it_is_the_second_time(copy: DatasetInfo, folder: Path, capsys: pytest.CaptureFixture) -> None:
    directory = copy.directory.parents[1]
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    cli.main(["prepare", str(folder), "--resize", "64", "--data-dir", str(directory)])
    assert "my_pets_64 1.0.0 is in" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before
    assert sources.describe("my_pets_64", str(directory)) == copy


def test_a_copy_made_in_another_way_is_not_taken_for_this_one(copy: DatasetInfo, folder: Path, capsys: pytest.CaptureFixture) -> None:
    directory = str(copy.directory.parents[1])
    for option, value, field in (
        ("--filter", "bicubic", "filter 'bilinear', not 'bicubic'"),
        ("--quality", "90", "jpeg_quality 95, not 90"),
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["prepare", str(folder), "--resize", "64", option, value, "--data-dir", directory])
        assert stopped.value.code == 2
        assert f"{copy.directory} is there, with {field}" in capsys.readouterr().err
    other = folder.parent / "other" / "my pets"
    shutil.copytree(folder / "train", other / "train")
    with pytest.raises(UserError, match="source_version"):
        prepare.prepare(str(other), directory, resize=64)


def test_copies_are_read_by_tfds_alone(copy: DatasetInfo) -> None:
    """By name, without a line of ours, and without TensorFlow."""
    program = """
import sys
import tensorflow_datasets as tfds
source = tfds.data_source("my_pets_64", split="validation", data_dir=sys.argv[1], decoders={"image": tfds.decode.SkipDecoding()})
print(len(source), [source[index]["label"] for index in range(3)], "tensorflow" in sys.modules, "resnet_jax" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(copy.directory.parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2].replace("np.int64(", "").replace(")", "") == "3 [0, 0, 1] False False"


def test_many_images_fill_several_files_in_order(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are read ahead, and more than a file holds."""
    monkeypatch.setattr(resized.ShardConfig, "calculate_number_shards", lambda *_: 3)
    for index in range(200):
        file = tmp_path / "many" / "train" / "cat" / f"{index:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (index, 0, 0)).save(file)
    before = threading.active_count()
    info = prepare.prepare(str(tmp_path / "many"), str(tmp_path / "new"), resize=8)
    assert threading.active_count() == before
    assert [length for _, length in integrity.shards(info, "train")] == [66, 67, 67]
    assert len(list(info.directory.glob("*array_record*"))) == 3
    source = sources.encoded(info, "train")
    reds = [float(sources.example(source, info, "train", index)["image"][..., 0].mean()) for index in range(200)]
    np.testing.assert_allclose(reds, np.arange(200), atol=2)


@pytest.fixture(scope="module")
def photographs_128(photographs: DatasetInfo, tmp_path_factory: pytest.TempPathFactory) -> DatasetInfo:
    return prepare._resized(photographs, tmp_path_factory.mktemp("tfds"), {"side": 128})


def test_photographs_keep_order_labels_and_names(photographs: DatasetInfo, photographs_128: DatasetInfo) -> None:
    made = photographs_128
    assert (made.name, made.version, made.examples) == ("imagenet2012_128", photographs.version, photographs.examples)
    assert sources.class_names(made) == sources.class_names(photographs)
    for split, count in made.examples.items():
        ours, theirs = sources.Encoded(made, split)._records, sources.Encoded(photographs, split)._records
        for field in ("label", "file_name"):
            assert [ours[index][field] for index in range(count)] == [theirs[index][field] for index in range(count)]
        for index in (0, 7, count - 1):
            with Image.open(io.BytesIO(theirs[index]["image"])) as original, Image.open(io.BytesIO(ours[index]["image"])) as smaller:
                width, height = original.size
                if min(width, height) <= 128:
                    assert ours[index]["image"] == theirs[index]["image"]
                    continue
                size = (128 * width // height, 128) if width > height else (128, 128 * height // width)
                assert smaller.size == size
                expected = np.asarray(original.convert("RGB").resize(size, Image.Resampling.BILINEAR)).astype(int)
                # What JPEG of quality 95 with half the colour resolution loses of sharp small pictures.
                assert np.abs(np.asarray(smaller) - expected).mean() < 5


def test_what_cannot_be_resized_is_refused_and_nothing_written(
    folder: Path, digits_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", digits_dir)
    new = str(tmp_path / "new")
    with pytest.raises(UserError, match="are all 8x8: there is nothing to resize"):
        prepare.prepare("digits", new, resize=4)
    with pytest.raises(UserError, match="--resize is 0"):
        prepare.prepare(str(folder), new, resize=0)
    with pytest.raises(UserError, match="no --filter 'lanczos'; .*bicubic"):
        prepare.prepare(str(folder), new, resize=64, filter="lanczos")
    with pytest.raises(UserError, match="--quality is 101"):
        prepare.prepare(str(folder), new, resize=64, quality=101)
    with pytest.raises(UserError, match="give --resize with it"):
        prepare.prepare("digits", new, quality=90)
    with pytest.raises(UserError, match="--from .* made of the prepared set"):
        prepare.prepare("imagenet2012", new, archives=tmp_path, resize=64)
    with pytest.raises(UserError, match="no_such_set.* is not prepared"):
        prepare.prepare("no_such_set", new, resize=64)
    with monkeypatch.context() as small:
        usage = prepare.shutil.disk_usage(tmp_path)
        small.setattr(prepare.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(UserError, match="has room for 0.0 GB"):
            prepare.prepare(str(folder), new, resize=64)
    assert not (tmp_path / "new").exists()


def test_a_damaged_image_is_named_and_nothing_left(folder: Path, tmp_path: Path) -> None:
    """Also where the look beforehand did not meet it: it takes 32 of a split."""
    damaged = tmp_path / "damaged"
    for index in range(100):
        file = damaged / "train" / "cat" / f"{index:03d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"\xff\xd8 no image" if index == 65 else picture(20, 20, seed=index))
    assert 65 not in np.unique(np.linspace(0, 99, 32, dtype=int))
    with pytest.raises(UserError, match=r"065\.jpg: example 65 of split 'train' is damaged"):
        prepare.prepare(str(damaged), str(tmp_path / "new"), resize=8)
    assert [path for path in (tmp_path / "new").rglob("*") if path.is_file() or path.name.startswith("incomplete")] == []


@pytest.mark.parametrize(("folder_name", "expected"), [("pets", "pets_32"), ("my pets-2", "my_pets_2_32"), ("2024", "folder_2024_32")])
def test_names_of_copies_are_names_to_tfds(tmp_path: Path, folder_name: str, expected: str) -> None:
    file = tmp_path / folder_name / "train" / "cat" / "1.jpg"
    file.parent.mkdir(parents=True)
    file.write_bytes(picture(40, 50, seed=1))
    info = prepare.prepare(str(tmp_path / folder_name), str(tmp_path / "new"), resize=32)
    assert info.name == expected
    assert (
        hashlib.sha256(sources.encoded(info, "train")[0][0]).digest() == hashlib.sha256(resized.Resize(side=32)(file.read_bytes())).digest()
    )
