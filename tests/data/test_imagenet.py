"""ImageNet from its two archives: here tiny ones of the same make."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resnet_jax import cli
from resnet_jax.data import imagenet, prepare, sources
from resnet_jax.errors import UserError

ROOT = Path(__file__).parents[2]
SYNSETS = ("n01440764", "n01443537")


def jpeg(mode: str = "RGB", format: str = "JPEG", grey: int = 90) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (40, 30), tuple([grey] * len(Image.new(mode, (1, 1)).getbands()))).save(file, format=format)
    return file.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return written.getvalue()


@pytest.fixture(scope="session")
def images() -> tuple[dict[str, dict[str, bytes]], dict[str, bytes]]:
    """Training images by class, one of them CMYK and one a PNG by names of the real ones; and four validation images, the last first."""
    train = {
        synset: {f"{synset}_{number}.JPEG": jpeg(grey=10 * (3 * place + number)) for number in range(3)}
        for place, synset in enumerate(SYNSETS)
    }
    train[SYNSETS[0]]["n01739381_1309.JPEG"] = jpeg("CMYK")
    train[SYNSETS[1]]["n02105855_2933.JPEG"] = jpeg(format="PNG")
    train[SYNSETS[1]]["n01443537_9.JPEG"] = jpeg("L")
    return train, {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(grey=100 + number) for number in (4, 2, 1, 3)}


@pytest.fixture
def archives(images: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with both, which the table of the published sizes and digests describes."""
    return published(*images, tmp_path, monkeypatch)


def published(train: dict[str, dict[str, bytes]], validation: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "archives"
    folder.mkdir()
    written = (tar({f"{synset}.tar": tar(files) for synset, files in train.items()}), tar(validation))
    table = []
    for archive, content, count in zip(imagenet.ARCHIVES, written, (sum(map(len, train.values())), len(validation)), strict=True):
        (folder / archive.file).write_bytes(content)
        table.append(replace(archive, bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), examples=count))
    monkeypatch.setattr(imagenet, "ARCHIVES", tuple(table))
    return folder


def refused(tmp_path: Path, folder: Path | None, match: str) -> None:
    """Before anything is written, or with nothing left of what was."""
    with pytest.raises(UserError, match=match):
        prepare.prepare("imagenet2012", str(tmp_path / "new"), archives=folder)
    assert [path for path in tmp_path.glob("new/**/*") if path.is_file() or path.name.startswith("incomplete")] == []
    assert "imagenet2012" not in sources.prepared_in(tmp_path / "new")


def test_archives_are_those_of_2012() -> None:
    """Sizes and sha256 as published by TensorFlow Datasets, and numbers of images as in Russakovsky et al. 2015."""
    found = [(each.file, each.split, each.examples, each.bytes, each.sha256) for each in imagenet.ARCHIVES]
    assert found == [
        (
            "ILSVRC2012_img_train.tar",
            "train",
            1_281_167,
            147_897_477_120,
            "b08200a27a8e34218a0e58fde36b0fe8f73bc377f4acea2d91602057c3ca45bb",
        ),
        (
            "ILSVRC2012_img_val.tar",
            "validation",
            50_000,
            6_744_924_160,
            "c7e06a6c0baccf06d8dbeb6577d71efff84673a5dbdd50633ab44f8ea0456ae0",
        ),
    ]


def test_archives_become_the_official_set(archives: Path, images: tuple, tmp_path: Path) -> None:
    info = prepare.prepare("imagenet2012", str(tmp_path / "new"), archives=archives)
    assert (info.directory, info.examples) == (tmp_path / "new" / "imagenet2012" / "5.1.0", {"train": 9, "validation": 4})
    assert (info.num_classes, info.image_shape) == (1000, (None, None, 3))
    train, validation = images
    names = sources.class_names(info)
    found = {}
    for index in range(9):
        record = sources.Encoded(info, "train").record(index)
        found[record["file_name"].decode()] = (names[record["label"]], record["image"])
    assert {name: label for name, (label, _) in found.items()} == {name: synset for synset, files in train.items() for name in files}
    for name in ("n01440764_0.JPEG", "n01443537_2.JPEG", "n01443537_9.JPEG"):
        assert found[name][1] == train[found[name][0]][name], "bytes are copied"
    for name in ("n01739381_1309.JPEG", "n02105855_2933.JPEG"):
        with Image.open(io.BytesIO(found[name][1])) as made:
            assert (made.format, made.mode, made.size) == ("JPEG", "RGB", (40, 30))
    # The first four lines of TFDS's list of validation labels, by the order of the names.
    listed = Path(imagenet.tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt")).read_text().split()[:4]
    records = [sources.Encoded(info, "validation").record(index) for index in range(4)]
    expected = dict(zip(sorted(validation), listed, strict=True))
    assert {record["file_name"].decode(): names[record["label"]] for record in records} == expected


def test_grey_cmyk_and_png_images_decode(archives: Path, tmp_path: Path) -> None:
    info = prepare.prepare("imagenet2012", str(tmp_path / "new"), archives=archives)
    source = sources.encoded(info, "train")
    found = {int(sources.example(source, info, "train", index)["image"].mean().round()) for index in range(9)}
    # Grey 90 of the PNG and of the grey JPEG; CMYK of 90 each is (1 - 90/255)^2 of white.
    assert found == {0, 10, 20, 30, 40, 50, 90, round(255 * (1 - 90 / 255) ** 2)}
    assert {sources.example(source, info, "train", index)["image"].shape for index in range(9)} == {(30, 40, 3)}


def test_nothing_of_it_needs_tensorflow_or_a_network_however_large(archives: Path, tmp_path: Path) -> None:
    """Beyond 1 GB, here 500 bytes, TFDS shuffles by way of temporary files."""
    program = """
import sys, dataclasses, hashlib, pathlib, socket
from tensorflow_datasets.core import shuffle
from resnet_jax.data import imagenet, prepare
shuffle.MAX_MEM_BUFFER_SIZE = 500
def refuse(*_):
    raise SystemExit("network")
socket.socket.connect = refuse
folder = pathlib.Path(sys.argv[1])
imagenet.ARCHIVES = tuple(
    dataclasses.replace(a, bytes=len(content), sha256=hashlib.sha256(content).hexdigest(), examples=count)
    for a, content, count in ((a, (folder / a.file).read_bytes(), n) for a, n in zip(imagenet.ARCHIVES, (9, 4)))
)
print(prepare.prepare("imagenet2012", sys.argv[2], archives=folder).examples, "tensorflow" in sys.modules)
"""
    command = [sys.executable, "-c", program, str(archives), str(tmp_path / "new")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "{'train': 9, 'validation': 4} False"


def test_large_splits_come_in_the_order_of_small_ones(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of TFDS's hashed names: an example has the same index in every copy of the set."""
    small = prepare.prepare("imagenet2012", str(tmp_path / "small"), archives=archives)
    monkeypatch.setattr(imagenet.shuffle, "MAX_MEM_BUFFER_SIZE", 500)
    large = prepare.prepare("imagenet2012", str(tmp_path / "large"), archives=archives)
    for split in ("train", "validation"):
        found, expected = sources.encoded(large, split), sources.encoded(small, split)
        assert [found[index] for index in range(len(found))] == [expected[index] for index in range(len(expected))]
    assert not list(tmp_path.rglob("*bucket*"))


def test_a_bucket_gives_back_what_was_put_in(tmp_path: Path) -> None:
    """Keys of 128 bits, records of any size: below, of and above what is written at once."""
    records = [(2**128 - 1, b""), (0, b"a"), (2**64, bytes(300_000)), (5, bytes(1 << 18)), (2**64 - 1, b"end")]
    bucket = imagenet.Bucket(tmp_path / "bucket")
    for key, data in records:
        bucket.add(key, data)
    assert len(bucket) == 5
    assert list(bucket.read_values()) == records
    bucket.del_file()
    assert list(tmp_path.iterdir()) == []


def test_without_archives_it_says_where_they_are_to_be_had(tmp_path: Path) -> None:
    """All that are missing, at once."""
    train = r'ILSVRC2012_img_train\.tar \(147\.9 GB, there "Training images \(Task 1 & 2\)"\)'
    validation = r'ILSVRC2012_img_val\.tar \(6\.7 GB, there "Validation images \(all tasks\)"\)'
    advice = r"Register at https://image-net\.org/download-images.*resnet-jax prepare imagenet2012 --from DIR"
    refused(tmp_path, None, rf"fetched by hand: {train} and {validation}\. {advice}")
    folder = tmp_path / "folder"
    refused(tmp_path, folder, rf"folder lacks: {train} and {validation}\. {advice}")
    folder.mkdir()
    (folder / "ILSVRC2012_img_train.tar").touch()
    refused(tmp_path, folder, rf"folder lacks: {validation}\. {advice}")


def test_a_download_that_was_cut_is_seen_by_its_size(archives: Path, tmp_path: Path) -> None:
    with (archives / "ILSVRC2012_img_val.tar").open("r+b") as file:
        file.truncate(1000)
    refused(tmp_path, archives, "ILSVRC2012_img_val.tar has 1,000 bytes; the archive of 2012 has")


def test_another_archive_of_the_same_size_is_seen_by_its_digest(archives: Path, tmp_path: Path) -> None:
    content = bytearray((archives / "ILSVRC2012_img_train.tar").read_bytes())
    content[700] ^= 1
    (archives / "ILSVRC2012_img_train.tar").write_bytes(content)
    refused(tmp_path, archives, "ILSVRC2012_img_train.tar is damaged, or not the archive of 2012: its sha256 is [0-9a-f]{64}, not")


def test_a_disk_that_is_too_small_is_seen_before(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = int(1.05 * sum(archive.bytes for archive in imagenet.ARCHIVES))
    usage = prepare.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    refused(tmp_path, archives, "new has room for .* GB, and imagenet2012 needs .* GB while it is written: name another .*--data-dir")
    monkeypatch.setattr(prepare.shutil, "disk_usage", lambda _: usage._replace(free=needed))
    prepare.prepare("imagenet2012", str(tmp_path / "new"), archives=archives)


def test_room_is_enough_for_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary files included, here 60 of 100 kB: never more than the archives and a twentieth, of what is not decoded."""
    rng = np.random.default_rng(0)
    train = {synset: {f"{synset}_{number}.JPEG": rng.bytes(100_000) for number in range(30)} for synset in SYNSETS}
    archives = published(train, {"ILSVRC2012_val_00000001.JPEG": rng.bytes(100_000)}, tmp_path, monkeypatch)
    monkeypatch.setattr(imagenet.shuffle, "MAX_MEM_BUFFER_SIZE", 500)
    most = 0
    for name in ("_write", "read_values", "del_file"):
        original = getattr(imagenet.Bucket, name)

        def measured(self: imagenet.Bucket, original: Any = original) -> Any:
            nonlocal most
            found = original(self)
            most = max(most, sum(file.stat().st_size for file in (tmp_path / "new").rglob("*") if file.is_file()))
            return found

        monkeypatch.setattr(imagenet.Bucket, name, measured)
    prepare.prepare("imagenet2012", str(tmp_path / "new"), archives=archives)
    assert sum(len(content) for files in train.values() for content in files.values()) < most < imagenet.bytes_written()


def test_what_a_killed_preparation_left_is_named(archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """And not removed: another one may be at work there."""
    left = tmp_path / "new" / "imagenet2012" / "incomplete.6J53Q8_5.1.0"
    left.mkdir(parents=True)
    (left / "bucket_000.tmp").write_bytes(bytes(100_000_000))
    info = prepare.prepare("imagenet2012", str(tmp_path / "new"), archives=archives)
    assert info.examples == {"train": 9, "validation": 4}
    assert f"{left} (0.1 GB) is from a preparation that was cut off: delete it" in capsys.readouterr().err
    assert left.is_dir()


@pytest.mark.parametrize("stopped_by", [KeyboardInterrupt, OSError])
def test_a_preparation_that_is_stopped_leaves_nothing_behind(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_by: type[BaseException]
) -> None:
    """By Ctrl-C, or by a disk that is full after all."""

    def stop(*_: object) -> None:
        raise stopped_by("here")

    monkeypatch.setattr(imagenet.shuffle, "MAX_MEM_BUFFER_SIZE", 500)
    monkeypatch.setattr(imagenet.Bucket, "_write", stop)
    with pytest.raises(KeyboardInterrupt if stopped_by is KeyboardInterrupt else UserError, match="here"):
        prepare.prepare("imagenet2012", str(tmp_path / "new"), archives=archives)
    assert [path for path in tmp_path.glob("new/**/*") if path.is_file() or path.name.startswith("incomplete")] == []


@pytest.mark.parametrize("damage", ["cut", "header", "inner header"])
def test_an_archive_that_breaks_off_leaves_nothing_behind(
    archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    """As where the digest in the table were that of the damaged file. tarfile takes a damaged header for the end."""
    file = archives / "ILSVRC2012_img_train.tar"
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        name = f"{SYNSETS[1]}.tar" if damage == "header" else f"{SYNSETS[0]}_1.JPEG"
        content[content.index(name.encode()) + 150] ^= 0xFF  # the checksum
    file.write_bytes(content)
    table = (replace(imagenet.ARCHIVES[0], bytes=len(content), sha256=hashlib.sha256(content).hexdigest()), imagenet.ARCHIVES[1])
    monkeypatch.setattr(imagenet, "ARCHIVES", table)
    refused(tmp_path, archives, "imagenet2012 could not be prepared in .*ReadError|held [0-9]+ images, not 9")


def test_another_number_of_images_leaves_nothing_behind(archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "ARCHIVES", (replace(imagenet.ARCHIVES[0], examples=10), imagenet.ARCHIVES[1]))
    refused(tmp_path, archives, "ILSVRC2012_img_train.tar held 9 images, not 10: what was written of it is removed")
    monkeypatch.setattr(imagenet, "ARCHIVES", (replace(imagenet.ARCHIVES[0], examples=9), replace(imagenet.ARCHIVES[1], examples=3)))
    refused(tmp_path, archives, "ILSVRC2012_img_val.tar held 4 images, not 3")


def test_the_command_line_prepares_and_refuses(archives: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cli.main(["prepare", "imagenet2012", "--from", str(archives), "--data-dir", str(tmp_path / "new")])
    assert "9 train, 4 validation" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        cli.main(["prepare", "digits", "--from", str(archives), "--data-dir", str(tmp_path / "other")])
    assert stopped.value.code == 2
    assert "--from is the folder of ImageNet's archives" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        cli.main(["prepare", "imagenet2012", "--data-dir", str(tmp_path / "other")])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("resnet-jax: imagenet2012 is made of archives")
    assert "https://image-net.org/download-images" in said
    with (archives / "ILSVRC2012_img_train.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["prepare", "imagenet2012", "--from", str(archives), "--data-dir", str(tmp_path / "other")])
    assert stopped.value.code == 2
    assert "ILSVRC2012_img_train.tar has" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
