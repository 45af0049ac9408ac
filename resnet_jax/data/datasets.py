"""Image-classification sets: TFDS sets prepared on disk, read without TensorFlow, and folders."""

import contextlib
import functools
import hashlib
import io
import json
import os
import re
import warnings
from collections import ChainMap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import Int32, UInt8
from PIL import Image

from resnet_jax.errors import UserError, require

HOME_DATA_DIR = Path("~/tensorflow_datasets")
Encoded = Sequence[Any]  # of encoded images and labels
# A few images of ImageNet have corrupt EXIF data, which is not used.
warnings.filterwarnings("ignore", module="PIL")


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """Metadata of a set."""

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
    """Images of a split or a batch in order, each in one view or several."""

    images: UInt8[np.ndarray, "n *views h w c"]
    labels: Int32[np.ndarray, "n"]
    """-1: padding of a batch."""

    def __len__(self) -> int:
        return len(self.labels)


def data_dirs(data_dir: str | None = None) -> list[Path]:
    """The argument, ``$TFDS_DATA_DIR``, the default of TFDS."""
    directories = (data_dir, os.environ.get("TFDS_DATA_DIR"), HOME_DATA_DIR)
    return [Path(os.path.expanduser(directory)) for directory in directories if directory]


def prepared(data_dir: str | None = None) -> dict[str, Path]:
    """Folder of every prepared set; the first of ``data_dirs`` and the newest version win."""
    return dict(ChainMap(*map(prepared_in, data_dirs(data_dir))))


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
    """Returns whether a name is the path of a folder, not of TFDS."""
    return os.sep in name or name.startswith((".", "~"))


def describe(name: str, data_dir: str | None = None) -> DatasetInfo:
    """Describes a prepared set, or a folder ``SPLIT/CLASS/IMAGE`` by its path."""
    if is_folder(name):
        root = Path(os.path.expanduser(name))
        try:
            return _scan(root).info
        except OSError as error:
            raise UserError(f"{root} cannot be read ({error}).") from error
    folder = prepared(data_dir).get(name)
    if folder is None:
        searched = ", ".join(map(str, data_dirs(data_dir)))
        remedy = f"Run: resnet-jax prepare {name}"
        raise UserError(f"data set {name!r} is not prepared in {searched}. {remedy}")
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        kind, remedy = info.get("fileFormat"), f"Run: resnet-jax prepare {name} --data-dir DIR"
        require(kind == "array_record", f"{folder} holds {kind} files, not array_record. {remedy}")
        features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
        is_labeled = {"image", "label"} <= features.keys()
        require(is_labeled, f"{name} has {sorted(features)}, but 'image' and 'label' are needed.")
        shape = map(int, features["image"]["image"]["shape"]["dimensions"])
        splits = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
        return DatasetInfo(
            name=name,
            version=folder.name,
            directory=folder,
            examples=splits,
            image_shape=tuple(size if size > 0 else None for size in shape),
            num_classes=int(features["label"]["classLabel"]["numClasses"]),
        )
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = f"Delete it and run: resnet-jax prepare {name}"
        raise UserError(f"{folder} is corrupt ({error!r}). {remedy}") from error


def class_names(info: DatasetInfo) -> list[str]:
    """Class names by label; numbers if the set has no names."""
    if is_folder(info.name):
        return _scan(info.directory).classes
    file = info.directory / "label.labels.txt"
    names = file.read_text().splitlines() if file.is_file() else []
    return names if len(names) == info.num_classes else list(map(str, range(info.num_classes)))


class _Lazy(Encoded):
    """Encoded examples that are read one at a time."""

    def __init__(self, items: Sequence[Any], read: Callable[[Any], tuple[bytes, int]]):
        self._items, self._read = items, read

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._read(self._items[index])


def encoded(info: DatasetInfo, split: str) -> Encoded:
    """Random access to the encoded images and the labels of a split."""
    _require_split(info, split)
    if is_folder(info.name):
        files = _scan(info.directory).splits[split]
        return _Lazy(files, lambda item: (Path(item[0]).read_bytes(), item[1]))
    import tensorflow_datasets as tfds  # takes 0.8 s

    builder: Any = tfds.builder_from_directory(info.directory)
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = builder.as_data_source(split, decoders=decoders)
    return _Lazy(records, lambda record: (record["image"], int(record["label"])))


def _require_split(info: DatasetInfo, split: str) -> None:
    splits = sorted(info.examples)
    require(split in splits, f"{info.name} has no split {split!r}; it has {splits}.")


def example(source: Encoded, info: DatasetInfo, split: str, index: int) -> dict[str, Any]:
    """Decodes an example of ``encoded`` to ``image`` and ``label``."""
    try:
        content, label = source[index]
        image = decode(content, info.image_shape[2] or 3)
        if None not in info.image_shape and image.shape != info.image_shape:
            raise ValueError(f"its image is {image.shape}, not {info.image_shape}")
        return {"image": image, "label": label}
    except Exception as error:  # ArrayRecord and the decoders raise many types.
        damaged = f"{shard_of(info, split, index)}: example {index} of split {split!r} is damaged"
        remedy = f"Prepare {info.name} again, or replace the file."
        raise UserError(f"{damaged} ({error}). {remedy}") from error


@functools.lru_cache(maxsize=4)
def read(info: DatasetInfo, split: str) -> Examples:
    """Decodes a split of images of one size into read-only arrays, once per process."""
    differ = f"the images of {info.name} differ in size. Give a crop to stream them."
    require(None not in info.image_shape, differ)
    source, count = encoded(info, split), info.examples[split]
    images = np.empty([count, *(size or 0 for size in info.image_shape)], np.uint8)
    labels = np.empty(count, np.int32)
    for index in range(count):
        record = example(source, info, split, index)
        images[index], labels[index] = record["image"], record["label"]
    images.flags.writeable = labels.flags.writeable = False
    return Examples(images, labels)


def decode(encoded: bytes, channels: int = 3) -> UInt8[np.ndarray, "h w c"]:
    """Decodes an image as RGB (``channels=3``) or gray (1). Raises ValueError for invalid bytes.

    An EXIF orientation is ignored. Pillow decodes ImageNet's 22 CMYK images and its one PNG.
    """
    mode = "L" if channels == 1 else "RGB"
    try:
        jpeg = channels == 3 and encoded[:2] == b"\xff\xd8"
        if jpeg and simplejpeg.decode_jpeg_header(encoded)[2] in ("YCbCr", "Gray", "RGB"):
            return simplejpeg.decode_jpeg(encoded, "RGB")
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode in ("I", "F"):
                raise ValueError("its pixels have 32 bits")
            if image.mode.startswith("I;16"):  # Pillow would clip to 255.
                image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
            pixels = np.array(image if image.mode == mode else image.convert(mode))
        return pixels.reshape(*pixels.shape[:2], channels)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(str(error)) from error


_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
_SUFFIXES += (".ppm", ".pgm", ".avif")
# Names of folders and of the splits of TFDS.
_SPLITS = {"train": "train", "test": "test"}
_SPLITS |= dict.fromkeys(("validation", "val", "valid"), "validation")


class _Folder(NamedTuple):
    info: DatasetInfo
    classes: list[str]
    splits: dict[str, list[tuple[str, int]]]  # path and label of every image


@functools.lru_cache(maxsize=8)
def _scan(root: Path) -> _Folder:
    """Scans a folder. Its version is a hash of all names and sizes."""
    flat: dict[tuple[str, str], list[str]] = {}
    files: dict[tuple[str, str], list[str]] = {}  # by folders of split and class
    for folder, subfolders, names in os.walk(root, onerror=_raise, followlinks=True):
        # Hidden files are those of systems, such as ._1.jpg of macOS.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        paths = [os.path.join(folder, name) for name in names if not name.startswith(".")]
        parts = Path(folder).relative_to(root).parts
        if len(parts) == 1:
            flat["train", parts[0]] = paths
        elif parts:
            files.setdefault((parts[0], parts[1]), []).extend(paths)
    if not files and not {name for _, name in flat} & _SPLITS.keys():
        files = flat
    folders: dict[str, str] = {}
    for folder in sorted({folder for folder, _ in files}):
        split = _SPLITS.get(folder, folder)
        is_only = folders.setdefault(split, folder) == folder
        require(is_only, f"{root} has two folders for the split {split!r}. Rename one of them.")
    classes = sorted({name for _, name in files})
    digest, splits = hashlib.sha256(), {}
    for split, folder in sorted(folders.items()):
        images = {}
        for label, name in enumerate(classes):
            place, present = f"{name!r} of split {split!r} of {root}", files.get((folder, name))
            require(present is not None, f"there is no class folder {place}.")
            paths = [path for path in present or () if path.lower().endswith(_SUFFIXES)]
            may_lack = split != "train" and not present
            require(bool(paths) or may_lack, f"the class {place} has no images.")
            for path in sorted(paths):
                size = os.stat(path).st_size
                require(size > 0, f"{path} is empty. Remove or replace it.")
                line = f"{split}{path.removeprefix(str(root))} {size}\n"
                key = hashlib.sha256(line.encode(errors="surrogateescape")).digest()
                digest.update(key)
                images[key] = path, label
        # The classes are mixed, so that the last images can be held out.
        splits[split] = [images[key] for key in sorted(images)]
    has_images = bool(splits) and all(splits.values())
    require(has_images, f"{root} has no images in folders SPLIT/CLASS, such as train/dog.")
    info = DatasetInfo(
        name=str(root) if os.sep in str(root) else f".{os.sep}{root}",
        version=digest.hexdigest()[:16],
        directory=root,
        examples={split: len(images) for split, images in splits.items()},
        image_shape=(None, None, 3),
        num_classes=len(classes),
    )
    return _Folder(info, classes, splits)


def _raise(error: OSError) -> None:
    raise error


def shards(info: DatasetInfo, split: str) -> list[tuple[Path, int]]:
    """Files of a split of a TFDS set, and their numbers of examples."""
    splits = json.loads((info.directory / "dataset_info.json").read_text())["splits"]
    (lengths,) = [entry["shardLengths"] for entry in splits if entry["name"] == split]
    prefix = f"{info.directory.parent.name}-{split}.array_record"
    return [
        (info.directory / f"{prefix}-{number:05d}-of-{len(lengths):05d}", int(length))
        for number, length in enumerate(lengths)
    ]


def shard_of(info: DatasetInfo, split: str, index: int) -> Path:
    if is_folder(info.name):
        return Path(_scan(info.directory).splits[split][index][0])
    files = shards(info, split)
    ends = np.cumsum([length for _, length in files])
    return files[np.searchsorted(ends, index, side="right")][0]


def check(info: DatasetInfo, split: str) -> None:
    """Checks that the files of a TFDS split exist.

    Counts the records of up to 64 files and reads the first and the last of each.
    """
    _require_split(info, split)
    if is_folder(info.name):
        return
    from array_record.python import array_record_module as array_record  # pyright: ignore

    files = shards(info, split)
    remedy = f"Copy it again, or delete {info.directory} and run: resnet-jax prepare {info.name}"
    if missing := [file for file, _ in files if not file.exists()]:
        part = f"{len(missing)} of the {len(files)} files of split {split!r}"
        raise UserError(f"{missing[0]} is missing ({part}). {remedy}")
    # Opening a file takes a millisecond, and more over a network.
    for number in np.unique(np.linspace(0, len(files) - 1, 64, dtype=int)):
        file, length = files[number]
        try:
            with contextlib.closing(array_record.ArrayRecordReader(str(file))) as reader:
                if reader.num_records() != length:
                    raise ValueError(f"it holds {reader.num_records()} records, not {length}")
                if length and not all(reader.read([0, length - 1])):
                    raise ValueError("a record is empty")
        except Exception as error:  # ValueError, RuntimeError or IndexError
            problem = f"{file}, of split {split!r}, is damaged ({error!s:.200})"
            raise UserError(f"{problem}. {remedy}") from error
