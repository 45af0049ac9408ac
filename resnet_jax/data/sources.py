"""Prepared TFDS image-classification sets by name, read without TensorFlow and never downloaded."""

import functools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

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
    versions = {folder: tuple(map(int, folder.name.split("."))) for folder in folders if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)}
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
        from resnet_jax.data import folders

        return folders.describe(Path(name).expanduser())
    folder = prepared(data_dir).get(name)
    if folder is None:
        searched = ", ".join(map(str, data_dirs(data_dir)))
        raise UserError(f"data set {name!r} is not prepared in {searched}. Prepare it with: resnet-jax prepare {name}")
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        if info.get("fileFormat") != "array_record":
            raise UserError(
                f"{folder} holds {info.get('fileFormat')} files, but random access needs array_record. "
                f"Prepare it in another directory: resnet-jax prepare {name} --data-dir DIR"
            )
        features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
        if not {"image", "label"} <= features.keys():
            raise UserError(f"image classification needs the features 'image' and 'label', but {name} has {sorted(features)}.")
        shape = [int(size) for size in features["image"]["image"]["shape"]["dimensions"]]
        return DatasetInfo(
            name=name,
            version=folder.name,
            directory=folder,
            examples={split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]},
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
        raise UserError(f"the images of {info.name} differ in size, so it cannot be one array on the device. Give a crop to stream it.")
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

        from resnet_jax.data import digits  # noqa: F401  (registers the builder)

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
        from resnet_jax.data import folders

        return folders.opened(info, split)
    return Encoded(info, split)


def example(source: Sequence[Any], info: DatasetInfo, split: str, index: int) -> dict[str, Any]:
    """Decodes one example of an ``encoded`` split to ``image`` and ``label``."""
    # Imported lazily: describing a set needs no decoder.
    from resnet_jax.data import decoding

    try:
        bytes_, label = source[index]
        image = decoding.decode(bytes_, info.image_shape[2] or 3)
        if None not in info.image_shape and image.shape != info.image_shape:
            raise ValueError(f"its image is {image.shape}, not {info.image_shape}")
        return {"image": image, "label": label}
    except Exception as error:
        # ArrayRecord and the decoders raise many types.
        from resnet_jax.data import integrity

        raise UserError(
            f"{integrity.shard_of(info, split, index)}: example {index} of split {split!r} is damaged ({error}). "
            f"Prepare {info.name} again, or replace the file."
        ) from error


def class_names(info: DatasetInfo) -> list[str]:
    """Class names by label; the numbers themselves if the set has no names."""
    if is_folder(info.name):
        from resnet_jax.data import folders

        return folders.names(info.directory)
    file = info.directory / "label.labels.txt"
    names = file.read_text().splitlines() if file.is_file() else []
    return names if len(names) == info.num_classes else [str(number) for number in range(info.num_classes)]
