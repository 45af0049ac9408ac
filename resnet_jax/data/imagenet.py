"""ImageNet (ILSVRC 2012) prepared from its two archives without TensorFlow: TFDS's own builder, its uses of TensorFlow replaced."""

import hashlib
import io
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import wrap_file
from tensorflow_datasets.core import shuffle
from tensorflow_datasets.core.utils.py_utils import temporary_assignment
from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder, imagenet_common

from resnet_jax.errors import UserError

JPEG_QUALITY = 100
"""Of the 23 images that are encoded anew; colours at half the resolution, as Pillow has it by default. TFDS's own quality."""
# What is on the disk at most, as a multiple of the archives. TFDS's shuffler first writes a split to a thousand temporary files, then reads
# each, deletes it and appends its records to the set: never more than a thousandth lies there twice. A record is a tenth of a percent
# larger than its image, a tar member 512 to 1,023 bytes; the rest is for the file system.
_WRITTEN = 1.05
# Bytes a second of a hard disk, to say how long reading takes.
_DISK = 150e6


@dataclass(frozen=True)
class Archive:
    """One of the files that have to be fetched by hand."""

    file: str
    split: str
    title: str
    """What it is called where it is to be had."""
    examples: int
    bytes: int
    sha256: str


def _archives() -> tuple[Archive, ...]:
    """Sizes and digests as TFDS has them; the numbers of images are those of Russakovsky et al. 2015 (arXiv 1409.0575)."""
    lines = tfds.core.tfds_path("datasets/imagenet2012/checksums.tsv").read_text().splitlines()
    published = {url.rpartition("/")[2]: (int(size), digest) for url, size, digest in (line.split()[:3] for line in lines)}
    return tuple(
        Archive(file, split, title, examples, *published[file])
        for file, split, title, examples in (
            ("ILSVRC2012_img_train.tar", "train", "Training images (Task 1 & 2)", 1_281_167),
            ("ILSVRC2012_img_val.tar", "validation", "Validation images (all tasks)", 50_000),
        )
    )


ARCHIVES = _archives()


class Imagenet2012(imagenet2012_dataset_builder.Builder, skip_registration=True):
    """The same name, version, keys, order and examples as TFDS's ``imagenet2012``, so that what it writes is read as such.

    Args:
      archives: folder of the two archives; TFDS's own arguments beside it.
    """

    name = "imagenet2012"

    def __init__(self, *, archives: Path, **of_tfds: Any):
        self._archives = archives
        super().__init__(**of_tfds)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        with temporary_assignment(shuffle, "_Bucket", Bucket):
            super()._download_and_prepare(dl_manager, download_config)

    def _split_generators(self, dl_manager: Any) -> Any:
        del dl_manager
        return {archive.split: self._generate_examples(archive) for archive in ARCHIVES}

    def _generate_examples(self, archive: Archive) -> Iterator[tuple[str, dict[str, Any]]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        path = self._archives / archive.file
        count = 0
        for name, content, label in _validation(path) if archive.split == "validation" else _training(path):
            yield name, {"file_name": name, "image": io.BytesIO(plain_jpeg(name, content)), "label": label}
            count += 1
        # Here the set has not got its name yet, and TFDS removes what it wrote. tarfile takes a damaged header for the end of an archive.
        if count != archive.examples:
            raise UserError(f"{path} held {count:,} images, not {archive.examples:,}: what was written of it is removed; fetch it again")


class Bucket:
    """A temporary file of TFDS's shuffler, which has TensorFlow write it once a split exceeds 1 GB: the same in Python.

    Records are appended by the quarter of a megabyte, and no file stays open: TFDS's thousand are as many as a process may have.
    """

    _PIECE = 1 << 18
    # 128 bits of the hashed key, and the length of the record.
    _HEADER = struct.Struct("=QQQ")

    def __init__(self, path: Any):
        self._path = Path(path)
        self._length = self._pending_bytes = 0
        self._pending: list[bytes] = []

    def __len__(self) -> int:
        return self._length

    def add(self, key: int, data: bytes) -> None:
        """Appends a record."""
        self._pending += [self._HEADER.pack(key >> 64, key & (1 << 64) - 1, len(data)), data]
        self._pending_bytes += len(data)
        self._length += 1
        if self._pending_bytes >= self._PIECE:
            self._write()

    def _write(self) -> None:
        with self._path.open("ab") as file:
            file.writelines(self._pending)
        self._pending, self._pending_bytes = [], 0

    def read_values(self) -> Iterator[tuple[int, bytes]]:
        """Yields keys and records in the order in which they came."""
        self._write()
        with self._path.open("rb") as file:
            while header := file.read(self._HEADER.size):
                high, low, length = self._HEADER.unpack(header)
                yield high << 64 | low, file.read(length)

    def del_file(self) -> None:
        """Removes the file."""
        self._path.unlink()


def plain_jpeg(name: str, content: bytes) -> bytes:
    """Makes RGB JPEGs of the 22 images that are CMYK and the one that is a PNG, as TFDS does since version 3.0.0; others are unchanged."""
    if name not in {*imagenet2012_dataset_builder.CMYK_IMAGES, *imagenet2012_dataset_builder.PNG_IMAGES}:
        return content
    written = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.convert("RGB").save(written, format="JPEG", quality=JPEG_QUALITY)
    return written.getvalue()


def bytes_written() -> int:
    """What the set takes on the disk at most while it is written."""
    return int(_WRITTEN * sum(archive.bytes for archive in ARCHIVES))


def check_files(folder: Path | None) -> Path:
    """Looks for the archives by name and size; returns their folder.

    Raises:
      UserError: where no folder is given, for archives that are missing, with where to get them, and those that were cut.
    """
    missing = [archive for archive in ARCHIVES if folder is None or not (folder / archive.file).is_file()]
    if folder is None or missing:
        wanted = " and ".join(f'{each.file} ({each.bytes / 1e9:.1f} GB, there "{each.title}")' for each in missing)
        begin = "imagenet2012 is made of archives that have to be fetched by hand" if folder is None else f"{folder} lacks"
        raise UserError(
            f"{begin}: {wanted}. Register at https://image-net.org/download-images, fetch them from the page ILSVRC2012 into one folder, "
            "then run: resnet-jax prepare imagenet2012 --from DIR"
        )
    for archive in ARCHIVES:
        file = folder / archive.file
        if file.stat().st_size != archive.bytes:
            raise UserError(f"{file} has {file.stat().st_size:,} bytes; the archive of 2012 has {archive.bytes:,}: fetch it again")
    return folder


def check_digests(folder: Path) -> None:
    """Reads both archives once, with a bar on stderr; where that is no terminal, with a line.

    Raises:
      UserError: for an archive that is damaged, or not that of 2012.
    """
    console = Console(stderr=True)
    for archive in ARCHIVES:
        doing = f"checking the sha256 of {archive.file}"
        if not console.is_terminal:
            minutes = archive.bytes / _DISK / 60
            console.print(f"{doing}: {archive.bytes / 1e9:.1f} GB, {minutes:.0f} minutes at {_DISK / 1e6:.0f} MB/s", soft_wrap=True)
        shown = {"description": doing, "transient": True, "console": console, "disable": not console.is_terminal}
        with (folder / archive.file).open("rb") as file, wrap_file(file, archive.bytes, **shown) as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()  # pyright: ignore[reportArgumentType]
        if found != archive.sha256:
            raise UserError(
                f"{folder / archive.file} is damaged, or not the archive of 2012: its sha256 is {found}, not {archive.sha256}: "
                "fetch it again"
            )


def _training(path: Path) -> Iterator[tuple[str, bytes, str]]:
    """Names, contents and classes out of an archive of archives, one for each class; one image is in memory at a time."""
    with tarfile.open(path) as outer:
        for member in outer:
            for name, content in _members(outer.extractfile(member)):
                yield name, content, member.name.removesuffix(".tar")


def _validation(path: Path) -> Iterator[tuple[str, bytes, str]]:
    # TFDS's list has the labels in the order of the names, which is not that of the archive.
    listed = tfds.core.tfds_path(imagenet_common._VALIDATION_LABELS_FNAME).read_text().split()
    with tarfile.open(path) as archive:
        labels = dict(zip(sorted(archive.getnames()), listed, strict=False))
    with path.open("rb") as file:
        for name, content in _members(file):
            yield name, content, labels[name]


def _members(archive: Any) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=archive) as opened:
        for member in opened:
            content = opened.extractfile(member)
            if content is not None:
                yield member.name, content.read()
