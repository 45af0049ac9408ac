"""Prepared TFDS image-classification sets by name, read without TensorFlow and never downloaded."""

import bisect
import functools
import hashlib
import io
import itertools
import json
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Int32, UInt8
from PIL import Image

from resnet_jax.errors import UserError

HOME_DATA_DIR = Path("~/tensorflow_datasets")  # the default of TFDS


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Description of a prepared set."""

    name: str
    version: str
    directory: Path
    """``DATA_DIR/NAME/VERSION``."""
    examples: dict[str, int]
    """Number of examples per split."""
    image_shape: tuple[int | None, ...]
    """Height, width, channels; None if images differ."""
    num_classes: int

    def __hash__(self) -> int:
        return hash(self.directory)


@dataclass(frozen=True)
class Examples:
    """Images of a split or a batch, in the set's own order, each in one view or several."""

    images: UInt8[np.ndarray, "n *views h w c"]
    labels: Int32[np.ndarray, "n"]
    """-1: padding of a batch."""

    def __len__(self) -> int:
        return len(self.labels)


def data_dirs(data_dir: str | None = None) -> list[Path]:
    """Directories that are searched, in this order: the argument, ``$TFDS_DATA_DIR``, the default of TFDS."""
    named = [data_dir, os.environ.get("TFDS_DATA_DIR")]
    return [Path(d).expanduser() for d in [*filter(None, named), str(HOME_DATA_DIR)]]


def prepared(data_dir: str | None = None) -> dict[str, Path]:
    """Name -> folder of every prepared set; the first of ``data_dirs`` and the newest version win."""
    folders: dict[str, Path] = {}
    for directory in reversed(data_dirs(data_dir)):
        folders |= prepared_in(directory)
    return folders


def prepared_in(directory: Path) -> dict[str, Path]:
    """Name -> folder of the newest version of every set prepared in one directory."""
    folders = [file.parent for file in directory.glob("*/*/dataset_info.json")]
    # An interrupted preparation leaves NAME/incomplete.XYZ_VERSION.
    versions = {
        folder: tuple(map(int, folder.name.split(".")))
        for folder in folders
        if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)
    }
    return {folder.parent.name: folder for folder in sorted(versions, key=versions.__getitem__)}


def is_folder(name: str) -> bool:
    """Returns True for the path of a folder, False for a name in TFDS."""
    return os.sep in name or name.startswith((".", "~"))


def describe(name: str, data_dir: str | None = None) -> DatasetInfo:
    """Finds a prepared set, or a folder ``SPLIT/CLASS/IMAGE`` by its path. Reads metadata files only; TFDS is not imported.

    Raises:
      UserError: if the set is not prepared, or its metadata is corrupt.
    """
    if is_folder(name):
        return describe_folder(Path(name).expanduser())
    folder = prepared(data_dir).get(name)
    if folder is None:
        searched = ", ".join(map(str, data_dirs(data_dir)))
        raise UserError(
            f"data set {name!r} is not prepared in {searched}. Prepare it with: resnet-jax prepare {name}"
        )
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        if info.get("fileFormat") != "array_record":
            raise UserError(
                f"{folder} holds {info.get('fileFormat')} files, but random access needs array_record. "
                f"Prepare it in another directory: resnet-jax prepare {name} --data-dir DIR"
            )
        features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
        if not {"image", "label"} <= features.keys():
            raise UserError(
                f"image classification needs the features 'image' and 'label', but {name} has {sorted(features)}."
            )
        shape = [int(size) for size in features["image"]["image"]["shape"]["dimensions"]]
        return DatasetInfo(
            name=name,
            version=folder.name,
            directory=folder,
            examples={
                split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]
            },
            image_shape=tuple(size if size > 0 else None for size in shape),
            num_classes=int(features["label"]["classLabel"]["numClasses"]),
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the metadata of {name} in {folder} is corrupt ({error!r}). Delete it and run: resnet-jax prepare {name}"
        ) from error


@functools.lru_cache(maxsize=4)
def read(info: DatasetInfo, split: str) -> Examples:
    """Decodes a whole split of small images of one size into read-only arrays, shared within the process."""
    if None in info.image_shape:
        raise UserError(
            f"the images of {info.name} differ in size, so it cannot be one array on the device. Give a crop to stream it."
        )
    source, count = encoded(info, split), info.examples[split]
    images = np.empty((count, *info.image_shape), np.uint8)  # pyright: ignore[reportArgumentType, reportCallIssue]
    labels = np.empty(count, np.int32)
    for index in range(count):
        record = example(source, info, split, index)
        images[index], labels[index] = record["image"], record["label"]
    images.flags.writeable = labels.flags.writeable = False
    return Examples(images, labels)


class Encoded(Sequence[tuple[bytes, int]]):
    """Random access to the encoded images and labels of a split. Opened lazily, once per process."""

    def __init__(self, info: DatasetInfo, split: str):
        self._info, self._split = info, split

    @functools.cached_property
    def _records(self) -> Any:
        # Imported lazily: TFDS takes 0.4 s.
        import tensorflow_datasets as tfds

        from resnet_jax.data import prepare  # noqa: F401  (registers the builder)

        return tfds.data_source(
            f"{self._info.name}:{self._info.version}",
            split=self._split,
            data_dir=self._info.directory.parents[1],
            download=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"_info": self._info, "_split": self._split}

    def __len__(self) -> int:
        return self._info.examples[self._split]

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        record = self._records[index]
        return record["image"], int(record["label"])


def encoded(info: DatasetInfo, split: str) -> Sequence[Any]:
    """Random access to a split: (encoded image, label) by index. Raises UserError for an unknown split."""
    if split not in info.examples:
        raise UserError(f"{info.name} has no split {split!r}; it has {sorted(info.examples)}")
    if is_folder(info.name):
        return opened(info, split)
    return Encoded(info, split)


def example(source: Sequence[Any], info: DatasetInfo, split: str, index: int) -> dict[str, Any]:
    """Decodes one example of an ``encoded`` split to ``image`` and ``label``."""
    # Imported lazily: describing a set needs no decoder.

    try:
        bytes_, label = source[index]
        image = decode(bytes_, info.image_shape[2] or 3)
        if None not in info.image_shape and image.shape != info.image_shape:
            raise ValueError(f"its image is {image.shape}, not {info.image_shape}")
        return {"image": image, "label": label}
    except Exception as error:
        # ArrayRecord and the decoders raise many types.

        raise UserError(
            f"{shard_of(info, split, index)}: example {index} of split {split!r} is damaged ({error}). "
            f"Prepare {info.name} again, or replace the file."
        ) from error


def class_names(info: DatasetInfo) -> list[str]:
    """Class names by label; the numbers themselves if the set has no names."""
    if is_folder(info.name):
        return folder_names(info.directory)
    file = info.directory / "label.labels.txt"
    names = file.read_text().splitlines() if file.is_file() else []
    return (
        names
        if len(names) == info.num_classes
        else [str(number) for number in range(info.num_classes)]
    )


SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
# Folder names to the split names of TFDS.
_SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


class Files(Sequence[tuple[bytes, int]]):
    """Encoded images and labels of a split, in the order of class and file names."""

    def __init__(self, files: tuple[str, ...], labels: tuple[int, ...]):
        self._files, self._labels = files, labels

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: Any) -> Any:
        return self.file(index).read_bytes(), self._labels[index]

    def file(self, index: int) -> Path:
        """Path of an example."""
        return Path(self._files[index])


class _Scan(NamedTuple):
    classes: list[str]
    splits: dict[str, Files]
    version: str


def describe_folder(root: Path) -> DatasetInfo:
    """Scans a folder, once per process. Its version is a hash of all names and sizes."""
    scan = _scan(str(root))
    return DatasetInfo(
        name=str(root) if os.sep in str(root) else f".{os.sep}{root}",
        version=scan.version,
        directory=root,
        examples={split: len(files) for split, files in scan.splits.items()},
        image_shape=(None, None, 3),
        num_classes=len(scan.classes),
    )


def opened(info: DatasetInfo, split: str) -> Files:
    """Random access to a split."""
    return _scan(str(info.directory)).splits[split]


def folder_names(root: Path) -> list[str]:
    """Class names by label."""
    return _scan(str(root)).classes


@functools.lru_cache(maxsize=8)
def _scan(root: str) -> _Scan:
    try:
        # {split: {class: [(path, size)]}}
        tree = [
            (split, {name: _images(path) for name, path in _folders(path)})
            for split, path in _folders(root)
        ]
        if not any(classes for _, classes in tree) and not any(
            split in _SPLITS for split, _ in tree
        ):
            tree = [("train", {name: _images(path) for name, path in _folders(root)})]
    except OSError as error:
        raise UserError(
            f"{root} cannot be read ({error}). Give the path of a folder SPLIT/CLASS/IMAGE."
        ) from error
    tree = [(_SPLITS.get(split, split), classes) for split, classes in tree if classes]
    classes = sorted({name for _, split in tree for name in split})
    digest, splits = hashlib.sha256(), {}
    for split, by_class in sorted(tree, key=lambda item: item[0]):
        if split in splits:
            raise UserError(f"{root} has two folders for the split {split!r}. Rename one of them.")
        if missing := sorted(set(classes) - by_class.keys()):
            raise UserError(
                f"split {split!r} of {root} lacks the class {missing[0]!r}. All splits need the same class folders, even if empty."
            )
        files = [(label, *file) for label, name in enumerate(classes) for file in by_class[name]]
        if not files:
            raise UserError(
                f"split {split!r} of {root} has no image ({', '.join(SUFFIXES)}) in folders SPLIT/CLASS."
            )
        lines = (
            f"{split}/{classes[label]}/{os.path.basename(path)} {size}\n"
            for label, path, size in files
        )
        digest.update("".join(lines).encode(errors="surrogateescape"))
        splits[split] = Files(
            tuple(path for _, path, _ in files), tuple(label for label, _, _ in files)
        )
    if not splits:
        raise UserError(
            f"{root} has no images in folders SPLIT/CLASS, for example train/dog/1.jpg."
        )
    return _Scan(classes, splits, digest.hexdigest()[:16])


def _images(folder: str) -> list[tuple[str, int]]:
    """Paths and sizes. Names with a leading dot belong to systems, such as ._1.jpg of macOS."""
    with os.scandir(folder) as entries:
        images = (
            entry
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".")
        )
        return sorted((entry.path, entry.stat().st_size) for entry in images if entry.is_file())


def _folders(parent: str) -> list[tuple[str, str]]:
    with os.scandir(parent) as entries:
        return sorted(
            (entry.name, entry.path)
            for entry in entries
            if entry.is_dir() and not entry.name.startswith(".")
        )


# Opening a file takes a millisecond, and more over a network.
_OPENED = 64


def shards(info: DatasetInfo, split: str) -> list[tuple[Path, int]]:
    """Files of a split of a TFDS set with their numbers of examples, from its metadata."""
    metadata = json.loads((info.directory / "dataset_info.json").read_text())
    (lengths,) = [
        [int(n) for n in entry["shardLengths"]]
        for entry in metadata["splits"]
        if entry["name"] == split
    ]
    # Named as TFDS names them; the template in the metadata could lead anywhere.
    prefix = f"{info.directory.parent.name}-{split}.array_record"
    return [
        (info.directory / f"{prefix}-{number:05d}-of-{len(lengths):05d}", length)
        for number, length in enumerate(lengths)
    ]


def shard_of(info: DatasetInfo, split: str, index: int) -> Path:
    """File of an example."""
    if is_folder(info.name):
        return opened(info, split).file(index)
    files = shards(info, split)
    return files[
        bisect.bisect_right(list(itertools.accumulate(length for _, length in files)), index)
    ][0]


def check(info: DatasetInfo, split: str) -> None:
    """Checks that all files of a split exist; opens up to 64 of them, counts their records and reads the first and the last.

    Truncated and missing files are found. A flipped bit in another record is found when that record is read.
    """
    encoded(info, split)
    if is_folder(info.name):
        return
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    files = shards(info, split)
    remedy = f"Copy it again, or delete {info.directory} and run: resnet-jax prepare {info.name}"
    present = {path.name for path in info.directory.iterdir()}
    missing = [file for file, _ in files if file.name not in present]
    if missing:
        raise UserError(
            f"{missing[0]} is missing ({len(missing)} of the {len(files)} files of split {split!r}). {remedy}"
        )
    for number in np.unique(np.linspace(0, len(files) - 1, _OPENED, dtype=int)):
        file, length = files[number]
        try:
            reader = array_record_module.ArrayRecordReader(str(file))
            try:
                if reader.num_records() != length:
                    raise ValueError(f"it holds {reader.num_records()} records, not {length}")
                if length and not all(reader.read([0, length - 1])):
                    raise ValueError("a record is empty")
            finally:
                reader.close()
        except Exception as error:
            # ArrayRecord raises ValueError, RuntimeError or IndexError.
            raise UserError(
                f"{file}, of split {split!r}, is damaged ({str(error).splitlines()[0]:.200}). {remedy}"
            ) from error


def decode(encoded: bytes, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image as RGB (``channels=3``) or gray (1). An EXIF orientation is ignored.

    Pillow decodes the 22 training images of ImageNet that are CMYK and the one that is a PNG.

    Raises:
      ValueError: if the bytes are no image, or a corrupt one.
    """
    try:
        if (
            channels == 3
            and encoded[:2] == b"\xff\xd8"
            and simplejpeg.decode_jpeg_header(encoded)[2] in ("YCbCr", "Gray", "RGB")
        ):
            return simplejpeg.decode_jpeg(encoded, "RGB")
        with warnings.catch_warnings():
            # A few images of ImageNet have corrupt EXIF data, which is not used.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:
                pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], channels)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error
