"""Image-classification sets: TFDS sets prepared on disk, read without TensorFlow, and folders."""

import contextlib
import functools
import hashlib
import io
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
Encoded = Sequence[tuple[bytes, int]]
"""Random access to the encoded images and labels of a split."""


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Description of a set."""

    name: str
    version: str
    directory: Path
    """``DATA_DIR/NAME/VERSION``, or the folder of a set that is read in place."""
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
    """Directories in the order of the search: the argument, ``$TFDS_DATA_DIR``, TFDS's default."""
    directories = [data_dir, os.environ.get("TFDS_DATA_DIR"), str(HOME_DATA_DIR)]
    return [Path(directory).expanduser() for directory in directories if directory]


def prepared(data_dir: str | None = None) -> dict[str, Path]:
    """Folder of every prepared set; the first of ``data_dirs`` and the newest version win."""
    folders: dict[str, Path] = {}
    for directory in reversed(data_dirs(data_dir)):
        folders |= prepared_in(directory)
    return folders


def prepared_in(directory: Path) -> dict[str, Path]:
    """Folder of the newest version of every set in one directory."""
    folders = [
        file.parent
        for file in directory.glob("*/*/dataset_info.json")
        # An interrupted preparation leaves NAME/incomplete.XYZ_VERSION.
        if re.fullmatch(r"\d+\.\d+\.\d+", file.parent.name)
    ]
    folders.sort(key=lambda folder: tuple(map(int, folder.name.split("."))))
    return {folder.parent.name: folder for folder in folders}


def is_folder(name: str) -> bool:
    """Returns True for the path of a folder, False for a name in TFDS."""
    return os.sep in name or name.startswith((".", "~"))


def describe(name: str, data_dir: str | None = None) -> DatasetInfo:
    """Describes a prepared set, or a folder ``SPLIT/CLASS/IMAGE`` by its path.

    Raises:
      UserError: if the set is not prepared, or its metadata is corrupt.
    """
    if is_folder(name):
        return _scan(Path(name).expanduser()).info
    folder = prepared(data_dir).get(name)
    if folder is None:
        searched = ", ".join(map(str, data_dirs(data_dir)))
        raise UserError(
            f"data set {name!r} is not prepared in {searched}. Run: resnet-jax prepare {name}"
        )
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        if info.get("fileFormat") != "array_record":
            raise UserError(
                f"{folder} holds {info.get('fileFormat')} files, not array_record. "
                f"Run: resnet-jax prepare {name} --data-dir DIR"
            )
        features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
        if not {"image", "label"} <= features.keys():
            raise UserError(f"{name} has {sorted(features)}, but 'image' and 'label' are needed.")
        shape = [int(size) for size in features["image"]["image"]["shape"]["dimensions"]]
        splits = {split["name"]: split["shardLengths"] for split in info["splits"]}
        return DatasetInfo(
            name=name,
            version=folder.name,
            directory=folder,
            examples={split: sum(map(int, lengths)) for split, lengths in splits.items()},
            image_shape=tuple(size if size > 0 else None for size in shape),
            num_classes=int(features["label"]["classLabel"]["numClasses"]),
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} is corrupt ({error!r}). Delete it and run: resnet-jax prepare {name}"
        ) from error


def class_names(info: DatasetInfo) -> list[str]:
    """Class names by label; the numbers themselves if the set has no names."""
    if is_folder(info.name):
        return _scan(info.directory).classes
    file = info.directory / "label.labels.txt"
    names = file.read_text().splitlines() if file.is_file() else []
    return names if len(names) == info.num_classes else list(map(str, range(info.num_classes)))


class _Records(Sequence[tuple[bytes, int]]):
    """A split of a prepared set."""

    def __init__(self, info: DatasetInfo, split: str):
        import tensorflow_datasets as tfds  # takes 0.8 s

        builder: Any = tfds.builder_from_directory(info.directory)
        decoders = {"image": tfds.decode.SkipDecoding()}
        self._records: Sequence[Any] = builder.as_data_source(split, decoders=decoders)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        record = self._records[index]
        return record["image"], int(record["label"])


def encoded(info: DatasetInfo, split: str) -> Encoded:
    """Random access to the encoded examples of a split. Raises UserError for an unknown split."""
    _check_split(info, split)
    return _scan(info.directory).splits[split] if is_folder(info.name) else _Records(info, split)


def _check_split(info: DatasetInfo, split: str) -> None:
    if split not in info.examples:
        raise UserError(f"{info.name} has no split {split!r}; it has {sorted(info.examples)}.")


def example(source: Encoded, info: DatasetInfo, split: str, index: int) -> dict[str, Any]:
    """Decodes one example of an ``encoded`` split to ``image`` and ``label``."""
    try:
        content, label = source[index]
        image = decode(content, info.image_shape[2] or 3)
        if None not in info.image_shape and image.shape != info.image_shape:
            raise ValueError(f"its image is {image.shape}, not {info.image_shape}")
        return {"image": image, "label": label}
    except Exception as error:  # ArrayRecord and the decoders raise many types.
        raise UserError(
            f"{shard_of(info, split, index)}: example {index} of split {split!r} is damaged "
            f"({error}). Prepare {info.name} again, or replace the file."
        ) from error


@functools.lru_cache(maxsize=4)
def read(info: DatasetInfo, split: str) -> Examples:
    """Decodes a split of images of one size into read-only arrays, shared within the process."""
    if None in info.image_shape:
        raise UserError(f"the images of {info.name} differ in size. Give a crop to stream them.")
    source = encoded(info, split)
    records = [example(source, info, split, index) for index in range(info.examples[split])]
    images = np.stack([record["image"] for record in records])
    labels = np.array([record["label"] for record in records], np.int32)
    images.flags.writeable = labels.flags.writeable = False
    return Examples(images, labels)


def decode(encoded: bytes, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image as RGB (``channels=3``) or gray (1). An EXIF orientation is ignored.

    Raises ValueError for invalid bytes. Pillow decodes the 22 training images of ImageNet that are
    CMYK and the one that is a PNG.
    """
    try:
        jpeg = channels == 3 and encoded[:2] == b"\xff\xd8"
        if jpeg and simplejpeg.decode_jpeg_header(encoded)[2] in ("YCbCr", "Gray", "RGB"):
            return simplejpeg.decode_jpeg(encoded, "RGB")
        with warnings.catch_warnings():
            # A few images of ImageNet have corrupt EXIF data, which is not used.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(encoded)) as image:
                pixels = np.array(image.convert("L" if channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], channels)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")
# Names of folders to the split names of TFDS.
_SPLITS = {name: name for name in ("train", "validation", "test")}
_SPLITS |= {"val": "validation", "valid": "validation"}


class _Files(Sequence[tuple[bytes, int]]):
    """A split of a folder, in the order of class and file names."""

    def __init__(self, paths: list[str], labels: list[int]):
        self.paths, self._labels = paths, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        return Path(self.paths[index]).read_bytes(), self._labels[index]


class _Folder(NamedTuple):
    info: DatasetInfo
    classes: list[str]
    splits: dict[str, _Files]


@functools.lru_cache(maxsize=8)
def _scan(root: Path) -> _Folder:
    """Scans a folder. Its version is a hash of all names and sizes."""
    try:
        folders = {path.name: _classes(path) for path in _folders(root)}
        if not any(folders.values()) and not folders.keys() & _SPLITS.keys():
            folders = {"train": _classes(root)}
    except OSError as error:
        raise UserError(f"{root} cannot be read ({error}).") from error
    tree: dict[str, dict[str, list[tuple[str, int]]]] = {}
    for name, by_class in folders.items():
        split = _SPLITS.get(name, name)
        if by_class and tree.setdefault(split, by_class) is not by_class:
            raise UserError(f"{root} has two folders for the split {split!r}. Rename one of them.")
    classes = sorted({name for by_class in tree.values() for name in by_class})
    digest, splits = hashlib.sha256(), {}
    for split, by_class in sorted(tree.items()):
        if missing := sorted(set(classes) - by_class.keys()):
            raise UserError(f"split {split!r} of {root} lacks the class folder {missing[0]!r}.")
        files = [
            (label, path, f"{split}/{name}/{os.path.basename(path)} {size}\n")
            for label, name in enumerate(classes)
            for path, size in by_class[name]
        ]
        digest.update("".join(line for _, _, line in files).encode(errors="surrogateescape"))
        splits[split] = _Files([path for _, path, _ in files], [label for label, _, _ in files])
    if not all(map(len, splits.values())) or not splits:
        raise UserError(f"{root} has no images in folders SPLIT/CLASS, such as train/dog.")
    info = DatasetInfo(
        name=str(root) if os.sep in str(root) else f".{os.sep}{root}",
        version=digest.hexdigest()[:16],
        directory=root,
        examples={split: len(files) for split, files in splits.items()},
        image_shape=(None, None, 3),
        num_classes=len(classes),
    )
    return _Folder(info, classes, splits)


def _folders(parent: Path) -> list[Path]:
    return sorted(
        path for path in parent.iterdir() if path.is_dir() and not path.name.startswith(".")
    )


def _classes(folder: Path) -> dict[str, list[tuple[str, int]]]:
    """Paths and sizes of the images of each class."""
    return {path.name: _images(path) for path in _folders(folder)}


def _images(folder: Path) -> list[tuple[str, int]]:
    with os.scandir(folder) as entries:
        return sorted(
            (entry.path, entry.stat().st_size)
            for entry in entries
            if entry.name.lower().endswith(_SUFFIXES)
            # Files of systems, such as ._1.jpg of macOS.
            and not entry.name.startswith(".")
            and entry.is_file()
        )


# Opening a file takes a millisecond, and more over a network.
_OPENED = 64


def shards(info: DatasetInfo, split: str) -> list[tuple[Path, int]]:
    """Files of a split of a TFDS set with their numbers of examples, from its metadata."""
    splits = json.loads((info.directory / "dataset_info.json").read_text())["splits"]
    (lengths,) = [entry["shardLengths"] for entry in splits if entry["name"] == split]
    # Named as TFDS names them; the template in the metadata could lead anywhere.
    prefix = f"{info.directory.parent.name}-{split}.array_record"
    return [
        (info.directory / f"{prefix}-{number:05d}-of-{len(lengths):05d}", int(length))
        for number, length in enumerate(lengths)
    ]


def shard_of(info: DatasetInfo, split: str, index: int) -> Path:
    """File of an example."""
    if is_folder(info.name):
        return Path(_scan(info.directory).splits[split].paths[index])
    files = shards(info, split)
    ends = np.cumsum([length for _, length in files])
    return files[np.searchsorted(ends, index, side="right")][0]


def check(info: DatasetInfo, split: str) -> None:
    """Checks that the files of a split exist, and that up to 64 of them are whole.

    Counts the records of a file and reads the first and the last. A flipped bit in another record
    is found when that record is read.
    """
    _check_split(info, split)
    if is_folder(info.name):
        return
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    files = shards(info, split)
    remedy = f"Copy it again, or delete {info.directory} and run: resnet-jax prepare {info.name}"
    if missing := [file for file, _ in files if not file.exists()]:
        number = f"{len(missing)} of the {len(files)} files of split {split!r}"
        raise UserError(f"{missing[0]} is missing ({number}). {remedy}")
    for number in np.unique(np.linspace(0, len(files) - 1, _OPENED, dtype=int)):
        file, length = files[number]
        try:
            with contextlib.closing(array_record_module.ArrayRecordReader(str(file))) as reader:
                if reader.num_records() != length:
                    raise ValueError(f"it holds {reader.num_records()} records, not {length}")
                if length and not all(reader.read([0, length - 1])):
                    raise ValueError("a record is empty")
        except Exception as error:  # ValueError, RuntimeError or IndexError
            raise UserError(
                f"{file}, of split {split!r}, is damaged ({error!s:.200}). {remedy}"
            ) from error
