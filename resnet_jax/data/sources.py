"""TFDS image-classification sets by name: found fast, read without TensorFlow, never downloaded while training."""

import functools
import json
import os
import re
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


def describe(name: str, data_dir: str | None = None) -> DatasetInfo:
    """Finds a prepared set by its files alone; TFDS itself is not imported.

    Raises:
      UserError: where it is not prepared, with the directories searched and the command that prepares it; in milliseconds.
    """
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
    source = opened(info, split)
    count = info.examples[split]
    images = np.empty((count, *info.image_shape), np.uint8)  # pyright: ignore[reportArgumentType, reportCallIssue]
    labels = np.empty(count, np.int32)
    for index in range(count):
        found = example(source, info, split, index)
        images[index], labels[index] = found["image"], found["label"]
    images.flags.writeable = labels.flags.writeable = False
    return Examples(images, labels)


def opened(info: DatasetInfo, split: str) -> Any:
    """A split for random access, by index. Raises UserError for an unknown one."""
    if split not in info.examples:
        raise UserError(f"{info.name} has no split {split!r}; it has {sorted(info.examples)}")
    import tensorflow_datasets as tfds  # 0.4 s, spared where a set is only looked for

    from resnet_jax.data import digits  # noqa: F401  (registers the builder)

    return tfds.data_source(f"{info.name}:{info.version}", split=split, data_dir=info.directory.parents[1], download=False)


def example(source: Any, info: DatasetInfo, split: str, index: int) -> dict[str, Any]:
    """Decodes one example of an opened split: ``image`` and ``label``. Raises UserError, with its index, where it is damaged."""
    try:
        found = source[index]
        if None not in info.image_shape and found["image"].shape != info.image_shape:
            raise ValueError(f"its image is {found['image'].shape}, not {info.image_shape}")
        return {"image": found["image"], "label": int(found["label"])}
    except Exception as error:
        # ArrayRecord and the image decoders raise many types; all mean the same to the reader.
        raise UserError(
            f"{info.directory}, split {split!r}, example {index} is damaged ({error}): delete the folder and prepare the set again"
        ) from error
