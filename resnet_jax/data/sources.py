"""TFDS image-classification sets by name: found fast, read without TensorFlow, never downloaded while training."""

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

# TensorFlow Datasets' own default.
HOME_DATA_DIR = Path("~/tensorflow_datasets")


@dataclass(frozen=True, kw_only=True)
class DatasetInfo:
    """What a prepared set says of itself."""

    name: str
    version: str
    directory: Path
    """The prepared folder, ``DATA_DIR/NAME/VERSION``."""
    examples: dict[str, int]
    """Number of examples of each split."""
    image_shape: tuple[int | None, ...]
    """Height, width, channels; None where images differ."""
    num_classes: int

    def __hash__(self) -> int:
        return hash(self.directory)


@dataclass(frozen=True)
class Examples:
    """Images and labels of one split, in the set's own order."""

    images: UInt8[np.ndarray, "n h w c"]
    labels: Int32[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.labels)


def data_dirs(data_dir: str | None = None) -> list[Path]:
    """Where sets are looked for, in this order: the argument, ``$TFDS_DATA_DIR``, TFDS's own default in the home directory."""
    named = [data_dir, os.environ.get("TFDS_DATA_DIR")]
    return [Path(d).expanduser() for d in [*filter(None, named), str(HOME_DATA_DIR)]]


def prepared(data_dir: str | None = None) -> dict[str, Path]:
    """Returns name -> folder of every prepared set, the first directory of ``data_dirs`` and the newest version winning."""
    found: dict[str, Path] = {}
    for directory in reversed(data_dirs(data_dir)):
        found |= prepared_in(directory)
    return found


def prepared_in(directory: Path) -> dict[str, Path]:
    """Returns name -> folder of the newest version of every set prepared in one directory."""
    folders = [file.parent for file in directory.glob("*/*/dataset_info.json")]
    # A killed preparation leaves NAME/incomplete.XYZ_VERSION behind.
    versions = {folder: tuple(map(int, folder.name.split("."))) for folder in folders if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)}
    return {folder.parent.name: folder for folder in sorted(versions, key=versions.__getitem__)}


def is_folder(name: str) -> bool:
    """Whether a data set is named by the path of a folder, and not by its name in TFDS."""
    return os.sep in name or name.startswith((".", "~"))


def describe(name: str, data_dir: str | None = None) -> DatasetInfo:
    """Finds a prepared set by its files alone; TFDS itself is not imported. A path is that of a folder ``SPLIT/CLASS/IMAGE``.

    Raises:
      UserError: where it is not prepared, with the directories searched and the command that prepares it; in milliseconds.
    """
    if is_folder(name):
        from resnet_jax.data import folders

        return folders.describe(Path(name).expanduser())
    folder = prepared(data_dir).get(name)
    if folder is None:
        searched = ", ".join(map(str, data_dirs(data_dir)))
        raise UserError(f"data set {name!r} is not prepared; searched {searched}. Prepare it with: resnet-jax prepare {name}")
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        if info.get("fileFormat") != "array_record":
            raise UserError(
                f"{folder} holds {info.get('fileFormat')} files; random access needs array_record. "
                f"Prepare it in another directory: resnet-jax prepare {name} --data-dir DIR"
            )
        features = json.loads((folder / "features.json").read_text())["featuresDict"]["features"]
        if not {"image", "label"} <= features.keys():
            raise UserError(f"{name} has the features {sorted(features)}; image classification needs 'image' and 'label'")
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
        # Whatever a damaged description lacks: a file, a brace, a field, or the kind of value that belongs there.
        raise UserError(
            f"the description of {name} in {folder} is damaged ({error!r}); delete it and run: resnet-jax prepare {name}"
        ) from error


@functools.lru_cache(maxsize=4)
def read(info: DatasetInfo, split: str) -> Examples:
    """Decodes a whole split into memory: for sets whose images are small and of one size. Runs in one process share the arrays.

    Raises:
      UserError: for an unknown split, images of different sizes, or a record that cannot be read or decoded (with its index).
    """
    if None in info.image_shape:
        raise UserError(f"the images of {info.name} differ in size: it cannot live on the device as one array")
    source = encoded(info, split)
    count = info.examples[split]
    images = np.empty((count, *info.image_shape), np.uint8)  # pyright: ignore[reportArgumentType, reportCallIssue]
    labels = np.empty(count, np.int32)
    for index in range(count):
        found = example(source, info, split, index)
        images[index], labels[index] = found["image"], found["label"]
    images.flags.writeable = labels.flags.writeable = False
    return Examples(images, labels)


class Encoded(Sequence[tuple[bytes, int]]):
    """A split of a prepared set for random access: encoded images with their labels. Opened at the first use, in any process."""

    def __init__(self, info: DatasetInfo, split: str):
        self._info, self._split = info, split

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds  # 0.4 s, spared where a set is only looked for

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
        found = self.record(index)
        return found["image"], int(found["label"])

    def record(self, index: int) -> dict[str, Any]:
        """All that the set has of an example; the image encoded. Raises IndexError where there is none."""
        if not 0 <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        return self._records[index]


def encoded(info: DatasetInfo, split: str) -> Sequence[Any]:
    """A split for random access, by index: encoded images (bytes) with their labels (int).

    Raises:
      UserError: for an unknown split.
    """
    if split not in info.examples:
        raise UserError(f"{info.name} has no split {split!r}; it has {sorted(info.examples)}")
    if is_folder(info.name):
        from resnet_jax.data import folders

        return folders.opened(info, split)
    return Encoded(info, split)


def example(source: Sequence[Any], info: DatasetInfo, split: str, index: int) -> dict[str, Any]:
    """Decodes one example of an ``encoded`` split: ``image`` and ``label``.

    Raises:
      UserError: where it is damaged, with its file and index.
    """
    from resnet_jax.data import decoding  # imports Pillow, spared where a set is only looked for

    try:
        bytes_, label = source[index]
        image = decoding.decode(bytes_, info.image_shape[2] or 3)
        if None not in info.image_shape and image.shape != info.image_shape:
            raise ValueError(f"its image is {image.shape}, not {info.image_shape}")
        return {"image": image, "label": label}
    except Exception as error:
        # ArrayRecord, its data formats and the image decoders raise many types; all mean the same to the reader.
        from resnet_jax.data import integrity

        raise UserError(
            f"{integrity.shard_of(info, split, index)}: example {index} of split {split!r} is damaged ({error}): "
            f"prepare {info.name} again, or replace the file"
        ) from error


def class_names(info: DatasetInfo) -> list[str]:
    """Names of the classes, in the order of their numbers; numbers where a set has no names."""
    if is_folder(info.name):
        from resnet_jax.data import folders

        return folders.names(info.directory)
    file = info.directory / "label.labels.txt"
    names = file.read_text().splitlines() if file.is_file() else []
    return names if len(names) == info.num_classes else [str(number) for number in range(info.num_classes)]
